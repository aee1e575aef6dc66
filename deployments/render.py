"""`moray render k8s`: what of the Kubernetes manifests depends on the family, written beside what does not.

`--check` reads manifests as they would be applied, and says what of them contradicts the family, or would be refused.
"""

import argparse
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

import deployments
from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.manifest_pods import Setting
from cluster.manifest_rules import faults
from cluster.manifests import documents, pod_monitor, prometheus_rule
from deployments.local import switches
from monitoring.alerts import rules
from monitoring.slo import promised

PACKAGES = "/opt/moray/lib/python3.11/site-packages"  # as the Dockerfile installs ours
DESCRIPTION = """\
Writes what of the Kubernetes manifests depends on the family: the RayService with
the family file in it, monitors and alert rules. The rest lies in k8s/base. With
--check it writes nothing, and says what of given manifests contradicts the family or
would be refused by KubeRay.
"""
EPILOG = """\
examples:
  moray --family h200 render k8s
  moray --family h200 render k8s --check manifests.yaml

Exit code 1 where --check finds something.
"""
HEADER = "# Written by `moray --family {name} render k8s`: edit the family file, or a patch of an overlay, not this.\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.set_defaults(run=run)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write there; default: k8s/families/<name of the family>"
    )
    parser.add_argument("--image", default=f"moray:{version('moray')}", help="of all pods; default: %(default)s")
    parser.add_argument(
        "--check",
        metavar="FILE",
        help="judge these manifests, - for those on standard input; default: write",
    )


def run(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Exit code 0. Raises ConfigurationError or PlacementError before anything is written."""
    if arguments.check is not None:
        return _check(family, arguments.check, console)
    folder = arguments.out or Path("k8s/families") / family.name
    files = rendered(family, arguments.image)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
            console.print(f"wrote {folder / name}", soft_wrap=True, markup=False)
    except OSError as error:
        raise ConfigurationError(f"--out: {folder}: {error}; a folder is needed; give another") from error
    return 0


def rendered(family: Family, image: str) -> dict[str, str]:
    """The texts of the files by name."""
    config, service = documents(family, setting(image, family.logs))
    return {
        "kustomization.yaml": _text(
            family,
            {
                "apiVersion": "kustomize.config.k8s.io/v1beta1",
                "kind": "Kustomization",
                "resources": ["family.yaml", "rayservice.yaml", "monitoring.yaml"],
            },
        ),
        "family.yaml": _text(family, config),
        "rayservice.yaml": _text(family, service),
        "monitoring.yaml": _text(family, pod_monitor(), prometheus_rule(rules(promised(family)))),
    }


def setting(image: str, logs: Literal["text", "json"] = "text") -> Setting:
    return Setting(
        image=image,
        ray_version=version("ray"),
        environment=switches(logs),
        shipped=str(Path(deployments.__file__).parents[1]),
        packages=PACKAGES,
    )


def _style(text: str) -> str | None:
    """Of several lines as blocks. What begins like a number is quoted: Go's loader takes 1e9 for one, Python's not."""
    if "\n" in text:
        return "|"
    return "'" if text[:1] in "+-.0123456789" else None


class _Readable(yaml.SafeDumper):
    """Nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style=_style(text)),
)


def _text(family: Family, *objects: dict[str, Any]) -> str:
    body = yaml.dump_all(objects, Dumper=_Readable, sort_keys=False, width=120)
    return HEADER.format(name=family.name) + body


def _check(family: Family, file: str, console: Console) -> int:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        given = [each for each in yaml.safe_load_all(text) if each is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--check: {file}: {error}; the output of kubectl kustomize is needed") from error
    found = faults(family, given)
    if found:
        raise ConfigurationError("\n".join(found))
    console.print(f"{len(given)} objects agree with {family.name}")
    return 0
