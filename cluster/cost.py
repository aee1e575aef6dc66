"""The latency model: what one engine step and one prefill cost.

    step_ms    = a + b*B + c*K + d*(1 - (1 - top_k/experts)^B)     B sequences decoding, K thousand KV tokens held
    prefill_ms = tokens * us_per_token / 1000                      us_per_token linear in log(length), flat outside
    ttft_ms    = prefill_ms + ceil(tokens/chunk) * step_ms         chunked prefill: every chunk rides on a decode step

The d term is the share of routed experts that B tokens touch, hence the weights that must be read. The constants come
from the family file, which names their source (the h200 family: aiconfigurator's tables of measured operators); what a
replica measures corrects them in routing. Ignored: the prefix cache, and prefill chunks of others between two tokens.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from cluster.family import StepCost, Tier, Video
from cluster.workload import Floats


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


def ttft_ms(prefill_tokens: float, us_per_token: float, decode_ms: float, chunk_tokens: int) -> float:
    """Time to first token with `prefill_tokens` to compute, queued ones included, beside steps of `decode_ms`."""
    return prefill_tokens * us_per_token / 1000 + math.ceil(prefill_tokens / chunk_tokens) * decode_ms


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """A tier as plain numbers, for decisions that are taken a million times.

    `touched`: the share of routed experts that B sequences touch, indexed by B = 0..max_running.
    """

    tier: str
    a_ms: float
    b_ms: float
    c_ms_per_token: float
    d_ms: float
    touched: Floats
    prefill_tokens: Floats
    prefill_us: Floats
    ttft_s: float
    tpot_ms: float
    patience_s: float
    chunk_tokens: int
    max_running: int
    kv_tokens: int
    ranks: int


def service(tier: Tier, name: str) -> Service:
    cost = tier.cost
    points = sorted(cost.prefill_us_per_token.items())
    return Service(
        tier=name,
        a_ms=cost.a_ms,
        b_ms=cost.b_ms_per_seq,
        c_ms_per_token=cost.c_ms_per_ktok / 1000,
        d_ms=cost.d_ms,
        touched=1.0 - np.power(1.0 - cost.top_k / cost.experts, np.arange(tier.max_running + 1, dtype=float)),
        prefill_tokens=np.log([tokens for tokens, _ in points]),
        prefill_us=np.array([us for _, us in points]),
        ttft_s=tier.slo.ttft_s,
        tpot_ms=tier.slo.tpot_ms,
        patience_s=tier.patience_s,
        chunk_tokens=tier.prefill_chunk_tokens,
        max_running=tier.max_running,
        kv_tokens=tier.kv_tokens,
        ranks=tier.ranks,
    )


def prefill_us(service: Service, prompt_tokens: Floats) -> Floats:
    """Microseconds per prompt token, for many prompts at once."""
    return np.interp(np.log(prompt_tokens), service.prefill_tokens, service.prefill_us)


def video_step_s(video: Video, size: str, seconds: float) -> float:
    """One denoising step of one replica for a video of `size`, say 1280x720. Wan renders 1 + 4n frames."""
    width, height = (int(side) for side in size.split("x"))
    latent_frames = math.ceil((video.fps * seconds - 1) / 4) + 1
    mtok = latent_frames * math.ceil(height / 16) * math.ceil(width / 16) / 1e6
    cost = video.cost
    return cost.base_s + cost.linear_s_per_mtok * mtok + cost.quadratic_s_per_mtok2 * mtok * mtok


def video_gpu_s(video: Video, size: str, seconds: float) -> float:
    """GPU-seconds of a whole job."""
    return video.steps * video_step_s(video, size, seconds) * video.gpus
