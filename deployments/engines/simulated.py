"""An engine that computes nothing and keeps time: continuous batching on the latency model of the family file.

    step_ms = step_ms(B decoding, K KV tokens held) + us_per_token(prompt) * prefill tokens of this step / 1000

The prompt tokens of a step are as many as the promised pace leaves room for (cluster.batching).

Steps lie on an absolute schedule of the event loop, one timer for all streams, so that late wake-ups do not add up;
but what was stopped for longer than LATE_S has lost that time, as a GPU would, and reports that it is so much slower.
A sequence runs once a place and KV room for its prompt and whole output are free, first come first served; a long
prompt waits its turn, nobody overtakes. The text follows from seed and position alone, so a token that is lost,
doubled or out of order shows; a token's id is its position. An answer has exactly `max_tokens` tokens; where none are
given, 32 to 543, drawn from the seed, as if an end token came then; where that is ignored, what the context leaves.
"""

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

from cluster.batching import chunk_tokens
from cluster.cost import prefill_us_per_token, service, step_ms
from cluster.errors import ContextTooLong, EngineFailed, InvalidRequest, Overloaded
from cluster.family import Tier
from cluster.inputs import tokens_of
from cluster.request import FinishReason, Generation, Message, Piece, TokenLogprob, Tool, Usage
from deployments.engines.engine import Emit, EngineReport
from deployments.engines.text import TextStream

log = logging.getLogger(__name__)
LATE_S = 0.05
FADE = 0.98  # per step
_PIECE = re.compile(r"\S{1,4}")


def _pieces(messages: Sequence[Message], tier: Tier) -> Iterator[str]:
    for message in messages:
        yield message.role
        yield from (found[0] for found in _PIECE.finditer(message.content))
        for media in message.media:
            data = crc32(b"".join((*media.pictures, media.sound)))
            yield from (f"{data:08x}-{n}" for n in range(tokens_of(media, tier.input_tokens, tier.inputs)))


def word(seed: int, position: int) -> str:
    """The token at a position of every answer with this seed."""
    return f"w{position}-{crc32(b'%d:%d' % (seed, position)):08x} "


def natural_tokens(seed: int) -> int:
    """The length of an answer whose caller set no limit."""
    return 32 + crc32(b"%d" % seed) % 512


@dataclass(slots=True, kw_only=True, eq=False)
class _Sequence:
    """`given` tokens of the answer are read as the prompt is; `generated` counts them."""

    generation: Generation
    emit: Emit
    prompt_tokens: int
    given: int
    output_tokens: int
    finish_reason: FinishReason
    prefill_us: float
    submitted_s: float
    text: TextStream
    generated: int
    queued_s: float = 0.0
    prefilled: int = 0
    chunk_tokens: int = 0
    ended: bool = False

    @property
    def reserved_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def unread_tokens(self) -> int:
        return self.prompt_tokens + self.given - self.prefilled


class _Pace:
    """How much longer the last steps took than planned; the last fifty or so count."""

    def __init__(self) -> None:
        self._planned_s = self._took_s = 0.0
        self._begun_s: float | None = None

    @property
    def slowness(self) -> float:
        return max(1.0, self._took_s / self._planned_s) if self._planned_s else 1.0

    def turned(self, now_s: float) -> None:
        if self._begun_s is not None:
            self._took_s = self._took_s * FADE + now_s - self._begun_s
        self._begun_s = now_s

    def planned(self, step_s: float) -> None:
        self._planned_s = self._planned_s * FADE + step_s

    def rest(self) -> None:
        self._begun_s = None


