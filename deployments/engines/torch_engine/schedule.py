"""Which tokens the next step computes: continuous batching with chunked prefill, first come, first served.

Every running sequence whose prompt is computed decodes one token per step; beside them each rank computes at most
`chunk_tokens` prompt tokens. A sequence lives on one rank, the emptiest when it is admitted, in a numbered place.

KV blocks are granted as a sequence grows, never taken back: there is no pre-emption. A grant must keep the rank safe in
the sense of the banker's algorithm: there is an order in which all its sequences can run to their token limit, each
with the free blocks and those of the sequences before it. Where a grant would not be safe the sequence pauses for the
step; the one that needs fewest blocks can always go on, so the rank never locks up.

Pure: no clock, no torch. Dijkstra, EWD 623 (the banker); Yu et al., Orca, OSDI 2022 (batching per iteration).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`blocks` and `chunk_tokens` are per rank, `max_running` is for all ranks together."""

    ranks: int
    blocks: int
    block_tokens: int
    max_running: int
    chunk_tokens: int

    @property
    def rank_tokens(self) -> int:
        return self.blocks * self.block_tokens

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    key: str
    place: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """More KV blocks for a place, in the order of its tokens."""

    place: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Prompt tokens start .. start + tokens of a place. After the last chunk the place has its first new token."""

    place: int
    start: int
    tokens: int
    last: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One step. Admissions come first, then grants, then the computing of decodes and chunks."""

    admissions: tuple[Admission, ...] = ()
    grants: tuple[Grant, ...] = ()
    decodes: tuple[int, ...] = ()
    chunks: tuple[Chunk, ...] = ()

    @property
    def computes(self) -> bool:
        return bool(self.decodes or self.chunks)

    @property
    def yields(self) -> tuple[int, ...]:
        """The places that have a new token afterwards."""
        return (*self.decodes, *(chunk.place for chunk in self.chunks if chunk.last))

    @property
    def prefill_tokens(self) -> int:
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    key: str
    prompt_tokens: int
    most_tokens: int


@dataclass(slots=True, kw_only=True)
class _Running:
    """`stored` tokens have their KV in `blocks`; at most `most_blocks` will ever be held."""

    key: str
    place: int
    rank: int
    prompt_tokens: int
    most_blocks: int
    stored: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def need(self) -> int:
        return self.most_blocks - len(self.blocks)


class Scheduler:
    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[str, _Running] = {}
        self._places = list(range(limits.max_running))
        # Heaps: the lowest free block first keeps the used part of a rank's cache dense.
        self._free = [list(range(limits.blocks)) for _ in range(limits.ranks)]

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def waiting_prefill_tokens(self) -> int:
        begun = sum(max(0, s.prompt_tokens - s.stored) for s in self._running.values())
        return begun + sum(s.prompt_tokens for s in self._waiting)

    @property
    def held_tokens(self) -> int:
        return sum(len(s.blocks) for s in self._running.values()) * self.limits.block_tokens

    def submit(self, key: str, prompt_tokens: int, max_tokens: int) -> None:
        """Queue it. The last token is never fed back, so its KV is never stored."""
        most = prompt_tokens + max_tokens - 1
        assert 0 < self.limits.blocks_for(most) <= self.limits.blocks
        self._waiting.append(_Waiting(key=key, prompt_tokens=prompt_tokens, most_tokens=most))

    def remove(self, key: str) -> None:
        """It finished or was cancelled: its place and blocks are free for the next plan. Unknown keys are ignored."""
        gone = self._running.pop(key, None)
        if gone is None:
            self._waiting = deque(s for s in self._waiting if s.key != key)
            return
        heappush(self._places, gone.place)
        for block in gone.blocks:
            heappush(self._free[gone.rank], block)

    def plan(self) -> Plan:
        """The next step, taken as done."""
        grants: list[Grant] = []
        decodes = [s.place for s in self._running.values() if s.stored >= s.prompt_tokens and self._grow(s, grants)]
        left = [self.limits.chunk_tokens] * self.limits.ranks
        chunks = [self._chunk(s, left) for s in self._running.values() if s.stored < s.prompt_tokens and left[s.rank]]
        admissions: list[Admission] = []
        while (new := self._admit(left)) is not None:
            admissions.append(Admission(key=new.key, place=new.place, rank=new.rank))
            grants.append(Grant(place=new.place, blocks=tuple(new.blocks)))
            chunks.append(self._chunk(new, left))
        return Plan(admissions=tuple(admissions), grants=tuple(grants), decodes=tuple(decodes), chunks=tuple(chunks))

    def _grow(self, s: _Running, grants: list[Grant]) -> bool:
        """Whether there is room for one more token of a decoding sequence; a block is granted where it needs one."""
        if s.stored == len(s.blocks) * self.limits.block_tokens:
            others = (o for o in self._running.values() if o.rank == s.rank and o is not s)
            claims = [(o.need, len(o.blocks)) for o in others] + [(s.need - 1, len(s.blocks) + 1)]
            if not _safe(len(self._free[s.rank]) - 1, claims):
                return False
            grants.append(Grant(place=s.place, blocks=self._take(s, 1)))
        s.stored += 1
        return True

    def _chunk(self, s: _Running, left: list[int]) -> Chunk:
        tokens = min(s.prompt_tokens - s.stored, left[s.rank])
        left[s.rank] -= tokens
        start, s.stored = s.stored, s.stored + tokens
        return Chunk(place=s.place, start=start, tokens=tokens, last=s.stored == s.prompt_tokens)

    def _admit(self, left: list[int]) -> _Running | None:
        """The head of the queue on the emptiest rank that has prefill tokens left and stays safe with it."""
        if not self._waiting or not self._places:
            return None
        head = self._waiting[0]
        prompt, most = self.limits.blocks_for(head.prompt_tokens), self.limits.blocks_for(head.most_tokens)
        for rank in sorted(range(self.limits.ranks), key=lambda rank: -len(self._free[rank])):
            claims = [(s.need, len(s.blocks)) for s in self._running.values() if s.rank == rank]
            if left[rank] and _safe(len(self._free[rank]) - prompt, [*claims, (most - prompt, prompt)]):
                self._waiting.popleft()
                new = _Running(
                    key=head.key,
                    place=heappop(self._places),
                    rank=rank,
                    prompt_tokens=head.prompt_tokens,
                    most_blocks=most,
                )
                self._take(new, prompt)
                self._running[head.key] = new
                return new
        return None

    def _take(self, s: _Running, count: int) -> tuple[int, ...]:
        taken = tuple(heappop(self._free[s.rank]) for _ in range(count))
        s.blocks.extend(taken)
        return taken


def _safe(free: int, claims: Iterable[tuple[int, int]]) -> bool:
    """Whether all can finish, given (blocks still needed, blocks held) of each: least need first is the best order."""
    if free < 0:
        return False
    for need, held in sorted(claims):
        if need > free:
            return False
        free += held
    return True
