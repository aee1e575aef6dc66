"""What vLLM is told before it loads a model: it calls `register` in each of its processes, by its entry point."""

import multiprocessing
import os
import threading


def register() -> None:
    """The model is named, not imported: vLLM looks at its class in a process of its own."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("Glm4MoeForCausalLM", "deployments.engines.vllm_engine.tied:TiedGlm4Moe")
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    """vLLM's engine core outlives a replica that was killed, with its workers and their memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
