"""What a load has shown, per model and in all, for programs and for people."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.load.answer import Answer
from deployments.load.options import Promise
from deployments.load.over_time import over_time
from deployments.load.videos import Video

SCHEMA_VERSION = 1  # of what --json says; it rises where a field changes its meaning or goes
LATE_S = 0.1
MOST_LATE = 0.01
QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
ALL = "all"
TOO_SLOW = (
    "the client was too slow: {share:.1%} of the requests were sent more than 100 ms late; the load was less bursty "
    "than asked, so latencies are understated"
)


def report(
    answers: Sequence[Answer],
    promises: Mapping[str, Promise],
    seconds: float,
    videos: Sequence[Video] = (),
    *,
    warm_up_s: float = 0.0,
    planned: int | None = None,
) -> dict[str, Any]:
    """Plain values. `promises` by model, of others by ""; without one nothing is said of attainment.

    `planned`: what was to be sent, warm-up included, where that is more than was. `span_s`: from the end of the warm-up
    until the last request was due; `seconds`: until the last answer had ended. All figures but those over time leave
    out what was due in the warm-up.
    """
    judged = [one for one in answers if one.due_s >= warm_up_s]
    late = sum(one.late_s > LATE_S for one in judged)
    late_share = late / len(judged) if judged else 0.0
    return {
        "schema_version": SCHEMA_VERSION,
        "seconds": seconds,
        "span_s": max((one.due_s for one in judged), default=warm_up_s) - warm_up_s,
        "planned": len(answers) if planned is None else planned,
        "sent": len(answers),
        "warm_up": {
            "seconds": warm_up_s,
            "requests": len(answers) - len(judged),
            "videos": sum(one.due_s < warm_up_s for one in videos),
        },
        "send_late_s": _quantiles(one.late_s for one in judged) | {"count": late, "share_over_100_ms": late_share},
        "warning": TOO_SLOW.format(share=late_share) if late_share > MOST_LATE else None,
        ALL: figures(judged, promises),
        "models": _by(judged, promises, lambda one: one.model),
        "tenants": _by(judged, promises, lambda one: one.tenant),
        "videos": _videos([one for one in videos if one.due_s >= warm_up_s]),
        "over_time": over_time(answers, promises, kept),
    }


def _by(
    answers: Sequence[Answer], promises: Mapping[str, Promise], name: Callable[[Answer], str]
) -> dict[str, dict[str, Any]]:
    parts: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        parts[name(one)].append(one)
    return {part: figures(parts[part], promises) for part in sorted(parts)}


def figures(answers: Sequence[Answer], promises: Mapping[str, Promise]) -> dict[str, Any]:
    """Attainment counts all requests: refused and failed ones keep no promise.

    Times to the first token and paces are of all answers that had one, those that broke later included.
    """
    refused = [one for one in answers if one.outcome == "refused"]
    return {
        "requests": len(answers),
        "completed": sum(one.completed for one in answers),
        "under_way": sum(one.outcome == "under way" for one in answers),
        "sent_late": sum(one.late_s > LATE_S for one in answers),
        "without_usage": sum(one.completed and not one.output_tokens for one in answers),
        "refused": _counts(one.refused for one in refused),
        "refused_with_retry_after": sum(one.retry_after_s is not None for one in refused),
        "retry_after_s": _quantiles(one.retry_after_s for one in refused),
        "failed": _counts(one.failure for one in answers),
        "faults": _counts(one.fault for one in answers),
        "kept": _kept(answers, promises),
        "attainment": _attainment(answers, promises),
        "ttft_s": _quantiles(one.ttft_s for one in answers),
        "ttft_from_send_s": _quantiles(one.first_s - one.sent_s for one in answers if one.first_s is not None),
        "tpot_ms": _quantiles(one.tpot_ms for one in answers),
        "total_s": _quantiles(one.total_s for one in answers),
        "pause_s": _quantiles(one.pause_s for one in answers if one.first_s is not None),
        "prompt_tokens": sum(one.prompt_tokens for one in answers),
        "output_tokens": sum(one.output_tokens for one in answers),
        "spilled": _counts(one.spilled for one in answers),
        "resumed": sum(one.resumed > 0 for one in answers),
        "tiers": _counts(one.tier for one in answers),
        "replicas": _counts(one.replica for one in answers),
    }


def kept(answer: Answer, promise: Promise) -> bool:
    """An answer of one token has no pace to keep."""
    if not answer.completed or answer.ttft_s is None:
        return False
    return answer.ttft_s <= promise.ttft_s and (answer.tpot_ms or 0.0) <= promise.tpot_ms


def promised(models: Iterable[Mapping[str, Any]], given: Mapping[str, Promise]) -> dict[str, Promise]:
    """By model: what the command line says, else what the server says of itself."""
    told = {
        model["id"]: Promise(ttft_s=slo["ttft_s"], tpot_ms=slo["tpot_ms"])
        for model in models
        if isinstance(slo := model.get("slo"), dict) and {"ttft_s", "tpot_ms"} <= slo.keys()
    }
    return dict(given) if "" in given else told | dict(given)


def record(answer: Answer) -> dict[str, Any]:
    return asdict(answer)


def _kept(answers: Sequence[Answer], promises: Mapping[str, Promise]) -> int | None:
    """None where no promise was made for any."""
    judged = [(one, promise) for one in answers if (promise := promises.get(one.model) or promises.get(""))]
    return sum(kept(one, promise) for one, promise in judged) if judged else None


def _attainment(answers: Sequence[Answer], promises: Mapping[str, Promise]) -> float | None:
    judged = sum(one.model in promises or "" in promises for one in answers)
    count = _kept(answers, promises)
    return None if count is None else count / judged


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _quantiles(values: Iterable[float | None]) -> dict[str, float | None]:
    known = np.array([value for value in values if value is not None])
    return {name: float(np.percentile(known, q)) if len(known) else None for name, q in QUANTILES.items()}


def _videos(videos: Sequence[Video]) -> dict[str, Any]:
    return {
        "ordered": len(videos),
        "sent_late": sum(one.sent_s is not None and one.sent_s - one.due_s > LATE_S for one in videos),
        "ended": _counts(one.status for one in videos),
        "codes": _counts(one.code for one in videos),
        "took_s": _quantiles(one.took_s for one in videos if one.status == "completed"),
    }


def parts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Figures by name: of all, and of models and tenants where there are several."""
    several = [found[kind] for kind in ("models", "tenants") if len(found[kind]) > 1]
    return {ALL: found[ALL]} | {name: each for kind in several for name, each in kind.items()}


