"""Batches: rows that one gateway at a time holds under a lease, whose lines run on what is left over.

A line runs as its caller's own request would, after every plan's. cluster.spare says how many may begin and when a tier
that sleeps is woken. The answer of a line is a row as soon as it is there, so a batch that another gateway takes up
runs none of them twice. Files of answers are made from those rows at the end.
"""

import asyncio
import contextlib
import functools
import json
import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from secrets import randbits, token_hex
from typing import Any

from cluster.errors import (
    ConfigurationError,
    InvalidRequest,
    MorayError,
    NotFound,
    Overloaded,
    RateLimited,
    Unavailable,
)
from cluster.spare import TierLoad, due, spare
from deployments.gateway.api_files import ApiFiles
from deployments.gateway.batch_files import answer_id, files_made, line_id, read, text_of
from deployments.gateway.batch_lines import Fault, Line, answered, body_of, refused
from deployments.gateway.chat import Given
from deployments.gateway.chat_request import parse_chat
from deployments.gateway.completion_request import parse_completion
from deployments.gateway.embeddings_wire import parse_embeddings
from deployments.gateway.objects_wire import KeyOf
from deployments.gateway.rescue import Courses
from deployments.gateway.response_runs import scope_of
from deployments.gateway.response_told import heard
from deployments.gateway.responses import Responses
from deployments.stores.keys import KeyRecord
from deployments.stores.objects import Object, Objects
from deployments.stores.threads import in_thread

log = logging.getLogger("ray.serve")
PARSED = {"/v1/completions": parse_completion, "/v1/embeddings": parse_embeddings}  # other lines are chats
TURN_S = 1.0  # between looks at what is left over
LEASE_S = 10.0
MOST_BATCHES = 16  # that a gateway holds at once
MOST_ATTEMPTS = 3  # of a line that ends by a fault of ours


