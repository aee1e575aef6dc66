"""Settings of the family file, by diffusers' own calls. They are made for GPUs; here each only has to do its work."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from video_work import done, engine_like, finished, frames, opened, parent, spec

from cluster.clip import Region
from cluster.errors import CheckpointError
from cluster.video import Acceleration
from deployments.video.engine import VideoEngine
from deployments.video.spec import Edit

Tiny = Callable[[str], VideoEngine]


def held(engine: VideoEngine) -> set[str]:
    """Names of states in caches of diffusers."""
    registries = (getattr(module, "_diffusers_hook", None) for module in engine.family.pipe.transformer.modules())
    hooks = [hook for registry in registries if registry is not None for hook in registry.hooks.values()]
    return {name for hook in hooks for name in getattr(getattr(hook, "state_manager", None), "_state_cache", ())}


def blocks_run(engine: VideoEngine, folder: Path) -> int:
    """Forwards of the first feed-forward after the first block, in a whole job."""
    seen: list[None] = []
    model: Any = engine.family.pipe.transformer
    handle = model.blocks[1].attn1.register_forward_pre_hook(lambda *_: seen.append(None))
    done(engine, spec(steps=12, guidance=1.0), folder)
    handle.remove()
    return len(seen)


def test_a_first_block_cache_leaves_out_blocks(tiny: Tiny, tmp_path: Path) -> None:
    assert blocks_run(tiny("wan"), tmp_path) == 12
    assert 1 <= blocks_run(engine_like(tiny("wan"), first_block_cache=0.9), tmp_path) < 12


def test_a_cache_belongs_to_one_job_and_goes_with_it(tiny: Tiny, tmp_path: Path) -> None:
    engine = engine_like(tiny("wan"), first_block_cache=0.3)
    asked = [spec(job_id=name, seed=seed, steps=8) for seed, name in enumerate(("a", "b"))]
    alone = [done(engine, each, tmp_path).latents for each in asked]
    jobs = [opened(engine, each, tmp_path) for each in asked]
    assert engine.key(asked[0]) != engine.key(asked[1])
    engine.step(jobs[:1])
    finished(engine, jobs)
    assert all(torch.equal(job.latents, latents) for job, latents in zip(jobs, alone, strict=True))
    assert held(engine) == {"a cond", "a uncond", "b cond", "b uncond"}
    jobs.pop()
    assert held(engine) == {"a cond", "a uncond"}


def test_with_a_first_block_cache_a_fast_edit_computes_all_tokens(tiny: Tiny, tmp_path: Path) -> None:
    engine = engine_like(tiny("placed"), first_block_cache=0.3)
    parent(engine, tmp_path)
    mark = Edit(region=Region(x=0, y=0, width=30, height=30), mode="fast")
    job = done(engine, spec(task="edit", parent="video_0", edit=mark, steps=8), tmp_path)
    assert job.way == "per-token"


def test_weights_stored_in_8_bits_make_nearly_the_same_clip(tiny: Tiny, tmp_path: Path) -> None:
    engine = engine_like(tiny("wan"), precision="fp8-storage")
    weights = engine.family.pipe.transformer.blocks[0].ffn.net[2].weight
    assert weights.dtype == torch.float8_e4m3fn
    full, less = (frames(each, done(each, spec(), tmp_path)).astype(int) for each in (tiny("wan"), engine))
    assert 0 < np.abs(full - less).mean() < 10


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed")
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_without_torchao_its_precisions_are_refused(tiny: Tiny, precision: str) -> None:
    with pytest.raises(CheckpointError, match=rf"precision: {precision}: .*install torchao"):
        engine_like(tiny("wan"), precision=precision)


def test_tiles_are_decoded_to_as_many_frames(tiny: Tiny, tmp_path: Path) -> None:
    engine = engine_like(tiny("wan"), tiled_decode=True)
    assert engine.family.pipe.vae.use_tiling
    whole, tiled = (frames(each, done(each, spec(), tmp_path)) for each in (tiny("wan"), engine))
    assert np.array_equal(whole, tiled)  # one tile covers it


def test_a_setting_that_a_part_does_not_have_is_refused(tiny: Tiny) -> None:
    with pytest.raises(CheckpointError, match=r"enable_tiling.*mend video.acceleration"):
        engine_like(tiny("placed"), tiled_decode=True)


@pytest.mark.parametrize("given", [{"first_block_cache": 0.0}, {"precision": "int4"}, {"refresh_steps": 0}, {"x": 1}])
def test_settings_are_checked_when_the_file_is_read(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Acceleration(**given)
