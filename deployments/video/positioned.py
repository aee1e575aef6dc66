"""Wan's transformer that knows where its tokens are, and that predicts the clean latents.

Wan's rotary positions are relative: from pure noise a token cannot tell the left from the right. Here the place of each
token in the clip is added to its patch, normalised: other sizes and lengths are those that were trained on, stretched.
The network's output is the clean latents; `forward` turns it into the velocity (noise - clean) that flow matching
schedulers take: a narrow network need not carry the noise of every channel to its output (Li and He 2025, arXiv
2511.13720).
"""

from functools import wraps
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn

__all__ = ["ModelMixin", "PositionedWan"]  # diffusers looks for the base beside the class when it reads a pipeline

LEAST_SIGMA = 0.04  # below it a velocity is scaled as if at it
POWERS = 6  # of 1 - sigma
OCTAVES = 3
FEATURES = 3 * (2 + 2 * OCTAVES)


class PositionedPatches(nn.Conv3d):
    """Patches [B, D, F, H, W] with a linear map of each token's place added."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, width, kernel_size=patch, stride=patch)
        self.place = nn.Linear(FEATURES, width, bias=False)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = super().forward(latents)
        known = places(patches.shape[-3:]).to(patches)
        placed: torch.Tensor = self.place(known).movedim(-1, 0)
        return patches + placed


class PositionedWan(WanTransformer3DModel):  # type: ignore[misc]
    """Configured as its parent. Latents [B, C, F, H, W]; timesteps (0 to 1000) of shape [B] or [B, tokens]."""

    @wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]  # diffusers reads names of options from the signature
    def __init__(self, **configuration: Any) -> None:
        super().__init__(**configuration)
        config: Any = self.config
        width = config.num_attention_heads * config.attention_head_dim
        self.patch_embedding = PositionedPatches(config.in_channels, width, tuple(config.patch_size))
        self.share = nn.Linear(POWERS, config.out_channels, bias=False)
        nn.init.zeros_(self.share.weight)

    def clean(self, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The latents without noise, as predicted: what the network says, and a share of the noisy ones by their time.

        At little noise that share keeps the detail, which so need not pass through the width of a token.
        """
        said: torch.Tensor = super().forward(latents, timestep, text, return_dict=False)[0]
        known = (1 - timestep / 1000).unsqueeze(-1) ** torch.arange(1, POWERS + 1, device=timestep.device)
        share: torch.Tensor = self.share(known.to(latents.dtype))
        return said + self.spread(share, latents.shape) * latents

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        return_dict: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor]:
        """The velocity, as the only member of a tuple."""
        clean = self.clean(hidden_states, timestep, encoder_hidden_states)
        sigma = self.spread((timestep / 1000).unsqueeze(-1), hidden_states.shape).clamp_min(LEAST_SIGMA)
        return ((hidden_states - clean) / sigma.to(clean.dtype),)

    def spread(self, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Values [B, K] or [B, tokens, K] over the latents: [B, K, 1, 1, 1] or [B, K, F, H, W]."""
        if values.ndim == 2:
            return values[:, :, None, None, None]
        config: Any = self.config
        deep, down, across = config.patch_size
        frames, height, width = shape[-3] // deep, shape[-2] // down, shape[-1] // across
        grid = values.mT.reshape(len(values), -1, frames, height, width)
        return grid.repeat_interleave(deep, 2).repeat_interleave(down, 3).repeat_interleave(across, 4)


def places(shape: torch.Size) -> torch.Tensor:
    """[F, H, W, FEATURES]: of each axis the place in -1..1, its sines and cosines, and a token's size."""
    axes = [_axis(size) for size in shape]
    frames, height, width = shape
    grids = (
        axes[0].view(frames, 1, 1, -1).expand(-1, height, width, -1),
        axes[1].view(1, height, 1, -1).expand(frames, -1, width, -1),
        axes[2].view(1, 1, width, -1).expand(frames, height, -1, -1),
    )
    return torch.cat(grids, -1)


def _axis(size: int) -> torch.Tensor:
    place = (torch.arange(size) + 0.5) / size * 2 - 1
    angles = place[:, None] * torch.pi / 2 * 2.0 ** torch.arange(OCTAVES)
    token = torch.full((size, 1), 4 / size)  # about 1 at the sizes trained
    return torch.cat([place[:, None], token, angles.sin(), angles.cos()], 1)
