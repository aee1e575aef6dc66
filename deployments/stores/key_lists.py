"""Which keys and projects are listed, as conditions in SQL that SQLite and PostgreSQL both speak.

No index serves a search: 100,000 keys are looked through in a fraction of a second, and only operators ask.
"""

import re
from dataclasses import dataclass
from typing import Literal

Order = Literal["asc", "desc"]
State = Literal["valid", "expired", "revoked"]
SEARCHED = "lower(id || ' ' || name || ' ' || org || '/' || project || ' ' || coalesce(plan, ''))"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysAsked:
    """Which keys of a list, by the time they were made: `limit` of them behind the one `after`.

    `search`: part of an id, a name, organisation/project or a plan, in any case. `state`: as of `now_s`.
    """

    after: str | None = None
    limit: int = 20
    order: Order = "desc"
    search: str = ""
    org: str | None = None
    project: str | None = None
    state: State | None = None
    now_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """`valid`: how many of its `keys` are not revoked."""

    org: str
    project: str
    keys: int
    valid: int


def where_of(asked: KeysAsked) -> tuple[str, list[object]]:
    """A condition and its values."""
    where = "revoked_s IS NOT NULL" if asked.state == "revoked" else "1 = 1"
    parts: list[tuple[str, object | None]] = [
        (f"{SEARCHED} LIKE lower(CAST(? AS text)) ESCAPE '!'", part(asked.search) if asked.search else None),
        ("org = ?", asked.org),
        ("project = ?", asked.project),
    ]
    if asked.state in ("valid", "expired"):
        side = "expires_s <= ?" if asked.state == "expired" else "(expires_s IS NULL OR expires_s > ?)"
        parts.append((f"revoked_s IS NULL AND {side}", asked.now_s))
    asked_for = [(words, value) for words, value in parts if value is not None]
    return " AND ".join((where, *(words for words, _ in asked_for))), [value for _, value in asked_for]


def part(search: str) -> str:
    """A pattern of LIKE, escaped by !, in which nothing of it means more than itself."""
    return "%" + re.sub("[!%_]", r"!\g<0>", search) + "%"
