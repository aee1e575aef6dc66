"""What vLLM's scheduler says of its steps. vLLM makes one such logger for each copy of the model, and feeds it."""

from typing import Any

_NEWEST = 0.1


class Steps:
    """Weighted means, the newest weighing a tenth: `step_ms` of steps that only decode, `prefill_us_per_token` of what
    prompt tokens add to a step.
    """

    def __init__(self, config: Any, engine: int = 0) -> None:
        self.steps = self.running = 0
        self.kv_share = self.step_ms = self.prefill_us_per_token = 0.0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is None:
            return
        self.running, self.kv_share = scheduler_stats.num_running_reqs, scheduler_stats.kv_cache_usage
        details = scheduler_stats.iteration_details
        if details is not None and not details.is_dummy:
            self._step(details.elapsed_ms, details.num_ctx_tokens, details.num_generation_tokens)

    def _step(self, wall_ms: float, prompt_tokens: int, decoded: int) -> None:
        self.steps += 1
        if not prompt_tokens:
            self.step_ms = _mean(self.step_ms, wall_ms)
        else:
            added_us = max(0.0, wall_ms - (self.step_ms if decoded else 0.0)) * 1e3
            self.prefill_us_per_token = _mean(self.prefill_us_per_token, added_us / prompt_tokens)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """It never sleeps."""


def _mean(old: float, new: float) -> float:
    return old + _NEWEST * (new - old) if old else new
