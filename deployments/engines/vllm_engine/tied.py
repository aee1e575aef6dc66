"""A model that vLLM loads wrongly, mended. `plugin` registers it."""

from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models.glm4_moe import Glm4MoeForCausalLM


class TiedGlm4Moe(Glm4MoeForCausalLM):  # type: ignore[misc]  # vllm is not installed where types are checked
    """GLM-4-MoE whose head is its embedding, where the checkpoint says so.

    vLLM 0.32 ignores `tie_word_embeddings` of this model: its head would stay uninitialised, without an error. One that
    ties them itself is left as it is.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        embedding = self.model.embed_tokens
        if self.config.tie_word_embeddings and self.lm_head.weight is not embedding.weight:
            self.lm_head: Any = self.lm_head.tie_weights(embedding)
