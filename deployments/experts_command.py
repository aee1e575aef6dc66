"""`moray experts`: what a running gateway knows of routed experts."""

import argparse
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import httpx
from rich.console import Console

from cluster.errors import ConfigurationError
from deployments.experts import Seen, as_dict, seen
from deployments.experts_table import tables
from deployments.simulate_options import writable

PATIENCE_S = 10.0
PLAIN_WIDTH = 120  # where the output is no terminal


def experts(arguments: argparse.Namespace, console: Console) -> int:
    """Raises ConfigurationError: nobody answers, no such tier, nothing to show, or a file that cannot be written."""
    url: str = arguments.url.rstrip("/")
    file = writable(arguments.plot, "--plot", ".png")
    shown = _chosen(_asked(url), arguments.tier, url)
    if file is not None:
        _draw(shown, url, file)
    if arguments.json:
        found = {"url": url, "replicas": [as_dict(group) for group in shown.groups], "without": dict(shown.without)}
        sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")
    else:
        wide = console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
        wide.print(tables(shown))
    return 0


def _asked(url: str) -> Seen:
    try:
        answer = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).raise_for_status()
        return seen(answer.text)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(
            f"--url: {url}: {what}; the metrics of a running gateway are needed; start one with `moray up`, or mend "
            "the address"
        ) from error


def _chosen(found: Seen, tier: str | None, url: str) -> Seen:
    """What is to be shown: something, or it is an error."""
    known = dict.fromkeys([*(group.tier for group in found.groups), *found.without])
    if not known:
        raise ConfigurationError(
            f"--url: {url}/metrics names no tiers; those of a gateway are needed; mend the address"
        )
    if tier is not None:
        if tier not in known:
            raise ConfigurationError(f"--tier: {tier!r}; tiers there are {', '.join(known)}; choose one of them")
        groups = tuple(group for group in found.groups if group.tier == tier)
        found = replace(found, groups=groups, without={k: why for k, why in found.without.items() if k == tier})
    if not found.groups:
        told = "; ".join(f"{name} {why}" for name, why in found.without.items())
        raise ConfigurationError(f"{'--tier' if tier else '--url'}: {told}; one with experts is needed; choose another")
    return found


def _draw(shown: Seen, url: str, file: Path) -> None:
    from deployments.experts_plot import draw

    if not any(layer.held.size for group in shown.groups for layer in group.layers):
        raise ConfigurationError(
            "--plot: no layer is shown expert by expert; at least one is needed; ask a smaller model"
        )
    picture = io.BytesIO()
    draw(shown.groups, f"routed experts at {url}, {time.strftime('%Y-%m-%d %H:%M:%S')}", picture)
    try:
        file.write_bytes(picture.getvalue())
    except OSError as error:
        raise ConfigurationError(
            f"--plot: {file}: {error.strerror}; a file that can be written is allowed; choose another"
        ) from error
