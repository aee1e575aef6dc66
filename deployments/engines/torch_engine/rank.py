"""What one rank does with a plan: keep the state of its sequences by place, compute a step, sample its new tokens.

The state lies in arrays indexed by place, so that a step of decodes needs no work in Python per sequence. Every rank
knows who owns each place; all else it keeps only of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.errors import CheckpointError
from cluster.experts import linear
from cluster.request import Sampling
from deployments.engines.torch_engine.checkpoint import ModelConfig, Tensors, check_memory, read_config
from deployments.engines.torch_engine.kv import (
    BLOCK_TOKENS,
    ChunkAttention,
    IntArray,
    PagedKV,
    blocks_for,
    chunk_attention,
    decode_attention,
    on,
)
from deployments.engines.torch_engine.model import Batch, Model
from deployments.engines.torch_engine.moe import Exchange
from deployments.engines.torch_engine.sampling import choose, log_probabilities, penalise, uniform
from deployments.engines.torch_engine.schedule import Admission, Chunk, Plan
from deployments.engines.torch_engine.spec import EngineSpec
from deployments.engines.torch_engine.weights import ExpertSplit, load


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """The prompt and settings of a newly admitted sequence. Given tokens follow the prompt; penalties count them."""

    prompt: tuple[int, ...]
    sampling: Sampling
    given: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What rank 0 tells every rank at each step; `arrivals` belong to the plan's admissions, in their order."""

    plan: Plan
    arrivals: tuple[Arrival, ...] = ()


