"""Pipelines of real families with random weights, small enough to build and to run in a second. Nothing is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import T5Config, T5EncoderModel

from deployments.demo.video_words import text_encoder, tokenizer
from deployments.video.codec import BlockCodec
from deployments.video.positioned import PositionedWan

library: Any = diffusers  # its constructors have no types
TEXT_WIDTH = 32
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16, "out_channels": 16,
    "text_dim": TEXT_WIDTH, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
}  # fmt: skip


def written(family: str, folder: Path) -> Path:
    """The same weights at every call, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        FAMILIES[family]().save_pretrained(folder)
    return folder


def _words() -> dict[str, Any]:
    words = tokenizer()
    return {"tokenizer": words, "text_encoder": text_encoder(len(words), TEXT_WIDTH)}


def _scheduler() -> Any:
    return library.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _vae(**changes: Any) -> Any:
    given = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} | changes
    return library.AutoencoderKLWan(temperal_downsample=[False, True, True], **given)


def wan() -> Any:
    return library.WanPipeline(
        **_words(), vae=_vae(), scheduler=_scheduler(), transformer=library.WanTransformer3DModel(**WAN)
    )


def euler() -> Any:
    pipe = wan()
    pipe.scheduler = library.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return pipe


def scaled_latents() -> Any:
    pipe = wan()
    pipe.vae.register_to_config(latents_mean=[0.25] * 16, latents_std=[1.7] * 16)
    return pipe


def two_stages() -> Any:
    pipe = wan()
    pipe.register_modules(transformer_2=library.WanTransformer3DModel(**WAN))
    pipe.register_to_config(boundary_ratio=0.875)
    return pipe


def time_per_token(kind: Any = library.WanPipeline) -> Any:
    """As TI2V-5B: patches of pixels before the VAE, 48 channels, 16 pixels to a latent."""
    vae = _vae(
        z_dim=48, in_channels=12, out_channels=12, is_residual=True, patch_size=2, latents_mean=[0.0] * 48,
        latents_std=[1.0] * 48, scale_factor_spatial=16, scale_factor_temporal=4,
    )  # fmt: skip
    transformer = library.WanTransformer3DModel(**WAN | {"in_channels": 48, "out_channels": 48})
    return kind(**_words(), vae=vae, scheduler=_scheduler(), transformer=transformer, expand_timesteps=True)


def placed(**changes: Any) -> Any:
    """As the checkpoint of the demonstration: the block codec, places of tokens, Euler's steps."""
    components = torch.linalg.qr(torch.randn(768, 48))[0].T
    codec = BlockCodec(48, (0.0,) * 48, (1.0,) * 48)
    codec.components.copy_(components)
    transformer = PositionedWan(**WAN | {"in_channels": 48, "out_channels": 48} | changes)
    scheduler = library.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return library.WanPipeline(
        **_words(), vae=codec, scheduler=scheduler, transformer=transformer, expand_timesteps=True
    )


def from_images(**changes: Any) -> Any:
    transformer = library.WanTransformer3DModel(**WAN | {"in_channels": 36} | changes)
    return library.WanImageToVideoPipeline(
        **_words(),
        vae=_vae(),
        scheduler=_scheduler(),
        transformer=transformer,
        image_encoder=None,
        image_processor=None,
    )


def vace() -> Any:
    transformer = library.WanVACETransformer3DModel(**WAN | {"num_layers": 3}, vace_layers=[0, 2], vace_in_channels=96)
    return library.WanVACEPipeline(**_words(), vae=_vae(), scheduler=_scheduler(), transformer=transformer)


def _t5() -> dict[str, Any]:
    words = tokenizer()
    config = T5Config(vocab_size=len(words), d_model=TEXT_WIDTH, d_kv=8, num_heads=4, num_layers=1, d_ff=64)
    return {"tokenizer": words, "text_encoder": T5EncoderModel(config)}


def ltx() -> Any:
    transformer = library.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=TEXT_WIDTH,
    )  # fmt: skip
    sides: dict[str, Any] = {
        "latent_channels": 8, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False, False), "encoder_causal": True, "decoder_causal": False,
        "decoder_spatio_temporal_scaling": (True, True, False, False), "patch_size": 1, "patch_size_t": 1,
    }  # fmt: skip
    scheduler = library.FlowMatchEulerDiscreteScheduler()
    vae = library.AutoencoderKLLTXVideo(**sides)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return library.LTXPipeline(**_t5(), vae=vae, scheduler=scheduler, transformer=transformer)


def other() -> Any:
    """Of a family that has no adapter."""
    transformer = library.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=TEXT_WIDTH, num_layers=1, sample_width=2, sample_height=2, sample_frames=9, patch_size=2,
        max_text_seq_length=32, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = library.AutoencoderKLCogVideoX(
        in_channels=3,
        out_channels=3,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    scheduler = library.CogVideoXDDIMScheduler()
    return library.CogVideoXPipeline(**_t5(), vae=vae, scheduler=scheduler, transformer=transformer)


FAMILIES: dict[str, Callable[[], Any]] = {
    "wan": wan, "euler": euler, "scaled_latents": scaled_latents, "two_stages": two_stages,
    "time_per_token": time_per_token, "placed": placed,
    "from_images": from_images, "vace": vace, "ltx": ltx, "other": other,
    "images_per_token": lambda: time_per_token(library.WanImageToVideoPipeline),
    "sees_one_image": lambda: from_images(image_dim=32, added_kv_proj_dim=24),  # an encoder is not among its parts
    "sees_two_images": lambda: from_images(image_dim=32, added_kv_proj_dim=24, pos_embed_seq_len=514),
}  # fmt: skip
