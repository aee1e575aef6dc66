"""Looks at a running gateway over HTTP: what /health and /metrics say, twice, as the doctor's plain values."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import BaseModel

from cluster.doctor_gateway import Gateway, Look, Seen
from cluster.finding import Finding

PATIENCE_S = 10.0
BETWEEN_S = 4.5  # two control ticks
START = "start one with `moray up`, forward a port of the cluster to here, or mend --url"
TICKED = "moray_control_tick_timestamp_seconds"
FIGURES = {
    "moray_replicas_running": "running",
    "moray_target_replicas": "target",
    "moray_gpus_held": "gpus_held",
    "moray_held_requests": "held_requests",
    "moray_breakers_open": "breakers_open",
}  # of Seen
STATES = ("ready", "starting", "draining")


class _Control(BaseModel):
    version: str
    heard_age_s: float
    picture_age_s: float | None


class _Health(BaseModel):
    """Earlier versions tell neither theirs nor of the control loop."""

    family: str
    replicas: dict[str, int]
    version: str | None = None
    control: _Control | None = None


def look_twice(url: str, wait: Callable[[float], None] = time.sleep) -> Gateway | Finding:
    """The gateway at `url`, or why it cannot be looked at. Blocks between the looks."""
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
            earlier = _look(client)
            wait(BETWEEN_S)
            return Gateway(url=url, client=version("moray"), earlier=earlier, later=_look(client))
    except httpx.HTTPStatusError as error:
        found = f"{error.request.url.path} answers {error.response.status_code}"
    except httpx.TimeoutException:
        found = f"no answer within {PATIENCE_S:g} s"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found = first_line(error)
    except (ValueError, OverflowError):  # of an infinite number of replicas
        found = "answers, but not as a gateway does"
    return Finding(where=f"gateway {url}", found=found, expected="a running gateway", mend=START)


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _look(client: httpx.Client) -> Look:
    """Raises httpx.HTTPError, ValueError, OverflowError."""
    health = _Health.model_validate_json(client.get("/health").raise_for_status().text)
    answer = client.get("/metrics").raise_for_status()
    look = read(answer.text, family=health.family, running=health.replicas, now_s=_now_s(answer))
    look = replace(look, version=health.version)
    if (told := health.control) is None:
        return look
    return replace(look, loop_version=told.version, heard_s=told.heard_age_s, pictured_s=told.picture_age_s)


def _now_s(answer: httpx.Response) -> float:
    """By the clock of who answers, which is nearer to the control loop's than ours."""
    date = answer.headers.get("date")
    return time.time() if date is None else parsedate_to_datetime(date).timestamp()


def read(page: str, *, family: str, running: Mapping[str, int], now_s: float) -> Look:
    """One look, from the text of a gateway's page. Raises ValueError, OverflowError where it is none.

    `running`: replicas by tier as /health tells them, which knows tiers that no series names yet.
    """
    samples = [sample for each in text_string_to_metric_families(page) for sample in each.samples]
    parts: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, figure in FIGURES.items():
        for (part,), value in _by(samples, name, "tier").items():
            parts[part][figure] = int(value)
    for (part, state), value in _by(samples, "moray_replicas", "tier", "state").items():
        if state in STATES:
            parts[part][state] = int(value)
    seen = {part: Seen(**figures) for part, figures in parts.items()}
    ticked_at_s = _by(samples, TICKED).get((), 0.0)  # 0 until the first tick
    return Look(
        family=family,
        tiers=tuple(running),
        parts=seen | {key: replace(seen.get(key, Seen()), running=count) for key, count in running.items()},
        ticked_s=max(0.0, now_s - ticked_at_s) if ticked_at_s else None,
        gpus=int(_by(samples, "moray_gpus").get((), 0)) if ticked_at_s else None,
        queued_jobs=int(_by(samples, "moray_video_jobs", "status").get(("queued",), 0)),
        faults={
            (part, fault): count
            for (part, fault), count in _by(samples, "moray_signal_faults_total", "tier", "fault").items()
        },
        errors={part: count for (part,), count in _by(samples, "moray_control_errors_total", "part").items()},
        signals_s={part: age_s for (part,), age_s in _by(samples, "moray_signal_age_seconds", "tier").items()},
    )


def _by(samples: Iterable[Sample], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The sums of a series by these labels."""
    sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for sample in samples:
        if sample.name == name:
            sums[tuple(sample.labels.get(label, "") for label in labels)] += sample.value
    return sums
