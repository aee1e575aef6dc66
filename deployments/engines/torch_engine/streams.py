"""What a token does to its stream: text, log-probabilities, the end. Runs beside the model, knows no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.request import FinishReason, Generation, Piece, TokenLogprob, ToolCall, Usage
from deployments.engines.calls import CallText
from deployments.engines.engine import Emit
from deployments.engines.text import TextStream
from deployments.engines.torch_engine.grammar import Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    bytes_of: Sequence[bytes]
    end_tokens: frozenset[int]

    def data(self, token: int) -> bytes:
        """Ids beyond the tokenizer, which pad the embedding, are no text."""
        return self.bytes_of[token] if token < len(self.bytes_of) else b""


@dataclass(slots=True, kw_only=True)
class Stream:
    """One generation. `max_tokens` is resolved: never more than the context leaves. A closed stream emits nothing.

    `tokens` of the answer are there, the given ones included. `held`: what its answer is held to, if anything.

    Times are those of one monotonic clock: `began_s` is the start of the first step that had a place for it.
    """

    generation: Generation
    max_tokens: int
    emit: Emit
    submitted_s: float
    began_s: float = 0.0
    open: bool = True
    tokens: int = 0
    held: Held | None = None
    text: TextStream = field(init=False)
    calls: CallText = field(init=False)

    def __post_init__(self) -> None:
        self.text = TextStream(self.generation.sampling.stop)
        self.calls = CallText(self.generation.tools, self.generation.request_id)

    def resume(self, vocabulary: Vocabulary) -> Piece | None:
        """Begins behind the given tokens, once. The last piece, where they are the whole answer."""
        if not self.generation.given:
            return None
        _, calls, reason = self._advance(self.generation.given, vocabulary)
        return Piece(tool_calls=calls, finish_reason=reason, usage=self._usage()) if reason else None

    def take(self, row: Sequence[float], vocabulary: Vocabulary) -> Piece:
        """The piece that one sampled row makes: the token, then its log-probability and the best, where wanted.

        Of one that embeds, the row is its vector.
        """
        if self.generation.embeds:
            waited_s = self.began_s - self.submitted_s
            return Piece(vector=tuple(row), finish_reason="stop", usage=self._usage(), queued_s=waited_s)
        token = int(row[0])
        if self.held is not None and (fault := self.held.take(token)) is not None:
            return Piece(error=fault)
        text, calls, reason = self._advance((token,), vocabulary)
        return Piece(
            tokens=1,
            ids=(token,),
            text=text,
            logprobs=() if self._ends(token, vocabulary) else self._logprobs(row, vocabulary),
            tool_calls=calls,
            finish_reason=reason,
            usage=self._usage() if reason else None,
            queued_s=self.began_s - self.submitted_s if self.tokens == len(self.generation.given) + 1 else None,
        )

    def _advance(
        self, tokens: Sequence[int], vocabulary: Vocabulary
    ) -> tuple[str, tuple[ToolCall, ...], FinishReason | None]:
        """The text that the tokens add; the answer's calls, and why it ends with the last of them, if it does."""
        self.tokens += len(tokens)
        ended = self._ends(tokens[-1], vocabulary)
        full = self.tokens >= self.max_tokens
        text, stopped = self.text.push(b"".join(map(vocabulary.data, tokens[:-1] if ended else tokens)))
        if (ended or full) and not stopped:
            rest, stopped = self.text.flush()
            text += rest
        text = self.calls.push(text)
        if not (ended or stopped or full):
            return text, (), None
        rest, calls, reason = self.calls.end("stop" if ended or stopped else "length")
        return text + rest, calls, reason

    def _ends(self, token: int, vocabulary: Vocabulary) -> bool:
        return token in vocabulary.end_tokens and not self.generation.sampling.ignore_eos

    def _usage(self) -> Usage:
        return Usage(prompt_tokens=len(self.generation.prompt), completion_tokens=self.tokens)

    def _logprobs(self, row: Sequence[float], vocabulary: Vocabulary) -> tuple[TokenLogprob, ...]:
        top = self.generation.sampling.top_logprobs
        if top is None:
            return ()
        columns = (len(row) - 2) // 2
        best = zip(row[2 : 2 + top], row[2 + columns : 2 + columns + top], strict=True)
        named = tuple((*_named(vocabulary.data(int(index))), logprob) for index, logprob in best)
        text, data = _named(vocabulary.data(int(row[0])))
        return (TokenLogprob(token=text, token_bytes=data, logprob=row[1], top=named),)


def _named(data: bytes) -> tuple[str, bytes]:
    return data.decode("utf-8", "replace"), data
