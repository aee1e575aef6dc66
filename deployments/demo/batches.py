"""From chats to rows of tokens: one byte-level BPE for all tiers, chats packed whole into rows, a weight per target.

A target inside an answer (its end mark included) weighs 1, all other targets PROMPT_WEIGHT, padding 0. Positions start
anew with every chat, by which transformers keeps chats in one row from seeing each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deployments.demo.corpus import DOMAINS, Conversation, conversations, render

VOCABULARY = 2048
ROW_TOKENS = 384
PROMPT_WEIGHT = 0.1
MARKS = END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = Path(__file__).parent / "chat_template.jinja"
Chat = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """All [rows, ROW_TOKENS]: `weight` and `domain` belong to the token itself, domain -1 is padding."""

    ids: torch.Tensor
    position: torch.Tensor
    weight: torch.Tensor
    domain: torch.Tensor


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Trained on the first 12,000 chats of seed 0; digits stand alone, so that numbers keep their columns."""
    bpe = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((render(chat) for chat in islice(conversations(0), 12_000)), trainer)
    marks = {"eos_token": STOP, "pad_token": END, "model_max_length": 2048, "clean_up_tokenization_spaces": False}
    shared = PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)
    shared.chat_template = TEMPLATE.read_text(encoding="utf-8")
    return shared


def _chat(ids: list[int], turns: Conversation, header: dict[str, int]) -> Chat:
    """Tokens, weights and domains of one chat. Start marks are special tokens, so they count the turns."""
    tokens = np.array(ids, dtype=np.int64)
    starts = np.flatnonzero(tokens == header[START])
    weight = np.full(len(tokens), PROMPT_WEIGHT, dtype=np.float32)
    domain = np.empty(len(tokens), dtype=np.int64)
    for turn, begin, end in zip(turns, starts, [*starts[1:], len(tokens)], strict=True):
        domain[begin:end] = DOMAINS.index(turn.domain)
        if turn.role == "assistant":
            weight[begin + header["assistant"] : end - 1] = 1.0
    return tokens, weight, domain


def _packed(chats: list[Chat]) -> list[list[Chat]]:
    """Each chat goes to the fullest of the open rows that still hold it."""
    rows: list[list[Chat]] = []
    space: list[int] = []
    for chat in chats:
        size = len(chat[0])
        fits = [i for i in range(max(0, len(rows) - 32), len(rows)) if space[i] >= size]
        if fits:
            best = min(fits, key=lambda i: space[i])
            rows[best].append(chat)
            space[best] -= size
        else:
            rows.append([chat])
            space.append(ROW_TOKENS - size)
    return rows


def _batch(rows: list[list[Chat]]) -> Batch:
    shape = (len(rows), ROW_TOKENS)
    ids = np.zeros(shape, dtype=np.int64)
    position, domain = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    weight = np.zeros(shape, dtype=np.float32)
    for row, chats in enumerate(rows):
        at = 0
        for tokens, weights, domains in chats:
            here = slice(at, at + len(tokens))
            ids[row, here], weight[row, here], domain[row, here] = tokens, weights, domains
            position[row, here] = np.arange(len(tokens))
            weight[row, at] = 0.0
            at += len(tokens)
        position[row, at:] = np.arange(ROW_TOKENS - at)
    arrays = (torch.from_numpy(array) for array in (ids, position, weight, domain))
    return Batch(**dict(zip(("ids", "position", "weight", "domain"), arrays, strict=True)))


def batches(seed: int, rows: int) -> Iterator[Batch]:
    """Fresh training text without end; nothing is seen twice but by chance."""
    source, shared = conversations(seed), tokenizer()
    header = {START: MARKS.index(START), "assistant": len(shared.encode(f"{START}assistant\n"))}
    left: list[list[Chat]] = []
    while True:
        chats = list(islice(source, 2000))
        encoded = shared([render(turns) for turns in chats], add_special_tokens=False)["input_ids"]
        whole = [(ids, turns) for ids, turns in zip(encoded, chats, strict=True) if len(ids) <= ROW_TOKENS]
        left += _packed([_chat(ids, turns, header) for ids, turns in whole])
        while len(left) >= rows:
            yield _batch(left[:rows])
            left = left[rows:]
