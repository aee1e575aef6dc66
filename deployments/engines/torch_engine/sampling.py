"""From logits to tokens. Each row is chosen by its own settings, seed and position alone, never by its neighbours.

A draw is one uniform number u, a hash of (seed, position), put through the inverse cumulative distribution of the
row's probabilities after temperature and top_p. Steele et al., "Fast splittable pseudorandom number generators" (2014).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_FORBIDDEN = torch.zeros(256, 8).masked_fill_(torch.arange(256)[:, None] >> torch.arange(8) & 1 == 0, -torch.inf)
_TOP_P_CANDIDATES = 64  # most nuclei are smaller, and sorting a whole vocabulary is slow


def uniform(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1) of 52 random bits, so that u * total < total in float64: splitmix64 of seed, then position."""
    return (_mix(_mix(seeds) + positions) >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def penalise(logits: Tensor, counts: Tensor, presence: Tensor, frequency: Tensor) -> Tensor:
    """logit -= presence [rows] * (count > 0) + frequency [rows] * count, counts [rows, vocabulary]."""
    return logits - presence[:, None] * (counts > 0) - frequency[:, None] * counts


def bias(logits: Tensor, rows: Sequence[tuple[int, Sequence[tuple[int, float]]]]) -> Tensor:
    """Adds to the logits of rows, each beside its own (token, bias), no token twice; others stay as they are."""
    added = [(row, token, value) for row, pairs in rows for token, value in pairs]
    if not added:
        return logits
    of_rows, tokens, values = zip(*added, strict=True)
    at = torch.tensor([of_rows, tokens], device=logits.device)
    return logits.index_put((at[0], at[1]), logits.new_tensor(values), accumulate=True)


def allow(logits: Tensor, rows: Sequence[tuple[int, int]], words: Tensor) -> Tensor:
    """-inf for each token without its bit, the lowest first, in int32 words [masks, ceil(vocabulary / 32)] on the CPU.

    rows: of the logits, each with its mask's; others stay as they are.
    """
    if not rows:
        return logits
    of_logits, of_masks = map(list, zip(*rows, strict=True))
    of_all = words.new_full((len(logits), words.shape[1]), -1)
    of_all[of_logits] = words[of_masks]
    data = of_all.view(torch.uint8).to(logits.device).int()
    # Added, not chosen by `where`: that is not vectorised for masks on CPUs, and takes four times as long.
    added = F.embedding(data, _FORBIDDEN.to(logits)).flatten(1)
    return logits + added[:, : logits.shape[1]]


def choose(logits: Tensor, temperature: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """One token per row of float32 logits [rows, vocabulary]; temperature 0 is greedy. u is float64 [rows]."""
    tokens = logits.argmax(-1)
    drawn = temperature > 0
    whole, nucleus = (drawn & (top_p >= 1)).nonzero()[:, 0], (drawn & (top_p < 1)).nonzero()[:, 0]
    if len(whole):
        tokens[whole] = _inverse(_probabilities(logits[whole], temperature[whole]), u[whole])
    if len(nucleus):
        probabilities = _probabilities(logits[nucleus], temperature[nucleus])
        tokens[nucleus] = _from_nucleus(probabilities, top_p[nucleus], u[nucleus])
    return tokens


def _probabilities(logits: Tensor, temperature: Tensor) -> Tensor:
    """The best logit becomes 0 first, so that no temperature, however small, makes it infinite."""
    return torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature[:, None], -1)


def _inverse(probabilities: Tensor, u: Tensor) -> Tensor:
    """The first index whose cumulative probability exceeds u times the total; never one of probability zero."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, u[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _from_nucleus(probabilities: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """The nucleus is the fewest most likely tokens whose probabilities reach top_p."""
    best, ids = probabilities.topk(min(_TOP_P_CANDIDATES, probabilities.shape[-1]))
    tokens = ids.gather(1, _inverse(_cut(best, top_p), u)[:, None])[:, 0]
    wide = (best.sum(-1) < top_p).nonzero()[:, 0]
    if len(wide):
        best, ids = probabilities[wide].sort(descending=True, stable=True)
        tokens[wide] = ids.gather(1, _inverse(_cut(best, top_p[wide]), u[wide])[:, None])[:, 0]
    return tokens


def _cut(best: Tensor, top_p: Tensor) -> Tensor:
    """Zero outside the nucleus; the best token is always inside."""
    return best * (best.cumsum(-1) - best < top_p[:, None].clamp(min=1e-9))


def log_probabilities(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen tokens' log-probabilities [rows], and the best `top`: [rows, top] of each, and ids."""
    logprobs = torch.log_softmax(logits, -1)
    best, ids = logprobs.topk(top)
    return logprobs.gather(1, tokens[:, None])[:, 0], best, ids
