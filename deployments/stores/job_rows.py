"""Video jobs and characters as rows, in SQL that SQLite and PostgreSQL both speak.

What was asked is one JSON document, which no query looks into; beside it are the columns that queries need and what
becomes of the job. A database of its own says how a statement runs (`?` for values) and how rows that another
transaction is just claiming are passed over.
"""

import abc
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from pydantic import TypeAdapter

from cluster.errors import InvalidRequest
from deployments.video.jobs import Character, Jobs, Order, VideoJob, VideoRequest

VERSION = 3  # of the layout; 1 had a column for each part of what was asked, 2 neither `broke` nor `way`
REQUEST = TypeAdapter(VideoRequest)
PARTS = {each.name for each in fields(VideoRequest)}
BECAME = tuple(each.name for each in fields(VideoJob) if each.name not in PARTS)
COLUMNS = (*BECAME, "request", "parent_id", "priority", "model")
LEASE = ("claimed_by", "lease_until_s")
WRITTEN = tuple(name for name in COLUMNS if name not in LEASE)
CHARACTER = tuple(each.name for each in fields(Character))

UNFINISHED = "status IN ('queued', 'in_progress')"
ALL = ", ".join(COLUMNS)
SELECT = f"SELECT {ALL} FROM video_jobs"
INSERT = f"INSERT INTO video_jobs ({ALL}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO NOTHING RETURNING id"
# A finished job stays as it ended; to write its end twice, as after a lost answer, is no fault.
UPDATE = (
    f"UPDATE video_jobs SET {', '.join(f'{name} = ?' for name in WRITTEN)} "
    f"WHERE id = ? AND coalesce(claimed_by, '') = ? AND ({UNFINISHED} OR status = ?) RETURNING id"
)
CLAIM = (
    "UPDATE video_jobs SET claimed_by = ?, lease_until_s = ?, status = 'queued', stage = 'queued' WHERE seq = "
    f"(SELECT seq FROM video_jobs WHERE {UNFINISHED} AND (claimed_by IS NULL OR lease_until_s <= ?){{of_models}} "
    f"ORDER BY priority DESC, seq LIMIT 1 {{skip_locked}}) RETURNING {ALL}"
)
RELEASE = (
    "UPDATE video_jobs SET claimed_by = NULL, lease_until_s = NULL, status = 'queued', stage = 'queued' "
    f"WHERE claimed_by = ? AND {UNFINISHED}"
)
EXPIRED = (
    f"{SELECT} AS job WHERE expires_at_s <= ? AND NOT ({UNFINISHED}) AND NOT EXISTS "
    f"(SELECT 1 FROM video_jobs AS child WHERE child.parent_id = job.id AND child.{UNFINISHED}) ORDER BY seq"
)
PUT_CHARACTER = (
    f"INSERT INTO video_characters ({', '.join(CHARACTER)}) SELECT {', '.join('?' * len(CHARACTER))} "
    "WHERE (SELECT count(*) FROM video_characters WHERE owner = ?) < ? ON CONFLICT DO NOTHING RETURNING id"
)


