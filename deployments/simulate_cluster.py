"""What a rehearsal runs on: the family on a cluster of the size asked, and its first replicas.

Tiers that nobody asks for are left out, so that the figures of one tier hold no minima and no spills of others; all
stay where a name leaves the tier open, and with the family file's own budget.

The first replicas are the same for every policy: of each tier ceil(load / 0.85) + 1, load being the work of the busiest
minute of the first ten in replicas, and at least its minimum; of video as many as its jobs keep busy. Where a GPU
budget does not hold them all, those who hold the most GPUs start with fewer.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoscaling.policy import VIDEO
from cluster.batching import SLACK_SHARE
from cluster.cost import slo_batch, work_s
from cluster.errors import ConfigurationError
from cluster.family import ColdStart, Family, Replicas, Tier
from cluster.workload import Floats, Jobs, Workload

FIRST_S = 600.0
FIRST_LOAD = 0.85  # of the first replicas, in their busiest minute
MINUTE_S = 60.0
Bools = NDArray[np.bool_]


def started_in(family: Family, cold_start_s: float) -> Family:
    """The family with this median cold start everywhere; its spread stays in proportion."""
    tiers = {
        name: tier.model_copy(update={"cold_start": _median(tier.cold_start, cold_start_s)})
        for name, tier in family.tiers.items()
    }
    video = family.video
    if video is not None:
        video = video.model_copy(update={"cold_start": _median(video.cold_start, cold_start_s)})
    return family.model_copy(update={"tiers": tiers, "video": video})


def _median(given: ColdStart, p50_s: float) -> ColdStart:
    return ColdStart(p50_s=p50_s, p99_s=p50_s * given.p99_s / given.p50_s)


def require_room(family: Family, gpus: int) -> None:
    """Raises ConfigurationError where the minima alone do not fit."""
    held = sum(tier.ranks * tier.replicas.min for tier in family.tiers.values())
    held += family.video.gpus * family.video.replicas.min if family.video else 0
    if held > gpus:
        raise ConfigurationError(
            f"--gpus: {gpus}; the replica minima of family {family.name} hold {held}; give at least so many"
        )


def lifted(family: Family, gpus: int) -> Family:
    """The family on a cluster of this size: replica maxima become what fits."""
    tiers = {
        name: tier.model_copy(update={"replicas": _up_to(tier.replicas, gpus // tier.ranks)})
        for name, tier in family.tiers.items()
    }
    video = family.video
    if video is not None:
        video = video.model_copy(update={"replicas": _up_to(video.replicas, gpus // video.gpus)})
    return family.model_copy(update={"tiers": tiers, "video": video, "gpu_budget_gpus": gpus})


def _up_to(replicas: Replicas, most: int) -> Replicas:
    most = max(1, most, replicas.min)
    return replicas.model_copy(update={"max": most, "initial": min(replicas.initial, most)})


def of_tiers(family: Family, requests: Workload) -> Family:
    """With the tiers that these requests ask for alone."""
    if family.auto is not None and set(family.auto.names) & set(requests.models):
        return family
    asked = {family.tier_of(model) or model for model in requests.models} if len(requests) else set()
    tiers = {name: tier for name, tier in family.tiers.items() if name in asked}
    if not tiers:  # videos alone
        return family
    video = family.video
    if video is not None and video.beside not in tiers:
        video = video.model_copy(update={"beside": None})
    return family.model_copy(update={"tiers": tiers, "plans": {}, "auto": None, "video": video})


def asked_of(family: Family, requests: Workload) -> dict[str, Bools]:
    """Which requests ask each tier: by its name, or by length where the name leaves it open."""
    tiers = list(family.tiers)
    names = [family.tier_of(model) or model for model in requests.models]
    index = np.array([tiers.index(name) if name in tiers else -1 for name in names])[requests.model]
    if family.auto is not None:
        default, long = tiers.index(family.auto.default), tiers.index(family.auto.long)
        index = np.where(
            index < 0, np.where(requests.prompt_tokens < family.auto.long_prompt_tokens, default, long), index
        )
    return {name: index == number for number, name in enumerate(tiers)}


def load(tier: Tier, requests: Workload, mine: Bools, span_s: float) -> float:
    """Replicas that these requests keep busy, at the batch that their mean allows."""
    return float(_work_s(tier, requests, mine).sum()) / span_s


def _work_s(tier: Tier, requests: Workload, mine: Bools) -> Floats:
    if not mine.any():
        return np.zeros(0)
    prompt, output = (column[mine].astype(float) for column in (requests.prompt_tokens, requests.output_tokens))
    context = float((output * (prompt + output / 2)).sum() / output.sum())
    batch = slo_batch(tier, float(prompt.mean()), float(output.mean()), context, SLACK_SHARE)
    return work_s(tier.cost, batch, prompt, output)


def initial(
    family: Family, gpus: int | None, given: int | None, requests: Workload, jobs: Jobs | None
) -> dict[str, int]:
    """By tier, and "video". `given`: of each tier that is asked. Raises ConfigurationError where those do not fit."""
    asked = asked_of(family, requests)
    first = {name: _first(tier, given, requests, asked[name]) for name, tier in family.tiers.items()}
    ranks = {name: tier.ranks for name, tier in family.tiers.items()}
    least = {name: tier.replicas.min for name, tier in family.tiers.items()}
    if family.video is not None:
        ranks[VIDEO], least[VIDEO] = family.video.gpus, family.video.replicas.min
        first[VIDEO] = _first_video(family.video.replicas, jobs)
    held = sum(count * ranks[name] for name, count in first.items())
    if gpus is None or held <= gpus:
        return first
    if given is not None:
        raise ConfigurationError(f"--initial: {given}; with it {held} GPUs of {gpus} are held at once; give fewer")
    return _within(gpus, first, ranks, least)


def _first(tier: Tier, given: int | None, requests: Workload, mine: Bools) -> int:
    bounds = tier.replicas
    if not mine.any():
        return bounds.min
    if given is None:
        early = mine & (requests.arrival_s < FIRST_S)
        minute = (requests.arrival_s[early] // MINUTE_S).astype(int)
        by_minute = np.bincount(minute, weights=_work_s(tier, requests, early), minlength=1) / MINUTE_S
        given = math.ceil(float(by_minute.max()) / FIRST_LOAD) + 1
    return max(bounds.min, min(bounds.max, given))


def _first_video(bounds: Replicas, jobs: Jobs | None) -> int:
    if jobs is None or not len(jobs):
        return bounds.min
    busy = float((jobs.steps * jobs.step_s).sum()) / max(1.0, float(jobs.arrival_s[-1]))
    return max(bounds.min, min(bounds.max, math.ceil(busy)))


def _within(gpus: int, first: Mapping[str, int], ranks: Mapping[str, int], least: Mapping[str, int]) -> dict[str, int]:
    """One replica less of whoever holds the most GPUs, again and again; minima stay."""
    counts = dict(first)
    while sum(count * ranks[name] for name, count in counts.items()) > gpus:
        fewer = [name for name, count in counts.items() if count > least[name]]
        counts[max(fewer, key=lambda name: counts[name] * ranks[name])] -= 1
    return counts
