"""The arguments of the tiers that ship, read by vLLM's own parser, and validated as far as a machine without a GPU can.

What a GPU and the checkpoints themselves would refuse is not seen here: none of it was ever run on a GPU.
"""

from importlib.util import find_spec
from typing import Any

import pytest
from vllm_engine.tiers import tier

from cluster.family import load
from deployments.engines.vllm_engine.arguments import arguments

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports
]
H200 = load("h200").tiers


def read(words: tuple[str, ...]) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return AsyncEngineArgs.from_cli_args(parser.parse_args(list(words)))


@pytest.mark.parametrize("key", H200)
def test_vllm_reads_what_the_family_file_says(key: str) -> None:
    from vllm.config.parallel import EPLBConfig

    served = H200[key]
    settings, read_of = served.vllm, read(arguments(served, "cuda"))
    assert settings is not None
    assert read_of.model == served.checkpoint
    assert read_of.max_model_len == served.context_tokens
    assert read_of.kv_cache_dtype == settings.kv_dtype
    assert read_of.tensor_parallel_size * read_of.data_parallel_size == served.ranks
    assert read_of.enable_expert_parallel == read_of.enable_eplb == settings.expert_parallel
    if read_of.enable_eplb:
        assert isinstance(read_of.eplb_config, EPLBConfig)
        assert read_of.eplb_config.num_redundant_experts == served.experts.redundant
    assert read_of.structured_outputs_config.disable_any_whitespace
    assert read_of.scheduling_policy == "priority"


@pytest.mark.parametrize("key", H200)
def test_the_parser_of_its_tool_calls_is_one_of_vllms(key: str) -> None:
    from vllm.tool_parsers import ToolParserManager

    settings = H200[key].vllm
    assert settings is not None
    assert settings.tool_parser is not None
    ToolParserManager.get_tool_parser(settings.tool_parser)


def test_vllm_accepts_the_whole_configuration_of_a_tier_on_cpu() -> None:
    config = read(arguments(tier(), "cpu")).create_engine_config()
    assert config.model_config.max_model_len == 1024
    assert config.scheduler_config.max_num_batched_tokens == 264
    assert config.scheduler_config.policy == "priority"
    assert config.cache_config.enable_prefix_caching
