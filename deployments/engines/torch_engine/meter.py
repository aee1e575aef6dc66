"""What a step costs here: exponentially weighted means of what was measured, the newest weighing a tenth."""

from dataclasses import dataclass

from deployments.engines.torch_engine.schedule import Plan

_NEWEST = 0.1


@dataclass(slots=True)
class Meter:
    """`step_ms` of steps that only decode; `prefill_us_per_token` is what prompt tokens add to a step."""

    steps: int = 0
    step_ms: float = 0.0
    prefill_us_per_token: float = 0.0
    stream_s: float = 0.0  # from a stream's first step to its end

    def step(self, plan: Plan, wall_s: float) -> None:
        self.steps += 1
        if not plan.chunks:
            self.step_ms = _mean(self.step_ms, wall_s * 1e3)
        else:
            decoding_ms = self.step_ms if plan.decodes else 0.0
            added_us = max(0.0, wall_s * 1e3 - decoding_ms) * 1e3
            self.prefill_us_per_token = _mean(self.prefill_us_per_token, added_us / plan.prefill_tokens)

    def stream(self, wall_s: float) -> None:
        self.stream_s = _mean(self.stream_s, wall_s)


def _mean(old: float, new: float) -> float:
    return old + _NEWEST * (new - old) if old else new
