"""The loop is ours; the pictures must be the stock pipeline's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file

from cluster.errors import CheckpointError, EngineFailed, InvalidRequest
from deployments.video.engine import Frames, RenderSpec, VideoEngine

Tiny = Callable[[str], VideoEngine]


def spec(**changes: Any) -> RenderSpec:
    given: dict[str, Any] = {
        "job_id": "video_1", "prompt": "a red ball rises", "negative_prompt": "dark", "width": 48, "height": 32,
        "frames": 8, "fps": 8, "steps": 3, "guidance": 5.0, "seed": 7,
    }  # fmt: skip
    return RenderSpec(**given | changes)


def engine_of(folder: Path, dtype: Any = "float32") -> VideoEngine:
    engine = VideoEngine(folder, dtype, "cpu")
    engine.load()
    return engine


def rendered(engine: VideoEngine, asked: RenderSpec) -> Frames:
    return engine.render(asked)


@pytest.fixture
def engine(tiny: Tiny) -> VideoEngine:
    return tiny("wan")


@pytest.mark.parametrize("family", ["wan", "euler", "two_stages", "placed", "scaled_latents"])
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_frames_are_those_of_the_stock_pipeline(tiny: Tiny, family: str, guidance: float) -> None:
    engine = tiny(family)
    stock_pipe = WanPipeline.from_pretrained(engine.checkpoint)
    asked = spec(guidance=guidance)
    stock = stock_pipe(
        asked.prompt,
        asked.negative_prompt,
        height=asked.height,
        width=asked.width,
        num_frames=9,
        num_inference_steps=asked.steps,
        guidance_scale=guidance,
        max_sequence_length=stock_pipe.tokenizer.model_max_length,
        generator=torch.Generator().manual_seed(asked.seed),
    ).frames[0]
    ours = rendered(engine, asked)
    np.testing.assert_allclose(ours, (stock[:8] * 255).round(), atol=1)  # a rounding
    assert np.ptp(ours) > 50  # a picture, not a plain field


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 16])
def test_exactly_the_frames_asked_for_are_delivered(engine: VideoEngine, frames: int) -> None:
    video = rendered(engine, spec(frames=frames, steps=1))
    assert video.shape == (frames, 32, 48, 3)
    assert video.dtype == np.uint8


def test_a_job_is_the_same_alone_and_after_another(engine: VideoEngine) -> None:
    alone = rendered(engine, spec())
    other = rendered(engine, spec(seed=8, prompt="blue sea", steps=5))
    assert np.array_equal(rendered(engine, spec()), alone)
    assert not np.array_equal(other, alone)


def test_the_prompt_reaches_the_picture(engine: VideoEngine) -> None:
    assert not np.array_equal(rendered(engine, spec()), rendered(engine, spec(prompt="blue sea at night")))


def test_progress_counts_every_step_once(engine: VideoEngine, tmp_path: Path) -> None:
    job = engine.open(spec(steps=4), tmp_path, None)
    assert (job.done, job.total) == (0, 4)
    for done in (1, 2, 3, 4):
        engine.step([job])
        assert job.done == done


@pytest.mark.parametrize("family", ["wan", "euler", "two_stages"])
def test_a_job_saved_after_any_step_goes_on_elsewhere_to_the_same_frames(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    one, other = tiny(family), engine_of(tiny(family).checkpoint)
    asked = spec(steps=5)
    undisturbed = rendered(one, asked)
    job = one.open(asked, tmp_path, None)
    for done in range(1, 6):
        one.step([job])
        assert np.array_equal(resumed(other, asked, one.save(job), tmp_path, done), undisturbed)


def resumed(engine: VideoEngine, asked: RenderSpec, saved: bytes, folder: Path, done: int) -> Frames:
    job = engine.open(asked, folder, saved)
    assert job.done == done
    while job.done < job.total:
        engine.step([job])
    return np.concatenate(list(engine.decode(job)))


def test_a_job_saved_and_opened_at_every_step_ends_with_the_same_frames(engine: VideoEngine, tmp_path: Path) -> None:
    saved = None
    for _ in range(3):
        job = engine.open(spec(), tmp_path, saved)
        engine.step([job])
        saved = engine.save(job)
    assert saved is not None
    assert np.array_equal(resumed(engine, spec(), saved, tmp_path, 3), rendered(engine, spec()))


@pytest.mark.parametrize("damage", [b"", b"no state at all", None])
def test_a_state_that_cannot_be_used_is_refused(engine: VideoEngine, damage: bytes | None, tmp_path: Path) -> None:
    other = engine.save(engine.open(spec(seed=8), tmp_path, None))
    with pytest.raises(ValueError, match=r"."):
        engine.open(spec(), tmp_path, other if damage is None else damage)


def test_bfloat16_renders_too(engine: VideoEngine) -> None:
    half = rendered(engine_of(engine.checkpoint, "bfloat16"), spec()).astype(int)
    assert np.abs(half - rendered(engine, spec())).mean() < 10


@pytest.mark.parametrize("family", ["euler", "wan"])
def test_latents_stay_in_float32_whatever_the_weights_are(tiny: Tiny, family: str, tmp_path: Path) -> None:
    half = engine_of(tiny(family).checkpoint, "bfloat16")
    job = half.open(spec(), tmp_path, None)
    half.step([job])
    assert job.latents.dtype == torch.float32


def test_a_size_off_the_latent_grid_is_refused(engine: VideoEngine) -> None:
    with pytest.raises(InvalidRequest, match=r"50x32.*multiples of 16x16"):
        rendered(engine, spec(width=50))


def test_latents_that_are_not_finite_fail_the_job(engine: VideoEngine) -> None:
    broken = engine_of(engine.checkpoint)
    broken.family.pipe.transformer.proj_out.weight.data[0, 0] = float("nan")
    with pytest.raises(EngineFailed, match="not finite"):
        rendered(broken, spec())


def test_an_engine_that_is_not_loaded_says_so(tmp_path: Path) -> None:
    with pytest.raises(EngineFailed, match="not loaded"):
        rendered(VideoEngine(tmp_path, "float32", "cpu"), spec())


def drop_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def name_class(folder: Path, name: str) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": name}))


def other_class(folder: Path) -> None:
    name_class(folder, "StableDiffusionPipeline")


def class_without_callback(folder: Path) -> None:
    name_class(folder, "HunyuanVideo15Pipeline")


def cut_weights(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def drop_weight(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["proj_out.weight"]
    save_file(weights, file)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (drop_index, "model_index.json: .*No such file.*video.checkpoint"),
        (other_class, "'StableDiffusionPipeline'; a pipeline of diffusers whose call takes num_frames and callback"),
        (class_without_callback, "'HunyuanVideo15Pipeline'; a pipeline of diffusers whose call takes num_frames"),
        (cut_weights, "write it again"),
        (drop_weight, "transformer lacks 1 weights, proj_out.weight first"),
        (shutil.rmtree, "No such file"),
    ],
)
def test_a_broken_checkpoint_is_refused(
    engine: VideoEngine, damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(engine.checkpoint, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=told):
        engine_of(folder)