class Batch:
    """One that this gateway holds. `lines`: those that wait, by the tier that they ask, None where no tier does."""

    def __init__(self, row: Object, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.lines: defaultdict[str | None, list[Line]] = defaultdict(list)
        self.flying: dict[asyncio.Task[bool], str | None] = {}
        self.attempts: defaultdict[int, int] = defaultdict(int)
        self.running = False  # whether lines may begin
        self.pause_until_s = 0.0  # a limit of its caller's plan; Unix
        self.over = asyncio.Event()

    @property
    def told(self) -> dict[str, Any]:
        """As the API shows it."""
        batch: dict[str, Any] = json.loads(self.row.document)["batch"]
        return batch

    @property
    def left(self) -> int:
        return sum(map(len, self.lines.values())) + len(self.flying)

    def stop(self) -> None:
        """No line begins any more, and those that run are cancelled."""
        self.running = False
        for task in self.flying:
            task.cancel()


class BatchRuns:
    """On one event loop. `now_s`: Unix seconds."""

    def __init__(
        self,
        courses: Courses,
        responses: Responses,
        files: ApiFiles,
        objects: Objects,
        key_of: KeyOf,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._courses, self._responses, self._files, self._objects = courses, responses, files, objects
        self._key_of, self._now_s = key_of, now_s
        self._gateway = token_hex(6)
        self._mine: dict[str, Batch] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Never ends, whatever fails."""
        while True:
            try:
                await self._turn()
            except Exception as failure:  # without this loop no batch would go on
                log.error("batches: %s", failure, exc_info=not isinstance(failure, Unavailable))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TURN_S):
                    await self._wake.wait()
            self._wake.clear()

    async def _turn(self) -> None:
        await self._renew()
        while len(self._mine) < MOST_BATCHES:
            row = await in_thread(self._objects.claim, "batch", self._gateway, self._now_s(), LEASE_S)
            if row is None:
                break
            if row.id in self._mine:  # its lease ran out while the store did not answer, and nobody took it
                self._mine[row.id].row = row
            else:
                task = self.tasks[row.id] = asyncio.create_task(self._see_to(row))
                task.add_done_callback(functools.partial(self._ended, row.id))
                await asyncio.sleep(0)
        self._begin()

    async def _renew(self) -> None:
        """Hears of what was cancelled, here or elsewhere, and of what is another gateway's now."""
        mine = dict(self._mine)
        held = await in_thread(self._objects.renew, self._gateway, tuple(mine), self._now_s(), LEASE_S)
        for name, batch in mine.items():
            if name not in held:
                self.tasks[name].cancel()
                continue
            now = await in_thread(self._objects.get, batch.row.owner, "batch", name)
            if now is not None and json.loads(now.document)["batch"]["status"] == "cancelling":
                batch.row = now
                batch.stop()
                batch.over.set()
            elif batch.running and self._now_s() >= batch.told["expires_at"]:
                batch.stop()
                batch.over.set()

    def _begin(self) -> None:
        """Lines of all batches in turn, as many as their tiers have left."""
        room: dict[str | None, int] = {}
        begun = True
        while begun:
            begun = False
            for batch in self._mine.values():
                ready = batch.running and self._now_s() >= batch.pause_until_s
                begun = (ready and self._next(batch, room)) or begun

    def _next(self, batch: Batch, room: dict[str | None, int]) -> bool:
        for tier, lines in batch.lines.items():
            if lines and self._room(batch, tier, room) > 0:
                if tier is not None:
                    room[tier] -= 1
                waits = tier is None or not self._due(batch, tier, self._load(batch, tier))
                task = asyncio.create_task(self._line(batch, tier, lines.pop(), spare=waits))
                batch.flying[task] = tier
                task.add_done_callback(functools.partial(self._landed, batch))
                return True
        return False

    def _room(self, batch: Batch, tier: str | None, room: dict[str | None, int]) -> int:
        """One, where a tier sleeps and must wake."""
        if tier is None:
            return 1  # nobody serves it, which is told at once
        load = self._load(batch, tier)
        if tier not in room:
            room[tier] = spare(load)
        if not load.replicas and tier not in batch.flying.values() and self._due(batch, tier, load):
            return 1
        return room[tier]

    def _load(self, batch: Batch, tier: str) -> TierLoad:
        return self._courses.desk.load(tier, 1 + batch.lines[tier][-1].length // 4)

    def _due(self, batch: Batch, tier: str, load: TierLoad) -> bool:
        return due(load, batch.left, batch.told["expires_at"] - self._now_s())

    def _landed(self, batch: Batch, task: asyncio.Task[bool]) -> None:
        del batch.flying[task]
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            log.error("batch %s: %s", batch.row.id, failure, exc_info=failure)
        if batch.left == 0:
            batch.over.set()
        if not task.cancelled() and failure is None and task.result():
            self._wake.set()

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        batch = self._mine.pop(name, None)
        del self.tasks[name]
        if batch is not None:
            batch.stop()
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("batch %s: %s", name, failure, exc_info=not isinstance(failure, Unavailable))

    async def _see_to(self, row: Object) -> None:
        """From where it stands to its end. What the store does not take comes back when the lease ends."""
        with tempfile.TemporaryDirectory(prefix="moray-batch-") as made:
            batch = self._mine[row.id] = Batch(row, Path(made))
            if batch.told["status"] in ("validating", "in_progress"):
                faults = await self._read(batch)
                if faults:
                    await self._fail(batch, faults)
                    return
                batch.running = True
                self._wake.set()
                if batch.left:
                    await batch.over.wait()
                if batch.flying:
                    await asyncio.wait(batch.flying)
            await self._finish(batch)

    async def _read(self, batch: Batch) -> list[Fault]:
        """What is wrong with its lines; else those that are not answered yet wait."""
        told = batch.told
        try:
            source = await self._files.file(batch.row.owner, told["input_file_id"])
            await self._files.copy(source, batch.folder / "in")
        except NotFound as error:
            return [Fault(code=error.code, message=f"input_file_id: {error.message}", param="input_file_id")]
        most = self._courses.family.gateway.max_body_bytes
        lines, faults = await asyncio.to_thread(read, batch.folder / "in", told["endpoint"], most)
        if faults:
            return faults
        done = await in_thread(self._objects.children, batch.row.id)
        for line in reversed(lines):  # taken from the end
            if line_id(batch.row, line) not in done:
                batch.lines[self._tier(line.model)].append(line)
        if told["status"] == "validating":
            counts = {"total": len(lines), "completed": 0, "failed": 0}
            models = {line.model for line in lines}
            model = models.pop() if len(models) == 1 else None
            began = {"in_progress_at": int(self._now_s()), "request_counts": counts, "model": model}
            await self._write(batch, told | began | {"status": "in_progress"})
        return []

    def _tier(self, model: str) -> str | None:
        family = self._courses.family
        auto = family.auto
        return family.tier_of(model) or (auto.default if auto and model in auto.names else None)

    async def _line(self, batch: Batch, tier: str | None, line: Line, *, spare: bool) -> bool:
        """Whether it was answered; else it waits again, for the next turn."""
        request_id, name = f"{batch.row.id}-{line.number}", answer_id(batch.row, line)
        try:
            record = await self._key_of(batch.row.owner, batch.told["endpoint"])
            text = await asyncio.to_thread(text_of, batch.folder / "in", line)
            body = await self._asked(record, batch.told["endpoint"], body_of(text), request_id, spare)
            label, told = "completed", answered(name, line.custom_id, request_id, body)
        except Exception as failure:
            error = _told(failure, request_id)
            batch.attempts[line.number] += not isinstance(error, Overloaded | RateLimited | Unavailable)
            waits = isinstance(error, Overloaded) or error.status >= 500 or self._paused(batch, error)
            if waits and batch.attempts[line.number] < MOST_ATTEMPTS:
                batch.lines[tier].append(line)
                return False
            label, told = "failed", refused(name, line.custom_id, request_id, error)
        except asyncio.CancelledError:
            batch.lines[tier].append(line)
            raise
        row = Object(
            id=line_id(batch.row, line),
            kind="line",
            owner=batch.row.owner,
            parent=batch.row.id,
            label=label,
            document=told,
        )
        await self._stored(row)
        return True

    def _paused(self, batch: Batch, error: MorayError) -> bool:
        """Whether a limit of the caller's plan lets the line run before the batch expires: none begins until then."""
        if not isinstance(error, RateLimited) or error.retry_after_s is None:
            return False
        free_s = self._now_s() + error.retry_after_s
        if free_s >= batch.told["expires_at"]:
            return False
        batch.pause_until_s = max(batch.pause_until_s, free_s)
        return True

    async def _stored(self, row: Object) -> None:
        """However long the store does not answer: the line has run, and is not to run again."""
        while True:
            try:
                return await in_thread(self._objects.create, row)
            except Unavailable as failure:
                log.warning("batch %s: %s", row.parent, failure)
                await asyncio.sleep(TURN_S)

    async def _asked(self, record: KeyRecord, endpoint: str, body: bytes, request_id: str, spare: bool) -> Any:
        scope = scope_of(request_id, endpoint, {})
        if endpoint == "/v1/responses":
            return await self._responses.answered(record, body, scope, spare=spare)
        parse = PARSED.get(endpoint, parse_chat)
        chat = parse(body, request_id, int(self._now_s()), randbits(63))
        if chat.stream:
            raise InvalidRequest("stream: a line is answered whole; leave it out", param="stream")
        given = Given(record=record, chat=chat, last=True, spare=spare)
        return json.loads(await heard(self._responses.chat, scope, given))

    async def _finish(self, batch: Batch) -> None:
        told, now_s = batch.told, int(self._now_s())
        if told["status"] == "in_progress":
            end = "expired" if batch.left else "completed"
            await self._write(batch, told | {"status": "finalizing", "finalizing_at": now_s}, end=end)
        end = "cancelled" if told["status"] == "cancelling" else json.loads(batch.row.document)["end"]
        if not (batch.folder / "in").exists():
            faults = await self._read(batch)  # what had no turn is told, too
            if faults:
                batch.lines.clear()
        waiting = [line for lines in batch.lines.values() for line in lines]
        made = await files_made(self._files, self._objects, batch.row, batch.folder, waiting, f"batch_{end}")
        counts, usage, there = made
        changed = {"status": end, f"{end}_at": int(self._now_s()), "request_counts": counts, "usage": usage}
        await self._write(batch, batch.told | changed | there, ends=True)
        await in_thread(self._objects.clear, batch.row.id)

    async def _fail(self, batch: Batch, faults: list[Fault]) -> None:
        errors = {"object": "list", "data": [asdict(fault) for fault in faults]}
        failed = {"status": "failed", "failed_at": int(self._now_s()), "errors": errors}
        await self._write(batch, batch.told | failed, ends=True)

    async def _write(self, batch: Batch, told: dict[str, Any], *, end: str | None = None, ends: bool = False) -> None:
        """Where another has written, as one who cancels, the batch comes back when its lease ends."""
        if batch.told["status"] == "cancelling" and not ends:
            raise asyncio.CancelledError
        document = json.loads(batch.row.document) | {"batch": told}
        document |= {} if end is None else {"end": end}
        changed = replace(batch.row, document=json.dumps(document), open=not ends)
        now = await in_thread(self._objects.update, changed, free_at_s=0.0 if ends else None)
        if now is None:
            raise asyncio.CancelledError
        batch.row = now


def _told(failure: Exception, request_id: str) -> MorayError:
    """A fault of ours loses no line, and says nothing of the operator's files."""
    if isinstance(failure, MorayError) and not isinstance(failure, ConfigurationError):
        return failure
    log.error("request_id=%s", request_id, exc_info=failure)
    return MorayError("gateway: internal error; give the request id to the operator")
