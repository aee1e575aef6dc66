"""The transformer that knows places: what it adds to Wan's."""

import pytest
import torch

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


@torch.no_grad()
def test_the_share_of_the_noisy_latents_is_none_at_full_noise_and_what_was_learned_below() -> None:
    latents, text = given()
    plain, sharing = model(), model()
    sharing.share.weight.fill_(0.5 / sharing.share.in_features)
    time = torch.tensor([[1000.0] * 9 + [0.0] * 9] * 2)  # the first half of the tokens noise, the rest given
    added = sharing.clean(latents, time, text) - plain.clean(latents, time, text)
    assert added[:, :, 0].abs().max() < 1e-5
    assert added[:, :, 2].allclose(latents[:, :, 2] / 2, atol=1e-5)
