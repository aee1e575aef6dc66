"""What `moray doctor` is asked. Light imports only: every `moray` command builds this parser."""

import argparse

from rich.console import Console

from cluster.family import Family

IN_CLUSTER = "in-cluster"
DESCRIPTION = """\
What is wrong between the family file and what runs, a line per finding with its mend.
Asks the gateway twice, some seconds apart. With --kubeconfig it looks at Kubernetes
too: it reads nodes, pods, RayServices, monitors, and which secrets, claims and
configuration there are by name; it changes nothing.
"""
EPILOG = """\
examples:
  moray doctor
  moray --family h200 doctor --url http://moray.example --kubeconfig config --namespace moray --json

Exit code 1 where something is wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--url", help="of the gateway; default: the family file's port on this machine")
    parser.add_argument(
        "--kubeconfig",
        metavar="FILE",
        help=f"look at Kubernetes too, as this file says, or {IN_CLUSTER}: from inside of a pod, with its service "
        "account; default: the gateway alone",
    )
    parser.add_argument("--namespace", help="of the RayService; default: the kubeconfig's")
    parser.add_argument(
        "--json", action="store_true", help="a JSON array: where, found, expected and mend of each finding"
    )
    parser.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.doctor import doctor

    return doctor(family, arguments, console)
