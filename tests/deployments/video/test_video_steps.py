"""The step engine on tiny pipelines of real families: equal to stock alone, and to itself in company."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from video_work import done, finished, frames, opened, picture, spec

from cluster.errors import InvalidRequest
from deployments.video.adapters.kept import read
from deployments.video.engine import VideoEngine
from deployments.video.spec import Inputs

Tiny = Callable[[str], VideoEngine]
STEPWISE = ["wan", "two_stages", "time_per_token", "placed", "from_images", "images_per_token", "vace", "ltx"]
FIRST = {"from_images": ["first"], "images_per_token": ["first"], "vace": ["references"]}


def inputs(family: str) -> Inputs:
    asked = FIRST.get(family, [])
    return Inputs(
        first="first.png" if "first" in asked else None,
        references=("one.png", "two.png") if "references" in asked else (),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("first", "last", "one", "two")):
        picture(tmp_path / f"{name}.png", seed)
    return tmp_path


def stock(engine: VideoEngine, family: str, folder: Path) -> Any:
    """Frames by the pipeline's own call."""
    from PIL import Image

    pipe: Any = DiffusionPipeline.from_pretrained(engine.checkpoint)
    asked = spec()
    words: dict[str, Any] = {}
    if FIRST.get(family) == ["first"]:
        words["image"] = Image.open(folder / "first.png")
    if FIRST.get(family) == ["references"]:
        words["reference_images"] = [Image.open(folder / "one.png"), Image.open(folder / "two.png")]
    if family == "ltx":
        words["frame_rate"] = asked.fps
    return pipe(
        prompt=asked.prompt, negative_prompt=asked.negative_prompt, height=64, width=64, num_frames=9,
        num_inference_steps=asked.steps, guidance_scale=asked.guidance,
        max_sequence_length=pipe.tokenizer.model_max_length,
        generator=torch.Generator().manual_seed(asked.seed), output_type="np", **words,
    ).frames[0]  # fmt: skip


@pytest.mark.parametrize("family", STEPWISE)
def test_alone_a_job_has_the_frames_of_the_stock_pipeline(tiny: Tiny, family: str, folder: Path) -> None:
    engine = tiny(family)
    ours = frames(engine, done(engine, spec(inputs=inputs(family)), folder))
    np.testing.assert_allclose(ours, (stock(engine, family, folder) * 255).round(), atol=1)
    assert np.ptp(ours) > 50


@pytest.mark.parametrize("family", STEPWISE)
def test_neighbours_at_other_steps_and_guidances_change_no_bit(tiny: Tiny, family: str, folder: Path) -> None:
    engine = tiny(family)
    asked = [
        spec(job_id=f"video_{at}", seed=at, prompt=f"a {colour} ball", guidance=guidance, inputs=inputs(family))
        for at, (colour, guidance) in enumerate([("red", 5.0), ("blue", 1.0), ("green", 3.0)])
    ]
    alone = [done(engine, each, folder).latents for each in asked]
    jobs = [opened(engine, each, folder) for each in asked]
    engine.step(jobs[:1])
    engine.step(jobs[:2])
    finished(engine, jobs)
    assert [torch.equal(job.latents, latents) for job, latents in zip(jobs, alone, strict=True)] == [True] * 3


def forwards(engine: VideoEngine, step: Callable[[], None]) -> list[tuple[str, int]]:
    """Of a step the transformers that were asked, and for how many samples."""
    seen: list[tuple[str, int]] = []
    pipe = engine.family.pipe
    parts = {name: model for name in ("transformer", "transformer_2") if (model := getattr(pipe, name, None))}
    handles = [
        model.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, len(args[0]))))
        for name, model in parts.items()
    ]
    step()
    for handle in handles:
        handle.remove()
    return seen


