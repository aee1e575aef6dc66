"""`moray doctor`: what is wrong between a family file and what runs, a line for each finding."""

import argparse
import dataclasses
import json
import sys
from importlib.metadata import version

from rich.console import Console

from cluster.doctor import Finding, Observed, findings
from cluster.family import Family
from deployments.doctor_access import access
from deployments.doctor_gateway import look_twice
from deployments.doctor_kubernetes import Looked, look


def doctor(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Exit code 1 where something is wrong. Raises ConfigurationError: a kubeconfig that is missing or wrong."""
    found = findings(family, _observed(family, arguments))
    if arguments.json:
        sys.stdout.write(json.dumps([dataclasses.asdict(each) for each in found], indent=2) + "\n")
        return 1 if found else 0
    for each in found:
        console.print(str(each), markup=False, soft_wrap=True)
    if not found:
        looked = "the gateway and Kubernetes" if arguments.kubeconfig else "the gateway"
        console.print(f"{family.name}: nothing wrong at {looked}", markup=False, soft_wrap=True)
    return 1 if found else 0


def _observed(family: Family, arguments: argparse.Namespace) -> Observed:
    looked = Looked(None, ())
    if arguments.kubeconfig is not None:
        asked = access(arguments.kubeconfig)
        looked = look(asked, arguments.namespace or asked.namespace, version("ray"))
    seen = look_twice((arguments.url or f"http://127.0.0.1:{family.gateway.port}").rstrip("/"))
    if isinstance(seen, Finding):
        return Observed(kubernetes=looked.kubernetes, troubles=(seen, *looked.troubles))
    return Observed(gateway=seen, kubernetes=looked.kubernetes, troubles=looked.troubles)
