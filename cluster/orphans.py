"""Which files belong to nobody any more: those of a creation that failed, or put while their job was deleted.

Files are put before their row is written, by clocks that differ. So what has no row is an orphan only once its newest
file is older than GRACE_S, which is far more than a creation takes and clocks differ by. Rows are to be read after the
files were listed. Keys that are of no kind are somebody else's.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

GRACE_S = 86_400.0
Kind = Literal["video", "storyboard", "character", "file"]
_HEX = "[0-9a-f]{24}"
# Of a kind the keys, each the id of a row, where it lies, and what may be below it.
_KEYS: Mapping[Kind, re.Pattern[str]] = MappingProxyType(
    {
        "video": re.compile(rf"(?P<prefix>(?P<id>video_{_HEX}))/.+"),
        "storyboard": re.compile(rf"(?P<prefix>(?P<id>storyboard_{_HEX}))/.+"),
        "character": re.compile(rf"(?P<prefix>characters/(?P<id>char_{_HEX}))"),
        "file": re.compile(rf"(?P<prefix>(?P<id>file-{_HEX}(-output|-error)?))"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A file by its key. `written_s`: Unix seconds of the store's clock."""

    key: str
    written_s: float


def old(files: Iterable[Stored], kind: Kind, now_s: float) -> dict[str, str]:
    """By id of a row the prefixes of those that are orphans if they have none."""
    newest: dict[str, tuple[str, float]] = {}
    for file in files:
        if found := _KEYS[kind].fullmatch(file.key):
            _, written_s = newest.get(found["id"], ("", file.written_s))
            newest[found["id"]] = found["prefix"], max(file.written_s, written_s)
    return {name: prefix for name, (prefix, written_s) in sorted(newest.items()) if now_s - written_s > GRACE_S}


def orphans(candidates: Mapping[str, str], rows: Collection[str]) -> tuple[str, ...]:
    """The prefixes of those without a row. `rows`: ids."""
    return tuple(prefix for name, prefix in candidates.items() if name not in rows)
