"""What the documents fence: commands, programs, files; and the marks above a fence, in comments that are not rendered.

tests/integration/test_manual.py types every command of which its document does not say why not:

    <!-- not run: needs a GPU -->                                      of a whole fence
    <!-- not run (--compare): takes 4 minutes; run by tests/a.py -->   of its commands that hold these words
    <!-- exits with 1 (moray doctor) -->                               run, and that is its exit status

A reason is one of NEEDS, or the test that runs it instead, or both; time alone is none.
"""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("cluster", "autoscaling", "monitoring", "deployments", "k8s", "tests")
DOCUMENTS = (  # README.md last: it begins a server of its own
    *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.md"))),
    ROOT / "README.md",
)
SHELL = ("bash", "sh")
LANGUAGES = (*SHELL, "python", "yaml", "json", "text", "mermaid")

NEEDS = ("a GPU", "a Kubernetes cluster", "docker", "the network", "guidellm", "aiperf", "vllm")
NEED = rf"needs (?:{'|'.join(NEEDS)})"
REASON = re.compile(
    rf"{NEED}|runs these tests|(?:(?:{NEED}|takes [\d.]+ minutes?); )?run by (?P<file>tests/[\w/]+\.py)"
)
MARK = re.compile(r"^ *<!-- (?:not run|exits with (?P<status>\d+))(?: \((?P<of>[^)]+)\))?(?:: (?P<reason>.+))? -->$")
FENCE = re.compile(
    r"(?P<above>(?:^ *<!--[^\n]*-->\n)*)^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """status: that of commands which are run; None of those which are not, for that reason."""

    of: str
    reason: str | None
    status: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """text: without its indentation; marks: what stands above it."""

    document: str
    line: int
    language: str
    text: str
    marks: tuple[Mark, ...]

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"

    def expected(self, command: str) -> int | None:
        """The exit status that the document states of one of its commands; None where it says why it is not run."""
        return next((mark.status for mark in self.marks if mark.of in command), 0)

    def commands(self) -> list[str]:
        """Of a fence in shell: each with all of its lines. Fails where one has no end."""
        if self.language not in SHELL:
            return [self.text]
        found, lines = [], ""
        for line in self.text.splitlines(keepends=True):
            lines += line
            if _whole(lines):
                found.append(lines.strip())
                lines = ""
        assert not lines, f"{self.place}: no whole command: {lines!r}"
        return [command for command in found if command and not command.startswith("#")]


def fences() -> list[Fence]:
    return [fence for document in DOCUMENTS for fence in of(document.relative_to(ROOT), document.read_text("utf-8"))]


def of(document: Path, text: str) -> Iterator[Fence]:
    for found in FENCE.finditer(text):
        marks = [MARK.match(line) for line in found["above"].splitlines()]
        yield Fence(
            document=str(document),
            line=text.count("\n", 0, found.start("text")) + 1,
            language=found["language"],
            text=textwrap.dedent(found["text"]),
            marks=tuple(
                Mark(of=mark["of"] or "", reason=mark["reason"], status=int(mark["status"]) if mark["status"] else None)
                for mark in marks
                if mark
            ),
        )


def _whole(lines: str) -> bool:
    """Whether a shell needs no further line; of a here-document it only warns."""
    if lines.endswith("\\\n"):
        return False
    return not subprocess.run(["bash", "-n", "-c", lines], capture_output=True, check=False).stderr
