"""Tiny random checkpoints of models that take more than text: Idefics3, which sees, and Qwen2-Audio, which hears."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch_checkpoint import SPECIAL, TEMPLATE

IMAGE_SIDE = 56  # pixels; squares of 14, four of which are a token
IMAGE_TOKENS = 4 + 3  # of an image, and around it
SEEING = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
HEARING = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
TEXT: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # of 32: vLLM's attention on CPUs takes no less
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # large, so that logits differ
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def save_seeing(folder: Path) -> Path:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    seen = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = seen | {"image_size": IMAGE_SIDE, "patch_size": 14, "initializer_range": 0.3}
    settings: dict[str, Any] = {
        "image_token_id": len(SPECIAL),
        "scale_factor": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "text_config": {"model_type": "llama"} | TEXT,
        "vision_config": vision,
    }
    config = Idefics3Config(**settings)
    _save_tokenizer(folder, SEEING)
    _save(folder, Idefics3ForConditionalGeneration, config)
    processor = {
        "image_processor_type": "Idefics3ImageProcessor",
        "processor_class": "Idefics3Processor",
        "do_image_splitting": False,
        "size": {"longest_edge": 2 * IMAGE_SIDE},
        "max_image_size": {"longest_edge": IMAGE_SIDE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    _write(folder / "preprocessor_config.json", processor)
    _write(folder / "processor_config.json", {"processor_class": "Idefics3Processor", "image_seq_len": 4})
    return folder


def save_hearing(folder: Path) -> Path:
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor

    heard = {"d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 96}
    config = Qwen2AudioConfig(
        audio_token_index=len(SPECIAL) + 1,
        audio_config={"model_type": "qwen2_audio_encoder", "num_mel_bins": 128, "max_source_positions": 1500} | heard,
        text_config={"model_type": "qwen2"} | TEXT,
    )
    _save_tokenizer(folder, HEARING)
    _save(folder, Qwen2AudioForConditionalGeneration, config)
    _rename(folder / "model.safetensors", "language_model.model.model.", "language_model.model.")  # as it is published
    WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    told = json.loads((folder / "preprocessor_config.json").read_text())
    _write(folder / "preprocessor_config.json", told | {"processor_class": "Qwen2AudioProcessor"})
    return folder


def _save(folder: Path, kind: Any, config: Any) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    _write(folder / "generation_config.json", {"eos_token_id": [2], "pad_token_id": 0})


def _rename(file: Path, old: str, new: str) -> None:
    tensors = load_file(file)
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, file, {"format": "pt"})


def _save_tokenizer(folder: Path, more: Sequence[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TEXT["vocab_size"],
        special_tokens=[AddedToken(token, special=True) for token in (*SPECIAL, *more)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the sea is the home of the moray and of the eel, 12 of them"] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def _write(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")
