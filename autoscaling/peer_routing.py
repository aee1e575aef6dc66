"""The routers that people use today, rebuilt in our own words to be measured against. Lowest wins, equals are drawn.

    two_choices   Ray Serve: of two replicas drawn at random, the one with fewer requests
    predicted     llm-d's idea in the form measured so far: first token and pace predicted with the tier's own model,
                  ttft = (q + in)*us + ceil((q + in)/chunk)*step + 1 ms per KV token that does not fit (300 spare)
                  ttft/TTFT + 0.5*pace/TPOT + 10*max(0, ttft/TTFT - 1) + 10*max(0, pace/TPOT - 1)
    KvCost        NVIDIA Dynamo: weight * (q + in)/block + KV blocks held with this request, at temperature 0
    PrefixAffinity  SGLang: the replica with the longest prefix, unless the loads have drifted apart

in: prompt tokens without those that the replica has cached; q: prefill tokens queued there. Each sees the true loads
and takes only open replicas with fewer than `max_running` requests; where there is none the request stays with the
caller, which suits these routers better than the queues on replicas that they have. None looks at promises before it
sends, so `feasible` says only that a replica was found; latencies are not a number where none is predicted.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.cost import Service
from cluster.loads import Ask, Choice, Loads
from cluster.workload import Floats

KV_SPARE_TOKENS = 300
NONE = Choice(index=None, ttft_s=math.inf, tpot_ms=math.inf, feasible=False, method="none")


def two_choices(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    """Both draws come from one uniform number: its leading digits, then what is left of it."""
    count = len(loads.open)
    if count > 1:
        first, left = _drawn(ask.draw, count)
        other, left = _drawn(left, count - 1)
        second = other + (other >= first)
        found = [index for index in (first, second) if _room(loads, service, index)]
        if found:
            return _sent(min(found, key=lambda index: float(loads.sequences[index])))
    else:
        left = ask.draw
    usable = np.flatnonzero(_rooms(loads, service))
    return _sent(int(usable[_drawn(left, len(usable))[0]])) if len(usable) else NONE


def predicted(loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
    prefill = loads.prefill_tokens + _computed(ask)
    held = loads.kv_tokens + ask.prompt_tokens
    pace = _step_ms(service, loads, loads.sequences + 1, held)
    overflow = np.maximum(0.0, held + ask.expected_output_tokens + KV_SPARE_TOKENS - loads.kv_capacity_tokens)
    chunks = np.ceil(prefill / service.chunk_tokens)
    step = _step_ms(service, loads, loads.sequences, loads.kv_tokens)
    ttft_s = (prefill * ask.us_per_token / 1000 + chunks * step + overflow) / 1000
    late, slow = ttft_s / service.ttft_s, pace / service.tpot_ms
    score = late + 0.5 * slow + 10 * np.maximum(0.0, late - 1) + 10 * np.maximum(0.0, slow - 1)
    index = _least(score, _rooms(loads, service), ask.draw)
    if index is None:
        return NONE
    return Choice(index=index, ttft_s=float(ttft_s[index]), tpot_ms=float(pace[index]), feasible=True, method="peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCost:
    """`weight`: of a block to compute against a block to hold."""

    weight: float = 1.0
    block_tokens: int = 16

    def __call__(self, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
        prefill = loads.prefill_tokens + _computed(ask)
        cost = (self.weight * prefill + loads.kv_tokens + ask.prompt_tokens) / self.block_tokens
        return _sent(_least(cost, _rooms(loads, service), ask.draw))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAffinity:
    """Apart: the longest queue exceeds the shortest by `apart_requests` and by the factor `apart_ratio`.

    A prefix counts from `least_share` of the prompt up; below it the replica with the fewest KV tokens is taken, for
    SGLang's smallest prefix tree. Defaults as of SGLang's launcher of 2025; later ones are 0.3, 64 and 1.5.
    """

    apart_requests: float = 32.0
    apart_ratio: float = 1.0001
    least_share: float = 0.5

    def __call__(self, loads: Loads, ask: Ask, service: Service, now_s: float, packing: bool) -> Choice:
        rooms = _rooms(loads, service)
        queues = loads.sequences[loads.open]
        if not len(queues):
            return NONE
        least, most = float(queues.min()), float(queues.max())
        if most - least > self.apart_requests and most > self.apart_ratio * least:
            return _sent(_least(loads.sequences, rooms, ask.draw))
        if ask.hit_tokens is not None:
            hits = np.where(rooms, ask.hit_tokens, 0.0)
            if float(hits.max()) > self.least_share * ask.prompt_tokens:
                return _sent(_least(-hits, rooms, ask.draw))
        return _sent(_least(loads.kv_tokens, rooms, ask.draw))


def _drawn(draw: float, count: int) -> tuple[int, float]:
    """One of `count`, and a new uniform number from what is left of this one."""
    index = min(int(draw * count), count - 1)
    return index, draw * count - index


def _room(loads: Loads, service: Service, index: int) -> bool:
    return bool(loads.open[index]) and float(loads.sequences[index]) < service.max_running


def _rooms(loads: Loads, service: Service) -> NDArray[np.bool_]:
    return loads.open & (loads.sequences < service.max_running)


def _computed(ask: Ask) -> Floats | float:
    return ask.prompt_tokens if ask.hit_tokens is None else np.maximum(1.0, ask.prompt_tokens - ask.hit_tokens)


def _step_ms(service: Service, loads: Loads, sequences: Floats, kv_tokens: Floats) -> Floats:
    batch = np.minimum(sequences, service.max_running).astype(int)
    return np.asarray((service.batch_ms[batch] + service.c_ms_per_token * kv_tokens) * loads.correction)


def _least(costs: Floats, rooms: NDArray[np.bool_], draw: float) -> int | None:
    if not rooms.any():
        return None
    among = np.where(rooms, costs, np.inf)
    equals = np.flatnonzero(among == among.min())
    return int(equals[_drawn(draw, len(equals))[0]])


def _sent(index: int | None) -> Choice:
    if index is None:
        return NONE
    return Choice(index=index, ttft_s=math.nan, tpot_ms=math.nan, feasible=True, method="peer")
