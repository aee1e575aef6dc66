"""A checkpoint that cannot be served is refused with the file, what is wrong, what is allowed, and the mend."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_checkpoint import save_checkpoint

from cluster.errors import CheckpointError
from cluster.experts import Placement
from deployments.engines.torch_engine.checkpoint import check_memory, read_config
from deployments.engines.torch_engine.rank import Rank, load_rank
from deployments.engines.torch_engine.spec import EngineSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path)


def loaded(folder: Path, **changes: Any) -> Rank:
    spec = EngineSpec(**{"checkpoint": str(folder), "context_tokens": 256, "kv_tokens": 256, **changes})
    return load_rank(spec, 0)


def reconfigure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such directory; .*; train or fetch it first"):
        loaded(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        loaded(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; 'glm4_moe' is allowed"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; 'silu' is allowed"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type is 'yarn'; 'default' is allowed"),
        ({"num_key_value_heads": 3}, "4 heads over 3 KV heads"),
        ({"hidden_size": "wide"}, "the fields of Glm4MoeConfig are allowed"),
        ({"moe_intermediate_size": 25}, r"shape \(24, 32\); config.json says \(25, 32\)"),
        ({"n_routed_experts": 9}, r"no tensor model\.layers\.1\.mlp\.experts\.8\.gate_proj\.weight"),
    ],
)
def test_what_does_not_fit_is_said(folder: Path, changes: dict[str, Any], message: str) -> None:
    reconfigure(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        loaded(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*; a safetensors file is allowed"):
        loaded(folder)


def test_more_context_than_the_checkpoint_has_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="context_tokens is 513; at most the checkpoint's 512"):
        loaded(folder, context_tokens=513)


def test_a_cache_beyond_the_memory_is_refused_before_it_is_taken(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"need 12288\.\d+ GB on cpu, .* are free; .*; lower kv_tokens"):
        loaded(folder, kv_tokens=16_000_000_000)


def test_the_memory_of_the_weights_is_counted_exactly(folder: Path) -> None:
    config = read_config(folder)
    saved = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    small = config.layers * 2 * config.hidden + config.hidden + config.moe_layers * config.experts
    assert config.weights(config.moe_layers * config.experts) == saved - small  # norms and router biases


def test_shards_and_one_file_are_the_same_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for part in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == part}, folder / part)
    whole = loaded(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = loaded(folder)
    assert torch.equal(whole.model.head, sharded.model.head)
    assert all(torch.equal(a.qkv, b.qkv) for a, b in zip(whole.model.layers, sharded.model.layers, strict=True))


@pytest.mark.parametrize(
    ("ranks", "redundant", "mend"),
    [(3, 0, "1, 4, 7"), (3, 2, "1, 4, 7"), (2, 10, "0, 2, 4"), (9, 0, "1, 10, 19"), (1, 1, "0")],
)
def test_slots_that_do_not_fill_the_ranks_are_refused(folder: Path, ranks: int, redundant: int, mend: str) -> None:
    given = f"8 experts and {redundant} redundant slots on {ranks} ranks; .*; set redundant to one of {mend}"
    with pytest.raises(CheckpointError, match=given):
        loaded(folder, ranks=ranks, redundant=redundant)


IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("redundant", "layers"),
    [
        (0, (IN_ORDER,)),  # of two
        (0, (IN_ORDER, (0, 1, 2, 3, 4, 5, 6, 6))),  # without 7
        (2, (IN_ORDER, IN_ORDER)),  # without copies
        (2, ((0, 0, 1, 2, 3, 4, 5, 6, 7, 1),) * 2),  # 0 twice on rank 0
    ],
)
def test_a_placement_that_is_none_is_refused(folder: Path, redundant: int, layers: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(CheckpointError, match=r"the placement does not put 8 experts .*; correct it or leave it out"):
        loaded(folder, ranks=2, redundant=redundant, placement=Placement(ranks=2, slots=layers))


def test_domains_of_experts_that_are_not_there_are_refused(folder: Path) -> None:
    reconfigure(folder, expert_domains={"math": [0, 8]})
    with pytest.raises(CheckpointError, match=r"expert_domains names experts \[0, 8\]; 0\.\.7 are allowed"):
        loaded(folder)


def test_specialists_that_the_checkpoint_does_not_have_are_refused(folder: Path) -> None:
    reconfigure(folder, expert_domains={"math": [0, 1], "general": [2, 3]})
    loaded(folder, specialists=("math",))
    message = "specialists code_security are promised; its expert_domains are general, math; correct specialists"
    with pytest.raises(CheckpointError, match=message):
        loaded(folder, specialists=("math", "code_security"))


def test_a_checkpoint_that_names_no_domains_is_believed(folder: Path) -> None:
    loaded(folder, specialists=("math",))


def test_memory_is_enough_where_it_is(tmp_path: Path) -> None:
    check_memory(tmp_path, 1, "cpu")
