"""The torch engine: one thread steps the model, the event loop submits and receives.

The thread plans, has every rank compute the plan, turns tokens into pieces, and hands all pieces of a step to the loop
in one call. It sleeps on a condition while there is nothing to do. The scheduler is shared under that condition's
lock, which the thread does not hold while the model computes.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from cluster.errors import EngineFailed, InvalidRequest, MorayError, Overloaded
from cluster.inputs import Input
from cluster.request import Generation, Message, Piece, Sampling, Tool
from deployments.engines.delivery import Delivery
from deployments.engines.engine import Emit, EngineReport
from deployments.engines.limits import most_tokens
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.torch_engine.grammar import Grammars
from deployments.engines.torch_engine.kv import BLOCK_TOKENS, blocks_for
from deployments.engines.torch_engine.meter import Meter
from deployments.engines.torch_engine.parallel import HEARTBEAT_S, Leader, leave_group
from deployments.engines.torch_engine.rank import Arrival, Order
from deployments.engines.torch_engine.schedule import Limits, Plan, Scheduler
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress
from deployments.engines.torch_engine.streams import Stream, Vocabulary

log = logging.getLogger(__name__)
COMPILE_S = 5.0  # what the limits of a grammar allow takes less, on any machine that is not stuck


class TorchEngine:
    label = ""
    structured = True
    forced_tools = True
    inputs: tuple[Input, ...] = ()
    tools = True  # of checkpoints that write calls as deployments.engines.calls says

    # Set while starting, by the thread, before `start` returns.
    _leader: Leader
    _scheduler: Scheduler
    _tokenizer: ChatTokenizer
    _vocabulary: Vocabulary
    _grammars: Grammars

    def __init__(
        self, spec: EngineSpec, group: GroupAddress | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """group: where rank 0 listens for the others; None where there are none. now_s: the clock of expert loads."""
        self.context_tokens = spec.context_tokens
        self._spec, self._group, self._now_s = spec, group, now_s
        self._meter = Meter()
        self._streams: dict[str, Stream] = {}
        self._at: dict[int, Stream] = {}  # by place; the thread's own
        self._wake = threading.Condition()
        self._stopping = False
        self._failure: EngineFailed | None = None
        self._compilers = ThreadPoolExecutor(2, "grammar")
        self._compiling = set[asyncio.Task[None]]()  # the loop itself holds them weakly
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)

    @property
    def embeds(self) -> int:
        return self._leader.config.hidden

    async def start(self) -> None:
        self._delivery = Delivery(self.cancel)
        self._thread.start()
        await self._delivery.started

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        return self._tokenizer.encode(messages, tools)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.encode_text(text)

    def submit(self, generation: Generation, emit: Emit) -> None:
        stream = Stream(
            generation=generation,
            max_tokens=most_tokens(
                generation,
                vocab=self._leader.config.vocab,
                context_tokens=self.context_tokens,
                kv_tokens=self._scheduler.limits.rank_tokens,
            ),
            emit=emit,
            submitted_s=time.perf_counter(),
        )
        key = generation.request_id
        if (over := stream.resume(self._vocabulary)) is not None:
            emit(over)
            return
        with self._wake:
            self.check()
            if key in self._streams:
                raise InvalidRequest(f"request_id: {key!r} is running; a new one is allowed; choose another")
            taken = len(self._streams)
            if taken >= self._spec.max_running + self._spec.max_waiting:
                raise Overloaded(
                    f"engine: {taken} requests run or wait; at most {self._spec.max_running} and "
                    f"{self._spec.max_waiting} are allowed; send it again later",
                    # Running streams end one after the other, and each end moves the queue by one.
                    retry_after_s=min(60.0, max(1.0, self._meter.stream_s / max(1, self._scheduler.running))),
                )
            self._streams[key] = stream
            if not generation.held:
                self._queue(stream)
                return
        task = asyncio.get_running_loop().create_task(self._hold(stream))
        self._compiling.add(task)
        task.add_done_callback(self._compiling.discard)

    def _queue(self, stream: Stream) -> None:
        """Under the lock."""
        generation, given = stream.generation, len(stream.generation.given)
        self._scheduler.submit(generation.request_id, len(generation.prompt) + given, stream.max_tokens - given)
        self._wake.notify()

    async def _hold(self, stream: Stream) -> None:
        """Queues it once its grammar is compiled, beside the steps."""
        begin = self._grammars.begin
        compiled = asyncio.get_running_loop().run_in_executor(self._compilers, begin, stream.generation)
        error: MorayError
        try:
            stream.held = await asyncio.wait_for(compiled, COMPILE_S)
        except InvalidRequest as refusal:
            error = refusal
        except TimeoutError:
            param = "response_format" if stream.generation.sampling.json_schema else "tools"
            told = f"{param}: the schema took more than {COMPILE_S:g} s to read; simplify the schema"
            error = InvalidRequest(told, param=param)
        except Exception:
            log.exception("%s: its grammar cannot be made", stream.generation.request_id)
            error = EngineFailed("engine: the schema could not be read; send the request again, or simplify it")
        with self._wake:
            if self._streams.get(stream.generation.request_id) is not stream:
                return  # cancelled, or given up
            if stream.held is not None:
                self._queue(stream)
                return
            self._forget(stream)
        self._delivery.send([(stream, Piece(error=error))])

    def cancel(self, request_id: str) -> None:
        with self._wake:
            stream = self._streams.pop(request_id, None)
            self._scheduler.remove(request_id)
        if stream is not None:
            stream.open = False

    def report(self) -> EngineReport:
        with self._wake:
            return EngineReport(
                running=self._scheduler.running,
                waiting=len(self._streams) - self._scheduler.running,
                waiting_prefill_tokens=self._scheduler.waiting_prefill_tokens,
                kv_used_tokens=self._scheduler.held_tokens,
                kv_capacity_tokens=self._spec.ranks * self._scheduler.limits.rank_tokens,
                steps=self._meter.steps,
                step_ms=self._meter.step_ms,
                prefill_us_per_token=self._meter.prefill_us_per_token,
                experts=self._leader.experts,
            )

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._compilers.shutdown(wait=False)
        # A start that was given up may wait for lost ranks for minutes yet; nobody waits for it.
        if self._thread.is_alive() and not self._delivery.started.cancelled():
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The thread's life: load, tell that it is ready, step until told to stop or something fails."""
        if self._spec.device == "cpu":
            torch.set_num_threads(1)
        failure = EngineFailed("engine: it was stopped; a running one is needed; send the request again")
        try:
            with torch.inference_mode():
                self._load()
                self._delivery.settle()
                self._serve()
        except Exception as error:
            log.exception("the torch engine cannot go on")
            # What went wrong is for the log alone: clients cannot mend it.
            failure = EngineFailed("engine: it failed; its replica is being replaced; send the request again")
            self._delivery.settle(error)
        leave_group()
        self._give_up(failure)

    def _load(self) -> None:
        spec = self._spec
        # Refuses a cache beyond the memory, before its blocks are listed.
        self._leader = Leader(spec, self._group, self._now_s)
        self._scheduler = Scheduler(
            Limits(
                ranks=spec.ranks,
                blocks=blocks_for(spec.kv_tokens),
                block_tokens=BLOCK_TOKENS,
                max_running=spec.max_running,
                chunk_tokens=spec.prefill_chunk_tokens,
            )
        )
        self._tokenizer = ChatTokenizer(Path(spec.checkpoint), spec.context_tokens)
        self._vocabulary = Vocabulary(bytes_of=self._tokenizer.bytes_of, end_tokens=self._leader.config.end_tokens)
        self._grammars = Grammars(self._tokenizer.bytes_of, self._leader.config.end_tokens, self._leader.config.vocab)
        # A first step pages the weights in and lets the libraries choose their kernels.
        first = Generation(request_id="", prompt=(0,) * 8, sampling=Sampling(max_tokens=2))
        self._streams[""] = Stream(generation=first, max_tokens=2, emit=_ignore, submitted_s=0.0)
        self._scheduler.submit("", len(first.prompt), 2)
        while self._scheduler.busy:
            self._step()
        self._meter = Meter()
        self._leader.count_anew()

    def _serve(self) -> None:
        rest_s = HEARTBEAT_S if self._spec.ranks > 1 else None
        while True:
            with self._wake:
                woken = self._wake.wait_for(
                    lambda: self._stopping or self._scheduler.busy, 0 if self._leader.moving else rest_s
                )
            if self._stopping:
                return self._leader.dismiss()
            if woken:
                self._step()
            else:
                self._leader.idle()

    def _step(self) -> None:
        with self._wake:
            plan = self._scheduler.plan()
            arrivals = [self._streams[admission.key] for admission in plan.admissions]
        if not plan.computes:
            return  # the last stream was cancelled in between
        began_s = time.perf_counter()
        for admission, stream in zip(plan.admissions, arrivals, strict=True):
            self._at[admission.place] = stream
            stream.began_s = began_s
        rows = self._compute(plan, arrivals)
        now_s = time.perf_counter()
        self._meter.step(plan, now_s - began_s)
        pieces = [(s, s.take(row, self._vocabulary)) for place, row in rows if (s := self._at[place]).open]
        ended = [stream for stream, piece in pieces if piece.last]
        with self._wake:
            for stream in ended:
                self._forget(stream)
                self._meter.stream(now_s - stream.began_s)
            last = not self._scheduler.busy
        if last:
            self._leader.idle()  # a report behind the last piece counts all that was computed
        self._delivery.send(pieces)

    def _compute(self, plan: Plan, arrivals: Sequence[Stream]) -> Iterator[tuple[int, list[float]]]:
        held = {place: held for place in plan.yields if (held := self._at[place].held) is not None}
        masks = partial(self._grammars.masks, tuple(held.values()))
        told = tuple(_arrival(stream.generation) for stream in arrivals)
        return self._leader.step(Order(plan=plan, arrivals=told, held=tuple(held)), masks)

    def _forget(self, stream: Stream) -> None:
        """Its place is free, unless it was cancelled and its id serves another stream by now."""
        key = stream.generation.request_id
        if self._streams.get(key) is stream:
            del self._streams[key]
            self._scheduler.remove(key)

    def _give_up(self, failure: EngineFailed) -> None:
        """The thread's last act: every stream learns that no more will come, and no other is accepted."""
        with self._wake:
            self._failure = failure
            left = [(stream, Piece(error=failure)) for stream in self._streams.values()]
            self._streams.clear()
        self._delivery.send(left)


def _arrival(generation: Generation) -> Arrival:
    g = generation
    return Arrival(prompt=g.prompt, given=g.given, sampling=g.sampling, domain=g.domain, embeds=g.embeds)


def _ignore(piece: Piece) -> None:
    """The receiver of the first step's tokens."""
