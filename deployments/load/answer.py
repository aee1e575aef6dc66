"""What became of one request, and how little of a stream must be read to know it."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

Failure = Literal["connection", "silent", "cut off", "error event", "stopped"]
Outcome = Literal["completed", "refused", "failed", "under way"]

TEXT = re.compile(rb'"(?:content|reasoning|reasoning_content)":\s?"[^"]')
TAIL_BYTES = 8192  # holds the last events: usage, end or error
DONE = b"data: [DONE]"


@dataclass(slots=True, kw_only=True)
class Answer:
    """Times in seconds since the begin of the run. `refused`: the code of an error that came instead of an answer.

    `failure`: how an answer broke that had begun, or why none came; "cut off": the bytes ended without an end of the
    answer and without an error; "stopped": the run was. `pause_s`: the longest time between two reads with tokens.
    """

    model: str
    due_s: float
    sent_s: float
    tenant: str = "default"
    first_s: float | None = None
    last_s: float | None = None
    ended_s: float | None = None
    pause_s: float = 0.0
    status: int = 0
    refused: str | None = None
    retry_after_s: float | None = None
    failure: Failure | None = None
    fault: str | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    tier: str | None = None
    replica: str | None = None
    spilled: str | None = None
    resumed: int = 0

    @property
    def outcome(self) -> Outcome:
        """Exactly one of these."""
        if self.failure is not None:
            return "failed"
        if self.refused is not None:
            return "refused"
        return "under way" if self.ended_s is None else "completed"

    @property
    def completed(self) -> bool:
        return self.outcome == "completed"

    @property
    def late_s(self) -> float:
        """How much later than it was due it was sent."""
        return self.sent_s - self.due_s

    @property
    def total_s(self) -> float | None:
        """Of a whole answer, from the time at which it should have been sent."""
        return self.ended_s - self.due_s if self.completed and self.ended_s is not None else None

    @property
    def ttft_s(self) -> float | None:
        """From the time at which it should have been sent."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_ms(self) -> float | None:
        """None where fewer than two tokens came."""
        if self.first_s is None or self.last_s is None or self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) * 1e3 / (self.output_tokens - 1)


class Reader:
    """Server-sent events, looked at as little as possible: the first text, the time of each read, and the end."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._tail = b""

    def read(self, data: bytes, now_s: float) -> None:
        answer = self._answer
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        if answer.first_s is None:
            if TEXT.search(self._tail):
                answer.first_s = answer.last_s = now_s
        elif data[:1] != b":" and answer.last_s is not None:  # a comment only keeps the connection alive
            answer.pause_s = max(answer.pause_s, now_s - answer.last_s)
            answer.last_s = now_s

    def end(self) -> None:
        """The bytes have ended: what the last events say."""
        answer = self._answer
        finished = False
        for event in self._tail.replace(b"\r\n", b"\n").split(b"\n\n"):
            if event.startswith(DONE):
                finished = True
            elif event.startswith(b"data:"):
                self._event(event[5:])
        if not finished and answer.failure is None:
            answer.failure = "cut off"

    def _event(self, data: bytes) -> None:
        try:
            found: Any = json.loads(data)
        except ValueError:  # the head of the tail may lie inside an event
            return
        if not isinstance(found, dict):
            return
        if found.get("usage"):
            used(self._answer, found["usage"])
        if found.get("error"):
            self._answer.failure = "error event"
            self._answer.fault = error_code(found)


def used(answer: Answer, usage: dict[str, Any]) -> None:
    answer.prompt_tokens = usage.get("prompt_tokens") or 0
    answer.output_tokens = usage.get("completion_tokens") or 0
    moray = usage.get("moray") or {}
    answer.spilled = moray.get("spilled") or answer.spilled
    answer.resumed = moray.get("resumed") or 0
    answer.tier = moray.get("tier") or answer.tier
    answer.replica = moray.get("replica") or answer.replica


def error_code(body: Any) -> str:
    """The code of OpenAI's error object, else its type."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "unknown"
    return str(error.get("code") or error.get("type") or "unknown")
