"""What rank 0 knows of the load of routed experts, and where they go because of it.

Used by the engine's thread alone, except that plans are made on a thread of their own: a plan may take longer than a
step. Its result is taken at the next boundary between steps, one layer at a time.
"""

import logging
import math
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cluster.experts import Placement
from cluster.rebalance import Judgement, Terms, Window, judge
from deployments.engines.engine import ExpertReport
from deployments.engines.torch_engine.domains import DOMAINS
from deployments.engines.torch_engine.moving import Move, Slots, settled
from deployments.engines.torch_engine.spec import EngineSpec

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PARTS = 12  # of a window
_HORIZON = 10  # windows that a placement is taken to hold for
log = logging.getLogger(__name__)


class Balancer:
    def __init__(self, spec: EngineSpec, slots: Sequence[Slots], experts: int, now_s: float, move_s: float) -> None:
        """`move_s`: what moving one copy may cost, until some were moved."""
        self._ranks, self._window_s, self._active = spec.ranks, spec.window_s, spec.rebalance and spec.ranks > 1
        self._slots, self._move_s = list(slots), move_s
        self._share: float | None = None
        self._tokens = np.zeros((len(DOMAINS), len(slots), experts, spec.ranks), np.int64)
        # Sums since start, and when they were made; the first is as old as the window or older.
        self._marks: deque[tuple[float, Ints]] = deque([(now_s, self._tokens.sum(0))])
        self._planned: Future[Judgement] | None = None
        self._moves: deque[Move] = deque()
        self._moved_s = -math.inf  # when the last rebalance ended
        self._copies, self._cost_s = 0, 0.0  # of this rebalance
        self._rebalances, self._moved, self._stall_s = 0, 0, 0.0
        self.report = self._report()

    @property
    def moving(self) -> bool:
        return bool(self._moves)

    def due(self, now_s: float) -> bool:
        """Whether a part of the window is over: steps may be slow, and a plan needs several parts."""
        return self._active and self._over(now_s)

    def _over(self, now_s: float) -> bool:
        return now_s - self._marks[-1][0] >= self._window_s / PARTS

    def timed(self, experts_s: Floats, step_s: float) -> None:
        """experts_s [layers, ranks]: what experts took of a step; zeros where none was timed.

        Ranks wait for the slowest in each layer, and would not in a balanced step. The newest weighs a quarter: some of
        it is noise.
        """
        if not experts_s.any():
            return
        balanced_s, others_s = experts_s.mean(1).sum(), max(0.0, step_s - experts_s.max(1).sum())
        share = float(balanced_s / (balanced_s + others_s))
        self._share = share if self._share is None else self._share + 0.25 * (share - self._share)

    def count(self, counts: Ints, now_s: float) -> None:
        """counts [layers, domains, slots]: rows of all ranks since the last call."""
        for layer, (slots, rows) in enumerate(zip(self._slots, counts, strict=True)):
            self._tokens[:, layer, slots, np.arange(len(slots)) * self._ranks // len(slots)] += rows
        total = self._tokens.sum(0)
        self.report = self._report(total)
        if self._over(now_s):
            self._marks.append((now_s, total))
            while len(self._marks) > 2 and self._marks[1][0] <= now_s - self._window_s:
                self._marks.popleft()
            self._plan(now_s)

    def next_move(self) -> Move | None:
        """What the ranks are to do before the next step."""
        if self._planned is not None and self._planned.done():
            planned, self._planned = self._planned, None
            if (error := planned.exception()) is not None:
                log.error("experts stay where they are for another window", exc_info=error)
                self._marks = deque([self._marks[-1]])
            else:
                self._accept(planned.result())
        return self._moves[0] if self._moves else None

    def moved(self, slots: Slots, copies: int, wall_s: float, now_s: float) -> None:
        """The next move was done: its layer has these slots, and streams waited so long for it."""
        self._slots[self._moves.popleft().layer] = slots
        self._copies, self._cost_s = self._copies + copies, self._cost_s + wall_s
        self._moved += copies
        if not self._moves:
            self._rebalances, self._stall_s, self._moved_s = self._rebalances + 1, self._cost_s, now_s
            self._move_s = self._cost_s / self._copies
            self._copies, self._cost_s = 0, 0.0
            self._marks = deque([(now_s, self._tokens.sum(0))])  # what was before says nothing of these places
        self.report = self._report()

    def _plan(self, now_s: float) -> None:
        """Of whole windows alone: a short one says little."""
        whole = now_s - self._marks[0][0] >= self._window_s
        if not self._active or not whole or self._share is None or self._planned is not None or self._moves:
            return
        parts = [later - earlier for (_, earlier), (_, later) in pairwise(self._marks)]
        window = Window(
            loads=np.stack(parts).sum(3),
            part_s=(self._marks[-1][0] - self._marks[0][0]) / len(parts),
            since_s=now_s - self._moved_s,
        )
        terms = Terms(
            share=self._share,
            move_s=self._move_s,
            horizon_s=_HORIZON * self._window_s,
            cooldown_s=self._window_s,
        )
        placement = Placement(ranks=self._ranks, slots=tuple(self._slots))
        planner = ThreadPoolExecutor(1, "expert-planner")
        self._planned = planner.submit(judge, window, placement, terms)
        planner.shutdown(wait=False)  # its thread ends with the plan

    def _accept(self, judgement: Judgement) -> None:
        log.log(logging.INFO if judgement.placement else logging.DEBUG, "experts: %s", judgement.reason)
        for layer, new in enumerate(judgement.placement.slots if judgement.placement else ()):
            if settled(self._slots[layer], new, self._ranks) != self._slots[layer]:
                self._moves.append(Move(layer=layer, slots=new))

    def _report(self, total: Ints | None = None) -> ExpertReport:
        window = (self._tokens.sum(0) if total is None else total) - self._marks[0][1]
        return ExpertReport(
            domains=DOMAINS,
            tokens=self._tokens.copy(),
            window=window,
            slots=tuple(self._slots),
            imbalance=tuple(float(load.max() / load.mean()) if load.any() else math.nan for load in window.sum(1)),
            rebalances=self._rebalances,
            moved=self._moved,
            stall_s=self._stall_s,
        )
