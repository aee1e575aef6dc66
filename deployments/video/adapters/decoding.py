"""Latents to frames, a few at a time where the VAE allows it: memory is then that of one latent frame's pixels."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deployments.video.codec import BlockCodec
from deployments.video.spec import Frames

if TYPE_CHECKING:
    from torch import Tensor


def decoded(vae: Any, latents: "Tensor", **conditions: Any) -> Iterator[Frames]:
    """Denormalised latents [1, C, F, H, W] as chunks of frames.

    Wan's VAE is causal and carries its past from latent frame to latent frame; the block codec has no past. Any other
    VAE, and one that tiles, decodes the whole clip at once: tiles bound its work, not its output.
    """
    from diffusers import AutoencoderKLWan

    causal = isinstance(vae, AutoencoderKLWan)
    if isinstance(vae, BlockCodec):
        pieces = _by_blocks(vae, latents)
    elif causal and not vae.use_tiling:
        pieces = _causally(vae, latents)
    else:
        pieces = iter([vae.decode(latents, return_dict=False, **conditions)[0]])
    return (_pixels(piece) for piece in pieces)


def _by_blocks(vae: BlockCodec, latents: "Tensor") -> Iterator["Tensor"]:
    yield vae.decode(latents[:, :, :1], return_dict=False)[0]
    for at in range(1, latents.shape[2]):
        yield vae.decode(latents[:, :, at - 1 : at + 1], return_dict=False)[0][:, :, 1:]


def _causally(vae: Any, latents: "Tensor") -> Iterator["Tensor"]:
    """As AutoencoderKLWan.decode, which keeps the past in the module: here each clip keeps its own."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    past = [None] * vae._cached_conv_counts["decoder"]
    mixed = vae.post_quant_conv(latents)
    for at in range(latents.shape[2]):
        piece = vae.decoder(mixed[:, :, at : at + 1], feat_cache=past, feat_idx=[0], first_chunk=at == 0)
        if vae.config.patch_size is not None:
            piece = unpatchify(piece, patch_size=vae.config.patch_size)
        yield piece.clamp(-1, 1)


def _pixels(video: "Tensor") -> Frames:
    """[1, 3, F, H, W] in -1..1 to bytes [F, H, W, 3]."""
    import torch

    bytes_ = ((video[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return bytes_.permute(1, 2, 3, 0).contiguous().cpu().numpy()
