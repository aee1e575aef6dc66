"""Streams read in threads, as many clients at once would."""

import threading
from typing import Any

from integration.server import QUIET_S, Server, eventually
from openai import APIError

from deployments.engines.simulated import word

LONG = 1500  # tokens, some seconds: time enough to break something meanwhile
RESTART_S = 60.0
CANCELLED_S = 5.0
ASK: Any = [{"role": "user", "content": "Tell me of the sea"}]


def whole(server: Server, model: str, tokens: int | None = None, seed: int = 1, prompt: Any = ASK) -> str:
    """The text of an answer that is not streamed."""
    with server.client() as client:
        answer = client.chat.completions.create(model=model, messages=prompt, max_tokens=tokens, seed=seed)
    assert answer.choices[0].message.content is not None
    return answer.choices[0].message.content


def status(server: Server, model: str) -> str:
    """How a short request ends: ok, the code of its error, or the kind of failure where no answer came."""
    try:
        whole(server, model, tokens=2)
    except APIError as error:
        return error.code or type(error).__name__
    return "ok"


def running(server: Server, tier: str) -> float | None:
    """Requests in the engines of a tier; None where none of its replicas is seen."""
    samples = server.samples("moray_running_requests", tier=tier)
    return sum(sample.value for sample in samples) if samples else None


def simulated(seed: int, tokens: int) -> str:
    """What the simulated engine says: every token tells its seed and position."""
    return "".join(word(seed, position) for position in range(tokens))


def idle(server: Server, tier: str) -> bool:
    return running(server, tier) == 0


def serves(server: Server, model: str) -> bool:
    return status(server, model) == "ok"


class Stream(threading.Thread):
    """One streamed answer. In the end it has a finish reason or an error; with neither, it was cut off."""

    def __init__(self, server: Server, model: str, tokens: int | None = None, seed: int = 1, prompt: Any = ASK) -> None:
        super().__init__(daemon=True)
        self.text = ""
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self._answer: Any = None
        self._asked = {"model": model, "messages": prompt, "max_tokens": tokens, "seed": seed, "stream": True}
        self._client = server.client()
        self.start()

    def run(self) -> None:
        try:
            with self._client, self._client.chat.completions.create(**self._asked) as self._answer:
                for chunk in self._answer:
                    self.text += chunk.choices[0].delta.content or ""
                    self.finish_reason = chunk.choices[0].finish_reason or self.finish_reason
        except Exception as error:  # every way to end badly is of interest
            self.error = error

    def begun(self) -> "Stream":
        eventually(lambda: self.text or self.error, QUIET_S, "the first text")
        assert self.error is None
        return self

    def ended(self, timeout_s: float = QUIET_S) -> "Stream":
        self.join(timeout_s)
        assert not self.is_alive(), f"not ended after {timeout_s:g} s; so far {len(self.text)} characters"
        return self

    @property
    def code(self) -> str | None:
        """The code of the error event that ended it."""
        return str(self.error.code) if isinstance(self.error, APIError) else None

    def hang_up(self) -> None:
        """Once its answer has begun, or it was refused."""
        eventually(lambda: self._answer or self.error, QUIET_S, "an answer")
        if self._answer is not None:
            self._answer.close()


def assert_company_changes_nothing(server: Server, model: str, alone: str) -> None:
    """What seed 7 says in 60 tokens, once more while eight others are told theirs."""
    company = [Stream(server, model, 120, seed=seed) for seed in range(100, 108)]
    streamed = Stream(server, model, 60, seed=7).ended()
    assert (streamed.text, streamed.finish_reason, streamed.error) == (alone, "length", None)
    assert len({each.ended().text for each in company}) == len(company), "different seeds told one text"
    assert {(each.finish_reason, each.error) for each in company} == {("length", None)}
