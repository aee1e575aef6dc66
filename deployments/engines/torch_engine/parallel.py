"""The ranks of one expert group: how they find each other, and how rank 0 leads.

Attention is data-parallel: a sequence and its KV belong to one rank. Routed experts are split: rows travel to them and
back, and experts themselves move where that pays. Rank 0 broadcasts an order per step, every rank computes it, the
others send their tokens back.

One process group: gloo for what lies on the CPU, nccl for what lies on GPUs (never run on a GPU). A lost rank shows at
once as a closed connection, a stuck one after COLLECTIVE_TIMEOUT_S; when idle, rank 0 gives an empty order every
HEARTBEAT_S, so that each side notices the loss of the other.
"""

import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import EngineFailed
from deployments.engines.engine import ExpertReport
from deployments.engines.torch_engine.balance import Balancer
from deployments.engines.torch_engine.kv import IntArray
from deployments.engines.torch_engine.rank import Order, Rank, load_rank
from deployments.engines.torch_engine.schedule import Plan
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

JOIN_TIMEOUT_S = 600.0  # loading may take long, and not equally long on all ranks
COLLECTIVE_TIMEOUT_S = 20.0
HEARTBEAT_S = 5.0
_COUNT_STEPS = 64  # between two sums of the expert counters, and between two steps whose experts are timed
_SLOW_STEPS = 16  # the same where steps are so slow that a plan would have too few sums
Masks = Callable[[], NDArray[np.int32]]
_HEAD_BYTES = 2048  # most orders fit, so that a step costs one broadcast


class Leader:
    """Rank 0, and through it the group: what the engine's thread calls."""

    def __init__(self, spec: EngineSpec, address: GroupAddress | None, now_s: Callable[[], float]) -> None:
        """Loads this rank and waits until the others have loaded theirs."""
        if spec.ranks > 1 and address is None:
            raise ValueError(f"engine: {spec.ranks} ranks and no address; a group needs one; give GroupAddress")
        self._others = range(1, spec.ranks)
        self._rank = _join(spec, 0, address) if address else load_rank(spec, 0)
        self.config = self._rank.config
        self._spec, self._now_s = spec, now_s
        self._steps, self._watched_s = 0, 0.0
        self.count_anew()

    def count_anew(self) -> None:
        """Forget what experts computed and when: it was no traffic."""
        move_s = _move_s(self._rank.copy_bytes)
        self._balancer = Balancer(self._spec, self._rank.slots, self.config.experts, self._now_s(), move_s)

    @property
    def experts(self) -> ExpertReport:
        """As of the last time that the counters were summed. From any thread."""
        return self._balancer.report

    @property
    def moving(self) -> bool:
        """Whether ranks still have experts to move: steps or idle orders must follow."""
        return self._balancer.moving

    def step(self, order: Order, masks: Masks) -> Iterator[tuple[int, list[float]]]:
        """Every place that has a new token, with its row; one that embeds, with its vector.

        `masks`: makes those of the places that the order holds.
        """
        self._steps += 1
        slow = self._steps % _SLOW_STEPS == 0 and self._balancer.due(self._now_s())
        watched = slow or self._steps % _COUNT_STEPS == 0
        self._begin(replace(order, watched=watched))
        began_s = time.perf_counter()
        told = [self._rank.step(order, lambda: self._share(masks))]
        for rank in self._others:
            places = self._rank.yields(order.plan, rank)
            told.append(self._received(rank, places))
        if watched:
            self._watched_s = time.perf_counter() - began_s
            self.idle()
        of_rank = (self._rank.yields(order.plan, rank) for rank in (0, *self._others))
        return chain.from_iterable(map(self._rows, of_rank, told))

    def _received(self, rank: int, places: IntArray) -> tuple[Tensor, Tensor]:
        """What the rank computed for its places, as Rank.step has it."""
        rows = torch.empty(len(places), 1 + self._rank.width(places), dtype=torch.float64)
        vectors = torch.empty(len(self._rank.embeds(places)), self.config.hidden, dtype=torch.float64)
        for part in (rows, vectors):
            if len(part):
                dist.recv(part, src=rank)
        return rows, vectors

    def _rows(self, places: IntArray, told: tuple[Tensor, Tensor]) -> Iterator[tuple[int, list[float]]]:
        rows, vectors = told
        found = dict(zip(places.tolist(), rows.tolist(), strict=True))
        return iter((found | dict(zip(self._rank.embeds(places).tolist(), vectors.tolist(), strict=True))).items())

    def _share(self, masks: Masks) -> Tensor:
        """Made only now: the logits are on their way, and a GPU computes them meanwhile.

        A thread beside the model made a step of 64 answers a fifth slower on CPUs: their masks take 0.3 ms, waiting for
        the interpreter's lock more.
        """
        words = torch.from_numpy(masks())
        if self._others:
            dist.broadcast(words, src=0)
        return words

    def idle(self) -> None:
        """A sign of life to the others, which answer with their counters."""
        self._begin(Order(plan=Plan()))

    def _begin(self, order: Order) -> None:
        """Tells the others, and does with them what comes before the plan."""
        order = replace(order, move=self._balancer.next_move())
        self._tell(order)
        began_s = time.perf_counter()
        if order.sums:
            rows, experts_s = self._summed()
            self._balancer.timed(experts_s.numpy(), self._watched_s)
            self._balancer.count(rows.numpy(), self._now_s())
        if order.move:
            copies = self._rank.move(order.move)
            wall_s = time.perf_counter() - began_s
            self._balancer.moved(self._rank.slots[order.move.layer], copies, wall_s, self._now_s())

    def _summed(self) -> tuple[Tensor, Tensor]:
        parts = self._rank.counted()
        if self._others:
            for part in parts:
                dist.reduce(part, dst=0)
        return parts

    def dismiss(self) -> None:
        """Lets the others go."""
        self._tell(None)

    def _tell(self, order: Order | None) -> None:
        if not self._others:
            return
        data = pickle.dumps(order)
        head = len(data).to_bytes(8, "little") + data[: _HEAD_BYTES - 8]
        dist.broadcast(_tensor(head.ljust(_HEAD_BYTES, b"\0")), src=0)
        if len(data) > _HEAD_BYTES - 8:
            dist.broadcast(_tensor(data[_HEAD_BYTES - 8 :]), src=0)


