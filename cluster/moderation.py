"""What may be asked: a list of words, or an endpoint that judges, in the shape of OpenAI's /v1/moderations. Pure.

Words are found as whole words, after what hides them to eyes alone is taken away: case, width and other forms of a
letter (NFKC, casefold), invisible characters and marks laid over letters. Letters that only look alike, spelling with
digits and spaces between letters are not seen through; nor is a word within one, as where a script has no spaces.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from cluster.engines import Closed

Verdict = Literal["allow", "flag", "refuse", "unchecked"]  # unchecked: nobody could say, and it may pass
Phrase = Annotated[str, Field(min_length=1, max_length=256, pattern=r"[^\W_]")]
_INVISIBLE = re.compile(
    "[\u00ad\u0300-\u036f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_WORD = re.compile(r"[^\W_]+")


class Words(Closed):
    """A request with one of `refuse` is refused; with one of `flag` it is served, and says so."""

    refuse: tuple[Phrase, ...] = ()
    flag: tuple[Phrase, ...] = ()


class Endpoint(Closed):
    """What it flags is refused; where all categories that it names are in `flag`, it is flagged alone.

    `when_away`: what becomes of requests while it does not answer within `timeout_s`. `key_file`: holds its API key.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/]+/.*")]
    model: str | None = None
    key_file: str | None = None
    timeout_s: PositiveFloat = 2.0
    when_away: Literal["allow", "refuse"]
    flag: tuple[str, ...] = ()

    def verdict(self, flagged: bool, categories: Iterable[str]) -> Verdict:
        """`categories`: those that it found."""
        found = set(categories)
        return "allow" if not flagged else "flag" if found and found <= set(self.flag) else "refuse"


class Moderation(Closed):
    words: Words | None = None
    endpoint: Endpoint | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.words is None) == (self.endpoint is None):
            raise ValueError("words or endpoint, one of the two, is needed; leave the other out")
        return self


@dataclass(frozen=True, slots=True)
class _List:
    """`several`: phrases of more words, between spaces, by the first of them."""

    single: frozenset[str]
    several: Mapping[str, tuple[str, ...]]

    def has(self, words: Sequence[str], different: Set[str]) -> bool:
        if not self.single.isdisjoint(different):
            return True
        begun = different & self.several.keys()
        text = f" {' '.join(words)} " if begun else ""
        return any(phrase in text for first in begun for phrase in self.several[first])


class Lexicon:
    """Words, ready to be looked for. A text costs by its length, hardly by how many words are looked for."""

    def __init__(self, words: Words) -> None:
        self._refuse, self._flag = _listed(words.refuse), _listed(words.flag)

    def verdict(self, texts: Iterable[str]) -> Verdict:
        flagged = False
        for text in texts:
            words = _words(text)
            different = set(words)
            if self._refuse.has(words, different):
                return "refuse"
            flagged = flagged or self._flag.has(words, different)
        return "flag" if flagged else "allow"


def _words(text: str) -> list[str]:
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))
    return _WORD.findall(text.casefold())


def _listed(phrases: Iterable[str]) -> _List:
    split = [_words(phrase) for phrase in phrases]
    several: dict[str, tuple[str, ...]] = {}
    for words in split:
        if len(words) > 1:
            several[words[0]] = (*several.get(words[0], ()), f" {' '.join(words)} ")
    return _List(single=frozenset(words[0] for words in split if len(words) == 1), several=several)
