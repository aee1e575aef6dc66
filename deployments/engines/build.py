"""Which engine a tier's line in the family file means."""

from typing import Literal, assert_never

from cluster.family import Tier
from deployments.engines.engine import Engine
from deployments.ranks import ExpertGroup


def build(tier: Tier, accelerator: Literal["cpu", "cuda"], group: ExpertGroup) -> Engine:
    """The engine, not started; followers of its expert group are. Imports only what it needs: torch is slow."""
    match tier.engine:
        case "simulated":
            from deployments.engines.simulated import SimulatedEngine

            return SimulatedEngine(tier)
        case "torch":
            from deployments.engines.torch_engine.engine import TorchEngine
            from deployments.engines.torch_engine.spec import EngineSpec

            spec = EngineSpec(
                checkpoint=tier.checkpoint,
                context_tokens=tier.context_tokens,
                kv_tokens=tier.kv_tokens,
                max_running=tier.max_running,
                max_waiting=tier.max_waiting,
                prefill_chunk_tokens=tier.prefill_chunk_tokens,
                dtype=tier.dtype,
                device=accelerator,
                ranks=tier.ranks,
                redundant=tier.experts.redundant,
                rebalance=tier.experts.rebalance,
                window_s=tier.experts.window_s,
                specialists=tier.specialists,
            )
            return TorchEngine(spec, group.launch(spec))
        case "deepspeed":
            from deployments.engines.deepspeed_engine.engine import DeepSpeedEngine

            return DeepSpeedEngine(tier, accelerator)
        case "vllm":
            from deployments.engines.vllm_engine.engine import VllmEngine

            return VllmEngine(tier, accelerator)
        case never:
            assert_never(never)
