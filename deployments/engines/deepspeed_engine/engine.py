"""The DeepSpeed engine: for a model that its GPUs cannot hold, built for throughput alone.

A step costs a pass of all weights over the bus, whoever takes part. So one thread gathers what waits into the largest
batch that the cache holds, and runs it to its end; what arrives meanwhile waits for the next. Streams get their tokens
as they come. Time limits run on the event loop: they hold even where the thread stands still.
"""

import asyncio
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from cluster.errors import EngineFailed, InvalidRequest, Overloaded
from cluster.family import Tier
from cluster.inputs import Input
from cluster.request import Generation, Message, Piece, Tool
from deployments.engines.delivery import Delivery
from deployments.engines.engine import Emit, EngineReport
from deployments.engines.limits import most_tokens
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.torch_engine.streams import Stream, Vocabulary

if TYPE_CHECKING:
    from deployments.engines.deepspeed_engine.batch import Batch
    from deployments.engines.deepspeed_engine.zero import OffloadedModel

STOP_S = 30.0  # for the step that runs when told to stop
_NEWEST = 0.1  # its weight in the means of the report
log = logging.getLogger(__name__)


class DeepSpeedEngine:
    label = ""
    embeds = 0
    structured = False
    tools = False
    forced_tools = False
    inputs: tuple[Input, ...] = ()

    # Set while starting, by the thread, before `start` returns.
    _model: "OffloadedModel"
    _tokenizer: ChatTokenizer
    _vocabulary: Vocabulary

    def __init__(self, tier: Tier, device: Literal["cpu", "cuda"]) -> None:
        assert tier.offload is not None
        self.context_tokens = tier.context_tokens
        self._tier, self._offload, self._device = tier, tier.offload, device
        self._waiting: dict[str, Stream] = {}
        self._running: dict[str, Stream] = {}
        self._open: dict[str, tuple[Stream, asyncio.TimerHandle]] = {}  # the loop's own, with their time limits
        self._held_tokens = self._steps = 0
        self._step_ms = self._prefill_us = self._batch_s = 0.0
        self._step_began_s = math.inf  # of the step that runs, and of what lies between steps
        self._wake = threading.Condition()
        self._stopping = False
        self._failure: EngineFailed | None = None
        self._thread = threading.Thread(target=self._run, name="deepspeed-engine", daemon=True)

    async def start(self) -> None:
        """Raises EngineFailed once start_timeout_s are over, whatever the thread waits for."""
        self._delivery = Delivery(self.cancel)
        self._thread.start()
        limit_s = self._tier.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._delivery.started
        except TimeoutError:
            self._stopping = True
            self._failure = EngineFailed(
                f"engine: it has not started in {limit_s:g} s; start_timeout_s allows no more; raise it, or look for "
                "what it waits for"
            )
            raise self._failure from None

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        return self._tokenizer.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.encode_text(text)

    def submit(self, generation: Generation, emit: Emit) -> None:
        key = generation.request_id
        stream = Stream(
            generation=generation,
            max_tokens=most_tokens(
                generation,
                vocab=self._model.vocab,
                context_tokens=self.context_tokens,
                kv_tokens=self._tier.kv_tokens,
            ),
            emit=functools.partial(self._emit, key, emit),
            submitted_s=time.perf_counter(),
        )
        if (over := stream.resume(self._vocabulary)) is not None:
            emit(over)
            return
        if key in self._open:
            raise InvalidRequest(f"request_id: {key!r} is running; a new one is allowed; choose another")
        with self._wake:
            self.check()
            taken = len(self._waiting) + len(self._running)
            if taken >= self._tier.max_running + self._tier.max_waiting:
                raise Overloaded(
                    f"engine: {taken} requests run or wait; at most {self._tier.max_running} and "
                    f"{self._tier.max_waiting} are allowed; send it again later",
                    retry_after_s=self._retry_s,
                )
            self._waiting[key] = stream
            self._wake.notify()
        limit = asyncio.get_running_loop().call_later(self._offload.limit_s, self._expire, stream)
        self._open[key] = stream, limit

    def cancel(self, request_id: str) -> None:
        if request_id not in self._open:
            return
        stream, limit = self._open.pop(request_id)
        limit.cancel()
        stream.open = False
        with self._wake:
            self._waiting.pop(request_id, None)
            self._running.pop(request_id, None)

    def report(self) -> EngineReport:
        with self._wake:
            return EngineReport(
                running=len(self._running),
                waiting=len(self._waiting),
                waiting_prefill_tokens=sum(_known(stream) for stream in self._waiting.values()),
                kv_used_tokens=self._held_tokens,
                kv_capacity_tokens=self._tier.kv_tokens,
                steps=self._steps,
                step_ms=self._step_ms,
                prefill_us_per_token=self._prefill_us,
            )

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if time.perf_counter() - self._step_began_s > self._offload.limit_s:
            raise EngineFailed(
                f"engine: one step for more than {self._offload.limit_s:g} s; offload.limit_s allows no more; its "
                "replica is being replaced; send the request again"
            )

    async def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_S)

    @property
    def _retry_s(self) -> float:
        return min(60.0, max(1.0, self._batch_s))

    def _expire(self, stream: Stream) -> None:
        """On the loop: its time is over, in the queue or in a batch, even if that stands still."""
        limit_s = self._offload.limit_s
        error = (
            InvalidRequest(
                f"engine: the answer had {stream.tokens} tokens when {limit_s:g} s were over; offload.limit_s allows "
                "no more; lower max_tokens, or ask another model",
                param="max_tokens",
                code="time_limit_exceeded",
            )
            if stream.began_s
            else Overloaded(
                f"engine: no place in a batch for {limit_s:g} s; offload.limit_s allows no more; send it again later",
                retry_after_s=self._retry_s,
            )
        )
        stream.emit(Piece(error=error))

    def _emit(self, key: str, emit: Emit, piece: Piece) -> None:
        """On the loop: whose last piece it is needs no place and no time any more."""
        if piece.last:
            self.cancel(key)
        emit(piece)

    def _run(self) -> None:
        """The thread's life: load, tell that it is ready, run batches until told to stop or something fails."""
        failure = EngineFailed("engine: it was stopped; a running one is needed; send the request again")
        try:
            self._load()
            self._delivery.settle()
            with torch.inference_mode():
                while (streams := self._gathered()) is not None:
                    if streams:  # else all of them have left meanwhile
                        self._run_batch(streams)
        except Exception as error:
            log.exception("the DeepSpeed engine cannot go on")
            # What went wrong is for the log alone: clients cannot mend it.
            failure = EngineFailed("engine: it failed; its replica is being replaced; send the request again")
            self._delivery.settle(error)
        self._give_up(failure)
        if hasattr(self, "_model"):
            self._model.close()

    def _load(self) -> None:
        os.environ["DS_ACCELERATOR"] = self._device  # read once, by the import
        from deployments.engines.deepspeed_engine.zero import OffloadedModel

        if self._device == "cpu":
            torch.set_num_threads(1)
        self._tokenizer = ChatTokenizer(Path(self._tier.checkpoint), self.context_tokens)
        self._model = OffloadedModel(self._tier, self._device)
        self._vocabulary = Vocabulary(bytes_of=self._tokenizer.bytes_of, end_tokens=self._model.end_tokens)

    def _gathered(self) -> list[Stream] | None:
        """The streams of the next batch, which run from now on. None where the engine is to stop."""
        tier = self._tier
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._waiting)
            # Whoever comes just too late would wait for a whole batch.
            self._wake.wait_for(
                lambda: self._stopping or len(self._waiting) >= tier.max_running, self._offload.gather_s
            )
            if self._stopping:
                return None
            chosen = fitting(tuple(self._waiting.values()), tier.max_running, tier.kv_tokens)
            for stream in chosen:
                key = stream.generation.request_id
                self._running[key] = self._waiting.pop(key)
        return chosen

    def _run_batch(self, streams: list[Stream]) -> None:
        from deployments.engines.deepspeed_engine.batch import Batch

        self._step_began_s = began_s = time.perf_counter()
        for stream in streams:
            stream.began_s = began_s
        batch = Batch(self._model, [stream.generation for stream in streams], self._tier.prefill_chunk_tokens)
        while streams and not self._stopping:
            unread = batch.unread_tokens
            self._step_began_s = step_began_s = time.perf_counter()
            rows = batch.step()
            self._measure(batch, unread, time.perf_counter() - step_began_s)
            pieces = [(s, s.take(row, self._vocabulary)) for s, row in zip(streams, rows or (), strict=False)]
            ended = [piece.last for _, piece in pieces] or [False] * len(streams)
            self._forget([s for s, over in zip(streams, ended, strict=True) if over])
            self._delivery.send(pieces)
            kept = [row for row, s in enumerate(streams) if s.open and not ended[row]]
            if len(kept) < len(streams):
                batch.keep(kept)
                streams = [streams[row] for row in kept]
        self._step_began_s = math.inf
        self._held_tokens = 0
        self._batch_s = _mean(self._batch_s, time.perf_counter() - began_s)

    def _measure(self, batch: "Batch", unread_tokens: int, wall_s: float) -> None:
        self._steps += 1
        self._held_tokens = batch.held_tokens
        read_tokens = unread_tokens - batch.unread_tokens
        if read_tokens:
            self._prefill_us = _mean(self._prefill_us, wall_s * 1e6 / read_tokens)
        else:
            self._step_ms = _mean(self._step_ms, wall_s * 1e3)

    def _forget(self, streams: Sequence[Stream]) -> None:
        with self._wake:
            for stream in streams:
                self._running.pop(stream.generation.request_id, None)

    def _give_up(self, failure: EngineFailed) -> None:
        """The thread's last act: every stream learns that no more will come, and no other is accepted."""
        with self._wake:
            self._failure = self._failure or failure
            left = [(s, Piece(error=self._failure)) for s in (*self._running.values(), *self._waiting.values())]
            self._running.clear()
            self._waiting.clear()
        self._delivery.send(left)


def fitting(waiting: Sequence[Stream], rows: int, kv_tokens: int) -> list[Stream]:
    """Who goes next: by priority, then by age, as many as the cache holds when all rows are as long as the longest.

    The first always goes, so that none waits for ever.
    """
    chosen: list[Stream] = []
    prompt = answer = 0
    for stream in sorted(waiting, key=lambda stream: -stream.generation.priority):
        longer = max(prompt, _known(stream)), max(answer, stream.max_tokens - len(stream.generation.given))
        if len(chosen) < rows and (not chosen or (len(chosen) + 1) * sum(longer) <= kv_tokens):
            chosen.append(stream)
            prompt, answer = longer
    return chosen


def _known(stream: Stream) -> int:
    return len(stream.generation.prompt) + len(stream.generation.given)


def _mean(old: float, new: float) -> float:
    return old + _NEWEST * (new - old) if old else new
