"""What Prometheus scrapes and where Alertmanager sends what fires, as data: their configuration files.

Written for Prometheus 2.42 and Alertmanager 0.25; later ones read the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from monitoring.alerts import scaled

PATH = "/metrics"
TARGETS_PATH = "/metrics/targets"  # of a gateway: all pages, for Prometheus' HTTP service discovery
EVERY_S = 2.0  # the control loop, where it reads Prometheus, counts no sample that is older than six seconds
SLOWEST_S = 5.0
RULES_FILE = "rules.yml"
MOST_SAMPLES = 200_000  # of one page: a family's hundred replicas show 2,000 series of experts each


def prometheus(
    gateways: Sequence[str],
    alertmanagers: Sequence[str] = (),
    *,
    scheme: str = "http",
    every_s: float = EVERY_S,
    discover: bool = False,
) -> dict[str, Any]:
    """prometheus.yml. `gateways`, `alertmanagers`: host:port each. The page of a gateway that is alone holds all.

    `discover`: where several gateways answer behind an address, it is asked which pages there are, and each is scraped.
    They are plain HTTP, whatever `scheme` the gateways have. ValueError where `every_s` is above SLOWEST_S.
    """
    if not 1 <= every_s <= SLOWEST_S:
        raise ValueError(f"scrapes every {every_s:g} s; 1 to {SLOWEST_S:g} s are allowed")
    every = f"{round(every_s * 1000)}ms"
    lists = [{"url": f"{scheme}://{each}{TARGETS_PATH}", "refresh_interval": every} for each in gateways]
    job = {
        "job_name": "moray",
        "scheme": "http" if discover else scheme,
        "metrics_path": PATH,
        "scrape_timeout": every,
        "sample_limit": MOST_SAMPLES,
    } | ({"http_sd_configs": lists} if discover else {"static_configs": [{"targets": list(gateways)}]})
    told = {"alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]}}
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RULES_FILE],
        "scrape_configs": [job],
    } | (told if alertmanagers else {})


def discovered(pages: Mapping[str, str | None]) -> list[dict[str, Any]]:
    """The answer that Prometheus' HTTP service discovery takes. `pages`: host:port of each, with the replica behind it,

    None for one of a gateway or of the control loop. A replica's series get the label that they have on a gateway's
    page; no page repeats another's.
    """
    plain = sorted(address for address, replica in pages.items() if replica is None)
    labelled = [
        {"targets": [address], "labels": {"replica": replica}}
        for address, replica in sorted(pages.items())
        if replica is not None
    ]
    return [{"targets": plain, "labels": {}}, *labelled]


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
