"""What one rank does with a plan: keep the state of its sequences by place, compute a step, sample its new tokens.

The state lies in arrays indexed by place, so that a step of decodes needs no work in Python per sequence. Every rank
knows who owns each place; all else it keeps only of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cluster.experts import Placement
from cluster.request import Sampling
from deployments.engines.torch_engine.checkpoint import Tensors, check_memory, read_config
from deployments.engines.torch_engine.domains import Tally
from deployments.engines.torch_engine.exchange import AllToAll, Stay, Watch, first_slots
from deployments.engines.torch_engine.fit import fitting
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
from deployments.engines.torch_engine.moving import Move, Slots, settled, transfer, transfers
from deployments.engines.torch_engine.sampling import allow, bias, choose, log_probabilities, penalise, uniform
from deployments.engines.torch_engine.schedule import Admission, Chunk, Plan
from deployments.engines.torch_engine.spec import EngineSpec
from deployments.engines.torch_engine.weights import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """The prompt and settings of a newly admitted sequence. Given tokens follow the prompt; penalties count them.

    `domain`: under what its rows are counted; "" is measured. `embeds`: its vector is wanted, and its token is not.
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    given: tuple[int, ...] = ()
    domain: str = ""
    embeds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What rank 0 tells every rank at each step; `arrivals` belong to the plan's admissions, in their order.

    A `move` is done before the plan, and the counters are summed before a move. A plan that computes nothing sums them.
    The experts of a step that is `watched` are timed. `held`: the places whose new token is held to a grammar.
    """

    plan: Plan
    arrivals: tuple[Arrival, ...] = ()
    move: Move | None = None
    watched: bool = False
    held: tuple[int, ...] = ()

    @property
    def sums(self) -> bool:
        return self.move is not None or not self.plan.computes


class Rank:
    def __init__(self, split: tuple[Placement, int], model: Model, kv: PagedKV, places: int, watch: Watch) -> None:
        placement, self._rank = split
        self.config, self.model, self._kv, self._watch = model.config, model, kv, watch
        self.ranks, self.slots = placement.ranks, list(placement.slots)
        self._device = model.embedding.device
        blocks = kv.pool.shape[1]
        self._owner = np.zeros(places, np.int64)
        self._logprobs = np.zeros(places, np.int64)  # 0, or 1 + the number of best tokens wanted
        self._embeds = np.zeros(places, np.bool_)
        self._sums: dict[int, Tensor] = {}  # float64 [hidden] of the last hidden states so far, of places that embed
        self._table = np.zeros((places, blocks), np.int64)
        self._held = np.zeros(places, np.int64)  # blocks
        self._stored = np.zeros(places, np.int64)  # tokens with KV
        self._last_token = np.zeros(places, np.int64)
        self._prompts: dict[int, IntArray] = {}
        self._seed = np.zeros(places, np.uint64)
        # temperature, top_p, presence and frequency penalty
        self._settings = np.zeros((4, places), np.float32)
        self._bias: dict[int, tuple[tuple[int, float], ...]] = {}  # of places whose request has one
        self._counts: Tensor | None = None  # [places, vocab] of generated tokens, once a penalty needs them
        self._tally = Tally(self.slots, model.config, places, self._device)

    def step(self, order: Order, masks: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """One row per place of `yields`, float64 [rows, 1 + width], laid out as `_packed` says; and `vectors`.

        `masks` is asked once the logits are there, where places are held: int32 [held, `mask_words`], a bit per token.
        """
        logits = self.compute(order)
        words = masks() if order.held else None
        places = self.yields(order.plan, self._rank)
        return self.sample(logits, places, order.held, words), self.vectors(places)

    def compute(self, order: Order) -> Tensor:
        """Logits of the places that yield a token."""
        for admission, arrival in zip(order.plan.admissions, order.arrivals, strict=True):
            self._admit(admission, arrival)
        for grant in order.plan.grants:
            if self._owner[grant.place] == self._rank:
                held = self._held[grant.place]
                self._table[grant.place, held : held + len(grant.blocks)] = grant.blocks
                self._held[grant.place] += len(grant.blocks)
        batch = self._batch(order.plan)
        self._watch.watching = order.watched
        logits = self.model.forward(batch, self._kv)
        self._tally.add(batch.places, batch.routed)
        for rows, states in zip(batch.summed, batch.sums, strict=True):
            self._sums[int(batch.places[rows.start])] += states
        for chunk in order.plan.chunks:
            if chunk.last and self._owner[chunk.place] == self._rank:
                self._tally.close(chunk.place)
        return logits

    def yields(self, plan: Plan, rank: int) -> IntArray:
        """The places of a rank that have a new token after this plan, in the order of its rows."""
        places = np.array(plan.yields, np.int64)
        own: IntArray = places[self._owner[places] == rank]
        return own

    def embeds(self, places: IntArray) -> IntArray:
        """Those of the places whose vector is wanted."""
        own: IntArray = places[self._embeds[places]]
        return own

    def vectors(self, places: IntArray) -> Tensor:
        """Of those that embed: the mean of the last hidden states, at length 1, float64 [embeds, hidden] on the CPU."""
        sums = [self._sums.pop(place) for place in self.embeds(places).tolist()]
        if not sums:
            return torch.empty(0, self.config.hidden, dtype=torch.float64)
        return F.normalize(torch.stack(sums), dim=-1).cpu()

    def width(self, places: IntArray) -> int:
        """Columns beside the token: none, or the chosen token's log-probability and the (id, logprob) of the best."""
        most = int(self._logprobs[places].max(initial=0))
        return 2 * most - 1 if most else 0

    @property
    def mask_words(self) -> int:
        """Of 32 bits, for one per token of the vocabulary."""
        return -(-self.config.vocab // 32)

    @property
    def copy_bytes(self) -> int:
        """The weights of one expert."""
        of_one = [
            tensor[0] for layer in self.model.moe_layers[:1] for tensor in (layer.experts.gate_up, layer.experts.down)
        ]
        return sum(tensor.nbytes for tensor in of_one)

    def counted(self) -> tuple[Tensor, Tensor]:
        """Of this rank since it was asked last, on the CPU: summed over ranks they say the same of the group.

        Rows sent to each slot [moe layers, domains, slots], and seconds that experts took of a watched step [moe
        layers, ranks], zeros where none was watched.
        """
        experts_s = torch.zeros(len(self.slots), self.ranks, dtype=torch.float64)
        if took_s := self._watch.taken():
            experts_s[:, self._rank] = torch.tensor(took_s, dtype=torch.float64)
        return self._tally.taken(), experts_s

    def move(self, move: Move) -> int:
        """A layer's experts change their slots, on all ranks at once. How many copies travelled between ranks."""
        layer, old = self.model.moe_layers[move.layer], self.slots[move.layer]
        new: Slots = settled(old, move.slots, self.ranks)
        pairs = transfers(old, new, self.ranks)
        transfer(layer.experts, pairs, self._rank)
        self.slots[move.layer] = new
        layer.slot_of.copy_(torch.from_numpy(first_slots(new)))
        layer.exchange.place(new)
        self._tally.move(move.layer, new)
        if layer.slot_of.is_cuda:
            torch.cuda.synchronize()  # so that a clock beside it tells what the move takes
        return len(pairs)

    def _admit(self, admission: Admission, arrival: Arrival) -> None:
        place, s = admission.place, arrival.sampling
        self._owner[place] = admission.rank
        self._logprobs[place] = 0 if s.top_logprobs is None else 1 + s.top_logprobs
        self._embeds[place] = arrival.embeds
        if admission.rank != self._rank:
            return
        self._sums.pop(place, None)  # of one that was cancelled
        if arrival.embeds:
            self._sums[place] = torch.zeros(self.config.hidden, dtype=torch.float64, device=self._device)
        self._held[place] = self._stored[place] = 0
        self._prompts[place] = np.array(arrival.prompt + arrival.given, np.int64)
        self._seed[place] = s.seed % 2**64
        self._tally.open(place, arrival.domain)
        self._settings[:, place] = s.temperature, s.top_p, s.presence_penalty, s.frequency_penalty
        self._bias.pop(place, None)
        if s.logit_bias:
            self._bias[place] = s.logit_bias
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
        attended, wanted, summed = [], [*range(len(decodes))], []
        row = len(decodes)
        for chunk in own:
            attended.append(self._attend(chunk, row))
            if self._embeds[chunk.place]:
                summed.append(slice(row, row + chunk.tokens))
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
            summed=tuple(summed),
            places=place,
            routed=[],
            sums=[],
        )

    def _attend(self, chunk: Chunk, row: int) -> ChunkAttention:
        end = self._stored[chunk.place] = chunk.start + chunk.tokens
        blocks = self._table[chunk.place, : blocks_for(int(end))]
        group = self.model.config.heads // self.model.config.kv_heads
        return chunk_attention(chunk, row, blocks, group, self._kv.pool)

    def sample(self, logits: Tensor, places: IntArray, held: Sequence[int] = (), words: Tensor | None = None) -> Tensor:
        temperature, top_p, presence, frequency = on(self._device, self._settings[:, places])
        adjusted = logits
        if self._settings[2:, places].any():
            adjusted = penalise(logits, self._counted()[on(self._device, places)], presence, frequency)
        if self._bias:
            adjusted = bias(adjusted, [(row, self._bias.get(place, ())) for row, place in enumerate(places.tolist())])
        if words is not None:
            mask_of = {place: mask for mask, place in enumerate(held)}
            own = [(row, mask_of[place]) for row, place in enumerate(places.tolist()) if place in mask_of]
            adjusted = allow(adjusted, own, words)
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


def load_rank(spec: EngineSpec, rank: int) -> Rank:
    """Reads the checkpoint. Raises CheckpointError."""
    folder = Path(spec.checkpoint)
    config = read_config(folder)
    dtype = getattr(torch, spec.dtype)
    placement = fitting(spec, config)
    kv_shape = (config.layers, blocks_for(spec.kv_tokens), config.kv_heads, config.head_dim)
    kv_values = 2 * BLOCK_TOKENS * prod(kv_shape)
    moving = placement.room if spec.rebalance and spec.ranks > 1 else 0  # a layer's experts may arrive at once
    weights = config.weights(config.moe_layers * placement.room + moving)
    check_memory(folder, (weights + kv_values) * dtype.itemsize, spec.device)
    watch = Watch()
    exchanges: tuple[Exchange, ...] = tuple(
        AllToAll(rank, spec.ranks, slots, watch) if spec.ranks > 1 else Stay(slots) for slots in placement.slots
    )
    with Tensors(folder, dtype, spec.device) as tensors:
        model = load(config, tensors, (placement, rank), exchanges)
    return Rank((placement, rank), model, PagedKV(kv_shape, dtype, spec.device), spec.max_running, watch)