class SimulatedEngine:
    """Real time, no work: for trying routing, scaling and the gateway without GPUs."""

    label = "simulated"
    embeds = 0
    structured = False
    tools = False
    forced_tools = False

    def __init__(self, tier: Tier) -> None:
        self.context_tokens = tier.context_tokens
        self.inputs = tier.inputs
        self._tier = tier
        self._service = service(tier, "", chunking="slack")  # the promise is that of its start
        self._waiting: dict[str, _Sequence] = {}
        self._running: dict[str, _Sequence] = {}
        self._timer: asyncio.Handle | None = None
        self._batch: list[_Sequence] = []
        self._steps = 0
        self._step_ms = 0.0
        self._prefill_us = 0.0
        self._pace = _Pace()
        self._failure: EngineFailed | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """One token for each message's role and one for every four characters of a word, as its checksum.

        Of an input as many as the gateway guesses: it is read by nobody.
        """
        pieces = _pieces(messages, self._tier)
        return self._tokens(pieces, sum(len(message.content) for message in messages), "messages")

    def encode_text(self, text: str) -> tuple[int, ...]:
        return self._tokens((found[0] for found in _PIECE.finditer(text)), len(text), "prompt")

    def _tokens(self, pieces: Iterator[str], characters: int, param: str) -> tuple[int, ...]:
        texts = list(itertools.islice(pieces, self.context_tokens + 1))
        if len(texts) > self.context_tokens:  # counted no further: a long prompt must not hold up the others
            raise ContextTooLong(
                f"{param}: {characters} characters, more than {self.context_tokens} tokens; as many tokens of up to "
                f"4 characters are allowed; shorten the {param}",
                param=param,
            )
        return tuple([crc32(text.encode("utf-8", "surrogatepass")) for text in texts])

    def submit(self, generation: Generation, emit: Emit) -> None:
        self.check()
        self._refuse(generation)
        one = self._sequence(generation, emit)
        if (over := _over(one)) is not None:
            emit(over)
            return
        self._waiting[generation.request_id] = one
        if self._timer is None:
            # Not at once: what arrives in the same turn of the loop shares the first step.
            self._timer = self._loop.call_soon(self._turn, None)

    def _sequence(self, generation: Generation, emit: Emit) -> _Sequence:
        prompt_tokens, given = len(generation.prompt), len(generation.given)
        sampling, room = generation.sampling, self.context_tokens - prompt_tokens
        natural = room + 1 if sampling.ignore_eos else natural_tokens(sampling.seed)
        return _Sequence(
            generation=generation,
            emit=emit,
            prompt_tokens=prompt_tokens,
            given=given,
            output_tokens=sampling.max_tokens or min(natural, room),
            finish_reason="stop" if sampling.max_tokens is None and natural <= room else "length",
            prefill_us=prefill_us_per_token(self._tier.cost, prompt_tokens + given),
            submitted_s=self._loop.time(),
            text=TextStream(sampling.stop),
            generated=given,
        )

    def _refuse(self, generation: Generation) -> None:
        prompt_tokens, least = len(generation.prompt), generation.sampling.max_tokens or 1
        if prompt_tokens == 0:
            raise InvalidRequest("messages: 0 tokens; at least 1 is needed; say something", param="messages")
        if prompt_tokens + least > self.context_tokens:
            raise ContextTooLong(
                f"messages: {prompt_tokens} tokens, and {least} to generate; {self.context_tokens} in all are allowed; "
                "shorten the messages or lower max_completion_tokens",
                param="messages",
            )
        if generation.request_id in self._waiting or generation.request_id in self._running:
            raise InvalidRequest(f"request: {generation.request_id} is being served; ids are used once; take a new id")
        if len(self._waiting) >= self._tier.max_waiting:
            raise Overloaded(
                f"engine: {len(self._waiting)} requests wait; {self._tier.max_waiting} may; try again later",
                retry_after_s=self._next_end_s(),
            )

    def cancel(self, request_id: str) -> None:
        sequence = self._waiting.pop(request_id, None) or self._running.pop(request_id, None)
        if sequence is not None:
            sequence.ended = True

    def report(self) -> EngineReport:
        # Copied in one step of the interpreter each: other threads ask while the loop goes on.
        running, waiting = tuple(self._running.values()), tuple(self._waiting.values())
        return EngineReport(
            running=len(running),
            waiting=len(waiting),
            waiting_prefill_tokens=sum(one.unread_tokens for one in (*running, *waiting)),
            kv_used_tokens=sum(one.reserved_tokens for one in running),
            kv_capacity_tokens=self._tier.kv_tokens,
            steps=self._steps,
            step_ms=self._step_ms * self._pace.slowness,
            prefill_us_per_token=self._prefill_us,
        )

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        self._end_all(EngineFailed("engine: stopped; a running one serves; send the request again"))

    def _turn(self, due_s: float | None) -> None:
        """The end of one step and the begin of the next. `due_s` None: the engine was idle, its schedule starts now."""
        now_s = self._loop.time()
        try:
            self._end_step()
            self._pace.turned(now_s)
            self._begin_step(now_s if due_s is None or now_s - due_s > LATE_S else due_s)
        except Exception:
            log.exception("the simulated engine cannot go on")
            self._end_all(EngineFailed("engine: it failed; its replica is being replaced; send the request again"))

    def _begin_step(self, now_s: float) -> None:
        self._admit(now_s)
        if not self._running:
            self._timer = None
            self._pace.rest()
            return
        self._batch = list(self._running.values())
        decoding = sum(one.generated > 0 for one in self._batch)
        held = sum(one.prefilled + one.generated for one in self._batch)
        self._step_ms = step_ms(self._tier.cost, decoding, held)
        reading = next((one.prefill_us for one in self._batch if one.unread_tokens), 1.0)
        prefill_us, budget = 0.0, chunk_tokens(self._service, decoding, self._step_ms, reading)
        for one in self._batch:
            one.chunk_tokens = min(budget, one.unread_tokens)
            if one.chunk_tokens:
                budget -= one.chunk_tokens
                prefill_us += one.chunk_tokens * one.prefill_us
                self._prefill_us = one.prefill_us
        decoding = sum(one.generated > one.given for one in self._batch)
        held = sum(one.prefilled + one.generated - one.given for one in self._batch)
        self._step_ms = step_ms(self._tier.cost, decoding, held)
        due_s = now_s + self._step_ms / 1e3 + prefill_us / 1e6
        self._pace.planned(due_s - now_s)
        self._timer = self._loop.call_at(due_s, self._turn, due_s)

    def _admit(self, now_s: float) -> None:
        free = self._tier.kv_tokens - sum(one.reserved_tokens for one in self._running.values())
        while self._waiting and len(self._running) < self._tier.max_running:
            request_id, first = next(iter(self._waiting.items()))
            free -= first.reserved_tokens
            if free < 0:
                return
            first.queued_s = max(0.0, now_s - first.submitted_s)
            self._running[request_id] = self._waiting.pop(request_id)

    def _end_step(self) -> None:
        self._steps += bool(self._batch)
        batch, self._batch = self._batch, []
        for one in batch:
            if one.ended:
                continue
            one.prefilled += one.chunk_tokens
            if not one.unread_tokens:
                piece = _next_piece(one)
                if piece.last:
                    del self._running[one.generation.request_id]
                one.emit(piece)

    def _next_end_s(self) -> float:
        """When the first of the running sequences ends, at the present pace."""
        left = min((one.output_tokens - one.generated for one in self._running.values()), default=1)
        return left * max(self._step_ms, self._tier.cost.a_ms) / 1e3

    def _end_all(self, failure: EngineFailed) -> None:
        self._failure = failure
        if self._timer is not None:
            self._timer.cancel()
        ending = (*self._running.values(), *self._waiting.values())
        self._running, self._waiting = {}, {}
        for one in ending:
            with contextlib.suppress(Exception):  # a listener that fails must not keep the others waiting
                one.emit(Piece(error=failure))


