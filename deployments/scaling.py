"""Serve's autoscaling hook for one deployment. All judgement is in autoscaling.ongoing; Serve keeps only the bounds.

Serve ships this module by value and calls the policy ten times a second in its controller, where an exception would
stop the scaling of everything: hence the one broad except, which keeps the last target.
"""

import logging
import math
import time
from typing import Any

from ray.serve.config import AutoscalingContext

from autoscaling.ongoing import Memory, TierSeen, TierSpec, step


class TierPolicy:
    """One per deployment, kept between calls. `spec` are the fields of TierSpec."""

    def __init__(self, tier: str = "", spec: dict[str, Any] | None = None) -> None:
        self._tier = tier
        self._spec = TierSpec(**spec or {})
        self._memory = Memory()
        self._said = ""

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        log = logging.getLogger("ray.serve")
        try:
            decision, self._memory = step(_seen(context), self._memory, self._spec)
        except Exception:  # see above
            log.exception("tier %s: scaling policy failed; the target stays", self._tier)
            return context.target_num_replicas, {}
        if decision.reason != self._said and decision.cause != "hold":
            log.info("tier %s: %d replicas: %s", self._tier, decision.target_replicas, decision.reason)
            self._said = decision.reason
        return decision.target_replicas, {}


def _seen(context: AutoscalingContext) -> TierSeen:
    queued = context.total_queued_requests
    return TierSeen(
        now_s=context.current_time or time.time(),
        running_replicas=context.current_num_replicas,
        target_replicas=context.target_num_replicas,
        queued_requests=None if queued is None else math.ceil(queued),
        ongoing_requests=max(0, math.ceil(context.total_num_requests - (queued or 0))),
    )
