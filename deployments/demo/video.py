"""Writes the video checkpoint that ships: a real WanPipeline, small enough for a laptop, with UNTRAINED weights.

The transformer and the text encoder are random from a seed. The decoder is set by hand, because a random one shows
grey noise: it blurs latents, drifts older ones sideways, maps three random mixtures of their channels to red, green and
blue, and enlarges by linear interpolation. The pictures are soft coloured patches in motion. The seed decides them, the
prompt changes them slightly and is not depicted. What runs is the whole path: text encoder, denoising loop, decoder.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

FOLDER = Path(__file__).parent / "checkpoints" / "video"
SEED = 20_261_120
TEXT_TOKENS = 32
LATENT_CHANNELS = 16
TEXT_WIDTH = 32
DECODER_CHANNELS = 8  # red, green, blue, a constant; then room for their negatives
CONTRAST = 0.9  # the smaller the constant channel beside the colours, the more saturated the picture
GAIN = 0.75
WORDS = """
a an and the of in on at to with from over under into is are very slowly fast small large big tiny moving moves drifting
drifts rising rises falling falls growing grows still turning left right up down red green blue yellow orange purple
white black grey pink cyan circle square triangle ball box star shape shapes background dark bright light soft sea sky
sun cloud clouds fire water night day video cinematic abstract wave waves flower forest city street cat dog bird fish
"""

README = """# Video checkpoint for demonstration: untrained

A complete diffusers `WanPipeline` whose weights nobody trained. The text encoder and the transformer are random; the
decoder is set by hand so that latents show as soft coloured patches that drift. **It does not depict the prompt**: the
seed decides the pattern and the prompt changes it slightly, nothing more. It exists so that the whole path (text
encoder, denoising loop with guidance, decoder, H.264) runs on a machine without a GPU. Written by
`python -m deployments.demo.video`; licence as the project's.
"""


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(special + sorted(set(WORDS.split())))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )


def text_encoder(vocabulary: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=8,
            num_heads=4,
            num_layers=2,
            d_ff=64,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(  # type: ignore[no-untyped-call]
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=96,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=256,
    )


def vae() -> AutoencoderKLWan:
    model = AutoencoderKLWan(  # type: ignore[no-untyped-call]
        base_dim=DECODER_CHANNELS,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    with torch.no_grad():
        _set_decoder(model)
    return model


def _set_decoder(model: Any) -> None:
    """Residual branches add nothing, so the decoder is: mix and blur, then three enlargements, then colours."""
    for name, parameter in model.decoder.named_parameters():
        if name.endswith(("conv2.weight", "conv2.bias", "proj.weight", "proj.bias")):
            parameter.zero_()
    model.post_quant_conv.weight.copy_(torch.eye(LATENT_CHANNELS)[:, :, None, None, None])
    model.post_quant_conv.bias.zero_()
    _mix_and_drift(model.decoder.conv_in)
    for block in model.decoder.up_blocks:
        for unit in block.resnets:
            if isinstance(unit.conv_shortcut, nn.Conv3d):
                _copy(unit.conv_shortcut)
        for upsampler in block.upsamplers or ():
            _interpolate(upsampler)
    _colour(model.decoder)


def _mix_and_drift(conv: Any) -> None:
    """Three random mixtures, each the mean of the last three latent frames, the older the further to the right."""
    blur = torch.tensor([1.0, 2.0, 1.0]) / 4
    across = torch.tensor([[0.7, 0.3, 0.0], [0.15, 0.7, 0.15], [0.0, 0.3, 0.7]])  # oldest frame first
    kernel = across[:, None, :] * blur[None, :, None]
    kernel /= kernel.norm()  # white noise in, unit variance out
    mix = torch.linalg.qr(torch.randn(LATENT_CHANNELS, 3))[0].T
    conv.weight.zero_()
    conv.weight[:3] = mix[:, :, None, None, None] * kernel
    conv.bias.zero_()
    conv.bias[3] = CONTRAST


def _copy(conv: Any) -> None:
    conv.weight.zero_()
    conv.bias.zero_()
    for channel in range(4):
        conv.weight[channel, channel] = 1.0


def _interpolate(upsampler: Any) -> None:
    """Twice as large by [1 2 1]/4 over repeated pixels; twice as long by a mean of neighbours before each frame."""
    blur = torch.tensor([1.0, 2.0, 1.0]) / 4
    conv = upsampler.resample[1]
    conv.weight.zero_()
    conv.bias.zero_()
    for channel in range(4):
        conv.weight[channel, channel] = blur[:, None] * blur[None, :]
    if upsampler.mode == "upsample3d":
        conv = upsampler.time_conv
        conv.weight.zero_()
        conv.bias.zero_()
        for channel in range(DECODER_CHANNELS):
            conv.weight[channel, channel, :, 0, 0] = torch.tensor([0.0, 0.5, 0.5])
            conv.weight[DECODER_CHANNELS + channel, channel, :, 0, 0] = torch.tensor([0.0, 0.0, 1.0])


def _colour(decoder: Any) -> None:
    """silu(x) - silu(-x) = x: with each colour beside its negative the last activation is linear."""
    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut
    output = decoder.conv_out.weight
    output.zero_()
    decoder.conv_out.bias.zero_()
    for channel in range(3):
        shortcut.weight[4 + channel, channel] = -1.0
        output[channel, channel, -1, 1, 1] = GAIN
        output[channel, 4 + channel, -1, 1, 1] = -GAIN


def pipeline(seed: int = SEED) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer()
        return WanPipeline(  # type: ignore[no-untyped-call]
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            transformer=transformer(),
            vae=vae(),
            scheduler=UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--out", type=Path, default=FOLDER)
    folder: Path = arguments.parse_args().out
    pipeline().save_pretrained(folder)
    (folder / "README.md").write_text(README, encoding="utf-8")
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size_bytes} bytes")


if __name__ == "__main__":
    main()
