"""What the outputs of vLLM add to a stream: text, log-probabilities, the end. Knows vLLM's outputs by their fields."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.request import FinishReason, Generation, Piece, TokenLogprob, ToolCall, Usage
from deployments.engines.engine import Emit
from deployments.engines.text import TextStream
from deployments.engines.vllm_engine.calls import Calls


class Logprob(Protocol):
    """Of one token at one position; `rank` counts from 1, the best."""

    @property
    def logprob(self) -> float: ...

    @property
    def rank(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What vLLM says of one stream at once. `ended` is None, "stop" behind an end token, or "length"."""

    ids: Sequence[int]
    logprobs: Sequence[Mapping[int, Logprob]] | None = None
    ended: str | None = None
    cached_tokens: int = 0
    queued_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Stream:
    """One generation. `tokens` of the answer are there, the given ones included. A closed stream emits nothing.

    `calls`: where tools are offered; `bytes_of` then has the special tokens, too.
    """

    generation: Generation
    max_tokens: int
    emit: Emit
    bytes_of: Sequence[bytes]
    calls: Calls | None = None
    open: bool = True
    began: bool = False
    tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = field(init=False)  # with what stands beside its text, once that is counted
    text: TextStream = field(init=False)
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.text = TextStream(self.generation.sampling.stop)
        self.prompt_tokens = len(self.generation.prompt)

    def resume(self, end_tokens: frozenset[int]) -> Piece | None:
        """Begins behind the given tokens, once. The last piece, where they are the whole answer."""
        given = self.generation.given
        if not given:
            return None
        ended = "stop" if given[-1] in end_tokens else "length" if len(given) >= self.max_tokens else None
        kept, text, reason = self._advance(given, ended)
        _, called, reason = self._called(text, given[:kept], reason)
        return Piece(tool_calls=called, finish_reason=reason, usage=self._usage()) if reason else None

    def take(self, step: Step) -> Piece:
        first, self.began = not self.began, True
        if first:
            self.cached_tokens = min(step.cached_tokens, self.prompt_tokens)
        kept, text, reason = self._advance(step.ids, step.ended)
        text, called, reason = self._called(text, step.ids[:kept], reason)
        return Piece(
            tokens=kept,
            ids=tuple(step.ids[:kept]),
            text=text,
            logprobs=self._logprobs(step, kept),
            tool_calls=called,
            finish_reason=reason,
            usage=self._usage() if reason else None,
            queued_s=step.queued_s if first else None,
        )

    def _advance(self, ids: Sequence[int], ended: str | None) -> tuple[int, str, FinishReason | None]:
        """How many of the tokens the answer has, the text that they add, and why it ends with the last, if it does."""
        text = ""
        for kept, token in enumerate(ids, start=1):
            self.tokens += 1
            if ended == "stop" and kept == len(ids):
                break
            new, stopped = self.text.push(self._bytes(token))
            text += new
            if stopped:
                return kept, text, "stop"
        if ended is None:
            return len(ids), text, None
        rest, stopped = self.text.flush()
        return len(ids), text + rest, "stop" if stopped or ended == "stop" else "length"

    def _called(
        self, text: str, ids: Sequence[int], reason: FinishReason | None
    ) -> tuple[str, tuple[ToolCall, ...], FinishReason | None]:
        """What of the text is no call; at the end, the calls, and the reason that they are."""
        if self.calls is None:
            return text, (), reason
        text = self.calls.push(text, ids)
        if reason is None:
            return text, (), None
        rest, called = self.calls.end()
        return text + rest, called, "tool_calls" if called else reason

    def _bytes(self, token: int) -> bytes:
        """Ids beyond the tokenizer, which pad the embedding, are no text."""
        return self.bytes_of[token] if token < len(self.bytes_of) else b""

    def _usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.tokens,
            cached_tokens=self.cached_tokens,
        )

    def _logprobs(self, step: Step, kept: int) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that are text: an end token is none."""
        top = self.generation.sampling.top_logprobs
        if top is None or step.logprobs is None:
            return ()
        shown = kept - (step.ended == "stop" and kept == len(step.ids))
        return tuple(
            self._named(token, at, top) for token, at in zip(step.ids[:shown], step.logprobs[:shown], strict=True)
        )

    def _named(self, token: int, at: Mapping[int, Logprob], top: int) -> TokenLogprob:
        best = sorted((one.rank or 0, index, one.logprob) for index, one in at.items())
        text, data = self._text(token)
        return TokenLogprob(
            token=text,
            token_bytes=data,
            logprob=at[token].logprob,
            top=tuple((*self._text(index), logprob) for rank, index, logprob in best if rank <= top),
        )

    def _text(self, token: int) -> tuple[str, bytes]:
        data = self._bytes(token)
        return data.decode("utf-8", "replace"), data
