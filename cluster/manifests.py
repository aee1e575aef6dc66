"""A family as KubeRay runs it: the Kubernetes objects that depend on the family file, as plain dicts.

Pods of one worker group are the cells of one kind, and carry its name as Ray's node label: where a replica goes is told
before the first of them is there. A changed family has another ConfigMap, so that no cluster reads two of them.
NEVER APPLIED TO A CLUSTER.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import yaml

from cluster.errors import PlacementError
from cluster.family import Cell, Family
from cluster.fleet import CellState
from cluster.manifest_pods import DRAIN_S, NAME, Document, Setting, labels, limits, named, pod, pre_stop, unprivileged
from cluster.placement import CELL_LABEL, CPU_RESOURCE, declared_cells, plan, require

MODELS = "/models"
RAY_SECRET, RAY_KEY = "moray-ray", "auth_token"  # KubeRay's own name of the key
REDIS_SECRET, REDIS_KEY = "moray-redis", "password"
REDIS_ADDRESS = "redis:6379"
IDLE_S = 1800  # a cell without a replica is given back; the largest checkpoint takes minutes to load
CPUS_PER_GPU, GIB_PER_GPU, SHM_GIB_PER_GPU = 12, 128, 16  # of nodes with 8 GPUs, 192 cores and 2 TB; patch for others
CPUS_PER_SLOT, GIB_PER_SLOT = 0.25, 1.5
PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
POD_LABEL = "__meta_kubernetes_pod_label_"  # as Prometheus sees the labels of pods
METRIC_PORTS = {"metrics": 8080, "as-metrics": 44217, "dash-metrics": 44227}


def documents(family: Family, setting: Setting) -> tuple[Document, Document]:
    """The ConfigMap of the family and the RayService. Raises PlacementError where the cells cannot hold the family."""
    require(plan(family, declared_cells(family)))
    there = inside(family, setting)
    text = yaml.safe_dump(there.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=120)
    name = f"{NAME}-family-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    config = named("v1", "ConfigMap", name) | {"immutable": True, "data": {"family.yaml": text}}
    return config, _ray_service(there, name, setting)


def inside(family: Family, setting: Setting) -> Family:
    """The family as the pods see it: its state, the checkpoints that ship, and all addresses of the pod."""
    tiers = {
        key: tier.model_copy(update={"checkpoint": _moved(tier.checkpoint, setting)})
        for key, tier in family.tiers.items()
    }
    changed: dict[str, Any] = {
        "tiers": tiers,
        "state_folder": setting.state_folder,
        "gateway": family.gateway.model_copy(update={"host": "0.0.0.0"}),
    }
    if family.video is not None:
        moved = _moved(family.video.checkpoint, setting)
        changed["video"] = family.video.model_copy(update={"checkpoint": moved})
    return family.model_copy(update=changed)


def _moved(checkpoint: str, setting: Setting) -> str:
    if checkpoint.startswith(f"{setting.shipped}/"):
        return setting.packages + checkpoint.removeprefix(setting.shipped)
    return checkpoint


def kinds(family: Family) -> tuple[CellState, ...]:
    """A cell for each kind, under the label that all nodes of the kind carry."""
    return tuple(CellState(name=cell.name, gpus=cell.gpus, free_gpus=cell.gpus) for cell in family.cells)


def serve_config(family: Family, setting: Setting) -> Document:
    """What Serve deploys: an application per tier, the largest group first, and the gateway."""
    tiers = sorted(family.tiers, key=lambda key: -family.tiers[key].ranks)
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": family.gateway.host, "port": family.gateway.port},
        "applications": [
            *(
                {
                    "name": f"{NAME}-{key}",
                    "route_prefix": None,
                    "import_path": "deployments.app:build_tier",
                    "args": {"family": setting.family_file, "tier": key},
                }
                for key in tiers
            ),
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": "deployments.app:build_gateway",
                "args": {"family": setting.family_file},
            },
        ],
    }


def _ray_service(family: Family, config: str, setting: Setting) -> Document:
    served = yaml.safe_dump(serve_config(family, setting), sort_keys=False)
    return named("ray.io/v1", "RayService", NAME) | {
        "spec": {
            "serveConfigV2": served,
            # Beside video two clusters would take up the same jobs: it is stopped and started again.
            "upgradeStrategy": {"type": "None" if family.video else "NewCluster"},
            "rayClusterDeletionDelaySeconds": DRAIN_S,
            "excludeHeadPodFromServeSvc": False,
            "rayClusterConfig": {
                "rayVersion": setting.ray_version,
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {
                    "version": "v2",
                    "idleTimeoutSeconds": IDLE_S,
                    "upscalingMode": "Conservative",
                    "resources": limits("500m", "1Gi"),
                    "securityContext": unprivileged(),
                },
                "authOptions": {"mode": "token", "secretName": RAY_SECRET},
                # No externalStorageNamespace: the clusters before and after an upgrade would share it.
                "gcsFaultToleranceOptions": {
                    "redisAddress": REDIS_ADDRESS,
                    "redisPassword": {"valueFrom": {"secretKeyRef": {"name": REDIS_SECRET, "key": REDIS_KEY}}},
                },
                "headGroupSpec": _head(family, config, setting),
                "workerGroupSpecs": [_workers(family, cell, config, setting) for cell in family.cells],
            },
        }
    }


def _head(family: Family, config: str, setting: Setting) -> Document:
    """The control loop, Serve's controller and the gateway: no replica, which all ask for what it has not."""
    container = {
        "name": "ray-head",
        "ports": [
            {"name": name, "containerPort": port}
            for name, port in {**PORTS, **METRIC_PORTS, "serve": family.gateway.port}.items()
        ],
        "resources": limits("4", "16Gi"),
        "volumeMounts": [{"name": "state", "mountPath": setting.state_folder}],
        "lifecycle": pre_stop("sleep 15"),  # until nobody sends here any more
    }
    volumes = [{"name": "state", "persistentVolumeClaim": {"claimName": "moray-state"}}]
    return {
        "resources": {"CPU": "1"},
        "rayStartParams": {"dashboard-host": "0.0.0.0"},
        "template": pod("head", container, volumes, config, setting),
    }


