"""Fair share between tenants: one counter each, of the GPU-seconds it was served, divided by its share.

    charged = counter + gpu_s / share       lifted = max(counter, least counter of those with requests waiting)

Whoever has the least counter goes first, so counters of tenants that always have requests waiting stay within U, the
largest single charge / share; what each is served per share then differs by at most 2 U over any time. A tenant banks
no credit while idle, since its counter is lifted when it comes back. Counters compare within one priority only. Sheng
et al., "Fairness in serving large language models" (virtual token counter), OSDI 2024; GPU-seconds replace its tokens.
"""

from collections.abc import Iterable

YIELDED_SHARE = 0.5


def charged(counter: float, gpu_s: float, share: float) -> float:
    """The counter after `gpu_s` more: the expected cost at dispatch, at the end the difference, which may be < 0."""
    return counter + gpu_s / share


def lifted(counter: float, active_counters: Iterable[float]) -> float:
    """The counter of a tenant that has a request waiting again after it had none.

    `active_counters`: of the others of its priority that have requests waiting; where none has, of the last that had.
    """
    return max(counter, min(active_counters, default=counter))


def yielded(counter: float, waiting_counters: Iterable[float]) -> float:
    """The share of the promised time to first token that a request must do without.

    Where replicas are full, whoever asks next takes the place that has become free, whatever its tenant had before. So
    a tenant served more than another of its priority that has requests waiting needs a shorter queue: half the promise.
    """
    return YIELDED_SHARE if counter > min(waiting_counters, default=counter) else 0.0
