"""What rank 0 tells the judge of its group, and what it makes of the answer."""

import threading
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cluster.experts import Placement
from cluster.rebalance import Judgement, Terms, Window
from deployments.engines.torch_engine import balance
from deployments.engines.torch_engine.balance import PARTS, Balancer
from deployments.engines.torch_engine.domains import DOMAINS
from deployments.engines.torch_engine.spec import EngineSpec

SPEC = EngineSpec(checkpoint="", context_tokens=1, kv_tokens=1, ranks=2, window_s=float(PARTS))
SLOTS = ((0, 1, 2, 3),) * 2


@dataclass
class Judge:
    """Keeps what it is told. Raises while `broken`."""

    broken: bool = False
    told: list[tuple[Window, Terms]] = field(default_factory=list)

    def __call__(self, window: Window, placement: Placement, terms: Terms) -> Judgement:
        self.told.append((window, terms))
        if self.broken:
            raise ArithmeticError("a fault of the judge")
        return Judgement(placement=None, reason="a test")


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge()
    monkeypatch.setattr(balance, "judge", judge)
    return judge


def seconds(balancer: Balancer, begin: int, end: int) -> None:
    """A sum of the counters in each second; what is planned is planned before the next."""
    for now_s in range(begin, end):
        balancer.count(np.ones((2, len(DOMAINS), 4), np.int64), float(now_s))
        for planner in [thread for thread in threading.enumerate() if thread.name.startswith("expert-planner")]:
            planner.join(10)
        assert balancer.next_move() is None


def test_the_share_of_experts_is_that_of_a_balanced_step_whichever_rank_is_hottest(judge: Judge) -> None:
    for experts_s in ([[4.0, 2.0], [2.0, 4.0]], [[2.0, 4.0], [2.0, 4.0]], [[4.0, 2.0], [4.0, 2.0]]):
        balancer = Balancer(SPEC, SLOTS, 4, 0.0, 0.01)
        balancer.timed(np.array(experts_s), 10.0)
        balancer.timed(np.zeros((2, 2)), 99.0)  # none was timed
        seconds(balancer, 1, PARTS + 1)
        assert judge.told[-1][1].share == pytest.approx(6 / (6 + 2))


def test_nothing_is_judged_before_a_whole_window_was_counted_and_a_step_timed(judge: Judge) -> None:
    balancer = Balancer(SPEC, SLOTS, 4, 0.0, 0.01)
    seconds(balancer, 1, 3 * PARTS)
    assert not judge.told
    balancer.timed(np.ones((2, 2)), 4.0)
    seconds(balancer, 3 * PARTS, 3 * PARTS + 1)
    ((window, _),) = judge.told
    assert window.loads.shape == (PARTS, 2, 4)
    assert (window.loads == len(DOMAINS)).all()


@pytest.mark.parametrize("active", [True, False])
def test_a_sum_is_due_once_in_each_part_of_the_window_where_experts_may_move(active: bool, judge: Judge) -> None:
    balancer = Balancer(replace(SPEC, rebalance=active), SLOTS, 4, 0.0, 0.01)
    assert [balancer.due(now_s) for now_s in (0.5, 1.0, 9.0)] == [False, active, active]
    seconds(balancer, 1, 2)
    assert [balancer.due(now_s) for now_s in (1.5, 2.0)] == [False, active]


def test_a_judge_that_fails_is_asked_again_after_a_window_and_leaves_no_thread(
    judge: Judge, caplog: pytest.LogCaptureFixture
) -> None:
    judge.broken = True
    balancer = Balancer(SPEC, SLOTS, 4, 0.0, 0.01)
    balancer.timed(np.ones((2, 2)), 4.0)
    seconds(balancer, 1, 3 * PARTS + 1)
    assert len(judge.told) == 3
    assert caplog.text.count("experts stay where they are") == 3
    assert balancer.report.rebalances == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("expert-planner")]
