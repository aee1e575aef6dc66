"""The block codec: exact where it keeps every component, local always, and of one statistic for every frame."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from deployments.demo import clips
from deployments.video.codec import BlockCodec, blocks, fitted, joined


def video(count: int = 24, frames: int = 9) -> torch.Tensor:
    rng = np.random.default_rng(3)
    kinds = clips.kinds()[0][:count]
    pictures = [clips.rendered(kind, clips.drawn(kind, 64, 48, rng), 64, 48, frames) for kind in kinds]
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


@pytest.fixture(scope="module")
def codec() -> BlockCodec:
    return fitted(blocks(video()).flatten(0, -2), 48)


def there_and_back(codec: BlockCodec, given: torch.Tensor) -> torch.Tensor:
    decoded: torch.Tensor = codec.decode(codec.encode(given).latent_dist.mode()).sample
    return decoded


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_blocks_are_put_together_again_as_they_were(frames: int) -> None:
    given = torch.randn(2, 3, frames, 16, 24)
    assert joined(blocks(given)).allclose(given, atol=1e-6)


def test_the_latents_have_the_shape_of_wans(codec: BlockCodec) -> None:
    given = video(1)
    wan: Any = AutoencoderKLWan(base_dim=3, z_dim=48, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    ours, theirs = (each.encode(given).latent_dist.mode().shape for each in (codec, wan))
    assert ours == theirs == (1, 48, 3, 6, 8)


def test_every_component_kept_is_every_pixel_kept() -> None:
    values = 3 * 4 * 8 * 8
    given = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    whole = BlockCodec(values, (0.0,) * values, (1.0,) * values)
    whole.components.copy_(torch.linalg.qr(torch.randn(values, values))[0])
    assert there_and_back(whole, given).allclose(given, atol=1e-4)


def test_48_components_show_clips_they_were_not_fitted_to(codec: BlockCodec) -> None:
    given = video(40)[24:]
    error = (there_and_back(codec, given) - given).square().mean() / 4
    assert -10 * error.log10() > 28  # dB


def test_a_change_of_a_block_of_latents_changes_the_pixels_of_that_block_alone(codec: BlockCodec) -> None:
    latents = codec.encode(video(1)).latent_dist.mode()
    changed = latents.clone()
    changed[:, :, 1, 2, 3] += 1
    where = (codec.decode(changed).sample != codec.decode(latents).sample).any(1)[0].nonzero()
    allowed = set(product(range(1, 5), range(16, 24), range(24, 32)))
    assert len(where) > 0
    assert {tuple(place) for place in where.tolist()} <= allowed