def _workers(family: Family, cell: Cell, config: str, setting: Setting) -> Document:
    hosts = hosts_of_group(family, cell)
    on_gpus = family.accelerator == "cuda"
    cpus = CPUS_PER_GPU * cell.gpus if on_gpus else max(1, math.ceil(CPUS_PER_SLOT * cell.gpus))
    gib = GIB_PER_GPU * cell.gpus if on_gpus else math.ceil(GIB_PER_SLOT * cell.gpus)
    shm_gib = SHM_GIB_PER_GPU * cell.gpus if on_gpus else 1
    container: dict[str, Any] = {
        "name": "ray-worker",
        "ports": [{"name": "metrics", "containerPort": METRIC_PORTS["metrics"]}],
        "resources": limits(str(cpus), f"{gib}Gi", cell.gpus if on_gpus else 0),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "lifecycle": pre_stop(
            "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is stopped' "
            f"--deadline-remaining-seconds {DRAIN_S}; sleep {DRAIN_S}"
        ),
    }
    volumes: list[Document] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_gib}Gi"}}]
    if _reads_models(family):
        container["volumeMounts"].append({"name": "models", "mountPath": MODELS, "readOnly": True})
        volumes.append(
            {"name": "models", "persistentVolumeClaim": {"claimName": "moray-models", "readOnly": True}},
        )
    template = pod("worker", container, volumes, config, setting)
    spec = template["spec"]
    if on_gpus:
        spec["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels("worker")},
        }
    ]
    resources = {"CPU": str(cpus)} | ({"GPU": str(cell.gpus)} if on_gpus else {CPU_RESOURCE: str(cell.gpus)})
    return {
        "groupName": cell.name.lower().replace(".", "-").replace("_", "-"),
        "replicas": cell.count // hosts,
        "minReplicas": math.ceil(_least(family, cell) / hosts),
        "maxReplicas": cell.count // hosts,
        "numOfHosts": hosts,
        "idleTimeoutSeconds": IDLE_S,
        "labels": {CELL_LABEL: cell.name},
        "resources": resources,
        "rayStartParams": {},
        "template": template,
    }


def hosts_of_group(family: Family, cell: Cell) -> int:
    """How many pods come and go together: as many as one expert group spans. Raises PlacementError where none can."""
    widest = max((tier.ranks for tier in family.tiers.values()), default=1)
    if any(kind.gpus >= widest for kind in family.cells):
        return 1
    hosts = math.ceil(widest / cell.gpus)
    if len(family.cells) > 1 or cell.count % hosts:
        raise PlacementError(
            f"{family.name}: cells.{cell.name}: a group of {widest} ranks spans {hosts} of them, and there are "
            f"{cell.count} in {len(family.cells)} kinds; one kind, a multiple of {hosts}, is allowed; change the cells"
        )
    return hosts


def _least(family: Family, cell: Cell) -> int:
    """Cells of the kind that hold replicas which always run."""
    tiers = {
        key: tier.model_copy(update={"replicas": tier.replicas.model_copy(update={"initial": tier.replicas.min})})
        for key, tier in family.tiers.items()
    }
    video = family.video
    if video is not None:
        video = video.model_copy(update={"replicas": video.replicas.model_copy(update={"initial": video.replicas.min})})
    least = plan(family.model_copy(update={"tiers": tiers, "video": video}), declared_cells(family))
    return sum(
        any(one.initial for one in planned.groups) or any(one.initial for one in planned.video)
        for planned in least.cells
        if planned.name in cell.instances
    )


def _reads_models(family: Family) -> bool:
    read = [tier.checkpoint for tier in family.tiers.values()] + ([family.video.checkpoint] if family.video else [])
    return any(checkpoint.startswith(f"{MODELS}/") for checkpoint in read)


def prometheus_rule(rules: Mapping[str, Any]) -> Document:
    """The rule file as prometheus-operator takes it."""
    return named("monitoring.coreos.com/v1", "PrometheusRule", NAME) | {"spec": dict(rules)}


def pod_monitor() -> Document:
    """Ray's own figures, and ours: the gateway's page, which shows all replicas.

    Every pod's proxy would give that page, and each series would be counted as often: only the head's is read, as often
    as the control loop looks.
    """
    cluster = {"sourceLabels": [f"{POD_LABEL}ray_io_cluster"], "targetLabel": "ray_io_cluster"}
    on_head = {"action": "keep", "sourceLabels": [f"{POD_LABEL}ray_io_node_type"], "regex": "head"}
    ours = {"port": "serve", "path": "/metrics", "interval": "2s", "relabelings": [on_head, cluster]}
    rays = [{"port": port, "interval": "15s", "relabelings": [cluster]} for port in METRIC_PORTS]
    return named("monitoring.coreos.com/v1", "PodMonitor", NAME) | {
        "spec": {"selector": {"matchLabels": {"app.kubernetes.io/name": NAME}}, "podMetricsEndpoints": [ours, *rays]}
    }
