"""Workloads by a stated process, where no public trace exists: Poisson arrivals, drawn lengths.

No evidence on bursts: Poisson arrivals have dispersion 1 at every scale, real traffic may reach hundreds, so what holds
here may fail there. No public trace of video requests was found: video jobs are always of this kind.
"""

import math
from dataclasses import dataclass

import numpy as np

from cluster.cost import video_step_s
from cluster.errors import ConfigurationError
from cluster.family import Video
from cluster.workload import Floats, Ints, Jobs, Workload

MOST_TOKENS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A lognormal distribution of tokens: its median, and the deviation of its logarithm; sigma 0 is a fixed length."""

    median_tokens: float
    sigma: float = 0.0


def poisson(
    rate_rps: float, duration_s: float, prompt: Lengths, output: Lengths, seed: int, model: str = "any"
) -> Workload:
    """Requests of one model and tenant. Lengths are rounded and held to 1 to 10 million tokens."""
    rng = np.random.default_rng(seed)
    arrival_s = _arrivals(rng, "rate_rps", rate_rps, duration_s)
    count = len(arrival_s)
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=_tokens(rng, prompt, count),
        output_tokens=_tokens(rng, output, count),
        model=np.zeros(count, dtype=np.int64),
        tenant=np.zeros(count, dtype=np.int64),
        models=(model,),
    )


def video_jobs(video: Video, jobs_per_hour: float, duration_s: float, seed: int) -> Jobs:
    """Jobs of the sizes and seconds that the family sells, each pair as likely, due when the family promises."""
    rng = np.random.default_rng(seed)
    arrival_s = _arrivals(rng, "jobs_per_hour", jobs_per_hour / 3600, duration_s)
    count = len(arrival_s)
    size = rng.integers(len(video.sizes), size=count)
    length = rng.integers(len(video.seconds), size=count)
    step_s = np.array([[video_step_s(video, shape, seconds) for seconds in video.seconds] for shape in video.sizes])
    return Jobs(
        arrival_s=arrival_s,
        steps=np.full(count, video.steps, dtype=np.int64),
        step_s=step_s[size, length],
        deadline_s=arrival_s + video.slo.deadline_s,
        value_usd=np.array(video.seconds)[length] * video.price.usd_per_second,
    )


def _arrivals(rng: np.random.Generator, name: str, rate_rps: float, duration_s: float) -> Floats:
    """Given their number, Poisson arrivals are uniform."""
    for field, given in ((name, rate_rps), ("duration_s", duration_s)):
        if not (math.isfinite(given) and given >= 0):
            raise ConfigurationError(f"{field}: {given:g}; a finite number >= 0 is allowed; give one")
    return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate_rps * duration_s)))


def _tokens(rng: np.random.Generator, lengths: Lengths, count: int) -> Ints:
    if not (1 <= lengths.median_tokens <= MOST_TOKENS and 0 <= lengths.sigma <= 10):
        raise ConfigurationError(
            f"lengths: median {lengths.median_tokens:g} tokens, sigma {lengths.sigma:g}; "
            f"1 to {MOST_TOKENS:,} and 0 to 10 are allowed; give others"
        )
    drawn = lengths.median_tokens * np.exp(lengths.sigma * rng.standard_normal(count))
    return np.clip(np.rint(drawn), 1, MOST_TOKENS).astype(np.int64)
