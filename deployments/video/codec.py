"""A codec in closed form: each block of 4 frames x 8x8 pixels is a sum of principal components.

It has the interface of AutoencoderKLWan and its lengths, 1 + 4n frames: the first frame is coded as four copies of
itself and decoded as their mean, with the same components as all others. Blocks do not see each other, so what is
outside an edited region stays as it was, bit for bit. The latents are close to a picture's own statistics only for
pictures like those that the components were fitted to.
"""

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

FRAMES, SIDE = 4, 8  # of a block


class BlockCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`latents_mean`, `latents_std`: what the pipeline takes from latents and divides them by; of z_dim channels."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        z_dim: int = 32,
        latents_mean: tuple[float, ...] = (0.0,) * 32,
        latents_std: tuple[float, ...] = (1.0,) * 32,
        scale_factor_temporal: int = FRAMES,
        scale_factor_spatial: int = SIDE,
    ) -> None:
        super().__init__()
        values = 3 * scale_factor_temporal * scale_factor_spatial**2
        self.components = nn.Parameter(torch.zeros(z_dim, values), requires_grad=False)  # orthonormal rows
        self.mean = nn.Parameter(torch.zeros(values), requires_grad=False)

    def encode(self, video: torch.Tensor, return_dict: bool = True) -> Any:
        """Video [B, 3, 1 + 4n, 8h, 8w] in -1..1 to a distribution of latents [B, z_dim, 1 + n, h, w] without spread."""
        split = blocks(video)
        latents = ((split - self.mean) @ self.components.T).movedim(-1, 1)
        certain = torch.full_like(latents, -math.inf)  # log variance
        posterior = DiagonalGaussianDistribution(torch.cat([latents, certain], 1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> Any:
        """Latents [B, z_dim, 1 + n, h, w] to video [B, 3, 1 + 4n, 8h, 8w] in -1..1."""
        video = joined(latents.movedim(1, -1) @ self.components + self.mean).clamp(-1, 1)
        return DecoderOutput(sample=video) if return_dict else (video,)


def blocks(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, 1 + 4n, 8h, 8w] to [B, 1 + n, h, w, values of a block]."""
    first, rest = video[:, :, :1], video[:, :, 1:]
    long = torch.cat([first.expand(-1, -1, FRAMES, -1, -1), rest], 2)
    count, colours, frames, height, width = long.shape
    split = long.view(count, colours, frames // FRAMES, FRAMES, height // SIDE, SIDE, width // SIDE, SIDE)
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def joined(split: torch.Tensor) -> torch.Tensor:
    """The inverse of `blocks`."""
    parts = split.view(*split.shape[:-1], 3, FRAMES, SIDE, SIDE).permute(0, 4, 1, 5, 2, 6, 3, 7)
    long = parts.flatten(6).flatten(4, 5).flatten(2, 3)
    return torch.cat([long[:, :, :FRAMES].mean(2, keepdim=True), long[:, :, FRAMES:]], 2)


@torch.no_grad()
def fitted(split: torch.Tensor, z_dim: int) -> BlockCodec:
    """The codec of the z_dim components that carry the most variance of sampled blocks [N, values].

    A channel's divisor is the root of its deviation times the mean deviation: between whitening, which makes the
    finest detail weigh as much as the colour, and one scale for all, which leaves it below the noise.
    """
    mean = split.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov(split.double().T))
    kept = variance.flip(0)[:z_dim].clamp_min(1e-12)
    std = kept.sqrt()
    scale = (std * std.square().mean().sqrt()).sqrt()
    codec: BlockCodec = BlockCodec(z_dim, (0.0,) * z_dim, tuple(round(value, 6) for value in scale.tolist()))
    codec.mean.copy_(mean)
    codec.components.copy_(vectors.flip(1)[:, :z_dim].T)
    return codec
