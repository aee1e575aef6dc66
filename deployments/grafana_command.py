"""`moray grafana`: what it holds of Moray is brought to Grafana, and why the control loop did what it did."""

import argparse
import time
from contextlib import closing
from pathlib import Path

from rich.console import Console

from cluster.errors import ConfigurationError
from cluster.family import Family
from deployments.grafana_port import Auth, GrafanaPort
from deployments.grafana_reasons import annotate
from deployments.grafana_sync import Step, items, sync

WOULD = {"create": "would create", "change": "would change", "same": "same"}
DID = {"create": "created", "change": "changed", "same": "same"}


def grafana(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Raises ConfigurationError and GrafanaError."""
    auth = credentials(arguments)
    if arguments.verb == "annotate" and arguments.most < 1:
        raise ConfigurationError(f"--most: {arguments.most}; at least 1 is allowed; choose another")
    with closing(GrafanaPort(arguments.url, auth, time.sleep)) as port:
        console.print(f"Grafana {port.health()} at {arguments.url}", soft_wrap=True, markup=False)
        if arguments.verb == "annotate":
            posted, among = annotate(port, Path(family.state_folder), arguments.most)
            console.print(f"{posted} of {among} reasons posted, the others were there")
            return 0
        words = WOULD if arguments.dry_run else DID
        wanted = items(arguments.prometheus, alerts=not arguments.without_alerts)
        for step in sync(port, wanted, dry_run=arguments.dry_run):
            console.print(f"{words[step.action]}: {step.item.kind} {step.item.uid}", soft_wrap=True, markup=False)
            if arguments.diff:
                _differs(step, console)
    return 0


def credentials(arguments: argparse.Namespace) -> Auth:
    """From files alone: what stands on a command line, others of the machine can read."""
    if arguments.token_file is not None and arguments.user is None and arguments.password_file is None:
        return _secret("--token-file", arguments.token_file)
    if arguments.token_file is None and arguments.user and arguments.password_file is not None:
        return arguments.user, _secret("--password-file", arguments.password_file)
    raise ConfigurationError(
        "moray grafana: nobody to sign in as; --token-file, or --user with --password-file, is allowed; give one"
    )


def _secret(option: str, file: Path) -> str:
    try:
        secret = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise ConfigurationError(f"{option}: {file}: {why}; a file with one line is needed; name another") from None
    if not secret or not secret.isprintable() or not secret.isascii():
        raise ConfigurationError(f"{option}: {file}: no single line of ASCII; one is needed; write it anew")
    return secret


def _differs(step: Step, console: Console) -> None:
    for line in step.diff() if step.action != "same" else ():
        console.print(f"  {line}", soft_wrap=True, markup=False)
