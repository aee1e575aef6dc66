"""What work costs: the latency model of an engine, and from it the price of requests and videos in GPU-seconds.

    step_ms   = a + b*B + c*K + d*(1 - (1 - top_k/experts)^B)     B sequences decoding, K thousand KV tokens held
    prefill   = tokens * us_per_token                             us_per_token linear in log(length), flat outside
    work      = p*in + (b + c*(in + o/2) + (a + d*touched(S))/S) * o    replica-time of a request, in + o tokens
    step_s    = base + linear*T + quadratic*T^2                   one denoising step, T million latent tokens

The d term is the share of routed experts that B tokens touch, hence the weights that must be read. S is the batch that
shares a step: the largest that keeps the promised pace. The constants come from the family file, which names their
source (the h200 family: aiconfigurator's tables of measured operators). Ignored: prefixes in the cache, and that a
replica which is not full shares its steps among fewer.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from cluster.family import Slo, StepCost, Tier, Video
from cluster.workload import Floats

Chunking = Literal["slack", "fixed"]


def step_ms(cost: StepCost, sequences: float, kv_tokens: float) -> float:
    """One decode step of a replica that holds `sequences` sequences with `kv_tokens` tokens of context together."""
    touched = 1.0 - math.pow(1.0 - cost.top_k / cost.experts, sequences)
    return cost.a_ms + cost.b_ms_per_seq * sequences + cost.c_ms_per_ktok * kv_tokens / 1000 + cost.d_ms * touched


def prefill_us_per_token(cost: StepCost, prompt_tokens: float) -> float:
    """Microseconds per prompt token at this length."""
    points = sorted(cost.prefill_us_per_token.items())
    right = bisect_left(points, prompt_tokens, key=lambda point: point[0])
    if right == 0:
        return points[0][1]
    if right == len(points):
        return points[-1][1]
    (low, low_us), (high, high_us) = points[right - 1], points[right]
    share = math.log(prompt_tokens / low) / math.log(high / low)
    return low_us + share * (high_us - low_us)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """A tier as plain numbers, for decisions that are taken a million times.

    `touched`: the share of routed experts that B sequences touch, indexed by B = 0..max_running; `batch_ms`: a step of
    so many without their context. `chunking`: prompts ride on decode steps in chunks of what the pace leaves ("slack"),
    or of `chunk_tokens` ("fixed").
    """

    tier: str
    cost: StepCost
    slo: Slo
    a_ms: float
    b_ms: float
    c_ms_per_token: float
    d_ms: float
    touched: Floats
    batch_ms: Floats
    prefill_tokens: Floats
    prefill_us: Floats
    ttft_s: float
    tpot_ms: float
    patience_s: float
    chunk_tokens: int
    chunking: Chunking
    max_running: int
    kv_tokens: int
    ranks: int


def service(tier: Tier, name: str, chunking: Chunking = "slack") -> Service:
    cost = tier.cost
    points = sorted(cost.prefill_us_per_token.items())
    batches = np.arange(tier.max_running + 1, dtype=float)
    touched = _touched(cost, batches)
    return Service(
        tier=name,
        cost=cost,
        slo=tier.slo,
        a_ms=cost.a_ms,
        b_ms=cost.b_ms_per_seq,
        c_ms_per_token=cost.c_ms_per_ktok / 1000,
        d_ms=cost.d_ms,
        touched=touched,
        batch_ms=cost.a_ms + cost.b_ms_per_seq * batches + cost.d_ms * touched,
        prefill_tokens=np.log([tokens for tokens, _ in points]),
        prefill_us=np.array([us for _, us in points]),
        ttft_s=tier.slo.ttft_s,
        tpot_ms=tier.slo.tpot_ms,
        patience_s=tier.patience_s,
        chunk_tokens=tier.prefill_chunk_tokens,
        chunking=chunking,
        max_running=tier.max_running,
        kv_tokens=tier.kv_tokens,
        ranks=tier.ranks,
    )


def prefill_us(service: Service, prompt_tokens: Floats) -> Floats:
    """Microseconds per prompt token, for many prompts at once."""
    return np.interp(np.log(prompt_tokens), service.prefill_tokens, service.prefill_us)


def _touched(cost: StepCost, sequences: Floats) -> Floats:
    return np.asarray(1.0 - np.power(1.0 - cost.top_k / cost.experts, sequences))


class Priced(Protocol):
    """What has a price per request: a tier of the family file, its Service, or what a scaling policy knows of it."""

    @property
    def cost(self) -> StepCost: ...
    @property
    def slo(self) -> Slo: ...
    @property
    def max_running(self) -> int: ...
    @property
    def kv_tokens(self) -> int: ...
    @property
    def ranks(self) -> int: ...


def slo_batch(
    priced: Priced,
    prompt_tokens: float,
    output_tokens: float,
    context_tokens: float | None = None,
    pace_share: float = 1.0,
) -> int:
    """The largest batch of such requests that one replica sustains, at least 1.

    Its step, with the prefill that it brings, keeps that share of the promised pace, and its tokens fit into the cache:

        a + b*B + c*B*context + d*touched(B) + p*in*B/o <= pace_share*TPOT

    `context_tokens`: of a running sequence on average, in + o/2 where lengths do not vary. Where they do it is more if
    long answers follow long prompts or vary much, since a long answer is met running more often than a short one.
    """
    cost = priced.cost
    context = prompt_tokens + output_tokens / 2 if context_tokens is None else context_tokens
    ends = max(1.0, context, 2 * context - prompt_tokens)  # in + o; the context alone where long prompts end soon
    most = min(priced.max_running, int(priced.kv_tokens / ends))
    batch = np.arange(1, max(most, 1) + 1, dtype=float)
    prefill_ms = prompt_tokens * prefill_us_per_token(cost, prompt_tokens) / 1000
    each_ms = cost.b_ms_per_seq + cost.c_ms_per_ktok * context / 1000 + prefill_ms / output_tokens
    steps_ms = cost.a_ms + each_ms * batch + cost.d_ms * _touched(cost, batch)
    return max(1, int(np.searchsorted(steps_ms, pace_share * priced.slo.tpot_ms, side="right")))


def work_s(
    cost: StepCost,
    batch: float,
    prompt_tokens: Floats | float,
    output_tokens: Floats | float,
    context_tokens: Floats | float | None = None,
) -> Floats:
    """Replica-seconds of a request, or of each of many, whose steps are shared by `batch`.

    `context_tokens` as in slo_batch: for a mean request, that of running ones.
    """
    lengths, us = zip(*sorted(cost.prefill_us_per_token.items()), strict=True)
    prompt, output = np.asarray(prompt_tokens, dtype=float), np.asarray(output_tokens, dtype=float)
    context = prompt + output / 2 if context_tokens is None else np.asarray(context_tokens, dtype=float)
    prefill_ms = prompt * np.interp(np.log(np.maximum(prompt, 1)), np.log(lengths), us) / 1000
    shared_ms = (cost.a_ms + cost.d_ms * float(_touched(cost, np.asarray(float(batch))))) / batch
    token_ms = cost.b_ms_per_seq + cost.c_ms_per_ktok * context / 1000 + shared_ms
    return np.asarray((prefill_ms + token_ms * output) / 1000)


def request_gpu_s(priced: Priced, prompt_tokens: float, output_tokens: float) -> float:
    """GPU-seconds of one request on a replica that is full of its like."""
    batch = slo_batch(priced, prompt_tokens, output_tokens)
    return float(work_s(priced.cost, batch, prompt_tokens, output_tokens)) * priced.ranks


def fluid_rps(priced: Priced, prompt_tokens: float, output_tokens: float) -> float:
    """Requests per second that one replica could at best sustain: B/(o*step) at the largest B that keeps the pace."""
    return priced.ranks / request_gpu_s(priced, prompt_tokens, output_tokens)


def video_step_s(video: Video, size: str, seconds: float, share: float = 1.0) -> float:
    """One denoising step of one replica for a video of `size`, say 1280x720. Wan renders 1 + 4n frames.

    `share`: of its tokens, that the step computes; they still look at all of them.
    """
    width, height = (int(side) for side in size.split("x"))
    latent_frames = math.ceil((video.fps * seconds - 1) / 4) + 1
    mtok = latent_frames * math.ceil(height / 16) * math.ceil(width / 16) / 1e6
    cost = video.cost
    return cost.base_s + share * (cost.linear_s_per_mtok * mtok + cost.quadratic_s_per_mtok2 * mtok * mtok)


def video_gpu_s(video: Video, size: str, seconds: float) -> float:
    """GPU-seconds of a whole job."""
    return video.steps * video_step_s(video, size, seconds) * video.gpus
