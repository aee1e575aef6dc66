"""What `--help` says: of every command what it does and how it is typed, of every option what it takes and leaves."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.cli import _parser


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def leaf(parser: argparse.ArgumentParser) -> bool:
    return not any(isinstance(action, argparse._SubParsersAction) and action.required for action in parser._actions)


ALL = list(parsers(_parser()))
OPTIONS = [
    (parser, action)
    for parser in ALL
    for action in parser._actions
    if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
]
NUMBERS = [(parser, action) for parser, action in OPTIONS if action.type not in (None, Path)]
TELLS_EXIT_CODES = (
    *("moray plan", "moray doctor", "moray simulate", "moray load", "moray render k8s", "moray up"),
    "moray video verify",
)


def named(given: argparse.ArgumentParser | argparse.Action) -> str:
    return given.prog if isinstance(given, argparse.ArgumentParser) else (given.option_strings or [given.dest])[0]


def said(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Its help, as it is shown."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


@pytest.mark.parametrize("parser", ALL, ids=named)
def test_a_command_says_what_it_does(parser: argparse.ArgumentParser) -> None:
    assert parser.description
    assert len(parser.description) > 40
    shown = parser.format_help()
    assert "None" not in shown
    assert "==SUPPRESS==" not in shown


@pytest.mark.parametrize("parser", [each for each in ALL if leaf(each)], ids=named)
def test_a_command_shows_an_example_of_itself_that_is_understood(parser: argparse.ArgumentParser) -> None:
    examples = re.findall(r"^  moray (.*)$", parser.epilog or "", re.MULTILINE)
    assert examples
    for example in examples:
        _parser().parse_args(shlex.split(example))
    verbs = parser.prog.removeprefix("moray ")
    assert any(re.sub(r"--family \S+ ", "", example).startswith(verbs) for example in examples)


@pytest.mark.parametrize(("parser", "action"), OPTIONS, ids=named)
def test_an_option_says_what_it_is_for_and_what_holds_without_it(
    parser: argparse.ArgumentParser, action: argparse.Action
) -> None:
    help_ = said(parser, action)
    assert help_
    if action.option_strings and action.nargs != 0:  # flags are off without being given
        assert "default: " in help_
    if action.default not in (None, False, argparse.SUPPRESS, "") and action.default != []:
        shown = f"{action.default:g}" if isinstance(action.default, float) else str(action.default)
        assert shown in help_.partition("default: ")[2]


@pytest.mark.parametrize(("parser", "action"), NUMBERS, ids=named)
def test_a_number_says_what_it_counts_and_which_are_allowed(
    parser: argparse.ArgumentParser, action: argparse.Action
) -> None:
    assert re.search(r"\d+ or more|above 0|\d to \d|a whole number", said(parser, action))


def test_exit_codes_are_told() -> None:
    text = ALL[0].format_help()
    assert all(re.search(rf"^  {code}\s+\w", text, re.MULTILINE) for code in (0, 1, 2, 130))
    telling = {parser.prog for parser in ALL if "Exit code" in (parser.epilog or "")}
    assert telling == set(TELLS_EXIT_CODES)
