"""API keys as rows, and the log of who changed them, in SQL that SQLite and PostgreSQL both speak.

A key is `sk-moray-` and 40 random characters, 240 bits of which only the SHA-256 is kept. A fast hash suits: nobody
guesses so many random bits. Look-up is by the hash, so its time says nothing about near misses: an attacker does not
choose the hash that is compared. Times are Unix seconds, given by the caller.
"""

import abc
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

from cluster.access import USUAL, Grant, KeyRecord, checked_scopes
from cluster.errors import Conflict, InvalidRequest, NotFound
from deployments.stores.key_lists import KeysAsked, Project, part, where_of

PREFIX = "sk-moray-"
_SECRET = re.compile(rf"{PREFIX}[\w-]*")
MOST_S = 100 * 366 * 86_400.0  # from now on, of what ends
COLUMNS = ("id", "name", "plan", "created_s", "revoked_s", "org", "project", "scopes", "expires_s")
ALL = ", ".join(COLUMNS)
INSERT = f"INSERT INTO keys (sha256, {ALL}) VALUES ({', '.join('?' * (len(COLUMNS) + 1))}) ON CONFLICT DO NOTHING"
FIND = (
    f"SELECT {ALL}, previous_until_s, sha256 FROM keys WHERE (sha256 = ? OR previous_sha256 = ?) AND revoked_s IS NULL"
)
# To rotate twice, as after a lost answer, must not forget the secret that has its grace.
ROTATE = (
    "UPDATE keys SET previous_sha256 = sha256, previous_until_s = ?, sha256 = ? "
    "WHERE id = ? AND revoked_s IS NULL AND sha256 <> ?"
)
# What keeps rows as they were written, whoever asks.
SQLITE_KEEP = "\n".join(
    f"CREATE TRIGGER IF NOT EXISTS {{table}}_{verb} BEFORE {verb} ON {{table}} "
    "BEGIN SELECT RAISE(ABORT, '{table} is only added to'); END;"
    for verb in ("UPDATE", "DELETE")
)
POSTGRES_KEEP = "\n".join(
    f"CREATE RULE {{table}}_{verb} AS ON {verb} TO {{table}} DO INSTEAD NOTHING;" for verb in ("UPDATE", "DELETE")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One act upon keys, or one that was refused. `actor`: the id of a key, or who typed it; never a secret.

    `from_`: the address it came from. `subject`: what it was done to. `outcome`: ok, or the code of the refusal.
    """

    at_s: float
    actor: str
    from_: str
    act: str
    subject: str
    outcome: str


MOST_ACTS = 100_000  # told at once
MOST_NAMES = 1000  # of one statement
AUDIT = tuple(each.name for each in fields(Act))


class KeyRows(abc.ABC):
    """Any thread may call. `which` is an id, the beginning of one that fits one key only, or a leaked key itself."""

    @abc.abstractmethod
    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Its rows, none where it returns none."""

    @abc.abstractmethod
    def close(self) -> None: ...

    def create(
        self, name: str, now_s: float, plan: str | None = None, grant: Grant | None = None
    ) -> tuple[str, KeyRecord]:
        """A new key, shown this once, and its record. Raises InvalidRequest."""
        grant = grant or Grant()
        for field, given in (("name", name), ("org", grant.org), ("project", grant.project)):
            _check_printable(field, given)
        _check_end(grant.expires_s, now_s)
        key = PREFIX + secrets.token_urlsafe(30)
        record = KeyRecord(
            id=f"key_{secrets.token_hex(6)}",
            name=name,
            plan=plan,
            created_s=now_s,
            revoked_s=None,
            org=grant.org,
            project=grant.project,
            scopes=checked_scopes(grant.scopes),
            expires_s=grant.expires_s,
        )
        self._run(INSERT, (sha256(key), *_row(record)))
        return key, record

    def list(self) -> tuple[KeyRecord, ...]:
        """All keys, revoked ones too, oldest first."""
        rows = self._run(f"SELECT {ALL} FROM keys ORDER BY created_s, id", ())
        return tuple(map(record_of, rows))

    def page(self, asked: KeysAsked) -> tuple[tuple[KeyRecord, ...], bool]:
        """Keys, and whether more follow. Raises InvalidRequest where `after` is no key."""
        where, values = where_of(asked)
        if asked.after is not None:
            last = self.get(asked.after)
            if last is None:
                raise InvalidRequest(
                    f"after: {unsecret(asked.after)[:64]!r} is no key; the id of one is allowed; leave it out",
                    param="after",
                )
            where += f" AND (created_s, id) {'>' if asked.order == 'asc' else '<'} (?, ?)"
            values += [last.created_s, last.id]
        sorted_by = f"created_s {asked.order}, id {asked.order}"
        rows = self._run(
            f"SELECT {ALL} FROM keys WHERE {where} ORDER BY {sorted_by} LIMIT ?", (*values, asked.limit + 1)
        )
        return tuple(map(record_of, rows[: asked.limit])), len(rows) > asked.limit

    def projects(
        self, search: str = "", after: tuple[str, str] | None = None, limit: int = 20
    ) -> tuple[tuple[Project, ...], bool]:
        """By their names, and whether more follow. `search`: part of organisation/project."""
        where, values = "lower(org || '/' || project) LIKE lower(CAST(? AS text)) ESCAPE '!'", [part(search)]
        if after is not None:
            where, values = f"{where} AND (org, project) > (?, ?)", [*values, *after]
        rows = self._run(
            "SELECT org, project, count(*), sum(CASE WHEN revoked_s IS NULL THEN 1 ELSE 0 END) FROM keys "
            f"WHERE {where} GROUP BY org, project ORDER BY org, project LIMIT ?",
            (*values, limit + 1),
        )
        found = (Project(org=org, project=name, keys=keys, valid=valid) for org, name, keys, valid in rows[:limit])
        return tuple(found), len(rows) > limit

    def plans(self, org: str, project: str) -> tuple[str | None, ...]:
        """Those that keys of a project have, revoked keys too; None: of keys without a plan."""
        rows = self._run("SELECT DISTINCT plan FROM keys WHERE org = ? AND project = ? ORDER BY plan", (org, project))
        return tuple(plan for (plan,) in rows)

    def names(self, key_ids: Sequence[str]) -> dict[str, str]:
        """Of those that are there, by id."""
        found: dict[str, str] = {}
        for first in range(0, len(key_ids), MOST_NAMES):
            some = key_ids[first : first + MOST_NAMES]
            found |= self._run(f"SELECT id, name FROM keys WHERE id IN ({', '.join('?' * len(some))})", some)
        return found

    def get(self, key_id: str) -> KeyRecord | None:
        """A key by its whole id, revoked or not."""
        rows = self._run(f"SELECT {ALL} FROM keys WHERE id = ?", (key_id.replace("\0", "\ufffd"),))
        return record_of(rows[0]) if rows else None

    def revoke(self, which: str, now_s: float) -> KeyRecord:
        """Refused from now on, with all its secrets. Twice is once. Raises NotFound, InvalidRequest."""
        key_id = self._meant(which)
        self._run("UPDATE keys SET revoked_s = coalesce(revoked_s, ?) WHERE id = ?", (now_s, key_id))
        return self._known(key_id)

    def rotate(self, which: str, now_s: float, grace_s: float = 0.0) -> tuple[str, KeyRecord]:
        """A new secret, shown this once; that of before is valid for `grace_s` more, one before that no longer.

        Raises NotFound, InvalidRequest, and Conflict for a revoked key.
        """
        if not 0 <= grace_s <= MOST_S:  # nor NaN, which stores keep as no end at all
            raise InvalidRequest(f"grace_s: {grace_s:g}; 0 to {MOST_S:.0f} are allowed; mend it", param="grace_s")
        key_id = self._meant(which)
        key = PREFIX + secrets.token_urlsafe(30)
        self._run(ROTATE, (now_s + grace_s, sha256(key), key_id, sha256(key)))
        record = self.find(key)
        if record is None:
            raise Conflict(f"keys: {key_id} is revoked; a key that is valid is allowed; create a new one")
        return key, record

    def find(self, secret: str) -> KeyRecord | None:
        """The record of a key that is known and not revoked; of a rotated secret, until the end of its grace."""
        digest = sha256(secret)
        rows = self._run(FIND, (digest, digest))
        return found(rows[0], digest) if rows else None

    def log(self, act: Act) -> None:
        """Add an act; none is ever changed."""
        marks = ", ".join("?" * len(AUDIT))
        self._run(f"INSERT INTO key_acts ({', '.join(AUDIT)}) VALUES ({marks})", astuple(act))

    def acts(self, limit: int = 100) -> tuple[Act, ...]:
        """The last ones, oldest first. Raises InvalidRequest."""
        if not 1 <= limit <= MOST_ACTS:
            raise InvalidRequest(f"last: {limit}; 1 to {MOST_ACTS} are allowed; mend it", param="last")
        return tuple(act for _, act in self.acts_before(None, limit))

    def acts_before(
        self, before: int | None, limit: int, only: Sequence[str] = (), refused: bool = False
    ) -> tuple[tuple[int, Act], ...]:
        """The last `limit` before that number, None: of all; oldest first, with their numbers.

        `only`: of these acts; `refused`: of those that did not come to be.
        """
        where, values = "seq < ?", [2**63 - 1 if before is None else before, *only]
        where += f" AND act IN ({', '.join('?' * len(only))})" if only else ""
        where += " AND outcome <> 'ok'" if refused else ""
        rows = self._run(
            f"SELECT seq, {', '.join(AUDIT)} FROM key_acts WHERE {where} ORDER BY seq DESC LIMIT ?", (*values, limit)
        )
        return tuple((row[0], Act(**dict(zip(AUDIT, row[1:], strict=True)))) for row in reversed(rows))

    def _known(self, key_id: str) -> KeyRecord:
        record = self.get(key_id)
        assert record is not None, "keys are never deleted"
        return record

    def _meant(self, which: str) -> str:
        rows = self._run(
            "SELECT id FROM keys WHERE sha256 = ? OR previous_sha256 = ? OR substr(id, 1, ?) = ? ORDER BY id LIMIT 3",
            (sha256(which), sha256(which), len(which), which.replace("\0", "")),
        )
        shown = repr(unsecret(which)[:64])
        if not rows or not which:
            raise NotFound(f"keys: {shown} is unknown; ids as listed are allowed; list the keys", code="key_not_found")
        if len(rows) > 1:
            raise InvalidRequest(f"keys: {shown} begins {rows[0][0]}, {rows[1][0]}; one key is meant; give more of it")
        return str(rows[0][0])


def unsecret(said: str) -> str:
    """What may be shown and kept of what somebody called a key: a secret may be, or be in, what they say."""
    return said if PREFIX not in said else f"{PREFIX}..."


def masked(said: str) -> str:
    """With no secret in it, for what is shown or kept of anything that a caller says."""
    return said if PREFIX not in said else _SECRET.sub(f"{PREFIX}...", said)


def sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def record_of(row: Sequence[Any]) -> KeyRecord:
    """Of a row that begins with COLUMNS."""
    given = dict(zip(COLUMNS, row, strict=False))
    scopes = given.pop("scopes")
    return KeyRecord(**given, scopes=USUAL if scopes is None else tuple(scopes.split()))


def found(row: Sequence[Any], digest: bytes) -> KeyRecord:
    """Of a row of FIND: a secret that was rotated out ends with its grace, or with the key."""
    record = record_of(row)
    until_s, current = row[len(COLUMNS) :]
    if bytes(current) == digest:
        return record
    return replace(record, expires_s=until_s if record.expires_s is None else min(until_s, record.expires_s))


def _row(record: KeyRecord) -> tuple[object, ...]:
    given = {name: getattr(record, name) for name in COLUMNS}
    return tuple((given | {"scopes": " ".join(record.scopes)}).values())


def _check_end(expires_s: float | None, now_s: float) -> None:
    if expires_s is None or now_s < expires_s <= now_s + MOST_S:
        return
    when = "past already" if expires_s <= now_s else "later than in a hundred years"
    raise InvalidRequest(f"expires: it is {when}; a time to come is allowed; give one", param="expires")


def _check_printable(field: str, given: str) -> None:
    if not given.isprintable() or not given.strip() or len(given) > 256:
        shown = repr(given[:64])
        raise InvalidRequest(f"{field}: given {shown}; printable text is allowed; say who uses the key", param=field)