def tables(found: Mapping[str, Any]) -> RenderableType:
    """The same for people."""
    columns = parts(found)
    table = Table(box=box.SIMPLE)
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    for label, key, shown in ROWS:
        cells = [shown(each[key]) for each in columns.values()]
        if any(cells):
            table.add_row(label, *(Text(cell or "-") for cell in cells))
    return Group(table, *(Text(text, style="bold yellow" if loud else "dim") for text, loud in notes(found)))


def notes(found: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """What must be known besides the figures; True where it puts them in doubt."""
    late, warm_up, videos = found["send_late_s"], found["warm_up"], found["videos"]
    sent = f"sent late by p50 {_ms(late['p50'])}, p99 {_ms(late['p99'])}, at most {_ms(late['max'])}"
    yield f"{found['seconds']:.1f} s; {sent}; {late['count']} more than 100 ms", False
    if warm_up["seconds"]:
        said = f"not counted: {warm_up['requests']} requests and {warm_up['videos']} videos of the first "
        yield f"{said}{warm_up['seconds']:g} s, the warm-up", False
    if found[ALL]["without_usage"]:
        yield f"{found[ALL]['without_usage']} answers came without usage; they have no TPOT", False
    if videos["ordered"]:
        codes = f" ({_listed(videos['codes'])})" if videos["codes"] else ""
        yield f"videos: {videos['ordered']} ordered; {_listed(videos['ended'])}{codes}", False
    if found["sent"] < found["planned"]:
        yield f"stopped: {found['planned'] - found['sent']} requests were never sent", True
    if found["warning"]:
        yield found["warning"], True


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.1f} ms"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _spread(values: Mapping[str, float | None]) -> str:
    known = [value for value in values.values() if value is not None]
    return " / ".join(f"{value:.3g}" for value in known)


ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("requests", "requests", str),
    ("completed", "completed", str),
    ("refused", "refused", _listed),
    ("Retry-After, s", "retry_after_s", _spread),
    ("failed", "failed", _listed),
    ("  their codes", "faults", _listed),
    ("promises kept", "attainment", lambda share: "" if share is None else f"{share:.2%}"),
    ("TTFT, s: p50 / p90 / p99 / max", "ttft_s", _spread),
    ("  from the true send", "ttft_from_send_s", _spread),
    ("TPOT, ms", "tpot_ms", _spread),
    ("whole answers, s", "total_s", _spread),
    ("longest pause, s", "pause_s", _spread),
    ("prompt tokens", "prompt_tokens", str),
    ("output tokens", "output_tokens", str),
    ("spilled", "spilled", _listed),
    ("resumed", "resumed", lambda count: str(count) if count else ""),
    ("tiers", "tiers", _listed),
    ("replicas", "replicas", lambda counts: str(len(counts)) if counts else ""),
)
