"""What was used, by whom, at which list price, and what it cost. Not the ledger of a request's time: cluster.ledger.

    price   = input * input_price + output * output_price            of the tier ASKED; of `auto.price` for its names;
                                                                     times the factor of its service class
    video   = seconds * usd_per_second                               of finished jobs
    gpu_s   = what cost.py says of the answer, on the tier that SERVED
    cost    = held_gpu_s * usd_per_gpu_hour / 3600 * gpu_s / all gpu_s     per tier and hour

`held_gpu_s` is what replicas of the tier held in that hour, those that idled or started too: so idle time and cold
starts are shared by use, and all costs of an hour sum to what its GPUs cost. Where nobody used a tier its cost is
nobody's, and told apart: `unused`.
Prices are whole billionths of a dollar: sums are exact, in any order.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cluster.cost import request_gpu_s, video_step_s
from cluster.family import Family, Price, Video

NUSD = 1_000_000_000  # of one dollar
HOUR_S = 3600
Kind = Literal["chat", "embedding", "video"]
By = Literal["org", "project", "key_id", "model", "tier_asked", "tier_served", "kind", "code"]
BYS: tuple[By, ...] = get_args(By)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One event of the ledger, written once: `id` is that of the request and what of it was used.

    `at_s`: Unix time of its end, whole seconds. `model`: as it was asked. `code`: how it ended; `lost`: the gateway
    died under it, and nothing is charged. `estimated`: no engine counted the prompt. `gpu_s`: use, by which costs are
    shared.
    """

    id: str
    at_s: int
    kind: Kind
    org: str
    project: str
    key_id: str
    model: str
    tier_asked: str
    tier_served: str
    code: str
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: int = 0
    video_s: int = 0
    gpu_s: float = 0.0
    price_nusd: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """GPU-seconds that a tier's replicas held, up to `at_s`, at that price."""

    id: str
    at_s: int
    tier: str
    gpu_s: float
    usd_per_gpu_hour: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """Of all events in `start_s`.. that agree in `by`."""

    start_s: int
    by: tuple[str, ...]
    events: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    video_s: int = 0
    gpu_s: float = 0.0
    price_nusd: int = 0
    cost_usd: float = 0.0

    @property
    def price_usd(self) -> float:
        return self.price_nusd / NUSD


TOKENS = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
ADDED = ("events", *TOKENS, "video_s", "gpu_s", "price_nusd")


def tokens_nusd(price: Price, input_tokens: int, output_tokens: int, factor: float = 1.0) -> int:
    """Cached prompt tokens cost what others do. `factor`: of the service class."""
    per_mtok = price.input_usd_per_mtok * input_tokens + price.output_usd_per_mtok * output_tokens
    return round(factor * per_mtok * NUSD / 1_000_000)


def price_of(family: Family, model: str, tier_asked: str) -> Price:
    """Of the tier asked, whoever served; of a name that left the choice to us, its own where it has one."""
    auto = family.auto
    if auto is not None and auto.price is not None and model in auto.names:
        return auto.price
    return family.tiers[tier_asked].price


def chat_gpu_s(family: Family, tier_served: str, input_tokens: int, output_tokens: int) -> float:
    """Of an answer on a replica that is full of its like; 0 of a tier that is gone, and of no tokens."""
    tier = family.tiers.get(tier_served)
    if tier is None or not output_tokens:
        return 0.0
    return request_gpu_s(tier, max(1, input_tokens), output_tokens)


def video_use_gpu_s(video: Video, size: str, seconds: float, steps: float, share: float = 1.0) -> float:
    """`share`: of the tokens, that a step computes on average."""
    return steps * video_step_s(video, size, seconds, share) * video.gpus


def video_nusd(video: Video, seconds: int) -> int:
    return round(video.price.usd_per_second * seconds * NUSD)


def costs(uses: Iterable[Sum], held: Iterable[Held]) -> dict[tuple[int, str], float]:
    """By hour and tier, dollars per GPU-second used. `uses`: by hour, of (tier_served,).

    Where nobody recorded what was held, nothing is known to have cost anything.
    """
    paid: defaultdict[tuple[int, str], float] = defaultdict(float)
    for one in held:
        paid[one.at_s // HOUR_S * HOUR_S, one.tier] += one.gpu_s * one.usd_per_gpu_hour / 3600
    used = {(one.start_s, one.by[0]): one.gpu_s for one in uses}
    return {key: usd / used[key] for key, usd in paid.items() if used.get(key)}


def unused(uses: Iterable[Sum], held: Iterable[Held], bucket_s: int) -> tuple[Sum, ...]:
    """What was held in hours in which nobody used the tier, by bucket and (tier,): `gpu_s` held, and `cost_usd`."""
    used = {(one.start_s, one.by[0]) for one in uses if one.gpu_s}
    sums: defaultdict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in held:
        hour_s = one.at_s // HOUR_S * HOUR_S
        if (hour_s, one.tier) not in used:
            into = sums[hour_s // bucket_s * bucket_s, one.tier]
            into[0] += one.gpu_s
            into[1] += one.gpu_s * one.usd_per_gpu_hour / 3600
    found = sorted(sums.items())
    return tuple(Sum(start_s=at_s, by=(tier,), gpu_s=gpu_s, cost_usd=usd) for (at_s, tier), (gpu_s, usd) in found)


def report(hours: Iterable[Sum], rates: Mapping[tuple[int, str], float], bucket_s: int) -> tuple[Sum, ...]:
    """`hours`: of (tier_served, *by), each an hour or less of a bucket. Buckets of `by` with their costs, in order."""
    sums: dict[tuple[int, tuple[str, ...]], dict[str, float]] = {}
    for one in hours:
        tier, *by = one.by
        key = one.start_s // bucket_s * bucket_s, tuple(by)
        into = sums.setdefault(key, dict.fromkeys((*ADDED, "cost_usd"), 0))
        for name in ADDED:
            into[name] += getattr(one, name)
        into["cost_usd"] += one.gpu_s * rates.get((one.start_s // HOUR_S * HOUR_S, tier), 0.0)
    whole = [Sum(start_s=start_s, by=by, **found) for (start_s, by), found in sums.items()]  # type: ignore[arg-type]
    return tuple(sorted(whole, key=lambda one: (one.start_s, one.by)))
