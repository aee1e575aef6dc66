"""The transformer that knows places: what it adds to Wan's, and that a pipeline of it is written and read again."""

from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.demo.train_video import Trainer, write
from deployments.video.engine import RenderSpec, VideoEngine
from deployments.video.positioned import LEAST_SIGMA, PositionedWan, places


def model() -> PositionedWan:
    torch.manual_seed(0)
    made: PositionedWan = PositionedWan(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=6, out_channels=6,
        text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=16,
    )  # fmt: skip
    made.eval()
    return made


def given(frames: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 6, frames, 4, 6), torch.randn(2, 5, 8)


@torch.no_grad()
def test_the_velocity_is_noise_less_clean_latents() -> None:
    latents, text = given()
    time = torch.tensor([1000.0, 250.0])
    velocity = model()(latents, time, text)[0]
    stepped = latents - (time / 1000).view(-1, 1, 1, 1, 1) * velocity  # all the way to no noise
    assert stepped.allclose(model().clean(latents, time, text), atol=1e-5)


@torch.no_grad()
def test_a_time_for_all_is_that_time_for_every_token() -> None:
    latents, text = given()
    one, each = torch.tensor([700.0, 20.0]), torch.tensor([[700.0], [20.0]]).expand(-1, 18)
    for a, b in zip(model()(latents, one, text), model()(latents, each, text), strict=True):
        assert a.allclose(b, atol=1e-4)


@torch.no_grad()
def test_tokens_without_noise_have_a_finite_velocity() -> None:
    latents, text = given()
    velocity = model()(latents, torch.zeros(2, 18), text)[0]
    assert velocity.isfinite().all()
    assert velocity.abs().max() < 100 / LEAST_SIGMA


@torch.no_grad()
def test_equal_patches_at_different_places_are_told_apart() -> None:
    same = torch.ones(1, 6, 2, 4, 4)
    predicted = model().clean(same, torch.tensor([500.0]), torch.zeros(1, 3, 8))
    assert predicted.flatten(2).std(-1).min() > 1e-3


@pytest.mark.parametrize("shape", [(3, 4, 4), (9, 4, 6), (1, 1, 1)])
def test_places_are_normalised_and_distinct(shape: tuple[int, int, int]) -> None:
    known = places(torch.Size(shape))
    assert known.shape[:3] == shape
    rows = known.flatten(0, 2)
    assert len(set(map(tuple, rows.tolist()))) == len(rows)
    assert known.abs().max() <= 4


def test_a_pipeline_in_training_is_written_resumed_and_served(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    trainer = Trainer(tmp_path / "state", minutes=1e9, clips_per_format=1)
    trainer.step(trainer.pools()[0])
    trainer.save()
    other: Any = Trainer(tmp_path / "state", minutes=0, clips_per_format=1)
    other.resume()
    assert other.record.samples == trainer.record.samples > 0
    write(other, tmp_path / "pipeline")
    engine = VideoEngine(tmp_path / "pipeline", "float32", "cpu")
    engine.load()
    asked = RenderSpec(
        job_id="video_1", prompt="a red ball rises", width=64, height=64, frames=8, fps=8, steps=2, guidance=2.0, seed=1
    )
    assert engine.render(asked, lambda done, total: None, lambda: False).shape == (8, 64, 64, 3)
