"""The ranks of one expert group: how they find each other, how rank 0 leads, how rows reach their experts.

Attention is data-parallel: a sequence and its KV belong to one rank. Routed experts are split: rows travel to them and
back. Rank 0 broadcasts an order per step, every rank computes it, the others send their tokens back.

One process group: gloo for what lies on the CPU, nccl for what lies on GPUs (never run on a GPU). A lost rank shows at
once as a closed connection, a stuck one after COLLECTIVE_TIMEOUT_S; when idle, rank 0 gives an empty order every
HEARTBEAT_S, so that each side notices the loss of the other.
"""

import math
import pickle
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import EngineFailed
from deployments.engines.engine import ExpertReport
from deployments.engines.torch_engine.moe import Experts, stay
from deployments.engines.torch_engine.rank import Order, Rank, load_rank
from deployments.engines.torch_engine.schedule import Plan
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

JOIN_TIMEOUT_S = 600.0  # loading may take long, and not equally long on all ranks
COLLECTIVE_TIMEOUT_S = 20.0
HEARTBEAT_S = 5.0
_COUNT_STEPS = 64  # between two sums of the expert counters
_HEAD_BYTES = 2048  # most orders fit, so that a step costs one broadcast


class AllToAll:
    """The exchange of one layer. `held[rank]` experts of it lie on each rank."""

    def __init__(self, rank: int, held: tuple[int, ...]) -> None:
        self._held, self._own = list(held), held[rank]

    def __call__(self, experts: Experts, rows: Tensor, counts: Tensor, meanwhile: Callable[[], None]) -> Tensor:
        """Counts travel first: they tell how many rows come from each rank, and for which expert each row is."""
        ranks = len(self._held)
        incoming = counts.new_empty(ranks, self._own)
        dist.all_to_all_single(incoming.view(-1), counts, [self._own] * ranks, self._held)
        sent, received = [int(part.sum()) for part in torch.split(counts, self._held)], incoming.sum(1).tolist()
        arrived = rows.new_empty(sum(received), rows.shape[1])
        travel = dist.all_to_all_single(arrived, rows, received, sent, async_op=True)
        meanwhile()
        travel.wait()
        # They lie by (source, expert); the experts want them by expert.
        expert = torch.arange(self._own, device=rows.device).repeat(ranks).repeat_interleave(incoming.view(-1))
        order = expert.argsort(stable=True)
        out = experts(arrived.index_select(0, order), incoming.sum(0))
        returned = torch.empty_like(rows)
        dist.all_to_all_single(returned, torch.empty_like(out).index_copy_(0, order, out), sent, received)
        return returned


class Leader:
    """Rank 0, and through it the group: what the engine's thread calls."""

    def __init__(self, spec: EngineSpec, address: GroupAddress | None) -> None:
        """Loads this rank and waits until the others have loaded theirs."""
        if spec.ranks > 1 and address is None:
            raise ValueError(f"engine: {spec.ranks} ranks and no address; a group needs one; give GroupAddress")
        self._others = range(1, spec.ranks)
        self._rank = _join(spec, 0, address) if address else load_rank(spec, 0, lambda _: stay)
        self.config, self.expert_rank = self._rank.config, self._rank.expert_rank
        self._routed = self._rank.routed()  # of all ranks
        self._steps = 0

    @property
    def experts(self) -> ExpertReport:
        """Of several ranks, the counts as of the last time they were summed."""
        routed = (self._routed if self._others else self._rank.routed()).numpy()
        ranks = len(self._others) + 1
        owners = np.array(self.expert_rank, np.int64).reshape(routed.shape)
        tokens = np.where(owners[..., None] == np.arange(ranks), routed[..., None], 0)
        return ExpertReport(
            domains=("",),
            tokens=tokens[None],
            window=tokens,
            slots=tuple(tuple(sorted(range(len(o)), key=lambda e: (o[e], e))) for o in self.expert_rank),
            imbalance=tuple(float(load.max() / load.mean()) if load.any() else math.nan for load in tokens.sum(1)),
        )

    def step(self, order: Order) -> Iterator[tuple[int, list[float]]]:
        """Every place that has a new token, with its row."""
        self._tell(order)
        tokens = [self._rank.step(order)]
        for rank in self._others:
            places = self._rank.yields(order.plan, rank)
            if len(places):
                tokens.append(torch.empty(len(places), 1 + self._rank.width(places), dtype=torch.float64))
                dist.recv(tokens[-1], src=rank)
        self._steps += 1
        if self._others and self._steps % _COUNT_STEPS == 0:
            self.idle()
        of_rank = (self._rank.yields(order.plan, rank).tolist() for rank in (0, *self._others))
        return zip(chain.from_iterable(of_rank), chain.from_iterable(part.tolist() for part in tokens), strict=True)

    def idle(self) -> None:
        """A sign of life to the others, which answer with their counters."""
        self._tell(Order(plan=Plan()))
        routed = self._rank.routed()
        dist.reduce(routed, dst=0)
        self._routed = routed

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
                if order.plan.computes:
                    tokens = own.step(order)
                    if len(tokens):
                        dist.send(tokens, dst=0)
                else:
                    dist.reduce(own.routed(), dst=0)
        except RuntimeError as error:
            raise EngineFailed(
                f"rank {rank}: {error}; every rank of the group must live; start the replica anew"
            ) from error
        finally:
            leave_group()


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
        own = load_rank(spec, rank, lambda held: AllToAll(rank, held))
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


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
