"""The response side of /v1/completions: the text of one answer as bytes, beside that of chats.

Log-probabilities have the older shape: lists side by side, and where in the text each token begins.
"""

import codecs
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Protocol

from cluster.request import Chat, Piece, TokenLogprob, Usage
from deployments.gateway.wire import DONE, ChatRendering, about, counts, dumps, logprob_told, usage_event, usage_told


class Rendering(Protocol):
    """One answer: events of its stream, or its whole body."""

    def role(self, usage: Usage | None = None) -> bytes: ...

    def piece(self, piece: Piece) -> bytes: ...

    def end(self, last: Piece, usage: Usage) -> bytes: ...

    def whole(self, text: str, logprobs: Sequence[TokenLogprob], last: Piece, usage: Usage) -> bytes: ...


def rendering(chat: Chat, label: str, fingerprint: str | None) -> Rendering:
    kind = TextRendering if chat.prompts else ChatRendering
    return kind(chat, label, fingerprint)


class TextRendering:
    """As a text completion. In the place of a role it has the echo of its prompt, once, where that was asked for."""

    def __init__(self, chat: Chat, label: str = "", fingerprint: str | None = None) -> None:
        self._chat = chat
        self._about = {**about(chat, label, fingerprint), "object": "text_completion"}
        self._head = f"data: {dumps(self._about)[:-1]},"
        (prompt,) = chat.prompts
        self._echo = prompt if chat.echo and isinstance(prompt, str) else ""
        self._chars = len(self._echo)  # of the text before the next token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def role(self, usage: Usage | None = None) -> bytes:
        return b"" if self._chat.given or not self._echo else self._chunk(self._echo, usage=usage)

    def piece(self, piece: Piece) -> bytes:
        if not piece.text and not piece.logprobs:
            return b""
        return self._chunk(piece.text, self._logprobs(piece.logprobs), usage=piece.usage)

    def end(self, last: Piece, usage: Usage) -> bytes:
        assert last.finish_reason is not None
        ended = self._chunk("", finish_reason=last.finish_reason, usage=usage)
        return b"".join([ended, usage_event(self._head, self._chat, usage), DONE])

    def whole(self, text: str, logprobs: Sequence[TokenLogprob], last: Piece, usage: Usage) -> bytes:
        choice = {
            "index": self._chat.choice,
            "text": self._echo + text,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": last.finish_reason,
        }
        told = {"choices": [choice], "usage": usage_told(usage, self._chat.served)}
        return dumps(self._about | told).encode("ascii")

    def _chunk(
        self, text: str, logprobs: Any = None, finish_reason: str | None = None, usage: Usage | None = None
    ) -> bytes:
        ends = dumps(finish_reason)
        choice = (
            f'"index":{self._chat.choice},"text":{quoted(text)},"logprobs":{dumps(logprobs)},"finish_reason":{ends}'
        )
        told = ',"usage":null' if self._chat.include_usage else ""
        if usage is not None and self._chat.continuous_usage:
            told = f',"usage":{dumps(counts(usage))}'
        return f'{self._head}"choices":[{{{choice}}}]{told}}}\n\n'.encode("ascii")

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Offsets count characters: half of one belongs to where it began."""
        if self._chat.sampling.top_logprobs is None:
            return None
        offsets = []
        for one in logprobs:
            offsets.append(self._chars)
            self._chars += len(self._decoder.decode(one.token_bytes))
        return {
            "tokens": [one.token for one in logprobs],
            "token_logprobs": [logprob_told(one.logprob) for one in logprobs],
            "top_logprobs": [{token: logprob_told(logprob) for token, _, logprob in one.top} for one in logprobs],
            "text_offset": offsets,
        }
