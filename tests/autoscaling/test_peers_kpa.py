"""AIBrix's rules, one by one, with their arithmetic: 10 requests meant for each replica unless said otherwise."""

from dataclasses import replace

import pytest
from peer_world import counts, lead, look, spec

from autoscaling.peers_kpa import KNATIVE, KpaParameters, kpa, kpa_replicas
from autoscaling.signals import Seen, Spec, VideoSeen, VideoSpec

STOCK = KpaParameters(target_ongoing_requests=10, warm_up_s=0)


def course(*loads: int, ready: int = 4) -> list[Seen]:
    """One look every 10 s."""
    return [look(10.0 * index, ready=ready, ongoing_requests=load) for index, load in enumerate(loads)]


@pytest.mark.parametrize(
    ("ready", "ongoing", "wanted"),
    [
        (4, 41, 5),  # ceil(41/10)
        (4, 40, 4),
        (4, 11, 4),  # within 10 % of one replica's target: as many as are ready
        (4, 9, 4),
        (4, 12, 2),  # ceil(12/10)
        (4, 0, 2),  # at most half of them go
        (5, 0, 2),  # floor(5/2)
        (4, 999, 8),  # at most twice as many
        (0, 999, 1),  # but one at least
        (0, 0, 0),
        (1, 0, 0),
    ],
)
def test_one_window_wants(ready: int, ongoing: float, wanted: int) -> None:
    assert kpa_replicas(STOCK, ready, ongoing, 10) == wanted


def test_an_activation_lifts_what_is_wanted_but_not_nothing() -> None:
    p = KpaParameters(activation_replicas=3)
    assert [kpa_replicas(p, ready, ongoing, 10) for ready, ongoing in ((1, 5), (1, 0))] == [3, 0]


@pytest.mark.parametrize(
    ("ready", "ongoing", "wanted"),
    [
        (4, 48, 5),  # 12 each: ceil(4 * 1.2)
        (4, 44, 4),  # 11 each: within 10 %
        (4, 34, 4),  # 8.5 each: ceil(4 * 0.85)
        (4, 20, 2),  # 5 each
        (4, 0, 2),
        (4, 999, 8),
        (0, 15, 1),  # from nothing as from one: at most max(1, 2 * 0)
    ],
)
def test_apa_wants(ready: int, ongoing: float, wanted: int) -> None:
    assert kpa_replicas(KpaParameters(algorithm="apa"), ready, ongoing, 10) == wanted


def test_the_windows_decide_not_the_moment() -> None:
    assert counts(kpa(spec(), STOCK), course(40, 40, 40, 56)) == [4, 4, 4, 5]  # (40 + 40 + 40 + 56)/4 = 44


def test_panic_follows_the_short_window_and_does_not_fall() -> None:
    p = KpaParameters(target_ongoing_requests=10, warm_up_s=0, stable_window_s=60, panic_window_s=20, down_choice="max")
    targets = lead(kpa(spec(), p), course(20, 20, 20, 20, 80, 80, 20))
    # At 50 s the short window has 80, the long one (4*20 + 80*2)/6 = 40: not over twice. At 40 s: 50 against 32.
    assert [target.replicas for target in targets] == [2, 2, 2, 2, 4, 4, 4]
    q = KpaParameters(target_ongoing_requests=10, warm_up_s=0, stable_window_s=90, panic_window_s=10, down_choice="max")
    targets = lead(kpa(spec(), q), course(10, 10, 10, 10, 100, 10, 10, ready=5))
    # At 40 s: 100 against (40 + 100)/5 = 28 is panic, 10 replicas = 2 * 5. Afterwards 25 or less: calm.
    assert [target.replicas for target in targets][4:] == [10, 10, 10]
    assert targets[4].reason.endswith("panic")
    assert targets[5].reason.endswith("calm")


def test_an_empty_history_counts_as_panic_and_only_halves() -> None:
    assert counts(kpa(spec(), STOCK), course(0, 0, 0)) == [2, 2, 2]


def test_knatives_panic_lasts_a_minute() -> None:
    p = replace(KNATIVE, target_ongoing_requests=10.0, warm_up_s=0.0, down_window_s=0.0)
    targets = lead(kpa(spec(), p), course(10, 100, *[10] * 7))
    moods = [target.reason.rpartition(" ")[2] for target in targets]
    assert moods == ["calm", *["panic"] * 6, "calm", "calm"]  # ceil(100/10)/4 >= 2 at 10 s, then until 70 s
    # 8 = twice the ready ones, held. Then (10 * 6 + ...)/6: 10 want one, but at most half of four go.
    assert [target.replicas for target in targets] == [2, *[8] * 6, 2, 2]


def test_falling_takes_the_smallest_recommendation_or_the_largest() -> None:
    least = KpaParameters(target_ongoing_requests=10, warm_up_s=0, stable_window_s=5, panic_window_s=5)
    assert counts(kpa(spec(), least), course(60, 60, 12, 30)) == [6, 6, 2, 3]  # 3 > 2: up at once
    most = replace(least, down_choice="max", down_window_s=15)
    assert counts(kpa(spec(), most), course(60, 60, 12, 30)) == [6, 6, 6, 3]  # of 10 and 20 s; then of 20 and 30 s


def test_the_smallest_recommendation_may_be_an_older_one() -> None:
    least = KpaParameters(target_ongoing_requests=10, warm_up_s=0, stable_window_s=5, panic_window_s=5)
    assert counts(kpa(spec(), least), course(30, 60, 50)) == [3, 6, 3]  # 5 are wanted now, 3 were 20 s ago


def test_rising_waits_for_its_window_where_one_is_given() -> None:
    p = KpaParameters(
        stable_window_s=5, panic_window_s=5, target_ongoing_requests=10, warm_up_s=0, up_window_s=15, down_window_s=0
    )
    assert counts(kpa(spec(), p), course(40, 60, 70)) == [4, 4, 6]  # the smallest of the last 15 s


def test_nothing_falls_while_the_history_warms() -> None:
    p = KpaParameters(target_ongoing_requests=10)
    assert counts(kpa(spec(), p), course(*[0] * 14)) == [4] * 12 + [2, 2]  # until 120 s


def test_without_a_target_a_replica_is_meant_for_a_share_of_what_it_runs() -> None:
    assert "7 meant" in lead(kpa(spec(), KpaParameters()), course(10))[0].reason  # 0.7 * 10
    family = Spec(tiers={}, video=VideoSpec(gpus=1, min=0, max=9, cold_start_s=30))
    decision, _ = kpa(family, KpaParameters())(Seen(now_s=0, gpus=9, video=VideoSeen(ready=1)), None)
    assert decision.video is not None
    assert "0.7 meant" in decision.video.reason