def _over(one: _Sequence) -> Piece | None:
    """Reads the given tokens into the text. The last piece, where they are the whole answer."""
    seed = one.generation.sampling.seed
    _, stopped = one.text.push("".join(word(seed, position) for position in range(one.given)).encode())
    if not stopped and one.given < one.output_tokens:
        return None
    usage = Usage(prompt_tokens=one.prompt_tokens, completion_tokens=one.given)
    return Piece(finish_reason="stop" if stopped else one.finish_reason, usage=usage)


def _next_piece(one: _Sequence) -> Piece:
    sampling, position = one.generation.sampling, one.generated
    text = token = word(sampling.seed, position)
    one.generated += 1
    finish = one.finish_reason if one.generated == one.output_tokens else None
    if sampling.stop:
        text, stopped = one.text.push(token.encode())
        if stopped:
            finish = "stop"
        elif finish:
            text += one.text.flush()[0]
    return Piece(
        tokens=1,
        ids=(position,),
        text=text,
        logprobs=() if sampling.top_logprobs is None else (_certain(token, sampling.top_logprobs),),
        finish_reason=finish,
        usage=Usage(prompt_tokens=one.prompt_tokens, completion_tokens=one.generated) if finish else None,
        queued_s=one.queued_s if position == one.given else None,
    )


def _certain(token: str, top: int) -> TokenLogprob:
    """The only word that could come: probability 1."""
    data = token.encode()
    return TokenLogprob(token=token, token_bytes=data, logprob=0.0, top=((token, data, 0.0),) if top else ())
