"""The `moray` command."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.errors import ConfigurationError, MorayError
from cluster.family import Family, load, located
from cluster.placement import as_dict, declared_cells, plan
from deployments import (
    doctor_options,
    grafana_options,
    keys_options,
    render,
    render_prometheus,
    simulate_arguments,
    usage_options,
)
from deployments.engines.vllm_engine.arguments import shown
from deployments.load import arguments as load_arguments
from deployments.local import rehearsed
from deployments.plan_table import tables
from deployments.video import verify_options

WHAT = """\
Serves a family of mixture-of-experts language models and a video model from one
Ray cluster, and tells what it does. `moray COMMAND --help` says more.
"""
EXITS = """\
exit codes:
  0    done
  1    refused or failed: a line says where, what is allowed, and the mend;
       some commands also say so of what they found, see their own help
  2    the command line is not understood
  130  ended by Ctrl-C
"""
FAMILY = "a family file, or one that ships: laptop, h200; default: laptop, with `up --nodes` h200"
UP = """\
Serves the family on this machine until Ctrl-C. Starts Ray, the gateway and the
tiers that begin awake, and prints the address and a new API key. What is wrong
with the family file is refused before anything starts. While it serves, a family
file that is edited is put in place, or refused with the reason.
"""
UP_EXITS = """\
examples:
  moray up
  moray --family h200 up --nodes 4 --port 8001

Exit code 0 after Ctrl-C or SIGTERM once it serves; nothing is left running.
"""
PLAN = """\
Which cell holds which expert group and video replica, who takes turns for want of
GPUs, and what has no place and why. Of tiers on vLLM it shows how vLLM is told.
"""
PLAN_EXITS = """\
example:
  moray --family h200 plan --json

Exit code 1 where something that must run from the start has no place.
"""
RENDER = "Writes what follows from the family file for Kubernetes, Prometheus and people."
EXPERTS = """\
Where routed experts lie in a running server, how even the ranks of each group are,
and which domain uses which expert.
"""
EXPERTS_EXAMPLE = "example:\n  moray experts --tier ultra --plot experts.png\n"

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
        case _:
            run: Run = arguments.run
            return run(family, arguments, console)
    return 0


class Parser(argparse.ArgumentParser):
    """Descriptions and examples keep their lines, those of subcommands too."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | given)


def _parser() -> Parser:
    parser = Parser(prog="moray", description=WHAT, epilog=EXITS)
    parser.add_argument("--family", help=FAMILY)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _up(commands.add_parser("up", help="serve the family on this machine until Ctrl-C"))
    planned = commands.add_parser("plan", help="which cell holds which expert group and video replica")
    planned.description, planned.epilog = PLAN, PLAN_EXITS
    simulate_arguments.add_arguments(
        commands.add_parser("simulate", help="replay a workload on this cluster without GPUs")
    )
    load_arguments.add_arguments(commands.add_parser("load", help="send a workload to a live server and measure"))
    _targets(commands.add_parser("render", help="write files for others to read", description=RENDER))
    experts = commands.add_parser("experts", help="where experts lie in a running server, and who uses them")
    _experts(experts)
    grafana_options.add_arguments(commands.add_parser("grafana", help="dashboards, alert rules and reasons in Grafana"))
    doctor_options.add_arguments(commands.add_parser("doctor", help="what is wrong between this family and what runs"))
    verify_options.add_arguments(
        commands.add_parser("video", help="what a video says of itself: credentials, watermark")
    )
    keys_options.add_arguments(commands.add_parser("keys", help="API keys, and who changed them"))
    keys_options.add_plan_arguments(commands.add_parser("plans", help="what the plans of the family allow"))
    usage_options.add_arguments(commands.add_parser("usage", help="what was used, charged, and what it cost"))
    for table in (planned, experts):
        table.add_argument("--json", action="store_true", help="JSON instead of tables")
    for each in _below(parser):
        # Where it is not given here, what was given before the command stands.
        each.add_argument("--family", default=argparse.SUPPRESS, help=FAMILY)
    return parser


def _below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Of all commands, and of their own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield each
                yield from _below(each)


def _up(up: argparse.ArgumentParser) -> None:
    up.description, up.epilog = UP, UP_EXITS
    up.add_argument("--port", type=int, help="of the gateway, 1 to 65535; default: gateway.port of the family file")
    up.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="rehearse on N simulated nodes, 1 or more, with simulated engines, without --family of h200; "
        "default: serve, on this machine as it is",
    )


def _targets(render_: argparse.ArgumentParser) -> None:
    targets = render_.add_subparsers(dest="target", metavar="WHAT", required=True)
    render.add_arguments(targets.add_parser("k8s", help="what of Kubernetes manifests depends on the family"))
    render_prometheus.add_arguments(
        targets.add_parser("prometheus", help="configuration and rules of Prometheus, and of Alertmanager")
    )
    render_prometheus.add_runbook_arguments(targets.add_parser("runbook", help="what each alert means, and the mend"))


def _experts(experts: argparse.ArgumentParser) -> None:
    experts.description, experts.epilog = EXPERTS, EXPERTS_EXAMPLE
    experts.add_argument("--url", default="http://127.0.0.1:8000", help="of the gateway; default: %(default)s")
    experts.add_argument("--tier", help="show this one alone; default: all")
    experts.add_argument(
        "--plot",
        metavar="FILE.png",
        type=Path,
        help="draw heat maps of experts, domains and ranks there; default: no picture",
    )


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


if __name__ == "__main__":
    sys.exit(main())
