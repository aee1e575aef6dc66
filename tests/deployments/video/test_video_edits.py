"""What an edit, an extension and a remix leave as it was, and what they compute anew."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from video_work import done, engine_like, finished, frames, latents, opened, parent, spec

from cluster.clip import Region, Span, marked, pixels
from cluster.errors import InvalidRequest
from deployments.video.adapters import sparse
from deployments.video.encode import write_master
from deployments.video.engine import VideoEngine
from deployments.video.spec import Edit, Inputs, RenderSpec

Tiny = Callable[[str], VideoEngine]
PER_TOKEN = ["placed", "time_per_token", "ltx"]
WAYS = {"wan": "blended", "two_stages": "blended", "placed": "per-token", "time_per_token": "per-token",
        "ltx": "per-token", "images_per_token": "per-token"}  # fmt: skip
SECOND_HALF = Edit(span=Span(start_s=0.7, end_s=9.0))
CORNER = Edit(region=Region(x=0, y=0, width=30, height=30))


def edit(mark: Edit | None = SECOND_HALF, **changes: Any) -> RenderSpec:
    return spec(**{"prompt": "a blue ball", "task": "edit", "parent": "video_0", "edit": mark} | changes)


def inside(engine: VideoEngine, asked: RenderSpec) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Latents [F, H, W] that an edit marks."""
    family: Any = engine.family
    mark = asked.edit or Edit()
    tokens = marked(family.grid(asked), asked.fps, mark.span, mark.region)
    return tokens.repeat(family.patch, 1).repeat(family.patch, 2)


@pytest.mark.parametrize("family", list(WAYS))
@pytest.mark.parametrize("mark", [SECOND_HALF, CORNER])
def test_latents_outside_an_edit_are_those_that_were_kept_and_inside_they_are_new(
    tiny: Tiny, family: str, mark: Edit, tmp_path: Path
) -> None:
    engine, asked = tiny(family), edit(mark)
    before = latents(engine.kept(parent(engine, tmp_path)))
    job = done(engine, asked, tmp_path)
    after, chosen = latents(engine.kept(job)), inside(engine, asked)
    assert 0 < chosen.sum() < chosen.size
    assert torch.equal(after[:, :, ~chosen], before[:, :, ~chosen])
    assert (after[:, :, chosen] != before[:, :, chosen]).float().mean() > 0.9
    assert job.way == WAYS[family]


@pytest.mark.parametrize("family", ["wan", *PER_TOKEN])
def test_an_edit_and_a_new_clip_share_a_forward_and_no_bit(tiny: Tiny, family: str, tmp_path: Path) -> None:
    engine = tiny(family)
    parent(engine, tmp_path)
    asked = [edit(CORNER), spec(job_id="video_2", seed=5)]
    alone = [done(engine, each, tmp_path).latents for each in asked]
    jobs = [opened(engine, each, tmp_path) for each in asked]
    assert engine.key(asked[0]) == engine.key(asked[1])
    finished(engine, jobs)
    assert all(torch.equal(job.latents, latents) for job, latents in zip(jobs, alone, strict=True))


