"""What a rehearsal replays: traces as one workload, and video jobs by a Poisson process, for no public trace has any.

Every trace begins at --start-s as at 0 and has a seed of its own, so that the same file twice is not the same bursts
twice.
"""

import math

import numpy as np

from cluster import servegen
from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.synthetic import video_jobs
from cluster.traces import parse_azure, parse_mooncake
from cluster.workload import Ints, Jobs, Workload, merge, scale, window
from deployments.simulate_options import Options, Trace, Work
from deployments.trace_files import fitted, lines

DRAWN_S = 3600.0  # of a process without an end, where --duration-s does not say


def workload(asked: Work) -> Workload:
    """Raises ConfigurationError where a trace is missing, wrong or has nothing in the stretch that was asked."""
    if not asked.traces:
        none: Ints = np.zeros(0, dtype=np.int64)
        return Workload(
            arrival_s=np.zeros(0),
            prompt_tokens=none,
            output_tokens=none,
            model=none,
            tenant=none,
            models=(asked.model,),
        )
    return merge(*(_traced(trace, asked, asked.seed + number) for number, trace in enumerate(asked.traces)))


def _traced(trace: Trace, asked: Work, seed: int) -> Workload:
    model = trace.model or asked.model
    if trace.format == "servegen":
        return _sampled(trace, asked, seed, model)
    parse = parse_azure if trace.format == "azure" else parse_mooncake
    whole = parse(lines(trace.path), trace.path, model=model)
    _require_within(trace, asked, float(whole.arrival_s[-1]))
    whole = scale(whole, asked.scale, seed)
    return _some(window(whole, asked.start_s, asked.duration_s or math.inf), trace, asked)


def _sampled(trace: Trace, asked: Work, seed: int, model: str) -> Workload:
    fit = fitted(trace.path)
    end_s = fit.clients.span_s
    _require_within(trace, asked, end_s)
    duration_s = min(asked.duration_s or DRAWN_S, end_s - asked.start_s)
    drawn = servegen.generate(
        fit, start_s=asked.start_s, duration_s=duration_s, fraction=asked.scale, seed=seed, model=model
    )
    return _some(drawn, trace, asked)


def _require_within(trace: Trace, asked: Work, end_s: float) -> None:
    if asked.start_s >= end_s:
        raise ConfigurationError(
            f"--start-s: {asked.start_s:g}; {trace.path} ends at {end_s:,.0f} s; start before that"
        )


def _some(part: Workload, trace: Trace, asked: Work) -> Workload:
    if not len(part):
        raise ConfigurationError(
            f"{trace.path}: no request in the stretch from --start-s {asked.start_s:g} at --scale {asked.scale:g}; at "
            "least one is needed; ask for more"
        )
    return part


def span_s(asked: Work, requests: Workload) -> float:
    """How long work arrives."""
    last_s = float(requests.arrival_s[-1]) if len(requests) else DRAWN_S
    return asked.duration_s or last_s


def jobs(asked: Options, family: Family, requests: Workload) -> Jobs | None:
    if not asked.video_jobs_per_hour or family.video is None:
        return None
    return video_jobs(family.video, asked.video_jobs_per_hour, span_s(asked, requests), asked.seed)
