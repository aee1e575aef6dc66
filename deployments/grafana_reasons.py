"""Why the control loop did what it did, as annotations in Grafana: one for each change of a target, or new trouble.

They are read from `decisions.jsonl` and told as the gateway tells them (`autoscaling/story.py`). Those that Grafana has
are not posted again, so this may run as often as one likes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from autoscaling.record import Scaling, Tick, follow, parse
from autoscaling.story import Event, Story, heard
from cluster.errors import ConfigurationError
from deployments.control.record_file import FILE, OLDER
from deployments.grafana_port import Body, Grafana
from monitoring.dashboards.render import TAGS

MOST_THERE = 5000  # annotations of the time in question that are looked through


def annotate(grafana: Grafana, folder: Path, most: int) -> tuple[int, int]:
    """How many were posted, of how many: the newest `most`. Raises GrafanaError: what is posted stays.

    Raises ConfigurationError where the state folder has no decisions.
    """
    newest = [_body(event) for event in deque(told(_texts(folder)), maxlen=most)]
    if not newest:
        return 0, 0
    times = [body["time"] for body in newest]
    there = {_mark(one) for one in grafana.annotations(TAGS, min(times), max(times), MOST_THERE)}
    missing = [body for body in newest if _mark(body) not in there]
    for body in missing:
        grafana.annotate(body)
    return len(missing), len(newest)


def told(texts: Iterable[str]) -> Iterator[Event]:
    """Events in the order of their records. A line that cannot be read is left out, and the ticks that need it."""
    story, before = Story(), None
    for text in texts:
        try:
            record = parse(text, 0)
        except ConfigurationError:
            before = None
            continue
        if isinstance(record, Tick):
            if before is None:
                continue
            record = follow(before, record)
        if isinstance(record, Scaling):
            before = record
        story = heard(replace(story, events=()), record)
        yield from story.events


def _texts(folder: Path) -> Iterator[str]:
    files = [folder / name for name in (OLDER, FILE)]
    if not any(file.exists() for file in files):
        raise ConfigurationError(
            f"{folder / FILE}: no such file; the log of decisions is needed; run this where `moray up` keeps its state "
            "folder, or name the family by --family"
        )
    for file in files:
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as opened:
                yield from opened


def _body(event: Event) -> Body:
    went = f"{event.before} to {event.after}" if event.before != event.after else f"stays at {event.after}"
    return {
        "time": round(event.at_s * 1000),
        "tags": [*TAGS, event.name, event.cause],
        "text": f"{event.name} {went} ({event.cause}): {event.reason}",
    }


def _mark(body: Body) -> tuple[int, str]:
    return body["time"], body["text"]
