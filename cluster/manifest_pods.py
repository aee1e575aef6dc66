"""The pods of Ray on Kubernetes, whatever the family: one image, a user without rights, one place for the family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "moray"
FAMILY_FILE = "/etc/moray/family.yaml"
STATE_FOLDER = "/var/lib/moray"
USER = 1000
DRAIN_S = 120  # a replica that drains ends its streams, or gives them up to others, within a minute

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is not of the family. `environment`: Ray's own switches. `packages`: where the image has ours installed.

    `shipped`: where they are on the machine that renders, whose checkpoints the image has too.
    """

    image: str
    ray_version: str
    environment: Mapping[str, str]
    shipped: str
    packages: str
    family_file: str = FAMILY_FILE
    state_folder: str = STATE_FOLDER


def pod(part: str, container: Document, volumes: list[Document], config: str, setting: Setting) -> Document:
    mounts = [
        {"name": "family", "mountPath": setting.family_file.rpartition("/")[0], "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        *container["volumeMounts"],
    ]
    environment = {"HOME": "/tmp"} | dict(setting.environment)
    return {
        "metadata": {"labels": labels(part)},
        "spec": {
            "serviceAccountName": f"{NAME}-{part}",
            "automountServiceAccountToken": part == "head",  # the autoscaler's, beside it
            "terminationGracePeriodSeconds": DRAIN_S + 60,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    **container,
                    "image": setting.image,
                    "env": [{"name": name, "value": value} for name, value in sorted(environment.items())],
                    "securityContext": unprivileged(),
                    "volumeMounts": mounts,
                }
            ],
            "volumes": [{"name": "family", "configMap": {"name": config}}, {"name": "tmp", "emptyDir": {}}, *volumes],
        },
    }


def unprivileged() -> Document:
    return {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]}}


def limits(cpu: str, memory: str, gpus: int = 0) -> Document:
    """Requests equal limits: the kubelet evicts such pods last."""
    each = {"cpu": cpu, "memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": dict(each), "limits": dict(each)}


def pre_stop(command: str) -> Document:
    return {"preStop": {"exec": {"command": ["/bin/sh", "-c", command]}}}


def labels(part: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": NAME, "app.kubernetes.io/component": part}


def named(version: str, kind: str, name: str) -> Document:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {"app.kubernetes.io/name": NAME}}}
