import math
from collections.abc import Sequence

import numpy as np
import pytest
from twin_world import family, jobs, tier, workload

from autoscaling.report import Figures
from autoscaling.twin_tally import Ended, Sample, Tally, course, with_video
from cluster.family import Price, Slo

# TTFT 1 s and TPOT 50 ms are promised by pro, 0.5 s and 20 ms by mini; a request has 100 prompt and 10 output tokens.
FAMILY = family(
    tier("pro", price=Price(input_usd_per_mtok=100, output_usd_per_mtok=1000)),
    tier(
        "mini", slo=Slo(ttft_s=0.5, tpot_ms=20), price=Price(input_usd_per_mtok=10, output_usd_per_mtok=3000)
    ),
)  # fmt: skip
PRO, MINI = 0, 1
Row = tuple[float, int, int, float, float, str]  # arrival; asked, served; ttft_s, tpot_ms; end


def tally(*rows: Row) -> Tally:
    made = Tally(workload(*[(row[0], 100, 10) for row in rows]), FAMILY.tiers)
    for index, (_, asked, served, ttft_s, tpot_ms, end) in enumerate(rows):
        made.asked[index], made.served[index] = asked, served
        made.ttft_s[index], made.tpot_ms[index] = ttft_s, tpot_ms
        made.end[index] = end
    return made


def done(at_s: float = 0.0, asked: int = PRO, served: int = PRO, ttft_s: float = 0.1, tpot_ms: float = 9.0) -> Row:
    return at_s, asked, served, ttft_s, tpot_ms, "completed"


def lost(at_s: float = 0.0, end: str = "rejected:overloaded", asked: int = PRO) -> Row:
    return at_s, asked, -1, math.nan, math.nan, end


def figures(*rows: Row, mine: Sequence[bool] | None = None) -> Figures:
    ended: Ended = tally(*rows).ended()
    chosen = np.ones(len(rows), dtype=bool) if mine is None else np.array(mine)
    return ended.figures(chosen, 2.0, 1.0, 3.0)


def test_a_promise_is_kept_where_both_its_parts_are() -> None:
    given = tally(done(ttft_s=1.0, tpot_ms=50.0), done(ttft_s=1.01), done(tpot_ms=50.1), done(asked=MINI, tpot_ms=21.0))
    assert [given.kept(index) for index in range(4)] == [True, False, False, False]
    assert given.ended().kept.tolist() == [True, False, False, False]


def test_every_request_counts_as_completed_rejected_or_failed() -> None:
    found = figures(
        done(), lost(), lost(end="rejected:not_in_plan", asked=-1), lost(end="failed:replica_lost"), lost(end="")
    )
    assert (found.requests, found.completed, found.attainment) == (5, 1, 0.2)
    assert found.rejected == {"not_in_plan": 1, "overloaded": 1}
    assert found.failed == {"never_served": 1, "replica_lost": 1}


def test_a_request_that_lost_its_replica_after_the_first_token_kept_nothing() -> None:
    assert figures((0.0, PRO, PRO, 0.1, 9.0, "failed:replica_lost")).value_usd == 0.0


@pytest.mark.parametrize(("asked", "served", "usd"), [
    (PRO, PRO, (100 * 100 + 1000 * 10) / 1e6),
    (MINI, MINI, (10 * 100 + 3000 * 10) / 1e6),
    (PRO, MINI, (10 * 100 + 1000 * 10) / 1e6),  # the lower one of each price
    (MINI, PRO, (10 * 100 + 1000 * 10) / 1e6),
])  # fmt: skip
def test_nobody_pays_more_than_for_the_tier_asked_or_the_tier_served(asked: int, served: int, usd: float) -> None:
    found = figures(done(asked=asked, served=served))
    assert found.value_usd == pytest.approx(usd)
    assert found.spilled == (asked != served)


def test_only_kept_promises_are_paid_for() -> None:
    assert figures(done(ttft_s=2.0), lost()).value_usd == 0.0


def test_percentiles_are_of_completed_requests() -> None:
    found = figures(*[done(ttft_s=float(n), tpot_ms=10.0 * n) for n in range(1, 102)], lost())
    assert (found.ttft_p50_s, found.ttft_p99_s) == (51.0, 100.0)
    assert (found.tpot_p50_ms, found.tpot_p99_ms) == (510.0, 1000.0)


def test_figures_may_be_of_some_requests_alone() -> None:
    found = figures(done(), lost(), done(asked=MINI), mine=[False, True, True])
    assert (found.requests, found.completed, found.attainment) == (2, 1, 0.5)
    assert found.rejected == {"overloaded": 1}


def test_without_requests_there_is_nothing_to_attain() -> None:
    found = figures()
    assert all(map(math.isnan, (found.attainment, found.ttft_p50_s, found.tpot_p99_ms)))
    assert (found.bad_minutes, found.value_usd, found.requests) == (0.0, 0.0, 0)


def test_costs_are_gpu_hours_times_their_price() -> None:
    assert (figures().gpu_hours, figures().gpu_hours_floor, figures().cost_usd) == (2.0, 1.0, 6.0)


def test_a_minute_is_bad_with_more_than_one_miss_in_twenty() -> None:
    # One miss of 20 in the first minute, 2 of 20 in the second, nobody in the third, all kept in the fourth.
    rows = [done(1.0)] * 19 + [lost(59.9)] + [done(60.0)] * 18 + [lost(61.0)] * 2 + [done(180.0)]
    assert figures(*rows).bad_minutes == pytest.approx(1 / 3)
    shown = course([Sample(0.0, {}, {}, {}, 0.0)], tally(*rows).ended())
    assert shown.minute_s.tolist() == [0.0, 60.0, 180.0]
    assert shown.missed_share.tolist() == pytest.approx([0.05, 0.1, 0.0])


def test_the_course_shows_one_value_a_tick() -> None:
    samples = [
        Sample(float(at_s), {"pro": 1.0}, {"pro": 2.0, "video": at_s}, {"pro": 0.0, "video": 3.0}, 9.0)
        for at_s in (0, 2)
    ]
    shown = course(samples, tally().ended())
    assert shown.now_s.tolist() == [0.0, 2.0]
    assert {name: column.tolist() for name, column in shown.replicas.items()} == {
        "pro": [2.0, 2.0],
        "video": [0.0, 2.0],
    }
    assert {name: column.tolist() for name, column in shown.held.items()} == {"pro": [0.0, 0.0], "video": [3.0, 3.0]}
    assert (shown.arrivals_per_s["pro"].tolist(), shown.gpus.tolist()) == ([1.0, 1.0], [9.0, 9.0])
    assert len(shown.minute_s) == 0


def test_videos_pay_when_they_are_in_time() -> None:
    given = jobs((0.0, 5, 1.0, 10.0), (0.0, 5, 1.0, 10.0), (0.0, 5, 1.0, 10.0))
    found = with_video(figures(done()), given, {0: 10.0, 2: 10.5})
    assert (found.jobs, found.jobs_in_time) == (3, 1)
    assert found.value_usd == pytest.approx(1.0 + figures(done()).value_usd)
