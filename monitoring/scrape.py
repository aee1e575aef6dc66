"""What Prometheus scrapes and where Alertmanager sends what fires, as data: their configuration files.

Written for Prometheus 2.42 and Alertmanager 0.25; later ones read the same.
"""

from collections.abc import Sequence
from typing import Any

from monitoring.alerts import scaled

PATH = "/metrics"
EVERY_S = 2.0  # the control loop, where it reads Prometheus, counts no sample that is older than six seconds
SLOWEST_S = 5.0
RULES_FILE = "rules.yml"
MOST_SAMPLES = 200_000  # of one page: a family's hundred replicas show 2,000 series of experts each


def prometheus(
    targets: Sequence[str],
    alertmanagers: Sequence[str] = (),
    *,
    scheme: str = "http",
    every_s: float = EVERY_S,
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """prometheus.yml. `targets`, `alertmanagers`: host:port each; a target is one gateway's, whose page holds all.

    ValueError where `every_s` is above SLOWEST_S.
    """
    if not 1 <= every_s <= SLOWEST_S:
        raise ValueError(f"scrapes every {every_s:g} s; 1 to {SLOWEST_S:g} s are allowed")
    every = f"{round(every_s * 1000)}ms"
    found: dict[str, Any] = {"targets": list(targets)} | ({"labels": labels} if labels else {})
    job = {
        "job_name": "moray",
        "scheme": scheme,
        "metrics_path": PATH,
        "scrape_timeout": every,
        "sample_limit": MOST_SAMPLES,
        "static_configs": [found],
    }
    told = {"alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}}
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RULES_FILE],
        "scrape_configs": [job],
    } | (told if alertmanagers else {})


def alertmanager(webhook: str, scale: float = 1.0) -> dict[str, Any]:
    """alertmanager.yml: all that fires, and its end, goes to one webhook; pages are repeated sooner than tickets.

    `scale` shortens waits, for trying out.

    An alert that follows from another one that fires is not told beside it.
    """
    waits = {"group_wait": scaled("10s", scale), "group_interval": scaled("1m", scale)}
    return {
        "route": {
            "receiver": "webhook",
            "group_by": ["alertname", "tier"],
            **waits,
            "repeat_interval": "1d",
            "routes": [{"receiver": "webhook", "matchers": ['severity="page"'], "repeat_interval": "1h"}],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="ControlLoopSilent"'],
                "target_matchers": ['alertname=~"SignalsOld|SignalsFaulty|SignalsBlind"'],
            },
            {
                "source_matchers": ['alertname="PromisesBroken"'],
                "target_matchers": ['alertname="PromisesErode"'],
                "equal": ["tier"],
            },
        ],
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
    }
