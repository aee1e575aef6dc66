"""What KubeRay's operator refuses of a RayService, though its schema allows it: before anything is applied.

The rules are those of the operator's `ValidateRayServiceMetadata` and `ValidateRayServiceSpec` with default feature
gates, written anew and compared rule by rule with its source of about 1.7; k8s/README.md lists them. Rules of ours are
among them where the operator would take what cannot work here: a storage namespace that is shared, no token.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Object = Mapping[str, Any]
LONGEST_NAME = 47  # KubeRay appends names of its own
UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
STEPS = ("stepSizePercent", "intervalSeconds", "gatewayClassName")
STARTED = ("num-cpus", "num-gpus", "memory", "resources")
EXTERNAL = "ray.io/external-storage-namespace"
FAULT_TOLERANT = "ray.io/ft-enabled"
TIMEOUT = "ray.io/initializing-timeout"
SECOND = "RAY_enable_autoscaler_v2"
YES = ("1", "true")
START = "KUBERAY_GEN_AUTOSCALER_START_CMD"
GATED = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}
DURATION = r"\+?(\d+|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+)"  # of Go, or whole seconds
WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DOMAIN = r"(?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/"


def name(service: Object) -> Iterator[str]:
    """DNS-1035, and short enough for the names that are made of it."""
    given = service["metadata"]["name"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", given) or len(given) > LONGEST_NAME:
        yield f"metadata.name: {given!r}; a DNS-1035 label of {LONGEST_NAME} characters is allowed; shorten it"


def timeout(service: Object) -> Iterator[str]:
    given = service["metadata"].get("annotations", {}).get(TIMEOUT, "")
    if given and not (re.fullmatch(DURATION, given) and re.search("[1-9]", given)):
        yield f"metadata.annotations.{TIMEOUT}: {given!r}; a duration above 0, as 30m, is allowed; mend it"


def upgrade(service: Object) -> Iterator[str]:
    """The CRD has no enum."""
    given = service["spec"].get("upgradeStrategy", {}).get("type", "NewCluster")
    if given not in UPGRADES:
        yield f"spec.upgradeStrategy.type: {given!r}; {', '.join(UPGRADES)} are allowed; choose one"
    if "upgradeStrategy" in cluster_of(service):
        yield "spec.rayClusterConfig.upgradeStrategy: given; it is not allowed under a RayService; leave it out"


def incremental(service: Object) -> Iterator[str]:
    """An incremental upgrade needs an autoscaler, a gateway and steps."""
    given = service["spec"].get("upgradeStrategy", {})
    if given.get("type") != "NewClusterWithIncrementalUpgrade":
        return
    where, options = "spec.upgradeStrategy.clusterUpgradeOptions", given.get("clusterUpgradeOptions") or {}
    if not cluster_of(service).get("enableInTreeAutoscaling"):
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


def pods(service: Object) -> Iterator[str]:
    for where, group in groups(service):
        if not containers(group):
            yield f"{where}.template.spec.containers: none; the first is Ray's; give it"


def resources_once(service: Object) -> Iterator[str]:
    """What a group offers is said in `resources` or in rayStartParams, labels in `labels` alone."""
    for where, group in groups(service):
        started = group.get("rayStartParams", {})
        twice = [key for key in STARTED if started.get(key)]
        if twice and group.get("resources"):
            yield f"{where}.rayStartParams: {', '.join(twice)} beside resources; one is allowed; drop them here"
        if "labels" in started:
            yield f"{where}.rayStartParams.labels: given; labels of the group are allowed; move them there"


def labels(service: Object) -> Iterator[str]:
    """Kubernetes' syntax, though they are Ray's."""
    for where, group in groups(service):
        for key, value in group.get("labels", {}).items():
            if not re.fullmatch(f"({DOMAIN})?{WORD}", key) or not re.fullmatch(f"({WORD})?", value):
                yield (
                    f"{where}.labels: {key}: {value!r}; up to 63 letters, digits and -_. between them are allowed; "
                    "shorten or mend it"
                )


def storage_once(service: Object) -> Iterator[str]:
    """Options of GCS fault tolerance stand in one place; under a RayService no namespace of the storage is shared."""
    cluster = cluster_of(service)
    options = cluster.get("gcsFaultToleranceOptions")
    where = "spec.rayClusterConfig.gcsFaultToleranceOptions"
    if options is None:
        return
    head = cluster["headGroupSpec"]
    doubled = sorted(
        environment(head).keys() & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_external_storage_namespace"}
    )
    doubled += sorted({"redis-password"} & head.get("rayStartParams", {}).keys())
    doubled += sorted({FAULT_TOLERANT, EXTERNAL} & service["metadata"].get("annotations", {}).keys())
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
    elif "storage" in options:
        yield f"{where}.storage: given; it is rocksdb's; none is allowed beside redis; leave it out"


def storage_said(service: Object) -> Iterator[str]:
    """Redis makes a cluster fault tolerant, so the options say it; its user they say alone."""
    cluster = cluster_of(service)
    head, where = cluster["headGroupSpec"], "spec.rayClusterConfig.gcsFaultToleranceOptions"
    tolerant = service["metadata"].get("annotations", {}).get(FAULT_TOLERANT, "").lower() == "true"
    if "gcsFaultToleranceOptions" not in cluster and not tolerant and "RAY_REDIS_ADDRESS" in environment(head):
        yield f"{where}: not given beside RAY_REDIS_ADDRESS; it is needed; say redisAddress there"
    given = environment(head) | head.get("rayStartParams", {})
    users = [key for key in ("REDIS_USERNAME", "redis-username") if key in given]
    if users:
        yield f"headGroupSpec: {', '.join(users)}; {where}.redisUsername is allowed; move it there"


def autoscaler(service: Object) -> Iterator[str]:
    """The second autoscaler replaces pods itself, and is chosen once; its command is the operator's."""
    cluster = cluster_of(service)
    options, env = cluster.get("autoscalerOptions", {}), environment(cluster["headGroupSpec"])
    if START in {each["name"] for each in options.get("env", ())}:
        yield f"autoscalerOptions.env: {START}; the operator gives it; leave it out"
    if not cluster.get("enableInTreeAutoscaling"):
        if env.get(SECOND) in YES:
            yield f"headGroupSpec: {SECOND}, and no autoscaler; enableInTreeAutoscaling is needed; set it"
        return
    if "version" in options and SECOND in env:
        yield f"autoscalerOptions.version: given, and {SECOND} too; one is allowed; drop the variable"
    for where, group in groups(service):
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if policy != "Never" and options.get("version", "v2") == "v2":
            yield f"{where}.template.spec.restartPolicy: {policy}; Never is allowed with autoscaler v2; leave it out"


