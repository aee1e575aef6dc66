"""Which replica: the cheapest that keeps every promise, to the newcomer and to those already running.

Predicted on each replica, in ms: B sequences there with this one, K their KV tokens, x the prompt less cached prefix

    step  = correction * (a + b*B + c*K + d*touched(B))
    chunk = what the pace leaves beside a step (cluster.batching), or the engine's fixed chunk
    own   = x*us + x/chunk * step                            the second term where others decode
    wait  = sequences that must finish first * output * step / running; beyond max_running, or where KV is short
    ttft  = until the prefill queued there is done + own + step + wait
    score = (ttft + own)/TTFT + PACE*step/TPOT               own twice: those who come next wait for it too

Kept: waited + ttft <= TTFT; step, with the least chunk on it, <= TPOT; all there fit into the KV cache to their last
token. The order: fresh replicas that keep all, the lowest score first (while the tier scales in: the most loaded that
keeps them with room to spare); replicas not heard of for 2 s, by power of two choices; fresh ones that break a promise,
the least excess first. Equal scores are drawn, so that several routers do not run to the same replica. Total: no load
makes it raise.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.batching import LEAST_TOKENS, SLACK_SHARE
from cluster.cost import Service
from cluster.fleet import Candidate, ReplicaReport
from cluster.loads import Ask, Choice, Loads
from cluster.workload import Floats

STALE_S = 2.0
PACE = 0.1
BROKEN = 10.0  # what a promise broken by its own length adds to a score
PACKED_SHARE = 0.5  # of each promise is used where replicas are packed; fuller ones jam when answers turn out long
Bools = NDArray[np.bool_]
ATTAINED_STEPS = 2.0  # of an idle replica: the pace that is aimed at where the promised one cannot be kept
NOBODY = Choice(None, math.inf, math.inf, False, "none")


class Prediction(NamedTuple):
    """Per replica. `base_ms`: a step without the correction. `fits`: everybody's KV to the last token."""

    ttft_ms: Floats
    own_ms: Floats
    step_ms: Floats
    base_ms: Floats
    fits: Bools


def predict(loads: Loads, ask: Ask, service: Service, now_s: float, us: Floats | float) -> Prediction:
    """What the request would see on each replica, where a prompt token costs `us`. NaN where a load makes no sense."""
    out, most = ask.expected_output_tokens, service.max_running
    sequences = loads.sequences + 1.0
    kv = loads.kv_tokens + (ask.prompt_tokens + out / 2)
    base = service.batch_ms.take(np.minimum(sequences, most).astype(np.int64), mode="clip")
    base += service.c_ms_per_token * kv
    step = loads.correction * base
    tokens = ask.prompt_tokens if ask.hit_tokens is None else np.maximum(ask.prompt_tokens - ask.hit_tokens, 1.0)
    own = tokens * us * 0.001
    own = own + _riding_ms(step, own, us, service) * (sequences > 1.0)
    ttft = np.maximum(loads.prefill_done_s - now_s, 0.0) * 1000.0
    ttft += own
    ttft += step
    ends = kv + sequences * (out / 2 if ask.left_tokens is None else ask.left_tokens)
    fits = ends <= loads.kv_capacity_tokens
    if not (fits & (sequences <= most)).all():
        short = np.maximum((ends - loads.kv_capacity_tokens) * sequences / ends, 0.0)
        ttft += np.maximum(sequences - most, short) * step * out / np.minimum(sequences, most)
    return Prediction(ttft, own, step, base, fits)


def _riding_ms(step: Floats, own: Floats | float, us: Floats | float, service: Service) -> Floats:
    """Steps of others, one for each chunk of a prompt that alone would take `own` ms."""
    if service.chunking == "fixed":
        return own / (service.chunk_tokens * us * 0.001) * step
    chunk_ms = np.maximum(SLACK_SHARE * service.tpot_ms - step, LEAST_TOKENS * us * 0.001)
    return own / chunk_ms * step