def follow(spec: EngineSpec, rank: int, address: GroupAddress) -> None:
    """Serve as one of the ranks 1 .. ranks - 1 until rank 0 lets go. Blocks.

    Raises CheckpointError where this rank cannot load, EngineFailed where the group is lost.
    """
    if spec.device == "cpu":
        torch.set_num_threads(1)
    with torch.inference_mode():
        try:
            own = _join(spec, rank, address)
            while (order := _hear()) is not None:
                if order.sums:
                    for part in own.counted():
                        dist.reduce(part, dst=0)
                if order.move:
                    own.move(order.move)
                if order.plan.computes:
                    _compute(own, order)
        except RuntimeError as error:
            raise EngineFailed(
                f"rank {rank}: {error}; every rank of the group must live; start the replica anew"
            ) from error
        finally:
            leave_group()


def _compute(own: Rank, order: Order) -> None:
    """The step of the order, and what it made for this rank's places to rank 0."""
    masks = partial(_hear_masks, len(order.held), own.mask_words)
    for part in own.step(order, masks):
        if len(part):
            dist.send(part, dst=0)


def leave_group() -> None:
    """Closes this rank's connections, by which the others notice."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(spec: EngineSpec, rank: int, address: GroupAddress) -> Rank:
    """Load, tell how it went, and form the group once every rank could load."""
    patience = timedelta(seconds=JOIN_TIMEOUT_S)
    store = dist.TCPStore(  # type: ignore[attr-defined]
        address.host, address.port, None, rank == 0, patience, wait_for_workers=False
    )
    names = [f"loaded {r}" for r in range(spec.ranks)]
    try:
        own = load_rank(spec, rank)
    except Exception as error:
        store.set(names[rank], f"{type(error).__name__}: {error}")  # never empty, which would mean "loaded"
        raise
    store.set(names[rank], "")
    store.wait(names, patience)
    faults = [f"rank {r}: {text.decode()}" for r, name in enumerate(names) if (text := store.get(name))]
    if faults:
        raise EngineFailed("; ".join(faults))
    backend = "gloo" if spec.device == "cpu" else "cpu:gloo,cuda:nccl"
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    dist.init_process_group(backend, store=store, rank=rank, world_size=spec.ranks, timeout=timeout)
    return own


def _hear() -> Order | None:
    head = torch.empty(_HEAD_BYTES, dtype=torch.uint8)
    dist.broadcast(head, src=0)
    raw = head.numpy().tobytes()
    size, data = int.from_bytes(raw[:8], "little"), raw[8:]
    if size > len(data):
        rest = torch.empty(size - len(data), dtype=torch.uint8)
        dist.broadcast(rest, src=0)
        data += rest.numpy().tobytes()
    order: Order | None = pickle.loads(data[:size])
    return order


def _hear_masks(held: int, words: int) -> Tensor:
    masks = torch.empty(held, words, dtype=torch.int32)
    dist.broadcast(masks, src=0)
    return masks


def _move_s(copy_bytes: int) -> float:
    """What moving one copy may cost, until some were moved: a round trip, and 1 GB/s."""
    return 5e-4 + copy_bytes / 1e9


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
