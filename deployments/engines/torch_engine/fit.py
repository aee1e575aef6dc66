"""Whether a checkpoint can be served as its engine is told to, and where its experts lie at the start."""

from cluster.errors import CheckpointError
from cluster.experts import Placement, even
from deployments.engines.torch_engine.checkpoint import ModelConfig
from deployments.engines.torch_engine.kv import BLOCK_TOKENS
from deployments.engines.torch_engine.spec import EngineSpec


def fitting(spec: EngineSpec, config: ModelConfig) -> Placement:
    """Raises CheckpointError where context, cache, specialists, slots or placement do not fit the checkpoint."""
    _check_context(spec, config)
    _check_specialists(spec, config)
    _check_slots(spec, config)
    placement = spec.placement or even(
        layers=config.moe_layers, experts=config.experts, ranks=spec.ranks, redundant=spec.redundant
    )
    _check_placement(spec, config, placement)
    return placement


def _check_context(spec: EngineSpec, config: ModelConfig) -> None:
    if spec.context_tokens > config.context_tokens:
        raise CheckpointError(
            f"{spec.checkpoint}: context_tokens is {spec.context_tokens}; at most the checkpoint's "
            f"{config.context_tokens} are allowed; lower context_tokens"
        )
    if spec.kv_tokens < BLOCK_TOKENS:
        raise CheckpointError(
            f"{spec.checkpoint}: kv_tokens is {spec.kv_tokens}; at least {BLOCK_TOKENS} are allowed; raise it"
        )


def _check_specialists(spec: EngineSpec, config: ModelConfig) -> None:
    missing = [] if config.domains is None else [name for name in spec.specialists if name not in config.domains]
    if missing:
        raise CheckpointError(
            f"{spec.checkpoint}: specialists {', '.join(missing)} are promised; its expert_domains are "
            f"{', '.join(sorted(config.domains or ()))}; correct specialists in the family file or take another "
            "checkpoint"
        )


def _check_slots(spec: EngineSpec, config: ModelConfig) -> None:
    slots, ranks = config.experts + spec.redundant, spec.ranks
    if slots % ranks or not config.experts <= slots <= config.experts * ranks:
        fit = [
            redundant
            for redundant in range(config.experts * (ranks - 1) + 1)
            if not (config.experts + redundant) % ranks
        ]
        mend = f"set redundant to one of {', '.join(map(str, fit[:3]))}" if fit else "use fewer ranks"
        raise CheckpointError(
            f"{spec.checkpoint}: {config.experts} experts and {spec.redundant} redundant slots on {ranks} ranks; "
            f"equally many slots on each, and no expert twice on one, are allowed; {mend}"
        )


def _check_placement(spec: EngineSpec, config: ModelConfig, placement: Placement) -> None:
    every = set(range(config.experts))
    runs = [
        slots[rank * placement.room : (rank + 1) * placement.room]
        for slots in placement.slots
        for rank in range(placement.ranks)
    ]
    shape = (placement.ranks, len(placement.slots), {len(slots) for slots in placement.slots})
    fits = shape == (spec.ranks, config.moe_layers, {config.experts + spec.redundant} if config.moe_layers else set())
    if not fits or any(set(s) != every for s in placement.slots) or any(len(set(run)) < len(run) for run in runs):
        raise CheckpointError(
            f"{spec.checkpoint}: the placement does not put {config.experts} experts and {spec.redundant} copies of "
            f"{config.moe_layers} layers on {spec.ranks} ranks; every expert, and none twice on a rank, are allowed; "
            "correct it or leave it out"
        )