def _kept(seen: Prediction, service: Service, us: Floats | float, waited_s: float, share: float = 1.0) -> Bools:
    """Where every promise holds, with that share of each."""
    pace = share * service.tpot_ms - (LEAST_TOKENS * us / 1000 if service.chunking == "slack" else 0.0)
    kept: Bools = (seen.ttft_ms <= (share * service.ttft_s - waited_s) * 1000) & (seen.step_ms <= pace) & seen.fits
    return kept


def _score(seen: Prediction, service: Service) -> Floats:
    return (seen.ttft_ms + seen.own_ms) * (0.001 / service.ttft_s) + seen.step_ms * (PACE / service.tpot_ms)


def _excess(seen: Prediction, service: Service, waited_s: float) -> Floats:
    """The score where a promise breaks; NaN where a load makes no sense."""
    late = np.maximum((seen.ttft_ms * 0.001 + waited_s) / service.ttft_s - 1.0, 0.0)
    slow = np.maximum(seen.step_ms / service.tpot_ms - 1.0, 0.0)
    return _score(seen, service) + BROKEN * (late + slow)


def choose(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    """Total, and the same for the same arguments. See cluster.loads.Router."""
    with np.errstate(all="ignore"):
        us = np.float64(ask.us_per_token)  # divides by zero without raising
        seen = predict(loads, ask, service, now_s, us)
        fresh = loads.open & (loads.heard_s >= now_s - STALE_S)
        keep = (fresh & _kept(seen, service, us, ask.waited_s)).nonzero()[0]
        if keep.size:
            return _choice(_best(keep, seen, ask, service, packing), seen, True)
        return _unkept(loads, ask, service, seen, fresh)


def _best(keep: NDArray[np.int64], seen: Prediction, ask: Ask, service: Service, packing: bool) -> int:
    if packing:
        roomy = keep[_kept(seen, service, ask.us_per_token, ask.waited_s, PACKED_SHARE)[keep]]
        if roomy.size:
            return _drawn(roomy, -seen.base_ms[roomy], ask.draw)
    return _drawn(keep, _score(seen, service)[keep], ask.draw)


def _drawn(indices: NDArray[np.int64], score: Floats, draw: float) -> int:
    """One of those with the lowest score."""
    ties = indices[score == score[score.argmin()]]
    return int(ties[int(draw * ties.size)])


def _unkept(loads: Loads, ask: Ask, service: Service, seen: Prediction, fresh: Bools) -> Choice:
    excess = _excess(seen, service, ask.waited_s)
    known = fresh & np.isfinite(excess)
    blind = (loads.open & ~known).nonzero()[0]
    if blind.size:
        # What it would see there nobody knows: it is taken to keep its promises, since nothing waits on a guess.
        return Choice(
            _two_choices(blind, loads.ongoing, ask.draw), service.ttft_s, service.tpot_ms, True, "two_choices"
        )
    broken = known.nonzero()[0]
    if not broken.size:
        return NOBODY
    return _choice(_drawn(broken, excess[broken], ask.draw), seen, False)


def _choice(index: int, seen: Prediction, feasible: bool) -> Choice:
    ttft_s, tpot_ms = float(seen.ttft_ms[index]) / 1000, float(seen.step_ms[index])
    return Choice(index, ttft_s, tpot_ms, feasible, "predicted", float(seen.own_ms[index]) / 1000)


def _two_choices(pool: NDArray[np.int64], ongoing: Floats, draw: float) -> int:
    """Of two different ones, drawn together, the one with fewer requests."""
    if pool.size == 1:
        return int(pool[0])
    first, second = divmod(int(draw * pool.size * (pool.size - 1)), pool.size - 1)
    one, other = int(pool[first]), int(pool[second + (second >= first)])
    return other if ongoing[other] < ongoing[one] else one


def reported(candidates: Sequence[Candidate], ask: Ask, service: Service) -> tuple[Loads, Ask]:
    """What replicas report, with what this gateway sent and saw finish since, as columns; NaN: no report.

    The ask comes back with the measured cost of a prompt token, of the middle replica; without any it stays as it is.
    """
    with np.errstate(all="ignore"):
        rows = np.array([_row(candidate) for candidate in candidates], dtype=float).reshape(-1, 15)
        heard_s, running, waiting, queued, held, capacity, measured_ms, us = rows.T[:8]
        ongoing, sent, sent_tokens, sent_done_s, ended, ended_kv, slowness = rows.T[8:]
        measured = us[np.isfinite(us) & (us > 0.0)]
        us = np.where(us > 0.0, us, ask.us_per_token)
        modelled_ms = service.batch_ms.take(np.minimum(running, service.max_running).astype(np.int64), mode="clip")
        modelled_ms += service.c_ms_per_token * held
        # An idle replica measured some earlier batch: taken as is, it would look as slow as it was when full.
        correction = np.where((running > 0.0) & (measured_ms > 0.0), measured_ms / modelled_ms, slowness)
        queued_ms = queued * us / 1000.0
        queued_ms += _riding_ms(correction * modelled_ms, queued_ms, us, service) * (running > 0.0)
        loads = Loads(
            # A report may have been made before the last requests came: what is ongoing from here is there in any case.
            sequences=np.maximum(running + waiting + sent - ended, ongoing),
            kv_tokens=np.maximum(held - ended_kv, 0.0) + queued + sent_tokens + sent * (ask.expected_output_tokens / 2),
            kv_capacity_tokens=capacity,
            prefill_tokens=queued + sent_tokens,
            prefill_done_s=np.maximum(heard_s + queued_ms / 1000.0, sent_done_s),
            correction=correction,
            heard_s=heard_s,
            ongoing=ongoing,
            open=np.array([candidate.open for candidate in candidates], dtype=bool),
        )
    return loads, replace(ask, us_per_token=float(np.sort(measured)[measured.size // 2])) if measured.size else ask


def _row(candidate: Candidate) -> tuple[float, ...]:
    report = candidate.report
    said = (math.nan,) * 8
    if report is not None:
        said = (
            report.at_s,
            report.running,
            report.waiting,
            report.waiting_prefill_tokens,
            report.kv_used_tokens,
            report.kv_capacity_tokens,
            report.step_ms,
            report.prefill_us_per_token,
        )
    return (
        *said,
        candidate.ongoing_requests,
        candidate.sent_requests,
        candidate.sent_prefill_tokens,
        candidate.sent_done_s,
        candidate.ended_requests,
        candidate.ended_kv_tokens,
        candidate.slowness,
    )


def slowness(report: ReplicaReport, service: Service) -> float | None:
    """Measured over modelled step; None where nothing ran, or nothing was measured."""
    if not (report.running and report.step_ms > 0):
        return None
    batch_ms = float(service.batch_ms[min(report.running, service.max_running)])
    return report.step_ms / (batch_ms + service.c_ms_per_token * report.kv_used_tokens)


def least_correction(loads: Loads) -> float:
    """Of the open replicas that were heard of; 1 where none was."""
    known = loads.correction[loads.open & np.isfinite(loads.correction) & np.isfinite(loads.heard_s)]
    return float(known.min()) if known.size else 1.0


def attainable(service: Service, correction: float) -> Service:
    """The service with a pace that replicas so slow can keep; the same where they keep the promised one.

    Where a step of an idle replica takes as long as the promised pace, or nearly, waiting gains nothing.
    """
    pace_ms = ATTAINED_STEPS * correction * float(service.batch_ms[1])
    return replace(service, tpot_ms=pace_ms) if service.tpot_ms < pace_ms < math.inf else service


def idle(loads: Loads) -> Loads | None:
    """The same with only those open that have nothing to do; None where none has."""
    free = loads.open & (loads.sequences == 0.0)
    return replace(loads, open=free) if free.any() else None
