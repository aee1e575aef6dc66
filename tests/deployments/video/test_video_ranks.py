"""Context parallelism on a CPU, over gloo: ranks that share forwards compute what one rank does.

In float32 to rounding: a product of fewer rows may be summed in another order.
"""

import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
import torch.distributed as dist
import yaml
from pydantic import ValidationError
from tiny_pipelines import TEXT_WIDTH
from video_replica import asked, files, replica, told, video
from video_work import done, finished, frames, opened, parent, spec

from cluster.clip import Region
from cluster.errors import CheckpointError, ConfigurationError
from cluster.family import BUNDLED, Family, load
from cluster.faults import fault_of
from cluster.placement import bundles
from cluster.video import Acceleration
from deployments.video.adapters.kept import NAME
from deployments.video.adapters.load import transformers
from deployments.video.adapters.shards import Shard, share
from deployments.video.engine import VideoEngine
from deployments.video.messages import Rendered, StepDone
from deployments.video.ranks import RankLost, Ranks
from deployments.video.spec import Edit
from deployments.video.worker import VideoWorker

Tiny = Callable[[str], VideoEngine]
SOON_S = 120.0
UNEVEN = {"width": 64, "height": 160, "frames": 17}  # 5 x 5 x 2 tokens of 32 pixels and 4 frames, on 3 ranks


def near(mine: torch.Tensor, right: torch.Tensor) -> None:
    torch.testing.assert_close(mine, right, atol=1e-5, rtol=1e-5)


class Grouped:
    """Engines of a model with a time per token, on several ranks. A process has one group: the last one asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._engine: VideoEngine | None = None

    def three(self) -> VideoEngine:
        if self._engine is None or self._engine.acceleration.context_parallel != 3:
            self.unloaded(3).load()
        assert self._engine is not None
        return self._engine

    def unloaded(self, ranks: int) -> VideoEngine:
        self.close()
        self._engine = VideoEngine(self._checkpoint, "float32", "cpu", Acceleration(context_parallel=ranks))
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


@pytest.fixture(scope="module")
def grouped(tiny: Tiny) -> Iterator[Grouped]:
    engines = Grouped(tiny("placed").checkpoint)
    yield engines
    engines.close()


@pytest.fixture
def three(grouped: Grouped) -> VideoEngine:
    return grouped.three()


def tokens_seen(engine: VideoEngine) -> list[int]:
    """Of each forward from now on, those that rank 0 computes."""
    seen: list[int] = []
    model = transformers(engine.family.pipe)["transformer"]
    model.blocks[0].ffn.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    return seen


def test_three_ranks_with_uneven_runs_make_the_frames_of_one(tiny: Tiny, three: VideoEngine, tmp_path: Path) -> None:
    seen = tokens_seen(three)
    clip = spec(**UNEVEN)
    alone, shared = (done(engine, clip, tmp_path) for engine in (tiny("placed"), three))
    assert set(seen) == {math.ceil(three.tokens(clip) / 3)}
    assert three.tokens(clip) % 3
    near(shared.latents, alone.latents)
    apart = frames(tiny("placed"), alone).astype(int) - frames(three, shared)
    assert np.abs(apart).max() <= 1


def test_jobs_at_different_steps_share_a_forward_of_all_ranks(tiny: Tiny, three: VideoEngine, tmp_path: Path) -> None:
    clips = [spec(job_id=name, seed=seed, **UNEVEN) for seed, name in enumerate(("a", "b"))]
    alone = [done(tiny("placed"), each, tmp_path).latents for each in clips]
    jobs = [opened(three, each, tmp_path) for each in clips]
    three.step(jobs[:1])
    finished(three, jobs)
    for job, latents in zip(jobs, alone, strict=True):
        near(job.latents, latents)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_edit_on_ranks_keeps_what_is_not_marked_and_computes_all_tokens(
    tiny: Tiny, three: VideoEngine, tmp_path: Path, mode: Any
) -> None:
    before = parent(three, tmp_path)
    kept = torch.from_numpy(before.latents.numpy().astype(np.float16)).float()
    assert (tmp_path / NAME).exists()
    mark = Edit(region=Region(x=0, y=0, width=30, height=30), mode=mode)
    edited = done(three, spec(task="edit", parent="video_0", edit=mark), tmp_path)
    assert edited.way == "per-token"
    assert edited.mask is not None
    outside = ~edited.mask.expand_as(kept)
    assert torch.equal(edited.latents[outside], kept[outside])
    exact = Edit(region=mark.region, mode="exact")
    alone = done(tiny("placed"), spec(task="edit", parent="video_0", edit=exact), tmp_path)
    near(edited.latents, alone.latents)


def given(family: str) -> dict[str, Any]:
    """Inputs of a forward of 27 tokens, which two ranks cannot halve."""
    draw = torch.Generator().manual_seed(3)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    if family == "ltx":
        return {
            "hidden_states": some(2, 27, 8), "encoder_hidden_states": some(2, 16, TEXT_WIDTH),
            "timestep": 1000 * some(2, 27).sigmoid(), "encoder_attention_mask": torch.ones(2, 16),
            "num_frames": 3, "height": 3, "width": 3, "rope_interpolation_scale": (1.0, 32, 32),
        }  # fmt: skip
    channels = {"sees_one_image": 36, "time_per_token": 48}.get(family, 16)
    inputs: dict[str, Any] = {
        "hidden_states": some(2, channels, 3, 6, 6), "timestep": torch.tensor([900.0, 300.0]),
        "encoder_hidden_states": some(2, 512, TEXT_WIDTH),
    }  # fmt: skip
    if family == "time_per_token":
        inputs["timestep"] = 1000 * some(2, 27).sigmoid()
    if family == "vace":
        inputs |= {"control_hidden_states": some(2, 96, 3, 6, 6), "control_hidden_states_scale": torch.ones(2)}
    if family == "sees_one_image":
        inputs["encoder_hidden_states_image"] = some(2, 257, 32)
    return inputs


SHARED = ("wan", "time_per_token", "sees_one_image", "vace", "ltx")


def forwards(meeting: str | None, rank: int) -> list[torch.Tensor]:
    """What a tiny transformer of each family says; on two ranks where there is a meeting."""
    torch.set_num_threads(1)
    if meeting is not None:
        soon = timedelta(seconds=SOON_S)
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=soon)
    said = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for family in SHARED:
            torch.manual_seed(5)
            model = tiny_pipelines.FAMILIES[family]().transformer.eval()
            if meeting is not None:
                share(model, Shard(rank, 2))
            said.append(model(**given(family), return_dict=False)[0])
    if meeting is not None:
        dist.destroy_process_group()
    return said


def test_transformers_of_all_families_say_the_same_on_two_ranks(grouped: Grouped, tmp_path: Path) -> None:
    grouped.close()
    meeting = f"file://{tmp_path / 'meeting'}"
    other = multiprocessing.get_context("spawn").Process(target=forwards, args=(meeting, 1))
    other.start()
    try:
        shared = forwards(meeting, 0)
    finally:
        other.join(SOON_S)
        other.kill()
    for mine, alone in zip(shared, forwards(None, 0), strict=True):
        near(mine, alone)


def test_a_pipeline_without_an_adapter_has_one_rank(tiny: Tiny) -> None:
    engine = VideoEngine(tiny("other").checkpoint, "float32", "cpu", Acceleration(context_parallel=2))
    with pytest.raises(CheckpointError, match=r"CogVideoXPipeline with .*context_parallel 2; .*set it to 1"):
        engine.load()


def test_a_rank_that_ends_before_it_has_loaded_is_told_at_once(tiny: Tiny) -> None:
    ranks = Ranks(tiny("placed").checkpoint, "float32", "cpu", Acceleration(context_parallel=2))
    try:
        os.kill(ranks.pids[0], signal.SIGKILL)
        with pytest.raises(CheckpointError, match="video rank 1: it ended; all ranks must load"):
            ranks.lead({})
    finally:
        ranks.close()


def test_ranks_and_gpus_of_a_replica_are_as_many() -> None:
    parallel = {"context_parallel": 2}
    assert video(gpus=2, acceleration=parallel).acceleration.context_parallel == 2
    with pytest.raises(ValidationError, match=r"context_parallel is 2 and gpus is 1; .*set gpus to 2"):
        video(acceleration=parallel)
    with pytest.raises(ValidationError, match="keep one of them"):
        video(gpus=2, acceleration=parallel | {"first_block_cache": 0.1})


def family(folder: Path, pipeline: str, **changes: Any) -> Family:
    """The laptop's, from another folder, its video made by a pipeline that lies beside it."""
    raw = yaml.safe_load((BUNDLED / "laptop.yaml").read_text(encoding="utf-8"))
    for each in raw["tiers"].values():
        each["checkpoint"] = str((BUNDLED / each["checkpoint"]).resolve())
    raw["video"] |= {"checkpoint": str(folder), "gpus": 2, "acceleration": {"context_parallel": 2}} | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}), encoding="utf-8")
    return load(folder / "mine.yaml")


