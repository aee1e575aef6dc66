"""What a tick leaves on the page of the control loop."""

from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from autoscaling.controller import Shown
from autoscaling.readings import Count
from deployments.control.metrics import ControlMetrics


@pytest.fixture
def metrics() -> Iterator[ControlMetrics]:
    found = ControlMetrics("127.0.0.1")
    yield found
    found.close()


def page(metrics: ControlMetrics) -> list[str]:
    text = httpx.get(f"http://{metrics.address}/metrics").text
    return [line for line in text.splitlines() if not line.startswith("#") and "_bucket" not in line]


def test_every_series_of_the_loop_is_shown(metrics: ControlMetrics) -> None:
    shown = Shown(
        ticked_at_s=50.0,
        tick_s=0.25,
        targets={"mini": 2},
        wanted={"mini": 3},
        counts={"mini": Count(ready=1, starting=4, draining=5)},
        gpus=8,
        gpus_held={"mini": 6},
        ages_s={"mini": 1.5},
        gpu_s={"mini": 12.5},
        decisions=Counter({("mini", "rise"): 2}),
        faults=Counter({("mini", "stale"): 1}),
        errors=Counter({"look": 3}),
    )
    metrics.show(shown)
    assert sorted(page(metrics)) == sorted(
        [
            'moray_target_replicas{tier="mini"} 2.0',
            'moray_wanted_replicas{tier="mini"} 3.0',
            'moray_replicas{state="ready",tier="mini"} 1.0',
            'moray_replicas{state="starting",tier="mini"} 4.0',
            'moray_replicas{state="draining",tier="mini"} 5.0',
            'moray_decisions_total{cause="rise",tier="mini"} 2.0',
            "moray_gpus 8.0",
            'moray_gpus_held{tier="mini"} 6.0',
            'moray_gpu_seconds_total{tier="mini"} 12.5',
            "moray_control_tick_timestamp_seconds 50.0",
            "moray_control_tick_seconds_count 1.0",
            "moray_control_tick_seconds_sum 0.25",
            'moray_signal_age_seconds{tier="mini"} 1.5',
            'moray_signal_faults_total{fault="stale",tier="mini"} 1.0',
            'moray_control_errors_total{part="look"} 3.0',
        ]
    )


def test_counters_grow_by_what_was_added_and_lost_tiers_go(metrics: ControlMetrics) -> None:
    metrics.show(Shown(targets={"mini": 2, "pro": 1}, gpu_s={"mini": 1.0}, errors=Counter({"look": 1})))
    metrics.show(Shown(targets={"mini": 3}, gpu_s={"mini": 3.5}, errors=Counter({"look": 1})))
    found = page(metrics)
    assert {'moray_target_replicas{tier="mini"} 3.0', 'moray_gpu_seconds_total{tier="mini"} 3.5'} <= set(found)
    assert 'moray_control_errors_total{part="look"} 1.0' in found
    assert not any('tier="pro"' in line for line in found)
