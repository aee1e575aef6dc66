"""One request on a replica: pieces of an engine in, bytes of the OpenAI wire out.

A stream's first and last bytes leave at once; between them what has gathered leaves every `interval_s`, all streams of
a replica in one sweep, so that a token costs a share of a write instead of a write. A begun stream whose tokens show
no text for BEAT_S, as in a long call of a tool, writes a comment with their ids: it lives, and can go on behind them.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.errors import EngineFailed, MorayError
from cluster.request import Chat, Piece, TokenLogprob, Usage
from deployments.gateway.text_wire import rendering

BEAT_S = 2.0  # well below the silence after which a gateway takes a stream for lost
BEAT = b": generating\n\n"
STEPS = 64  # of a trace: the first ones tell how steps went, and a span of thousands of events is refused by backends
Write = Callable[
    [bytes, Sequence[int], bool], None
]  # bytes, the ids of the tokens behind them, whether they are the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended. Errors travel as values: a refused request is no fault of the replica in Serve's eyes.

    `first_s` and `total_s`: from acceptance by the replica to its first token, and to its end. `wait_s`: of these, in
    the engine's queue. `steps_s`: of a traced request, when its pieces came, from acceptance; the first STEPS of them.
    """

    body: bytes = b""
    usage: Usage | None = None
    first_s: float = 0.0
    total_s: float = 0.0
    wait_s: float = 0.0
    steps_s: tuple[float, ...] = ()
    error: MorayError | None = None


class Sweeper:
    """Flushes the streams that have something to say, once per interval; at once while there are few of them.

    With up to `few` open streams a write per token costs little, and waiting would only make tokens late.
    """

    def __init__(self, interval_s: float, few: int = 0) -> None:
        self.interval_s = interval_s
        self._few = few
        self._open = 0
        self._due: dict[int, Callable[[], None]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """One more stream, as long as this lasts."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def add(self, key: int, flush: Callable[[], None]) -> None:
        if self.interval_s == 0 or self._open <= self._few:
            flush()
            return
        if not self._due:
            asyncio.get_running_loop().call_later(self.interval_s, self._sweep)
        self._due[key] = flush

    def _sweep(self) -> None:
        due, self._due = self._due, {}
        for flush in due.values():
            flush()


class Answer:
    """Collects the pieces of one request. `write` None: the answer is gathered whole; else it gets each event."""

    def __init__(
        self, chat: Chat, label: str, sweeper: Sweeper, write: Write | None, fingerprint: str | None = None
    ) -> None:
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.prompt_tokens = 0  # known once the prompt is encoded
        self._chat = chat
        self._sweeper = sweeper
        self._write = write
        self._render = rendering(chat, label, fingerprint)
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._tokens = 0
        self._begun = False  # whether anything was written
        self._wait_s = 0.0
        self._steps_s: list[float] = []
        self._accepted_s = self._first_s = self._wrote_s = asyncio.get_running_loop().time()

    def emit(self, piece: Piece) -> None:
        if self.outcome.done():
            return
        if self._tokens == 0:
            self._first_s = asyncio.get_running_loop().time()
        self._wait_s = piece.queued_s or self._wait_s
        if self._chat.traced and len(self._steps_s) < STEPS:
            self._steps_s.append(asyncio.get_running_loop().time() - self._accepted_s)
        self._ids += piece.ids
        self._texts.append(piece.text)
        self._logprobs.extend(piece.logprobs)
        self._tokens += piece.tokens
        if piece.last:
            self._finish(piece)
        elif self._write is not None:
            if self._begun:
                self._sweeper.add(id(self), self._flush)
            else:
                self._flush()

    def _take(self) -> bytes:
        """The event for what has gathered; empty while a character or a possible stop string is unfinished.

        A call of a tool may be long and shows no text: where one may come, the role goes out with the first token.
        """
        text = "".join(self._texts)
        if not text and not self._logprobs and not (self._chat.tools and self._tokens):
            return b""
        piece = Piece(text=text, logprobs=tuple(self._logprobs), usage=self._so_far(self._tokens))
        self._texts, self._logprobs = [], []
        head = b"" if self._begun else self._render.role(self._so_far(0))
        self._begun = True
        return head + self._render.piece(piece)

    def _so_far(self, tokens: int) -> Usage | None:
        if not self._chat.continuous_usage:
            return None
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=len(self._chat.given) + tokens)

    def _flush(self) -> None:
        if self._write is not None and not self.outcome.done():
            now_s = asyncio.get_running_loop().time()
            data = self._take() or (BEAT if self._begun and now_s - self._wrote_s >= BEAT_S else b"")
            if data:
                self._wrote_s = now_s
                self._write(data, self._taken(), False)

    def _taken(self) -> list[int]:
        """All ids so far, though text of the last may be held back yet: who goes on behind them holds it back, too."""
        ids, self._ids = self._ids, []
        return ids

    def _finish(self, piece: Piece) -> None:
        if piece.error is not None:
            self.fail(piece.error)
            return
        assert piece.usage is not None
        body = b""
        if self._write is None:
            body = self._render.whole("".join(self._texts), self._logprobs, piece, piece.usage)
        else:
            data = self._take() or (b"" if self._begun else self._render.role(self._so_far(0)))
            self._write(data + self._render.end(piece, piece.usage), self._taken(), True)
        self.outcome.set_result(
            Outcome(
                body=body,
                usage=piece.usage,
                first_s=self._first_s - self._accepted_s,
                total_s=asyncio.get_running_loop().time() - self._accepted_s,
                wait_s=self._wait_s,
                steps_s=tuple(self._steps_s),
            )
        )

    def fail(self, error: Exception) -> None:
        """End with an error: what has gathered is still sent, then the outcome tells why there is no more."""
        if self.outcome.done():
            return
        self._flush()
        known = error if isinstance(error, MorayError) else EngineFailed(f"engine: {type(error).__name__}: {error}")
        self.outcome.set_result(Outcome(error=known))
