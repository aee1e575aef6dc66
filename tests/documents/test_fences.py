"""Documents say of each command why no test types it, if none does; and name no command of ours that is not there."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents.fences import DOCUMENTS, LANGUAGES, MARK, REASON, ROOT, SHELL, Fence, fences, of

from cluster.family import BUNDLED, Family
from deployments.cli import _parser

FENCES = fences()
INLINE = [
    (str(document.relative_to(ROOT)), " ".join(inline.split()))
    for document in DOCUMENTS
    for inline in re.findall(r"(?<!`)`(moray [^`]+)`(?!`)", document.read_text("utf-8"))
]


def of_ours(command: str) -> list[list[str]]:
    """The words behind each `moray` that a command runs."""
    parts = re.split(r"\s(?:\||&&|;|>)\s|\s&$|\s--\s", command.replace("\\\n", " "), flags=re.MULTILINE)
    found = [shlex.split(part, comments=True) for part in parts if re.match(r"\s*(\S+/)?moray\s", part)]
    return [words[1:] for words in found]


OURS = [(f.place, words) for f in FENCES if f.language in SHELL for c in f.commands() for words in of_ours(c)]


@pytest.mark.parametrize("fence", FENCES, ids=lambda fence: fence.place)
def test_a_fence_names_its_language(fence: Fence) -> None:
    allowed = ", ".join(LANGUAGES)
    assert fence.language in LANGUAGES, f"{fence.place}: {fence.language!r}; {allowed}; text is for drawings"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_fence_is_found(document: Path) -> None:
    text = document.read_text("utf-8")
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(list(of(document, text)))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_mark_stands_above_a_fence(document: Path) -> None:
    text = document.read_text("utf-8")
    written = [line for line in text.splitlines() if re.match(r"\s*<!-- (?:not run|exits)", line)]
    assert [line for line in written if not MARK.match(line)] == []
    assert len(written) == sum(len(fence.marks) for fence in of(document, text))


@pytest.mark.parametrize("fence", [f for f in FENCES if f.marks], ids=lambda fence: fence.place)
def test_a_mark_is_about_a_command_and_its_reason_is_one_of_few(fence: Fence) -> None:
    for mark in fence.marks:
        assert any(mark.of in command for command in fence.commands()), f"{fence.place}: nothing is {mark.of!r}"
        if mark.status is None:
            reason = REASON.fullmatch(mark.reason or "")
            assert reason, f"{fence.place}: {mark.reason!r}; {REASON.pattern}"
            assert reason["file"] is None or (ROOT / reason["file"]).is_file(), f"{fence.place}: no {reason['file']}"


def test_documents_have_commands() -> None:
    assert len(OURS) > 10
    assert len(INLINE) > 10


@pytest.mark.parametrize(("place", "words"), OURS, ids=[f"{place}: {' '.join(words)}" for place, words in OURS])
def test_a_command_of_ours_is_understood(place: str, words: list[str]) -> None:
    _parser().parse_args(words)


@pytest.mark.parametrize(("document", "form"), INLINE, ids=[f"{document}: {form}" for document, form in INLINE])
def test_a_form_that_is_spoken_of_names_commands_and_options_that_are_there(document: str, form: str) -> None:
    parser: Any = _parser()
    known = set(parser._option_string_actions)
    for word in re.findall(r"[\w-]+", form.split("`")[0])[1:]:
        of_it = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if of_it and word in of_it[0].choices:
            parser = of_it[0].choices[word]
            known |= set(parser._option_string_actions)
    assert parser.prog != "moray", f"{document}: {form}"
    assert set(re.findall(r"(?<=[\s\[|])--[\w-]+", form)) <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_targets_and_programs_that_are_spoken_of_are_there(document: Path) -> None:
    text = document.read_text("utf-8")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]+)", text, re.MULTILINE)) <= targets
    modules = [module.replace(".", "/") + ".py" for module in re.findall(r"\bpython -m ([\w.]*\w)", text)]
    programs = re.findall(r"\bpython ([\w/]+\.py)", text)
    assert [file for file in modules + programs if not (ROOT / file).is_file()] == []


def test_the_lines_that_the_readme_adds_to_a_family_are_understood() -> None:
    (shown,) = (fence for fence in FENCES if (fence.document, fence.language) == ("README.md", "yaml"))
    raw = yaml.safe_load((BUNDLED / "laptop.yaml").read_text("utf-8"))
    added = yaml.safe_load(shown.text)
    tiers = {name: raw["tiers"][name] | tier for name, tier in added["tiers"].items()}
    family = Family.model_validate(raw | added | {"tiers": raw["tiers"] | tiers})
    assert family.tiers["pro"].engine == "vllm"
