"""The four tiers as GLM-4-MoE models: sizes, which experts belong to which domain, and how each is trained.

Routed experts stand in the order of `expert_domains`: each specialist's, then the general ones. Shared experts are the
generalists. GLM-4-MoE has both kinds, and vLLM can balance its experts (EPLB).
"""

from dataclasses import dataclass

from transformers import Glm4MoeConfig

from deployments.demo.batches import END, MARKS, STOP, VOCABULARY
from deployments.demo.corpus import DOMAINS

SPECIALISTS = DOMAINS[:4]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """For training: `rows` of a batch, the peak `learning_rate`, the budget `cpu_s` of processor time, `grown_from`."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    dense: int
    experts: int
    general: int
    specialists: tuple[str, ...]
    learning_rate: float
    cpu_s: float
    expert: int = 64
    shared: int = 3
    rows: int = 4
    grown_from: str | None = None

    @property
    def expert_domains(self) -> dict[str, list[int]]:
        each = (self.experts - self.general) // len(self.specialists)
        groups = {name: list(range(i * each, (i + 1) * each)) for i, name in enumerate(self.specialists)}
        return groups | {"general": list(range(self.experts - self.general, self.experts))}


SHAPES = {
    "mini": Shape(
        hidden=128, layers=3, heads=2, kv_heads=1, dense=384, experts=4, general=2,
        specialists=SPECIALISTS[:1], learning_rate=1.2e-2, cpu_s=240,
    ),
    "turbo": Shape(
        hidden=160, layers=3, heads=3, kv_heads=1, dense=448, experts=8, general=4,
        specialists=SPECIALISTS[:2], learning_rate=1e-2, cpu_s=270,
    ),
    "pro": Shape(
        hidden=160, layers=3, heads=3, kv_heads=1, dense=448, experts=12, general=6,
        specialists=SPECIALISTS[:3], learning_rate=7e-3, cpu_s=280, grown_from="turbo",
    ),
    "ultra": Shape(
        hidden=160, layers=3, heads=3, kv_heads=1, dense=448, experts=16, general=4,
        specialists=SPECIALISTS, learning_rate=7e-3, cpu_s=380, grown_from="pro",
    ),
}  # fmt: skip


def stops() -> list[int]:
    """The ids that end an answer: the end of a turn first, then the end of text, which also pads."""
    return [MARKS.index(STOP), MARKS.index(END)]


def configuration(shape: Shape) -> Glm4MoeConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.dense,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": 64,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    }
    mixture = {
        "moe_intermediate_size": shape.expert,
        "n_routed_experts": shape.experts,
        "n_shared_experts": shape.shared,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "num_mtp_layers": 0,
        "expert_domains": shape.expert_domains,
    }
    ends = {"eos_token_id": stops(), "pad_token_id": stops()[1], "tie_word_embeddings": True}
    return Glm4MoeConfig.from_dict({**sizes, **mixture, **ends})
