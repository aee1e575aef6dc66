"""Every `moray` command in a document is one that the command line understands. What it does is tested where it is."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.cli import _parser

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *(
        f
        for root in ("cluster", "autoscaling", "monitoring", "deployments", "k8s", "tests")
        for f in sorted((ROOT / root).rglob("*.md"))
    ),
]
SHELLS = ("", "bash", "console", "sh")


def blocks(text: str) -> Iterator[str]:
    """What is fenced as shell."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language in SHELLS:
            yield block.replace("\\\n", " ")


def commands() -> Iterator[tuple[str, list[str]]]:
    """(document, words) of each line that runs moray, with lines that go on behind a backslash joined."""
    for document in DOCUMENTS:
        for block in blocks(document.read_text(encoding="utf-8")):
            for line in (line for line in block.splitlines() if "moray " in line):
                for part in re.split(r"\s(?:\||&&|;|>)\s|\s&$", line):
                    words = shlex.split(part, comments=True)
                    if words and Path(words[0]).name == "moray":
                        yield str(document.relative_to(ROOT)), words[1:]


FOUND = list(commands())


def test_documents_have_commands() -> None:
    assert len(FOUND) > 10


@pytest.mark.parametrize(("document", "words"), FOUND, ids=[f"{d}: {' '.join(w)}" for d, w in FOUND])
def test_a_command_of_a_document_is_understood(document: str, words: list[str]) -> None:
    _parser().parse_args(words)
