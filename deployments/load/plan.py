"""From arrivals to requests: when each is sent, to which model, with what text. Pure: the seed says all.

A token is taken to be four characters: words of three letters and a space. Moray's simulated engine counts exactly so;
tokenizers of other engines count otherwise, so reports tell the tokens that the server counted.
"""

import random
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cluster.workload import Workload

WORD_CHARS = 4
WORDS = 1 << 15
STRIDE = 7919  # a prime: neighbouring requests and blocks begin at different words


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`at_s`: since the begin of the run. `blocks`: of the trace, where prompts share prefixes."""

    number: int
    at_s: float
    model: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = "default"
    blocks: tuple[int, ...] = ()
    block_tokens: int = 512


def requests(workload: Workload, speed: float, shares: Mapping[str, float], seed: int) -> Iterator[Request]:
    """In order of time. `shares`: of the models, for requests whose trace names none."""
    model = np.array(workload.models, dtype=object)[workload.model]
    names = list(shares)
    drawn = np.random.default_rng(seed).choice(len(names), len(workload), p=[shares[name] for name in names])
    for number in range(len(workload)):
        yield Request(
            number=number,
            at_s=float(workload.arrival_s[number]) / speed,
            model=model[number] or names[drawn[number]],
            prompt_tokens=int(workload.prompt_tokens[number]),
            output_tokens=int(workload.output_tokens[number]),
            tenant=workload.tenants[int(workload.tenant[number])],
            blocks=workload.blocks[number] if workload.blocks is not None else (),
            block_tokens=workload.block_tokens,
        )


class Words:
    """Prompts are cut out of one long text, so that they cost little; equal blocks of a trace are equal text."""

    def __init__(self, seed: int) -> None:
        letters = random.Random(seed)
        words = ("".join(letters.choices(string.ascii_lowercase, k=WORD_CHARS - 1)) for _ in range(WORDS))
        self._text = " ".join(words) + " "

    def prompt(self, request: Request) -> str:
        """As many words as the prompt has tokens."""
        if not request.blocks:
            return self._cut(request.number, request.prompt_tokens)
        left, parts = request.prompt_tokens, []
        for block in request.blocks:
            parts.append(self._cut(block, min(left, request.block_tokens)))
            left -= request.block_tokens
        if left > 0:  # the begun block at the end, whose hash may be missing
            parts.append(self._cut(request.number, left))
        return "".join(parts)

    def _cut(self, number: int, words: int) -> str:
        first = number * STRIDE % WORDS * WORD_CHARS
        chars = words * WORD_CHARS
        repeats = -(-(first + chars) // len(self._text))
        return (self._text * repeats if repeats > 1 else self._text)[first : first + chars]