def test_jobs_of_one_shape_share_a_forward(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("wan")
    jobs = [opened(engine, spec(job_id=str(at), seed=at), tmp_path) for at in range(3)]
    assert forwards(engine, lambda: engine.step(jobs)) == [("transformer", 3)] * 2  # for and against


def test_jobs_on_either_side_of_the_boundary_do_not(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("two_stages")
    high, low = (opened(engine, spec(job_id=str(at), guidance=1.0), tmp_path) for at in range(2))
    for _ in range(3):
        engine.step([low])
    assert forwards(engine, lambda: engine.step([low, high])) == [("transformer_2", 1), ("transformer", 1)]


def test_jobs_of_one_shape_have_one_key_and_a_shape_its_tokens(tiny: Tiny) -> None:
    engine = tiny("wan")
    assert engine.key(spec()) == engine.key(spec(job_id="video_2", seed=1, steps=9, guidance=1.0))
    assert engine.key(spec()) != engine.key(spec(width=96))
    assert engine.tokens(spec()) == 3 * 4 * 4


def test_vace_and_ltx_keep_apart_what_their_models_do_not_batch(tiny: Tiny) -> None:
    assert tiny("vace").key(spec()) != tiny("vace").key(spec(job_id="video_2"))
    assert tiny("ltx").key(spec()) != tiny("ltx").key(spec(fps=16))


@pytest.mark.parametrize("family", STEPWISE)
def test_a_saved_job_goes_on_to_the_same_bits(tiny: Tiny, family: str, folder: Path) -> None:
    engine, asked = tiny(family), spec(inputs=inputs(family))
    job = opened(engine, asked, folder)
    engine.step([job])
    engine.step([job])
    other = opened(engine, asked, folder, engine.save(job))
    assert other.done == 2
    finished(engine, [job, other])
    assert torch.equal(job.latents, other.latents)


def test_a_state_of_another_job_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("wan")
    state = engine.save(opened(engine, spec(seed=8), tmp_path))
    for broken in (state, b"", b"nothing"):
        with pytest.raises(ValueError, match=r"."):
            opened(engine, spec(), tmp_path, broken)


@pytest.mark.parametrize("family", ["wan", "time_per_token", "placed"])
def test_frames_come_a_latent_frame_at_a_time_and_clips_may_be_decoded_by_turns(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    engine = tiny(family)
    jobs = [done(engine, spec(seed=seed, frames=12), tmp_path) for seed in (1, 2)]
    whole = [frames(engine, job) for job in jobs]
    one, other = (engine.decode(job) for job in jobs)
    turns = [chunk for pair in zip(one, other, strict=True) for chunk in pair]
    assert [len(chunk) for chunk in turns[::2]] == [1, 4, 4, 3]
    assert np.array_equal(np.concatenate(turns[::2]), whole[0])
    assert np.array_equal(np.concatenate(turns[1::2]), whole[1])


def test_what_is_kept_says_how_the_clip_came_about(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("wan")
    job = done(engine, spec(frames=8), tmp_path)
    (tmp_path / "parent.safetensors").write_bytes(engine.kept(job))
    kept = read(tmp_path, "video_2")
    assert (kept.frames, kept.layer["seed"], len(kept.layer["sigmas"])) == (8, 7, 5)
    assert kept.layer["spec"]["prompt"] == "a red ball rises"
    assert torch.equal(kept.latents, job.latents.half().float())


@pytest.mark.parametrize(
    ("family", "given", "told"),
    [
        (
            "wan",
            Inputs(first="first.png"),
            r"input_reference given; WanPipeline takes a prompt, video_reference, mask; leave it out",
        ),
        ("placed", Inputs(references=("one.png",)), "image_references given"),
        ("from_images", Inputs(), "no input_reference"),
        ("sees_one_image", Inputs(first="first.png", last="last.png"), "2 images; .*; leave the last one out"),
        ("sees_two_images", Inputs(first="first.png"), "1 images; .* a first and a last one; add the last one"),
    ],
)
def test_what_a_model_does_not_take_is_refused_by_name(
    tiny: Tiny, family: str, given: Inputs, told: str, folder: Path
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        opened(tiny(family), spec(inputs=given), folder)


@pytest.mark.parametrize("family", ["placed", "ltx", "images_per_token"])
@pytest.mark.parametrize("given", [Inputs(first="first.png"), Inputs(first="first.png", last="last.png")])
def test_images_are_held_clean_through_every_step(tiny: Tiny, family: str, given: Inputs, folder: Path) -> None:
    engine = tiny(family)
    job = opened(engine, spec(inputs=given), folder)
    held = job.latents.clone()
    finished(engine, [job])
    ends = [0, -1] if given.last else [0]
    assert all(torch.equal(job.latents[:, :, at], held[:, :, at]) for at in ends)
    assert not torch.equal(job.latents[:, :, 1], held[:, :, 1])
    assert job.way == "per-token"