def second(service: Object) -> Iterator[str]:
    """What the second autoscaler alone can do must be asked of it by name; priorities need a Ray that knows them."""
    cluster = cluster_of(service)
    chosen = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    chosen = chosen or environment(cluster["headGroupSpec"]).get(SECOND) in YES
    for where, group in groups(service):
        given = [key for key in ("idleTimeoutSeconds", "priority") if group.get(key)]
        if given and not chosen:
            yield f"{where}: {', '.join(given)}; autoscalerOptions.version v2 is needed; set it"
        if "priority" in given and _version(cluster) < (2, 56):
            yield f"{where}.priority: given; Ray 2.56 is needed, not {cluster.get('rayVersion')}; leave it out"


def idle(service: Object) -> Iterator[str]:
    asked = (("autoscalerOptions", cluster_of(service).get("autoscalerOptions", {})), *groups(service))
    for where, given in asked:
        if given.get("idleTimeoutSeconds", 0) < 0:
            yield f"{where}.idleTimeoutSeconds: {given['idleTimeoutSeconds']}; 0 and more are allowed; raise it"


def bounds(service: Object) -> Iterator[str]:
    """Of pods; a group that is suspended has none, which neither autoscaler nor default gates allow."""
    for where, group in groups(service):
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
        if not 0 <= least <= most:
            yield f"{where}: minReplicas {least}, maxReplicas {most}; 0 <= least <= most is allowed; change them"
        if group.get("suspend"):
            yield f"{where}.suspend: true; a group with an autoscaler cannot be; set maxReplicas to 0"


def token(service: Object) -> Iterator[str]:
    """Ray asks for a token by itself; on Kubernetes all pods must have the same."""
    cluster = cluster_of(service)
    options = cluster.get("authOptions", {})
    where = "spec.rayClusterConfig.authOptions"
    if options.get("mode") != "token":
        yield f"{where}.mode: {options.get('mode', 'none')}; token is allowed; anybody could run code here without it"
        return
    if not options.get("secretName"):
        yield f"{where}.secretName: none; the name of a Secret with the key auth_token is needed; give it"
    if options.get("enableK8sTokenAuth"):
        yield f"{where}.enableK8sTokenAuth: given; a RayService does not take it; leave it out"
    if _version(cluster) < (2, 52):
        yield f"spec.rayClusterConfig.rayVersion: {cluster.get('rayVersion')}; tokens need 2.52; name the image's"


def head_service(service: Object) -> Iterator[str]:
    if "name" in cluster_of(service)["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headGroupSpec.headService.metadata.name: given; the operator names it; leave it out"


def gated(service: Object) -> Iterator[str]:
    """Fields that an operator with default gates refuses."""
    for key, gate in GATED.items():
        if key in cluster_of(service):
            yield f"spec.rayClusterConfig.{key}: given; the operator's gate {gate} is off by default; leave it out"


SERVICE_RULES: tuple[Callable[[Object], Iterable[str]], ...] = (
    name,
    timeout,
    upgrade,
    incremental,
    pods,
    resources_once,
    labels,
    storage_once,
    storage_said,
    autoscaler,
    second,
    idle,
    bounds,
    token,
    head_service,
    gated,
)


def cluster_of(service: Object) -> Any:
    return service["spec"]["rayClusterConfig"]


def groups(service: Object) -> Iterator[tuple[str, Object]]:
    """The head, and each group of workers, with their paths."""
    yield "headGroupSpec", cluster_of(service)["headGroupSpec"]
    for index, group in enumerate(cluster_of(service).get("workerGroupSpecs", ())):
        yield f"workerGroupSpecs.{index}", group


def containers(group: Object) -> list[Any]:
    return list(group["template"]["spec"]["containers"])


def environment(group: Object) -> dict[str, str]:
    """The variables of Ray's container, the first; empty text for those that come from elsewhere."""
    return {each["name"]: each.get("value", "") for ray in containers(group)[:1] for each in ray.get("env", ())}


def _version(cluster: Object) -> tuple[int, ...]:
    """Major and minor, as far as they can be read."""
    return tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", ""))[:2])
