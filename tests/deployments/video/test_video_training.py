"""The trainer of the video model: its masks, its noise levels, that it learns, stops, goes on and writes a pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.demo.train_video import FLOOR, MASKS, Pool, Trainer, levels, loss_of, masks, pool, write
from deployments.video.engine import RenderSpec, VideoEngine

SIDES = st.tuples(st.integers(2, 9), st.integers(2, 6), st.integers(2, 6))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    torch.set_num_threads(1)
    return Trainer(tmp_path / "state", minutes=1e9, fitted_to=8)


def one_batch(trainer: Trainer, width: int = 64) -> Pool:
    return pool(trainer.vae, 8, (width, 64, 9), trainer.rng)


@given(kind=st.sampled_from(list(MASKS)), shape=SIDES, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_every_clip_has_something_to_make_and_a_kind_of_mask_keeps_its_promise(
    kind: str, shape: tuple[int, int, int], seed: int
) -> None:
    mask = masks(kind, 4, shape, np.random.default_rng(seed))
    assert mask.shape == (4, *shape)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}  # type: ignore[no-untyped-call]
    assert mask.flatten(1).any(1).all()
    if kind == "all":
        assert mask.all()
    if kind == "first":
        assert not mask[:, 0].any()
        assert mask[:, 1:].all()
    if kind == "time":
        assert not mask[:, 0].any()
        assert mask.flatten(2).eq(mask[:, :, :1, 0]).all()  # whole frames


def test_noise_levels_lie_between_none_and_all_and_mostly_high() -> None:
    drawn = levels(10_000, np.random.default_rng(0))
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert 0.7 < drawn.median() < 0.85


@pytest.mark.parametrize("kind", list(MASKS))
def test_given_tokens_do_not_count(trainer: Trainer, kind: str) -> None:
    """With nothing predicted (the output starts at zero) the loss is the weighted square of what is to be made."""
    batch = one_batch(trainer)
    loss = loss_of(trainer.model, batch, kind, np.random.default_rng(1)).item()
    rng = np.random.default_rng(1)
    sigma = levels(8, rng).clamp_min(FLOOR)
    wide = masks(kind, 8, (3, 4, 4), rng).repeat_interleave(2, 2).repeat_interleave(2, 3).unsqueeze(1)
    squares = batch.latents.float().square() * wide / sigma.square().view(-1, 1, 1, 1, 1)
    assert loss == pytest.approx((squares.sum() / wide.sum() / batch.latents.shape[1]).item(), rel=1e-4)


def test_the_loss_of_a_batch_seen_again_and_again_falls(trainer: Trainer) -> None:
    batch = one_batch(trainer)
    trainer.budget_s, trainer.record.wall_s = 100.0, 20.0  # past the warm-up
    before = loss_of(trainer.model, batch, "all", np.random.default_rng(1)).item()
    for _ in range(9):
        trainer.step(batch, "all")
    assert loss_of(trainer.model, batch, "all", np.random.default_rng(1)).item() < 0.8 * before


def test_a_pipeline_in_training_is_written_resumed_and_served(trainer: Trainer, tmp_path: Path) -> None:
    for width in (64, 96):
        trainer.step(one_batch(trainer, width), "box")
    trainer.save()
    other = Trainer(tmp_path / "state", minutes=0, fitted_to=8)
    other.resume()
    assert other.record.samples == trainer.record.samples > 0
    assert all(other.optimiser.live[name].equal(p) for name, p in trainer.optimiser.live.items())
    write(other, tmp_path / "pipeline")
    engine = VideoEngine(tmp_path / "pipeline", "float32", "cpu")
    engine.load()
    asked = RenderSpec(
        job_id="video_1", prompt="a red ball rises", width=64, height=64, frames=8, fps=8, steps=2, guidance=2.0, seed=1
    )
    assert engine.render(asked).shape == (8, 64, 64, 3)
