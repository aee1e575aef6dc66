"""What vLLM is told before it loads a model: it calls `register` in each of its processes, by its entry point."""


def register() -> None:
    """By name: vLLM looks at the class in a process of its own."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("Glm4MoeForCausalLM", "deployments.engines.vllm_engine.tied:TiedGlm4Moe")