class Rank:
    def __init__(self, split: ExpertSplit, model: Model, kv: PagedKV, places: int) -> None:
        self.config, self.expert_rank = model.config, split.expert_rank
        self._rank, self.model, self._kv = split.rank, model, kv
        self._device = model.embedding.device
        blocks = kv.pool.shape[1]
        self._owner = np.zeros(places, np.int64)
        self._logprobs = np.zeros(places, np.int64)  # 0, or 1 + the number of best tokens wanted
        self._table = np.zeros((places, blocks), np.int64)
        self._held = np.zeros(places, np.int64)  # blocks
        self._stored = np.zeros(places, np.int64)  # tokens with KV
        self._last_token = np.zeros(places, np.int64)
        self._prompts: dict[int, IntArray] = {}
        self._seed = np.zeros(places, np.uint64)
        # temperature, top_p, presence and frequency penalty
        self._settings = np.zeros((4, places), np.float32)
        self._counts: Tensor | None = None  # [places, vocab] of generated tokens, once a penalty needs them

    def step(self, order: Order) -> Tensor:
        """One row per place of `yields`, float64 [rows, 1 + width], laid out as `_packed` says."""
        return self.sample(self.compute(order), self.yields(order.plan, self._rank))

    def compute(self, order: Order) -> Tensor:
        """Logits of the places that yield a token."""
        for admission, arrival in zip(order.plan.admissions, order.arrivals, strict=True):
            self._admit(admission, arrival)
        for grant in order.plan.grants:
            if self._owner[grant.place] == self._rank:
                held = self._held[grant.place]
                self._table[grant.place, held : held + len(grant.blocks)] = grant.blocks
                self._held[grant.place] += len(grant.blocks)
        return self.model.forward(self._batch(order.plan), self._kv)

    def yields(self, plan: Plan, rank: int) -> IntArray:
        """The places of a rank that have a new token after this plan, in the order of its rows."""
        places = np.array([*plan.decodes, *(chunk.place for chunk in plan.chunks if chunk.last)], np.int64)
        own: IntArray = places[self._owner[places] == rank]
        return own

    def width(self, places: IntArray) -> int:
        """Columns beside the token: none, or the chosen token's log-probability and the (id, logprob) of the best."""
        most = int(self._logprobs[places].max(initial=0))
        return 2 * most - 1 if most else 0

    def routed(self) -> Tensor:
        """Rows that this rank's tokens sent to each expert since start, [moe layers, experts], on the CPU."""
        counts = [layer.routed[layer.slot_of] for layer in self.model.moe_layers]
        return torch.stack(counts).cpu() if counts else torch.zeros(0, 0, dtype=torch.int64)

    def _admit(self, admission: Admission, arrival: Arrival) -> None:
        place, s = admission.place, arrival.sampling
        self._owner[place] = admission.rank
        self._logprobs[place] = 0 if s.top_logprobs is None else 1 + s.top_logprobs
        if admission.rank != self._rank:
            return
        self._held[place] = self._stored[place] = 0
        self._prompts[place] = np.array(arrival.prompt + arrival.given, np.int64)
        self._seed[place] = s.seed % 2**64
        self._settings[:, place] = s.temperature, s.top_p, s.presence_penalty, s.frequency_penalty
        if self._counts is not None:
            self._counts[place] = 0
        if arrival.given and (s.presence_penalty or s.frequency_penalty):
            given = torch.tensor(arrival.given, device=self._device)
            self._counted()[place] = given.bincount(minlength=self.model.config.vocab)

    def _batch(self, plan: Plan) -> Batch:
        decodes = np.array(plan.decodes, np.int64)
        decodes = decodes[self._owner[decodes] == self._rank]
        own = [chunk for chunk in plan.chunks if self._owner[chunk.place] == self._rank]
        tokens, positions = [self._last_token[decodes]], [self._stored[decodes]]
        for chunk in own:
            tokens.append(self._prompts[chunk.place][chunk.start : chunk.start + chunk.tokens])
            positions.append(np.arange(chunk.start, chunk.start + chunk.tokens))
        self._stored[decodes] += 1
        attended, wanted = [], [*range(len(decodes))]
        row = len(decodes)
        for chunk in own:
            attended.append(self._attend(chunk, row))
            row += chunk.tokens
            wanted += [row - 1] if chunk.last else []
        place = np.concatenate([decodes, *(np.full(chunk.tokens, chunk.place) for chunk in own)])
        position = np.concatenate(positions)
        block = self._table[place, position // BLOCK_TOKENS]
        return Batch(
            tokens=on(self._device, np.concatenate(tokens)),
            positions=on(self._device, position),
            slots=(on(self._device, block), on(self._device, position % BLOCK_TOKENS)),
            decode=decode_attention(self._table[decodes], self._stored[decodes], self._kv.pool)
            if len(decodes)
            else None,
            chunks=tuple(attended),
            wanted=torch.tensor(wanted, dtype=torch.int64, device=self._device),
        )

    def _attend(self, chunk: Chunk, row: int) -> ChunkAttention:
        end = self._stored[chunk.place] = chunk.start + chunk.tokens
        blocks = self._table[chunk.place, : blocks_for(int(end))]
        group = self.model.config.heads // self.model.config.kv_heads
        return chunk_attention(chunk, row, blocks, group, self._kv.pool)

    def sample(self, logits: Tensor, places: IntArray) -> Tensor:
        temperature, top_p, presence, frequency = on(self._device, self._settings[:, places])
        adjusted = logits
        if self._settings[2:, places].any():
            adjusted = penalise(logits, self._counted()[on(self._device, places)], presence, frequency)
        if self._settings[0, places].any():
            u = uniform(self._seed[places], self._stored[places].astype(np.uint64))
            tokens = choose(adjusted, temperature, top_p, on(self._device, u))
        else:
            tokens = adjusted.argmax(-1)
        if self._counts is not None:
            self._counts.index_put_((on(self._device, places), tokens), tokens.new_ones(()).int(), accumulate=True)
        packed = self._packed(logits, tokens, self.width(places))
        self._last_token[places] = packed[:, 0].numpy()
        return packed

    def _counted(self) -> Tensor:
        """Kept from the first request with a penalty on, whose place has generated no token yet."""
        if self._counts is None:
            shape = (len(self._owner), self.model.config.vocab)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
        return self._counts

    def _packed(self, logits: Tensor, tokens: Tensor, width: int) -> Tensor:
        """On the CPU: token, its log-probability, then ids and then log-probabilities of the best. Exact in float64."""
        if not width:
            return tokens.double()[:, None].cpu()
        chosen, best, ids = log_probabilities(logits, tokens, width // 2)
        return torch.cat([tokens.double()[:, None], chosen[:, None], ids, best], 1).cpu()


def load_rank(spec: EngineSpec, rank: int, exchange_for: Callable[[tuple[int, ...]], Exchange]) -> Rank:
    """Reads the checkpoint. `exchange_for` makes a layer's exchange, given how many experts each rank holds of it."""
    folder = Path(spec.checkpoint)
    config = read_config(folder)
    dtype = getattr(torch, spec.dtype)
    _check_context(spec, config)
    _check_specialists(spec, config)
    placed = spec.expert_rank or (linear(config.experts, spec.ranks),) * config.moe_layers
    _check_placement(spec, config, placed)
    split = ExpertSplit(rank=rank, expert_rank=placed)
    kv_shape = (config.layers, blocks_for(spec.kv_tokens), config.kv_heads, config.head_dim)
    kv_values = 2 * BLOCK_TOKENS * prod(kv_shape)
    check_memory(folder, (config.weights(split.total) + kv_values) * dtype.itemsize, spec.device)
    exchanges = [exchange_for(tuple(owners.count(r) for r in range(spec.ranks))) for owners in placed]
    with Tensors(folder, dtype, spec.device) as tensors:
        model = load(config, tensors, split, tuple(exchanges))
    return Rank(split, model, PagedKV(kv_shape, dtype, spec.device), spec.max_running)


def _check_context(spec: EngineSpec, config: ModelConfig) -> None:
    if spec.context_tokens > config.context_tokens:
        raise CheckpointError(
            f"{spec.checkpoint}: context_tokens is {spec.context_tokens}; at most the checkpoint's "
            f"{config.context_tokens} are allowed; lower context_tokens"
        )
    if spec.kv_tokens < BLOCK_TOKENS:
        raise CheckpointError(
            f"{spec.checkpoint}: kv_tokens is {spec.kv_tokens}; at least {BLOCK_TOKENS} are allowed; raise it"
        )


def _check_specialists(spec: EngineSpec, config: ModelConfig) -> None:
    missing = [] if config.domains is None else [name for name in spec.specialists if name not in config.domains]
    if missing:
        raise CheckpointError(
            f"{spec.checkpoint}: specialists {', '.join(missing)} are promised; its expert_domains are "
            f"{', '.join(sorted(config.domains or ()))}; correct specialists in the family file or take another "
            "checkpoint"
        )


def _check_placement(spec: EngineSpec, config: ModelConfig, placed: tuple[tuple[int, ...], ...]) -> None:
    layers_fit = len(placed) == config.moe_layers and all(len(owners) == config.experts for owners in placed)
    if not layers_fit or any(set(owners) != set(range(spec.ranks)) for owners in placed):
        raise CheckpointError(
            f"{spec.checkpoint}: expert_rank does not place {config.experts} experts of {config.moe_layers} layers on "
            f"{spec.ranks} ranks; every expert on a rank and an expert on every rank are allowed; use fewer ranks"
        )
