"""`moray render prometheus` and `moray render runbook`: what Prometheus and Alertmanager read, and people."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from rich.console import Console

from cluster.errors import ConfigurationError
from cluster.family import Family
from monitoring import scrape
from monitoring.alerts import rules
from monitoring.runbook import runbook
from monitoring.slo import promised

WEBHOOK = "http://127.0.0.1:9099/alerts"
ALERTMANAGER = "127.0.0.1:9093"
SMALLEST_SCALE = 0.01  # five minutes are three scrapes then, one a second
RUNBOOK_FILE = "runbook.md"
PROMETHEUS = """\
Writes prometheus.yml, rules.yml and alertmanager.yml: what to scrape, the recordings
and alerts that follow from the family's promises, and whom to tell.
"""
PROMETHEUS_EXAMPLES = """\
examples:
  moray --family h200 render prometheus --out prometheus
  moray render prometheus --out prometheus --every 1 --scale 0.01
"""
RUNBOOK = "Writes runbook.md: what each alert means, where to look, and how to mend it."
RUNBOOK_EXAMPLE = "example:\n  moray render runbook --out monitoring\n"
HEADER = "# Written by `moray --family {family} render prometheus`; mend it there.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = PROMETHEUS, PROMETHEUS_EXAMPLES
    parser.add_argument(
        "--gateway",
        action="append",
        metavar="URL",
        help="of gateways, also several times; default: the family file's host and port",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=scrape.EVERY_S,
        metavar="SECONDS",
        help=f"between scrapes, 1 to {scrape.SLOWEST_S:g}; default: %(default)g",
    )
    parser.add_argument(
        "--alertmanager", default=ALERTMANAGER, metavar="HOST:PORT", help="whom Prometheus tells; default: %(default)s"
    )
    parser.add_argument(
        "--scale",
        type=float,
        metavar="FACTOR",
        default=1.0,
        help="shorten all windows and waits, to try alerts out: times so much, "
        f"{SMALLEST_SCALE:g} to 1; default: %(default)g",
    )
    parser.add_argument(
        "--webhook", default=WEBHOOK, metavar="URL", help="whom Alertmanager tells; default: %(default)s"
    )
    _add_out(parser)


def add_runbook_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = RUNBOOK, RUNBOOK_EXAMPLE
    _add_out(parser)


def render(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Exit code 0. Raises ConfigurationError before anything is written."""
    files = {RUNBOOK_FILE: runbook()} if arguments.target == "runbook" else rendered(family, arguments)
    if arguments.out is None:
        sys.stdout.write("".join(files.values()) if len(files) == 1 else _documents(files))
        return 0
    folder: Path = arguments.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            console.print(f"wrote {folder / name}", soft_wrap=True, markup=False)
    except OSError as error:
        raise ConfigurationError(f"--out: {folder}: {error}; a folder is needed; give another") from error
    return 0


def rendered(family: Family, arguments: argparse.Namespace) -> dict[str, str]:
    """The texts of the files by name. Raises ConfigurationError."""
    scheme, targets = _targets(family, arguments.gateway)
    try:
        prometheus = scrape.prometheus(
            *(targets, [arguments.alertmanager]),
            scheme=scheme,
            every_s=arguments.every,
            discover=family.gateway.replicas > 1,
        )
    except ValueError as error:
        raise ConfigurationError(f"--every: {error}; give another number") from error
    if not SMALLEST_SCALE <= arguments.scale <= 1:
        raise ConfigurationError(
            f"--scale: {arguments.scale:g}; {SMALLEST_SCALE:g} to 1 is allowed; give another number"
        )
    _url(arguments.webhook, "--webhook")
    files = {
        "prometheus.yml": prometheus,
        scrape.RULES_FILE: rules(promised(family), arguments.scale),
        "alertmanager.yml": scrape.alertmanager(arguments.webhook, arguments.scale),
    }
    header = HEADER.format(family=family.name)
    return {name: header + yaml.safe_dump(file, sort_keys=False, width=120) for name, file in files.items()}


def _targets(family: Family, given: Sequence[str] | None) -> tuple[str, list[str]]:
    """The scheme of all, and host:port of each. Raises ConfigurationError."""
    if not given:
        given = [f"http://{_reachable(family.gateway.host)}:{family.gateway.port}"]
    parts = [_url(url, "--gateway", paths=("", "/")) for url in given]
    schemes = sorted({scheme for scheme, _ in parts})
    if len(schemes) > 1:
        raise ConfigurationError(f"--gateway: {', '.join(given)}; all http or all https are allowed; render two")
    return schemes[0], [address for _, address in parts]


def _reachable(host: str) -> str:
    """An address to ask, of one to listen on."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def _url(url: str, option: str, paths: tuple[str, ...] = ()) -> tuple[str, str]:
    """Its scheme, and host:port. Raises ConfigurationError. `paths`: those that are allowed; empty for any."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        if parts.hostname and (not paths or parts.path in paths):
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            return parts.scheme, f"{host}:{port}"
    except (ValueError, KeyError):
        pass
    raise ConfigurationError(f"{option}: {url!r}; http://host:port or https://host:port is allowed; mend the address")


def _documents(files: Mapping[str, str]) -> str:
    return "".join(f"--- # {name}\n{text}" for name, text in files.items())


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=render)
    parser.add_argument("--out", type=Path, metavar="DIR", help="write there; default: to standard output")
