"""Answers read from the wire: text, usage and how they ended, whatever a client library would make of it."""

import json
import threading
from typing import Any

import httpx
from integration.server import QUIET_S, Server, eventually
from integration.talk import ASK, simulated


class Told(threading.Thread):
    """One answer as it comes over the wire. `replica`: that it began on. `code`: of an error. `broke`: no end came."""

    def __init__(
        self, server: Server, tier: str, tokens: int, seed: int = 1, *, stream: bool = True, key: str | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.seed, self.tokens = seed, tokens
        self.text, self.replica, self.retry_after = "", "", ""
        self.code: str | None = None
        self.broke: Exception | None = None
        self.usage: dict[str, Any] = {}
        self._done = False
        self._asked = {"model": tier, "messages": ASK, "max_tokens": tokens, "seed": seed, "stream": stream}
        if stream:
            self._asked["stream_options"] = {"include_usage": True}
        self._client = server.http(key)
        self.start()

    def run(self) -> None:
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=self._asked) as response:
                self.replica = response.headers.get("moray-replica", "")
                self.retry_after = response.headers.get("retry-after", "")
                if self._asked["stream"] and response.status_code == 200:
                    for line in response.iter_lines():
                        self._event(line.removeprefix("data: "))
                else:
                    response.read()
                    self._whole(response.json())
        except httpx.HTTPError as error:
            self.broke = error

    def _event(self, data: str) -> None:
        if not data.startswith("{"):
            self._done = self._done or data == "[DONE]"
            return
        event = json.loads(data)
        self.code = event.get("error", {}).get("code")
        self.usage = event.get("usage") or self.usage
        self.text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))

    def _whole(self, body: dict[str, Any]) -> None:
        self.code = body.get("error", {}).get("code")
        self.usage = body.get("usage", {})
        self.text += "".join(choice["message"]["content"] for choice in body.get("choices", ()))
        self._done = self.code is None

    def begun(self) -> "Told":
        eventually(lambda: self.text or not self.is_alive(), QUIET_S, "the first text")
        assert (self.code, self.broke) == (None, None)
        return self

    def ended(self) -> "Told":
        self.join(QUIET_S)
        assert not self.is_alive(), f"seed {self.seed}: {len(self.text)} characters so far"
        return self

    def unbroken(self) -> "Told":
        """Ended, as if nothing had happened."""
        self.ended()
        assert (self.code, self.broke, self._done) == (None, None, True), f"seed {self.seed}: {self.text[-40:]}"
        assert self.text == simulated(self.seed, self.tokens)
        assert self.usage["completion_tokens"] == self.tokens
        return self

    @property
    def resumed(self) -> int:
        return int(self.usage["moray"].get("resumed", 0))

    @property
    def last_replica(self) -> str:
        return str(self.usage["moray"]["replica"])
