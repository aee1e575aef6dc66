"""POST /v1/chat/completions. The gateway thinks once per request; after that it only moves bytes."""

import asyncio
import logging
import secrets
import time
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.types import Receive, Scope, Send

from cluster.errors import MorayError, NotFound, StartTimeout
from cluster.family import Family, Tier
from cluster.request import Chat
from deployments import seen
from deployments.gateway.asgi import LOG_NOTE, REQUEST_ID, Header, authorize, read_body, respond
from deployments.gateway.metrics import GatewayMetrics
from deployments.gateway.tokens import TokenPath, lost
from deployments.gateway.wire import error_event, parse_chat
from deployments.stores.keys import KeyStore
from deployments.stream import Outcome

log = logging.getLogger("ray.serve")
KEEPALIVE_S = 10.0
KEEPALIVE = b": waiting\n\n"


class ChatCompletions:
    """The ASGI endpoint. `tiers` maps a tier's key to its Serve handle."""

    def __init__(
        self,
        family: Family,
        tiers: dict[str, DeploymentHandle[Any]],
        path: TokenPath,
        keys: KeyStore,
        metrics: GatewayMetrics,
    ) -> None:
        self._family = family
        self._tiers = tiers
        self._path = path
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived_s = time.monotonic()
        tier, code, key = "none", "internal_error", "none"
        try:
            key = authorize(scope, self._keys).id
            body = await read_body(scope, receive, self._family.gateway.max_body_bytes)
            chat = parse_chat(body, scope[REQUEST_ID], int(time.time()), secrets.randbits(63))
            tier = self._tier(chat.model)
            headers = served_by(tier, self._family.tiers[tier])
            answer = self._stream if chat.stream else self._whole
            outcome, first_s = await answer(chat, tier, headers, send)
            code = self._measure(tier, outcome, first_s - arrived_s)
        except MorayError as error:
            code = error.code
            if error.status < 500:
                self._metrics.refused(tier, code)
            raise
        except asyncio.CancelledError:
            code = "client_gone"
            raise
        finally:
            self._metrics.request(tier, code, time.monotonic() - arrived_s)
            scope[LOG_NOTE] = f"key={key} tier={tier} code={code}"

    def _tier(self, model: str) -> str:
        tier = self._family.tier_of(model)
        if tier is None:
            known = ", ".join(name for each in self._family.tiers.values() for name in each.names)
            raise NotFound(f"model: {model!r} is not served; served: {known}; choose one of them", param="model")
        return tier

    async def _whole(self, chat: Chat, tier: str, headers: list[Header], send: Send) -> tuple[Outcome, float]:
        """The outcome, and when the first token was there."""
        call = asyncio.ensure_future(_outcome(self._tiers[tier].complete.remote(chat)))
        try:
            await asyncio.wait((call,), timeout=self._family.tiers[tier].start_timeout_s)
            if not call.done():
                self._require_awake(tier)
            outcome = await call
        finally:
            call.cancel()
        first_s = time.monotonic() - (outcome.total_s - outcome.first_s)
        if outcome.error is not None:
            raise outcome.error
        await respond(send, 200, outcome.body, headers)
        return outcome, first_s

    async def _stream(self, chat: Chat, tier: str, headers: list[Header], send: Send) -> tuple[Outcome, float]:
        """The status line waits for the first bytes, so that a refusal still has its own; never for long."""
        answering = self._path.ask(self._tiers[tier], chat)
        begun = False
        first_s = 0.0
        loop = asyncio.get_running_loop()
        late_s = loop.time() + self._family.tiers[tier].start_timeout_s
        self._metrics.streams(tier, +1)
        try:
            while (data := await answering.next(KEEPALIVE_S)) is not None:
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _SSE + headers})
                first_s = first_s or (time.monotonic() if data else 0.0)
                await send({"type": "http.response.body", "body": data or KEEPALIVE, "more_body": True})
                if not data and loop.time() >= late_s:
                    self._require_awake(tier)
            outcome = await answering.call
        except MorayError as error:
            if not begun:
                raise
            log.info("request_id=%s code=%s %s", chat.request_id, error.code, error.message)
            await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
            outcome = Outcome(error=error)
        finally:
            answering.cancel()
            self._metrics.streams(tier, -1)
        await send({"type": "http.response.body", "body": b""})
        return outcome, first_s

    def _measure(self, tier: str, outcome: Outcome, ttft_s: float) -> str:
        """The outcome's code. Time to the first token is the gateway's, time per token the replica's."""
        if outcome.usage is None:
            return outcome.error.code if outcome.error else "ok"
        self._metrics.answered(tier, outcome.usage, ttft_s, outcome.total_s - outcome.first_s)
        return "ok"

    def _require_awake(self, tier: str) -> None:
        if not seen.replicas(tier):
            timeout_s = self._family.tiers[tier].start_timeout_s
            raise StartTimeout(f"tier {tier}: no replica started within {timeout_s:g} s; the operator's log says why")


_SSE: list[Header] = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def served_by(tier: str, spec: Tier) -> list[Header]:
    """Which tier answers; and that it is simulated, where it is."""
    headers = [(b"moray-tier", tier.encode())]
    return [*headers, (b"moray-engine", b"simulated")] if spec.engine == "simulated" else headers


async def _outcome(response: Any) -> Outcome:
    """What a call returns, with every failure of Serve's as an error of ours."""
    try:
        outcome: Outcome = await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except Exception as error:  # whatever Serve raises becomes an answer to the client
        return Outcome(error=lost(error))
    return outcome
