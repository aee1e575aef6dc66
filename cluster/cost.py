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

from cluster.family import StepCost


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
