"""What is wrong with manifests that no schema catches: KubeRay's own validation, ours, and what contradicts the family.

Each rule is a function from a RayService, or from all objects, to faults in the form `what: given; allowed; mend`. The
operator's are those of KubeRay 1.7.0 with its default feature gates, written anew; nobody compared them line by line.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cluster.family import Family
from cluster.placement import CELL_LABEL, CPU_RESOURCE

Object = Mapping[str, Any]
LONGEST_NAME = 47  # KubeRay appends names of its own
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
STEPS = ("stepSizePercent", "intervalSeconds", "gatewayClassName")
STARTED = {"num-cpus": "CPU", "num-gpus": "GPU", "memory": "memory", "resources": ""}
EXTERNAL = "ray.io/external-storage-namespace"
GATED = {"networkPolicy": "RayClusterNetworkPolicy", "tlsOptions": "RayClusterMTLS"}


def faults(family: Family, objects: Sequence[Object]) -> list[str]:
    """Everything that is wrong; empty where nothing is. What schemas say of shapes is assumed of a RayService."""
    strange = [each for each in objects if not isinstance(each, Mapping) or not _is_object(each)]
    if strange:
        return [
            f"{family.name}: {str(each)[:40]!r}: no object with kind and metadata.name; drop it" for each in strange
        ]
    services = [each for each in objects if each.get("kind") == "RayService"]
    if len(services) != 1:
        return [f"{family.name}: {len(services)} objects of kind RayService; one is allowed; give one overlay's output"]
    found = [fault for rule in SERVICE_RULES for fault in rule(services[0])]
    return [*found, *one_namespace(objects), *references(objects), *of_family(family, services[0])]


def name(service: Object) -> Iterator[str]:
    """DNS-1035, and short enough for the names that are made of it."""
    given = service["metadata"]["name"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given) or len(given) > LONGEST_NAME:
        yield f"metadata.name: {given!r}; a DNS-1035 label of {LONGEST_NAME} characters is allowed; shorten it"


def upgrade(service: Object) -> Iterator[str]:
    """The CRD has no enum."""
    given = service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster")
    if given not in UPGRADES:
        yield f"spec.upgradeStrategy.type: {given!r}; {', '.join(UPGRADES)} are allowed; choose one"
    if "upgradeStrategy" in _cluster(service):
        yield "spec.rayClusterConfig.upgradeStrategy: given; it is not allowed under a RayService; leave it out"


def incremental(service: Object) -> Iterator[str]:
    """An incremental upgrade needs an autoscaler, a gateway and steps."""
    given = service["spec"].get("upgradeStrategy", {})
    if given.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    where, options = "spec.upgradeStrategy.clusterUpgradeOptions", given.get("clusterUpgradeOptions") or {}
    if not _cluster(service).get("enableInTreeAutoscaling"):
        yield "spec.rayClusterConfig.enableInTreeAutoscaling: false; an incremental upgrade needs it; set it"
    missing = [key for key in STEPS if not options.get(key)]
    if missing:
        yield f"{where}: {', '.join(missing)} not given, or 0; an incremental upgrade needs them; give them"
        return
    step, surge = options["stepSizePercent"], options.get("maxSurgePercent", 100)
    if not 0 <= step <= surge <= 100:
        yield f"{where}: a step of {step} % and a surge of {surge} %; 0 <= step <= surge <= 100 is allowed; change them"
    if options["intervalSeconds"] < 0:
        yield f"{where}.intervalSeconds: {options['intervalSeconds']}; more than 0 is allowed; raise it"


def resources_once(service: Object) -> Iterator[str]:
    """What a group offers is said in `resources` or in rayStartParams, labels in `labels` alone."""
    for where, group in _groups(service):
        started = group.get("rayStartParams", {})
        twice = [
            key for key, own in STARTED.items() if key in started and (own in group.get("resources", {}) or not own)
        ]
        if twice and group.get("resources"):
            yield f"{where}.rayStartParams: {', '.join(twice)}, as in resources; once is allowed; drop them here"
        if "labels" in started:
            yield f"{where}.rayStartParams.labels: given; labels of the group are allowed; move them there"


def storage_once(service: Object) -> Iterator[str]:
    """Options of GCS fault tolerance stand in one place; under a RayService no namespace of the storage is shared."""
    cluster = _cluster(service)
    options = cluster.get("gcsFaultToleranceOptions")
    where = "spec.rayClusterConfig.gcsFaultToleranceOptions"
    if options is None:
        return
    head = cluster["headGroupSpec"]
    env = {each["name"] for each in _containers(head) for each in each.get("env", ())}
    doubled = sorted(env & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_external_storage_namespace"})
    doubled += sorted({"redis-password", "redis-username"} & head.get("rayStartParams", {}).keys())
    doubled += sorted({"ray.io/ft-enabled", EXTERNAL} & service["metadata"].get("annotations", {}).keys())
    if doubled:
        yield f"{where}: {', '.join(doubled)} say the same elsewhere; once is allowed; drop these"
    if "externalStorageNamespace" in options:
        yield (
            f"{where}.externalStorageNamespace: given; the clusters before and after an upgrade would share it, and "
            "the removal of one would wipe both; leave it out"
        )
    reference = options.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef", {})
    if not reference.get("name") or not reference.get("key"):
        yield f"{where}.redisPassword: no valueFrom.secretKeyRef; a Secret's name and key are needed; give them"
    if options.get("backend") == "rocksdb":
        yield f"{where}.backend: rocksdb; the operator's gate for it is off; redis is allowed; use it"


def autoscaler(service: Object) -> Iterator[str]:
    """The second autoscaler replaces pods itself, and is chosen once."""
    cluster = _cluster(service)
    options = cluster.get("autoscalerOptions", {})
    if not cluster.get("enableInTreeAutoscaling") or options.get("version", "v2") != "v2":
        return
    for where, group in _groups(service):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if policy != "Never":
            yield f"{where}.template.spec.restartPolicy: {policy}; Never is allowed with autoscaler v2; leave it out"
    env = {each["name"] for group in _containers(cluster["headGroupSpec"]) for each in group.get("env", ())}
    if "version" in options and "RAY_enable_autoscaler_v2" in env:
        yield "autoscalerOptions.version: given, and RAY_enable_autoscaler_v2 too; one is allowed; drop the variable"


def bounds(service: Object) -> Iterator[str]:
    for where, group in _groups(service):
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if least > most:
            yield f"{where}: minReplicas {least} above maxReplicas {most}; at most as many are allowed; change them"


def token(service: Object) -> Iterator[str]:
    """Ray asks for a token by itself; on Kubernetes all pods must have the same."""
    cluster = _cluster(service)
    options = cluster.get("authOptions", {})
    where = "spec.rayClusterConfig.authOptions"
    if options.get("mode") != "token":
        yield f"{where}.mode: {options.get('mode', 'none')}; token is allowed; anybody could run code here without it"
        return
    if not options.get("secretName"):
        yield f"{where}.secretName: none; the name of a Secret with the key auth_token is needed; give it"
    if options.get("enableK8sTokenAuth"):
        yield f"{where}.enableK8sTokenAuth: given; a RayService does not take it; leave it out"
    if tuple(int(part) for part in cluster.get("rayVersion", "0.0").split(".")[:2]) < (2, 52):
        yield f"spec.rayClusterConfig.rayVersion: {cluster.get('rayVersion')}; tokens need 2.52; name the image's"


def head_service(service: Object) -> Iterator[str]:
    if "name" in _cluster(service)["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headGroupSpec.headService.metadata.name: given; the operator names it; leave it out"


def gated(service: Object) -> Iterator[str]:
    """Fields that an operator with default gates refuses."""
    for key, gate in GATED.items():
        if key in _cluster(service):
            yield f"spec.rayClusterConfig.{key}: given; the operator's gate {gate} is off by default; leave it out"


SERVICE_RULES: tuple[Callable[[Object], Iterable[str]], ...] = (
    name,
    upgrade,
    incremental,
    resources_once,
    storage_once,
    autoscaler,
    bounds,
    token,
    head_service,
    gated,
)


def one_namespace(objects: Sequence[Object]) -> Iterator[str]:
    """An object in another namespace is not found by those that name it."""
    given: dict[str, list[str]] = {}
    for each in objects:
        if each["kind"] == "Namespace":
            continue
        given.setdefault(each["metadata"].get("namespace", "none"), []).append(_called(each))
    if len(given) > 1:
        shown = "; ".join(f"{space}: {', '.join(those)}" for space, those in given.items())
        yield f"metadata.namespace: {shown}; one is allowed; set it in the overlay's kustomization alone"


def references(objects: Sequence[Object]) -> Iterator[str]:
    """ConfigMaps, accounts and claims that pods name and nobody makes. Secrets are made by hand: none may be here."""
    made = {_called(each) for each in objects}
    for each in objects:
        if each["kind"] == "Secret":
            yield f"{_called(each)}: given; secrets are kept out of manifests; create it with kubectl"
        for kind, named in _named(each):
            if f"{kind} {named}" not in made:
                yield f"{_called(each)}: names {kind} {named!r}, which is not here; add it, or mend the name"


def of_family(family: Family, service: Object) -> Iterator[str]:
    """Each kind of cell is one group of pods, with as many as the family counts on."""
    found: dict[str, Object] = {}
    for where, group in _groups(service):
        if "groupName" not in group:  # the head
            continue
        label = group.get("labels", {}).get(CELL_LABEL)
        if label not in {cell.name for cell in family.cells}:
            known = ", ".join(cell.name for cell in family.cells)
            yield f"{where}.labels: {CELL_LABEL} is {label!r}; {known} are cells of {family.name}; name one of them"
        else:
            found[label] = group
    kind = "GPU" if family.accelerator == "cuda" else CPU_RESOURCE
    for cell in family.cells:
        if cell.name not in found:
            yield f"{family.name}: cells.{cell.name}: no group of workers carries its label; add one"
            continue
        group = found[cell.name]
        most = group.get("maxReplicas", 0) * group.get("numOfHosts", 1)
        if most < cell.count:
            yield f"{group['groupName']}: at most {most} pods; {cell.count} are in the family; raise maxReplicas"
        offered = int(float(group.get("resources", {}).get(kind, 0)))
        if offered < cell.gpus:
            yield f"{group['groupName']}.resources.{kind}: {offered}; cells.{cell.name} has {cell.gpus}; raise it"
        yield from _limits(group, cell.gpus if kind == "GPU" else 0)


def _limits(group: Object, gpus: int) -> Iterator[str]:
    limits = _containers(group)[0].get("resources", {}).get("limits", {})
    given = int(limits.get("nvidia.com/gpu", 0))
    if given != gpus:
        yield f"{group['groupName']}: a limit of {given} for nvidia.com/gpu; {gpus} are in the cell; set as many"


def _is_object(each: Object) -> bool:
    metadata = each.get("metadata")
    return "kind" in each and isinstance(metadata, Mapping) and "name" in metadata


def _cluster(service: Object) -> Any:
    return service["spec"]["rayClusterConfig"]


def _groups(service: Object) -> Iterator[tuple[str, Object]]:
    """The head, and each group of workers, with their paths."""
    yield "headGroupSpec", _cluster(service)["headGroupSpec"]
    for index, group in enumerate(_cluster(service).get("workerGroupSpecs", ())):
        yield f"workerGroupSpecs.{index}", group


def _containers(group: Object) -> list[Any]:
    return list(group["template"]["spec"]["containers"])


def _called(each: Object) -> str:
    return f"{each['kind']} {each['metadata']['name']}"


def _named(each: Object) -> Iterator[tuple[str, str]]:
    """What the pods of an object name. Claims for checkpoints are made by hand: their storage is not ours."""
    if each["kind"] == "RayService":
        templates = [group["template"] for _, group in _groups(each)]
    else:
        templates = [each["spec"]["template"]] if each["kind"] in ("Deployment", "StatefulSet") else []
    for spec in (template["spec"] for template in templates):
        if "serviceAccountName" in spec:
            yield "ServiceAccount", spec["serviceAccountName"]
        for volume in spec.get("volumes", ()):
            if "configMap" in volume:
                yield "ConfigMap", volume["configMap"]["name"]
            claim = volume.get("persistentVolumeClaim", {})
            if claim and not claim.get("readOnly"):
                yield "PersistentVolumeClaim", claim["claimName"]