def test_a_family_file_with_ranks_for_a_pipeline_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"video.acceleration.context_parallel: 2; CogVideoXPipeline has no"):
        family(tmp_path, "CogVideoXPipeline")
    for allowed in (family(tmp_path, "WanPipeline"), family(tmp_path, "CogVideoXPipeline", engine="simulated")):
        assert allowed.video is not None
        assert bundles(allowed.video, "cuda") == [{"GPU": 2, "CPU": 2}]


def worker(folder: Path, engine: VideoEngine) -> VideoWorker:
    return replica(folder, engine, engine="diffusers", checkpoint=str(engine.checkpoint), sizes=["64x64"])


def dies(engine: VideoEngine, forward: int) -> None:
    """Rank 1, amid a forward of rank 0."""
    left = iter(range(forward - 1))

    def hook(*_: object) -> None:
        if next(left, None) is None:
            assert engine.ranks is not None
            os.kill(engine.ranks.pids[0], signal.SIGKILL)

    engine.family.pipe.transformer.blocks[1].register_forward_pre_hook(hook)


async def test_a_rank_that_dies_amid_a_step_breaks_its_replica_and_the_job_goes_on_elsewhere(
    grouped: Grouped, tmp_path: Path
) -> None:
    job = asked(steps=12, frames=9)
    two = grouped.unloaded(2)
    broken = worker(tmp_path, two)
    await broken.load()
    dies(two, forward=11)  # of two in a step
    try:
        news = await told(broken.render(job))
        with pytest.raises(RankLost, match="out of step") as lost:
            two.step([opened(two, spec(), tmp_path)])
    finally:
        grouped.close()
    assert fault_of(lost.value) == "device"
    assert isinstance(news[-1], Rendered)
    assert news[-1].broke is not None
    assert "exit codes by rank {1: -9}" in news[-1].broke
    doing = await anext(broken.watch())
    assert doing
    assert doing.leaving
    assert [word.done for word in news if isinstance(word, StepDone)] == [1, 2, 3, 4, 5]
    assert files(tmp_path) == ["state"]
    onward = await told(worker(tmp_path, VideoEngine(two.checkpoint, "float32", "cpu")).render(job))
    steps = [word.done for word in onward if isinstance(word, StepDone)]
    assert steps[0] > 1
    assert steps[-1] == 12
    assert onward[-1] == Rendered(signed=True)
