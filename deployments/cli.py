"""The `moray` command."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.errors import ConfigurationError, MorayError
from cluster.family import Family, load, located
from cluster.placement import as_dict, declared_cells, plan
from deployments import doctor_options, grafana_options, render, render_prometheus
from deployments.engines.vllm_engine.arguments import shown
from deployments.load import options as load_options
from deployments.local import rehearsed
from deployments.plan_table import tables
from deployments.simulate_options import add_arguments
from deployments.stores.keys import KEYS_FILE, KeyRecord, KeyStore

Run = Callable[[Family, argparse.Namespace, Console], int]  # of a parser that says itself what runs it


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments, Console(highlight=False))
    except MorayError as error:
        Console(stderr=True, highlight=False).print(
            f"moray: {error.message}", style="red", markup=False, soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace, console: Console) -> int:
    family = _family(arguments)
    match arguments.command:
        case "up":
            from deployments.source import Source
            from deployments.up import up

            source = Source(file=located(arguments.family), load=lambda: _family(arguments))
            up(source, console, arguments.nodes)
        case "plan":
            return _plan(family, arguments.json, console)
        case "simulate":
            from deployments.simulate import replay, simulate

            if arguments.replay is not None:
                return replay(arguments, console)
            return simulate(family, arguments, console)
        case "load":
            from deployments.load.command import load as send

            return send(arguments, console)
        case "experts":
            from deployments.experts_command import experts

            return experts(arguments, console)
        case "keys":
            _keys(family, arguments, console)
        case _:
            run: Run = arguments.run
            return run(family, arguments, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="moray", description="Serve a family of models from one Ray cluster.")
    parser.add_argument("--family", help="a family file, or one that ships: laptop (without more), h200")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="serve the family on this machine until Ctrl-C")
    up.add_argument("--port", type=int, help="instead of the family file's port")
    up.add_argument("--nodes", type=int, help="rehearse on so many simulated nodes (without --family: of h200)")
    planned = commands.add_parser("plan", help="which cell holds which expert group and video replica")
    planned.add_argument("--json", action="store_true")
    add_arguments(commands.add_parser("simulate", help="replay a workload on this cluster without GPUs"))
    load_options.add_arguments(commands.add_parser("load", help="send a workload to a live server and measure"))
    targets = commands.add_parser("render", help="write files for others to read").add_subparsers(
        dest="target", required=True
    )
    render.add_arguments(targets.add_parser("k8s", help="what of Kubernetes manifests depends on the family"))
    render_prometheus.add_arguments(
        targets.add_parser("prometheus", help="configuration and rules of Prometheus, and of Alertmanager")
    )
    render_prometheus.add_runbook_arguments(targets.add_parser("runbook", help="what each alert means, and the mend"))
    experts = commands.add_parser("experts", help="where experts lie in a running server, and who uses them")
    experts.add_argument("--url", default="http://127.0.0.1:8000", help="of the gateway; default: %(default)s")
    experts.add_argument("--tier", help="only this one")
    experts.add_argument("--json", action="store_true")
    experts.add_argument("--plot", metavar="FILE.png", type=Path, help="heat maps of experts, domains and ranks")
    grafana_options.add_arguments(commands.add_parser("grafana", help="dashboards, alert rules and reasons in Grafana"))
    doctor_options.add_arguments(commands.add_parser("doctor", help="what is wrong between this family and what runs"))
    keys = commands.add_parser("keys", help="API keys")
    verbs = keys.add_subparsers(dest="verb", required=True)
    create = verbs.add_parser("create", help="make a key; it is shown this once")
    create.add_argument("name", help="who will use it")
    create.add_argument("--plan", help="of the family file; a key without one may use every tier and is never spilled")
    verbs.add_parser("list", help="all keys, without their secrets")
    verbs.add_parser("revoke", help="refuse a key from now on").add_argument("key", help="its id, or its beginning")
    for each in verbs.choices.values():
        each.add_argument("--json", action="store_true")
    for each in (*commands.choices.values(), *verbs.choices.values(), *targets.choices.values()):
        # Where it is not given here, what was given before the command stands.
        each.add_argument("--family", default=argparse.SUPPRESS, help="a family file, or one that ships")
    return parser


def _family(arguments: argparse.Namespace) -> Family:
    """The family file with what the command line says; its state folder lies in this directory, wherever Ray starts.

    Checkpoints are looked at where they will be served: by `up`, and by `plan`, which tells what `up` would do.
    """
    nodes = getattr(arguments, "nodes", None)
    arguments.family = arguments.family or ("laptop" if nodes is None else "h200")
    family = load(arguments.family, serving=nodes is None and arguments.command in ("up", "plan"))
    if nodes is not None:
        family = rehearsed(family, nodes)
    changed: dict[str, Any] = {"state_folder": str(Path(family.state_folder).resolve())}
    port = getattr(arguments, "port", None)
    if port is not None:
        if not 1 <= port <= 65535:
            raise ConfigurationError(f"--port: {port}; 1 to 65535 are allowed; choose another")
        changed["gateway"] = family.gateway.model_copy(update={"port": port})
    return family.model_copy(update=changed)


def _plan(family: Family, as_json: bool, console: Console) -> int:
    """Exit code 1 where something that must run from the start has no place."""
    made = plan(family, declared_cells(family))
    if as_json:
        sys.stdout.write(json.dumps(as_dict(made), indent=2) + "\n")
    else:
        console.print(tables(made))
        for key, tier in family.tiers.items():
            if tier.engine == "vllm":
                console.print(f"{key} is served by: {shown(tier, family.accelerator)}", soft_wrap=True, markup=False)
    return 1 if any(one.required for one in made.unplaced) else 0


def _keys(family: Family, arguments: argparse.Namespace, console: Console) -> None:
    store = KeyStore(Path(family.state_folder) / KEYS_FILE)
    secret: dict[str, str] = {}
    records: tuple[KeyRecord, ...]
    match arguments.verb:
        case "create":
            secret["key"], record = store.create(arguments.name, time.time(), _known_plan(family, arguments.plan))
            records = (record,)
        case "revoke":
            records = (store.revoke(arguments.key, time.time()),)
        case _:
            records = store.list()
    rows = [dataclasses.asdict(record) | secret for record in records]
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table("id", "name", "plan", "created", "revoked")
    for row in rows:
        table.add_row(row["id"], Text(row["name"]), row["plan"] or "", _when(row["created_s"]), _when(row["revoked_s"]))
    console.print(table)
    if secret:
        console.print(f"the key, shown this once: {secret['key']}", soft_wrap=True)


def _known_plan(family: Family, plan: str | None) -> str | None:
    if plan is not None and plan not in family.plans:
        known = ", ".join(family.plans) or "none"
        raise ConfigurationError(f"--plan: {plan!r}; plans of the family are {known}; choose one, or leave it out")
    return plan


def _when(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds is not None else ""


if __name__ == "__main__":
    sys.exit(main())
