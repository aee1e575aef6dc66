"""What a load has shown, per model and in all, for programs and for people."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from deployments.load.answer import Answer
from deployments.load.options import Promise
from deployments.load.videos import Video

LATE_S = 0.1
MOST_LATE = 0.01
QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
ALL = "all"
TOO_SLOW = (
    "the client was too slow: {share:.1%} of the requests were sent more than 100 ms late; the load was less bursty "
    "than asked, so latencies are understated"
)


def report(
    answers: Sequence[Answer], promises: Mapping[str, Promise], seconds: float, videos: Sequence[Video] = ()
) -> dict[str, Any]:
    """Plain values. `promises` by model, of others by ""; without one nothing is said of attainment.

    `span_s`: until the last request was due; `seconds`: until the last answer had ended.
    """
    names = sorted({one.model for one in answers})
    by_model = {name: figures([one for one in answers if one.model == name], promises) for name in names}
    late_s = [one.sent_s - one.due_s for one in answers]
    late_share = sum(late > LATE_S for late in late_s) / len(late_s) if late_s else 0.0
    return {
        "seconds": seconds,
        "span_s": max((one.due_s for one in answers), default=0.0),
        "send_late_s": _quantiles(late_s) | {"share_over_100_ms": late_share},
        "warning": TOO_SLOW.format(share=late_share) if late_share > MOST_LATE else None,
        ALL: figures(answers, promises),
        "models": by_model,
        "videos": _videos(videos),
    }


def figures(answers: Sequence[Answer], promises: Mapping[str, Promise]) -> dict[str, Any]:
    """Attainment counts all requests: refused and failed ones keep no promise.

    Times to the first token and paces are of all answers that had one, those that broke later included.
    """
    refused = [one for one in answers if one.refused]
    return {
        "requests": len(answers),
        "completed": sum(one.completed for one in answers),
        "refused": _counts(one.refused for one in answers),
        "refused_with_retry_after": sum(one.retry_after_s is not None for one in refused),
        "retry_after_s": _quantiles(one.retry_after_s for one in refused),
        "failed": _counts(one.failure for one in answers),
        "faults": _counts(one.fault for one in answers),
        "attainment": _attainment(answers, promises),
        "ttft_s": _quantiles(one.ttft_s for one in answers),
        "ttft_from_send_s": _quantiles(one.first_s - one.sent_s for one in answers if one.first_s is not None),
        "tpot_ms": _quantiles(one.tpot_ms for one in answers),
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


def _attainment(answers: Sequence[Answer], promises: Mapping[str, Promise]) -> float | None:
    judged = [(one, promise) for one in answers if (promise := promises.get(one.model) or promises.get(""))]
    return sum(kept(one, promise) for one, promise in judged) / len(judged) if judged else None


def _counts(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(value for value in values if value is not None).most_common())


def _quantiles(values: Iterable[float | None]) -> dict[str, float | None]:
    known = np.array([value for value in values if value is not None])
    return {name: float(np.percentile(known, q)) if len(known) else None for name, q in QUANTILES.items()}


def _videos(videos: Sequence[Video]) -> dict[str, Any]:
    return {
        "ordered": len(videos),
        "ended": _counts(one.status for one in videos),
        "codes": _counts(one.code for one in videos),
        "took_s": _quantiles(one.took_s for one in videos if one.status == "completed"),
    }


def tables(found: Mapping[str, Any]) -> RenderableType:
    """The same for people."""
    columns = {ALL: found[ALL]} | (found["models"] if len(found["models"]) > 1 else {})
    table = Table(box=box.SIMPLE)
    for name in ("", *columns):
        table.add_column(name, justify="right" if name else "left")
    for label, key, shown in _ROWS:
        cells = [shown(each[key]) for each in columns.values()]
        if any(cells):
            table.add_row(label, *(Text(cell or "-") for cell in cells))
    late = found["send_late_s"]
    sent = f"sent late by p50 {_ms(late['p50'])}, p99 {_ms(late['p99'])}, at most {_ms(late['max'])}"
    lines: list[RenderableType] = [table, Text(f"{found['seconds']:.1f} s; {sent}", style="dim")]
    if found["videos"]["ordered"]:
        lines.append(Text(f"videos: {found['videos']['ordered']} ordered; {_listed(found['videos']['ended'])}"))
    if found["warning"]:
        lines.append(Text(found["warning"], style="bold yellow"))
    return Group(*lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.1f} ms"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _spread(values: Mapping[str, float | None]) -> str:
    known = [value for value in values.values() if value is not None]
    return " / ".join(f"{value:.3g}" for value in known)


_ROWS = (
    ("requests", "requests", str),
    ("completed", "completed", str),
    ("refused", "refused", _listed),
    ("Retry-After, s", "retry_after_s", _spread),
    ("failed", "failed", _listed),
    ("promises kept", "attainment", lambda share: "" if share is None else f"{share:.2%}"),
    ("TTFT, s: p50 / p90 / p99 / max", "ttft_s", _spread),
    ("  from the true send", "ttft_from_send_s", _spread),
    ("TPOT, ms", "tpot_ms", _spread),
    ("longest pause, s", "pause_s", _spread),
    ("prompt tokens", "prompt_tokens", str),
    ("output tokens", "output_tokens", str),
    ("spilled", "spilled", _listed),
    ("resumed", "resumed", lambda count: str(count) if count else ""),
    ("tiers", "tiers", _listed),
    ("replicas", "replicas", lambda counts: str(len(counts)) if counts else ""),
)
