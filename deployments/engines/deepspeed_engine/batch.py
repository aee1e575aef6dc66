"""A batch that is read and then decodes in step, until its last row has ended. Rows that end make it narrower.

R rows, C columns: prompts are padded on the left, so that all rows end in the same column.
"""

from collections.abc import Sequence

import numpy as np
import torch
import transformers
from torch import Tensor

from cluster.request import Generation
from deployments.engines.deepspeed_engine.zero import OffloadedModel
from deployments.engines.torch_engine.sampling import bias, choose, log_probabilities, penalise, uniform


class Batch:
    def __init__(self, model: OffloadedModel, generations: Sequence[Generation], chunk_tokens: int) -> None:
        """At most chunk_tokens tokens of prompts are read in one step, but one of each row in any case."""
        self._model = model
        known = [(*g.prompt, *g.given) for g in generations]
        columns = max(map(len, known))
        padded = [[0] * (columns - len(row)) + list(row) for row in known]
        self._unread = torch.tensor(padded, device=model.device)  # [R, columns]
        self._last = self._unread[:, -1:]  # [R, 1] tokens that decode next
        held = torch.tensor([len(row) for row in known], device=model.device)
        self._mask = (torch.arange(columns, device=model.device) >= columns - held[:, None]).long()
        self._chunk = max(1, chunk_tokens // len(known))
        self._cache = transformers.DynamicCache()
        self._generations = list(generations)
        self._counts = torch.zeros(len(known), model.vocab, dtype=torch.int32, device=model.device)
        for row, generation in enumerate(generations):
            given = torch.tensor(generation.given, dtype=torch.int64, device=model.device)
            self._counts[row] = given.bincount(minlength=model.vocab)

    @property
    def held_tokens(self) -> int:
        """The cache's, padding included."""
        return int(len(self._generations) * self._cache.get_seq_length())

    @property
    def unread_tokens(self) -> int:
        """Of the prompts, padding included."""
        return self._unread.numel()

    def step(self) -> list[list[float]] | None:
        """One row per sequence as `Stream.take` wants it; None while prompts are not read to their end."""
        new = self._unread[:, : self._chunk] if self._unread.shape[1] else self._last
        self._unread = self._unread[:, self._chunk :]
        read = self._cache.get_seq_length() + new.shape[1]
        logits = self._model(new, self._mask[:, :read], self._cache)
        if self._unread.shape[1]:
            return None
        packed = self._sampled(logits)
        self._last = packed[:, :1].long().to(self._last.device)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(packed), 1)], 1)
        return packed.tolist()

    def keep(self, rows: Sequence[int]) -> None:
        """Only these go on, in this order."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self._model.device)
        self._unread, self._last = self._unread[chosen], self._last[chosen]
        self._mask, self._counts = self._mask[chosen], self._counts[chosen]
        self._cache.batch_select_indices(chosen)
        self._generations = [self._generations[row] for row in rows]

    def _sampled(self, logits: Tensor) -> Tensor:
        """Float64 [R, 1 + width]: the token, and where wanted its log-probability, ids and those of the best.

        Draws are keyed as the torch engine's are: by seed and by the number of tokens before.
        """
        settings = [g.sampling for g in self._generations]
        presence = torch.tensor([s.presence_penalty for s in settings], device=logits.device)
        frequency = torch.tensor([s.frequency_penalty for s in settings], device=logits.device)
        penalised = penalise(logits, self._counts, presence, frequency)
        tokens = choose(
            bias(penalised, [(row, s.logit_bias) for row, s in enumerate(settings)]),
            torch.tensor([s.temperature for s in settings], device=logits.device),
            torch.tensor([s.top_p for s in settings], device=logits.device),
            torch.from_numpy(
                uniform(
                    np.array([s.seed % 2**64 for s in settings], np.uint64),
                    self._mask.sum(1).cpu().numpy().astype(np.uint64),
                )
            ).to(logits.device),
        )
        self._counts.scatter_add_(1, tokens[:, None], self._counts.new_ones(len(tokens), 1))
        most = max((s.top_logprobs for s in settings if s.top_logprobs is not None), default=None)
        if most is None:
            return tokens.double()[:, None].cpu()
        chosen, best, ids = log_probabilities(logits, tokens, most)
        return torch.cat([tokens.double()[:, None], chosen[:, None], ids, best], 1).cpu()
