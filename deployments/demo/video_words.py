"""The words that the video model reads, and the small text encoder that reads them."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from deployments.demo.clips import words

TEXT_TOKENS = 24


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per word of `clips.words`; all others are <unk>."""
    special = ["<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(special + words())}
    read = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    read.normalizer = normalizers.Lowercase()
    read.pre_tokenizer = pre_tokenizers.Whitespace()
    read.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=read,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )


def text_encoder(vocabulary: int, width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=16,
            num_heads=4,
            num_layers=2,
            d_ff=2 * width,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
