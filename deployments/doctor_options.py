"""What `moray doctor` is asked. Light imports only: every `moray` command builds this parser."""

import argparse

from rich.console import Console

from cluster.family import Family

IN_CLUSTER = "in-cluster"
EPILOG = f"""\
Asks the gateway twice, some seconds apart. With --kubeconfig it looks at Kubernetes too: it reads nodes, pods,
RayServices, monitors, and which secrets, claims and configuration there are by name; it changes nothing. Exit code 1
where something is wrong. `--kubeconfig {IN_CLUSTER}` is for inside of a pod, with the pod's service account.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--url", help="of the gateway; default: the family file's port on this machine")
    parser.add_argument("--kubeconfig", metavar="FILE", help=f"look at Kubernetes too, or {IN_CLUSTER}")
    parser.add_argument("--namespace", help="of the RayService; default: the kubeconfig's")
    parser.add_argument("--json", action="store_true", help="where, found, expected and mend of each finding")
    parser.set_defaults(run=_run)


def _run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    from deployments.doctor import doctor

    return doctor(family, arguments, console)
