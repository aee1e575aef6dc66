"""What is wrong somewhere, in the house's form."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`where`: the part. `mend`: what to do, as a command or an edit where one does it."""

    where: str
    found: str
    expected: str
    mend: str

    def __str__(self) -> str:
        return f"{self.where}: {self.found}; expected {self.expected}; {self.mend}"


def nearest(given: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known word that a misspelt one probably means; None where none is as like it, of 1 for the same."""
    return next(iter(get_close_matches(given, list(known), n=1, cutoff=likeness)), None)
