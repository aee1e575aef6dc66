"""The documents, typed by a stranger: fenced commands in their order, but for those marked as documents.fences says."""

import re
from pathlib import Path

import pytest
from documents.fences import DOCUMENTS, ROOT, SHELL, Fence, of
from integration.conftest import Stage
from integration.terminal import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a document has many commands

RUN = (*SHELL, "python")
FILE = re.compile(r"# (?P<name>[\w.-]+\.(?:yaml|json))\b")  # the first line of a file that a document shows


def read(document: Path) -> list[Fence]:
    return list(of(document.relative_to(ROOT), document.read_text("utf-8")))


TYPED = [document for document in DOCUMENTS if any(fence.language in RUN for fence in read(document))]


def run(terminal: Terminal, fence: Fence, subtests: pytest.Subtests) -> None:
    if shown := FILE.match(fence.text):
        terminal.save(shown["name"], fence.text)
    if fence.language not in RUN:
        return
    for command in fence.commands():
        status = fence.expected(command)
        if status is None:
            continue
        with subtests.test(f"{fence.place}: {command.splitlines()[0]}"):
            if fence.language == "python":
                terminal.program(command)
            else:
                terminal.type(command, status)


@pytest.mark.parametrize("document", TYPED, ids=lambda document: str(document.relative_to(ROOT)))
def test_what_a_document_says_to_type_works(document: Path, stage: Stage, subtests: pytest.Subtests) -> None:
    with Terminal(stage) as terminal:
        for fence in read(document):
            run(terminal, fence, subtests)