class JobRows(Jobs, abc.ABC):
    """Every call is one statement, which is done whole or not at all; `create` alone may need more."""

    skip_locked: ClassVar[str]  # ends the question for the next job

    @abc.abstractmethod
    def _run(self, statement: str, values: Sequence[object]) -> list[Any]:
        """Its rows, none where it returns none. Raises Unavailable."""

    def create(self, job: VideoJob) -> VideoJob:
        while True:
            if self._run(INSERT, row(job)):
                return job
            if earlier := self.asked(job.owner, job.idempotency_key):
                return earlier
            if taken := self._jobs("WHERE id = ?", (job.id,)):
                # Written by an attempt whose answer was lost, it may have been claimed since.
                if (taken[0].owner, taken[0].asked, taken[0].created_at_s) == (job.owner, job.asked, job.created_at_s):
                    return job
                raise ValueError(f"id: {job.id} is taken; a new one is allowed; draw again")
            # What was in the way has been deleted meanwhile.

    def update(self, job: VideoJob) -> bool:
        values = dict(zip(COLUMNS, row(job), strict=True))
        guard = (job.id, job.claimed_by or "", job.status)
        return bool(self._run(UPDATE, (*(values[name] for name in WRITTEN), *guard)))

    def get(self, owner: str, job_id: str) -> VideoJob | None:
        found = self._jobs("WHERE id = ? AND owner = ?", (job_id, owner))
        return found[0] if found else None

    def asked(self, owner: str, idempotency_key: str | None) -> VideoJob | None:
        found = self._jobs("WHERE owner = ? AND idempotency_key = ?", (owner, idempotency_key))
        return found[0] if found else None

    def page(
        self, owner: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> tuple[tuple[VideoJob, ...], bool]:
        side, edge = (">", 0) if order == "asc" else ("<", 2**63 - 1)
        if after is not None:
            place = self._run("SELECT seq FROM video_jobs WHERE id = ? AND owner = ?", (after, owner))
            if not place:
                raise InvalidRequest(
                    f"after: {after!r} is no video of this key; the id of one is allowed; list again without after",
                    param="after",
                )
            edge = place[0][0]
        found = self._jobs(f"WHERE owner = ? AND seq {side} ? ORDER BY seq {order} LIMIT ?", (owner, edge, limit + 1))
        return found[:limit], len(found) > limit

    def delete(self, owner: str, job_id: str) -> bool:
        return bool(self._run("DELETE FROM video_jobs WHERE id = ? AND owner = ? RETURNING id", (job_id, owner)))

    def unfinished(self) -> tuple[VideoJob, ...]:
        return self._jobs(f"WHERE {UNFINISHED} ORDER BY seq", ())

    def children(self, owner: str, job_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
        if not job_ids:
            return {}
        question = (
            "SELECT parent_id, id FROM video_jobs "
            f"WHERE owner = ? AND parent_id IN ({', '.join('?' * len(job_ids))}) ORDER BY seq"
        )
        found: dict[str, tuple[str, ...]] = {}
        for parent, child in self._run(question, (owner, *job_ids)):
            found[parent] = (*found.get(parent, ()), child)
        return found

    def counts(self) -> dict[str, int]:
        return dict(self._run("SELECT status, count(*) FROM video_jobs GROUP BY status", ()))

    def claim(
        self, gateway: str, now_s: float, lease_s: float, models: Collection[str] | None = None
    ) -> VideoJob | None:
        of_models = "" if models is None else f" AND model IN ({', '.join('?' * len(models))})"
        statement = CLAIM.format(skip_locked=self.skip_locked, of_models=of_models)
        rows = self._run(statement, (gateway, now_s + lease_s, now_s, *(models or ())))
        return job_of(rows[0]) if rows else None

    def renew(self, gateway: str, job_ids: Collection[str], now_s: float, lease_s: float) -> frozenset[str]:
        if not job_ids:
            return frozenset()
        statement = (
            f"UPDATE video_jobs SET lease_until_s = ? WHERE claimed_by = ? AND {UNFINISHED} "
            f"AND id IN ({', '.join('?' * len(job_ids))}) RETURNING id"
        )
        return frozenset(row[0] for row in self._run(statement, (now_s + lease_s, gateway, *job_ids)))

    def release(self, gateway: str, job_id: str | None = None) -> None:
        one = () if job_id is None else (job_id,)
        self._run(f"{RELEASE}{' AND id = ?' * len(one)} RETURNING id", (gateway, *one))

    def expired(self, now_s: float) -> tuple[VideoJob, ...]:
        return tuple(map(job_of, self._run(EXPIRED, (now_s,))))

    def present(self, ids: Collection[str]) -> frozenset[str]:
        marks = ", ".join("?" * len(ids))
        tables = (f"SELECT id FROM {table} WHERE id IN ({marks})" for table in ("video_jobs", "video_characters"))
        return frozenset(row[0] for row in self._run(" UNION ALL ".join(tables), (*ids, *ids)))

    def put_character(self, character: Character, most: int) -> bool:
        values = tuple(getattr(character, name) for name in CHARACTER)
        if self._run(PUT_CHARACTER, (*values, character.owner, most)):
            return True
        there = self._run("SELECT owner FROM video_characters WHERE id = ?", (character.id,))
        if there and self.character(character.owner, character.id) != character:
            raise ValueError(f"id: {character.id} is taken; a new one is allowed; draw again")
        return bool(there)  # written by an attempt whose answer was lost

    def character(self, owner: str, character_id: str) -> Character | None:
        found = self._characters("WHERE owner = ? AND id = ?", (owner, character_id))
        return found[0] if found else None

    def characters(self, owner: str) -> tuple[Character, ...]:
        return self._characters("WHERE owner = ? ORDER BY seq", (owner,))

    def delete_character(self, owner: str, character_id: str) -> bool:
        statement = "DELETE FROM video_characters WHERE owner = ? AND id = ? RETURNING id"
        return bool(self._run(statement, (owner, character_id)))

    def _jobs(self, where: str, values: Sequence[object]) -> tuple[VideoJob, ...]:
        return tuple(map(job_of, self._run(f"{SELECT} {where}", values)))

    def _characters(self, where: str, values: Sequence[object]) -> tuple[Character, ...]:
        rows = self._run(f"SELECT {', '.join(CHARACTER)} FROM video_characters {where}", values)
        return tuple(Character(**dict(zip(CHARACTER, row, strict=True))) for row in rows)


def row(job: VideoJob) -> tuple[object, ...]:
    became = {name: getattr(job, name) for name in BECAME}
    became["signed"] = None if job.signed is None else int(job.signed)
    return (*became.values(), REQUEST.dump_json(job.asked).decode(), job.parent_id, job.priority, job.model)


def job_of(row: Sequence[Any]) -> VideoJob:
    became = dict(zip(BECAME, row, strict=False))
    became["signed"] = None if became["signed"] is None else bool(became["signed"])
    asked = REQUEST.validate_json(row[len(BECAME)])
    return VideoJob(**{name: getattr(asked, name) for name in PARTS}, **became)
