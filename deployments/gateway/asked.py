"""What the desk is asked, and the place that it gives."""

import asyncio
from dataclasses import dataclass

from cluster.errors import MorayError
from cluster.held import Kind
from cluster.request import Served
from cluster.tiering import Range

RESUMED = 1 << 32  # added to the priority of requests that a client has begun to read: ahead of every newcomer


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`range`: cut to what the caller may use. `arrived_s`: on the desk's clock. `patience`: times its tier's.

    `spare`: it runs on what is left over. No replica is to start or to stay for it. `prompts`: tokens of each prompt;
    `prompt_tokens` of all.
    """

    request_id: str
    range: Range
    tenant: str
    priority: int
    share: float
    prompt_tokens: int
    arrived_s: float
    patience: float = 1.0
    spare: bool = False
    prompts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`prompt_tokens`: with what was given before. `cost_gpu_s`: charged to the tenant. `number` tells places apart."""

    asked: Asked
    served: Served
    number: int
    sent_s: float
    prompt_tokens: int
    cost_gpu_s: float


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that has no place yet. `before`: the place that it lost. `asked_s`: its promises count from then."""

    asked: Asked
    range: Range
    kind: Kind
    asked_s: float
    prompt_tokens: int
    number: int
    future: asyncio.Future[Place]
    before: Place | None = None


def fail(waiting: Waiting, error: MorayError) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)