def test_an_edit_of_an_edit_begins_from_the_edit(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    parent(engine, tmp_path)
    first = engine.kept(done(engine, edit(CORNER), tmp_path))
    (tmp_path / "parent.safetensors").write_bytes(first)
    second = latents(engine.kept(done(engine, edit(SECOND_HALF, seed=9), tmp_path)))
    assert torch.equal(second[:, :, 0], latents(first)[:, :, 0])


@pytest.mark.parametrize("family", ["placed", "wan", "time_per_token", "vace"])
@pytest.mark.parametrize("mark", [SECOND_HALF, CORNER])
def test_pixels_outside_an_edit_are_those_of_the_master(tiny: Tiny, family: str, mark: Edit, tmp_path: Path) -> None:
    engine, asked = tiny(family), edit(mark)
    before = frames(engine, parent(engine, tmp_path))
    write_master([before], 8, tmp_path / "master.mkv")
    after = frames(engine, done(engine, asked, tmp_path))
    family_: Any = engine.family
    grid = family_.grid(asked)
    may_change = pixels(grid, marked(grid, asked.fps, mark.span, mark.region))
    assert np.array_equal(after[~may_change], before[~may_change])
    assert (after[may_change] != before[may_change]).mean() > 0.2


def test_a_mask_bounds_an_edit(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    before = latents(engine.kept(parent(engine, tmp_path)))
    white = np.zeros((64, 64), np.uint8)
    white[:16, 48:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    after = latents(engine.kept(done(engine, edit(None, inputs=Inputs(mask="mask.png")), tmp_path)))
    changed = (after != before).any(1)[0].numpy()
    assert changed[:, :2, 6:].all()
    assert changed.sum() == changed[:, :2, 6:].size


def test_a_video_that_was_given_is_edited_like_one_of_ours(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    clip = np.random.default_rng(1).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    write_master([clip], 8, tmp_path / "given.mkv")
    asked = edit(CORNER, parent=None, inputs=Inputs(source="given.mkv"))
    after = frames(engine, done(engine, asked, tmp_path))
    assert np.array_equal(after[:, 32:], clip[:, 32:])
    assert not np.array_equal(after[:, :32, :32], clip[:, :32, :32])


@pytest.mark.parametrize("family", list(WAYS))
def test_an_extension_keeps_what_was_delivered_and_adds_time(tiny: Tiny, family: str, tmp_path: Path) -> None:
    engine = tiny(family)
    every: int = getattr(engine.family, "every_frames", 0)
    before = latents(engine.kept(parent(engine, tmp_path, frames=1 + every)))
    job = done(engine, spec(task="extend", parent="video_0", frames=1 + 3 * every), tmp_path)
    after = latents(engine.kept(job))
    assert after.shape[2] == 4
    assert torch.equal(after[:, :, :2], before)
    assert len(frames(engine, job)) == 1 + 3 * every


def test_a_latent_frame_of_which_frames_were_cut_off_is_computed_anew(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    before = latents(engine.kept(parent(engine, tmp_path, frames=8)))  # of 9 in its latents
    after = latents(engine.kept(done(engine, spec(task="extend", parent="video_0", frames=13), tmp_path)))
    assert torch.equal(after[:, :, :2], before[:, :, :2])
    assert not torch.equal(after[:, :, 2], before[:, :, 2])


def test_vace_extends_what_it_is_shown(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("vace")
    before = frames(engine, parent(engine, tmp_path, frames=5))
    write_master([before], 8, tmp_path / "master.mkv")
    after = frames(engine, done(engine, spec(task="extend", parent="video_0", frames=9), tmp_path))
    assert after.shape == (9, 64, 64, 3)
    assert np.array_equal(after[:5], before)


@pytest.mark.parametrize("family", ["wan", "two_stages", "placed", "ltx", "vace"])
def test_a_remix_of_less_strength_takes_fewer_steps_and_stays_nearer(tiny: Tiny, family: str, tmp_path: Path) -> None:
    engine = tiny(family)
    before = parent(engine, tmp_path, steps=8).latents
    found = []
    for strength in (0.25, 1.0):
        job = done(engine, spec(task="remix", parent="video_0", strength=strength, steps=8), tmp_path)
        found.append((job.total, (job.latents - before).abs().mean().item()))
    (few, near), (many, far) = found
    assert (few, many) == (2, 8)
    assert near < far


def test_a_full_remix_is_a_new_clip(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    parent(engine, tmp_path)
    remix = done(engine, spec(task="remix", parent="video_0", strength=1.0), tmp_path)
    assert torch.equal(remix.latents, done(engine, spec(), tmp_path).latents)


def fast(mark: Edit = SECOND_HALF, **changes: Any) -> RenderSpec:
    return edit(Edit(span=mark.span, region=mark.region, mode="fast"), **changes)


def computed_tokens(engine: VideoEngine, asked: RenderSpec, folder: Path) -> list[int]:
    """Of each forward, the tokens that its first layer saw."""
    seen: list[int] = []
    model: Any = engine.family.pipe.transformer
    handle = model.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    done(engine, asked, folder)
    handle.remove()
    return seen


@pytest.mark.parametrize(("family", "all_"), [("placed", 3 * 4 * 4), ("time_per_token", 3 * 2 * 2)])
def test_a_fast_edit_computes_the_marked_tokens_but_at_refreshes(
    tiny: Tiny, family: str, all_: int, tmp_path: Path
) -> None:
    engine = tiny(family)
    parent(engine, tmp_path)
    asked = fast(guidance=1.0, steps=6)
    some = all_ // 3
    assert computed_tokens(engine, asked, tmp_path) == [all_, some, some, some, all_, some]


@pytest.mark.parametrize("family", ["placed", "time_per_token"])
def test_a_fast_edit_that_refreshes_at_every_step_is_exact(tiny: Tiny, family: str, tmp_path: Path) -> None:
    engine = engine_like(tiny(family), refresh_steps=1)
    parent(engine, tmp_path)
    exact, quick = (done(engine, asked, tmp_path).latents for asked in (edit(), fast()))
    assert torch.allclose(exact, quick, atol=1e-5)


@pytest.mark.parametrize("family", ["placed", "time_per_token"])
def test_right_after_a_refresh_the_marked_tokens_alone_say_what_all_said(
    tiny: Tiny, family: str, tmp_path: Path
) -> None:
    engine = tiny(family)
    parent(engine, tmp_path)
    job = opened(engine, fast(), tmp_path)
    wan: Any = engine.family
    given = (job.latents, wan.times(job), job.positive[0])
    with torch.no_grad():
        full = sparse.forward(wan.model, job, "cond", given, 4)
        job.done = 1
        alone = sparse.forward(wan.model, job, "cond", given, 4)
    assert job.mask is not None
    chosen = job.mask.expand_as(full)
    assert torch.allclose(full[chosen], alone[chosen], atol=1e-5)


def test_a_fast_edit_leaves_as_much_alone_and_comes_close(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    before = latents(engine.kept(parent(engine, tmp_path)))
    exact, quick = (done(engine, asked, tmp_path) for asked in (edit(steps=12), fast(steps=12)))
    chosen = inside(engine, edit())
    assert quick.way == "per-token-fast"
    assert torch.equal(latents(engine.kept(quick))[:, :, ~chosen], before[:, :, ~chosen])
    error = (exact.latents - quick.latents)[:, :, chosen].square().mean()
    assert error < 0.05 * exact.latents[:, :, chosen].square().mean()


def test_a_fast_edit_leaves_the_model_as_it_was(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("placed")
    parent(engine, tmp_path)
    before = done(engine, spec(), tmp_path).latents
    job = opened(engine, fast(), tmp_path)
    other = opened(engine, spec(), tmp_path)
    finished(engine, [job, other])  # in one step, in two forwards
    assert torch.equal(other.latents, before)


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_a_model_that_cannot_be_fast_edits_its_own_way_and_says_so(tiny: Tiny, family: str, tmp_path: Path) -> None:
    engine = tiny(family)
    parent(engine, tmp_path)
    assert opened(engine, fast(), tmp_path).way == WAYS[family]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (edit(width=96), r"latents \(48, 3, 8, 8\) of the clip begun from; of this job \(48, 3, 8, 12\)"),
        (edit(CORNER, frames=5), "ask for the size and the seconds"),
        (edit(Edit(span=Span(start_s=5.0, end_s=6.0))), "the edit marks nothing of 9 frames"),
        (spec(task="extend", parent="video_0", frames=9), "9 frames after a clip of 9"),
    ],
)
def test_what_does_not_fit_the_clip_is_refused(tiny: Tiny, asked: RenderSpec, told: str, tmp_path: Path) -> None:
    engine = tiny("placed")
    parent(engine, tmp_path)
    with pytest.raises(InvalidRequest, match=told):
        opened(engine, asked, tmp_path)


def test_vace_refuses_an_edit_of_nothing(tiny: Tiny, tmp_path: Path) -> None:
    engine = tiny("vace")
    parent(engine, tmp_path)
    with pytest.raises(InvalidRequest, match="the edit marks nothing"):
        opened(engine, edit(Edit(span=Span(start_s=5.0, end_s=6.0))), tmp_path)


@pytest.mark.parametrize("broken", [None, b"", b"no safetensors at all"])
def test_kept_latents_that_cannot_be_read_are_refused(tiny: Tiny, broken: bytes | None, tmp_path: Path) -> None:
    if broken is not None:
        (tmp_path / "parent.safetensors").write_bytes(broken)
    with pytest.raises(InvalidRequest, match=r"parent\.safetensors"):
        opened(tiny("placed"), edit(), tmp_path)
