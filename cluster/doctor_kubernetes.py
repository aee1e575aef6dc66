"""What a Kubernetes API tells, against the family file: nodes, the RayService and its worker groups, what they need.

A node or a worker group says with the label CELL_LABEL which cell it is: one by name, or one of its kind. What carries
no such label is a cell of whichever kind it has the GPUs of.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.family import Cell, Family
from cluster.finding import Finding, nearest
from cluster.placement import CELL_LABEL

SURELY = 0.8  # so like is a label that is CELL_LABEL misspelt: moray/cel, moray.io/cell


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeNode:
    """`gpus`: allocatable ones. `ready`: takes pods."""

    name: str
    gpus: int
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """`cell`: its label, None where it has none. `gpus`: of a pod, slots on accelerator cpu. `most`: pods of it."""

    name: str
    cell: str | None
    gpus: int
    most: int
    selector: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A RayService. `unready`: why it does not serve, empty where it does."""

    name: str
    unready: str
    ray_version: str
    groups: tuple[WorkerGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """One namespace, and the nodes. None: could not be looked at, or is of no matter.

    `absent`: custom resources that are not installed, such as ray.io/v1. `elsewhere`: other namespaces with a
    RayService. `missing`: what the pods refer to by name and is not there, as (kind, name). `stuck`: pods that do not
    run, and why. `ray_version`: of who asks.
    """

    namespace: str
    ray_version: str
    nodes: tuple[KubeNode, ...] | None = None
    services: tuple[Service, ...] | None = None
    elsewhere: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    monitors: int | None = None
    rules: int | None = None
    stuck: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Offer:
    """So many cells of so many GPUs, under a label or none."""

    label: str | None
    gpus: int
    count: int


def of_kubernetes(family: Family, seen: Kubernetes) -> Iterator[Finding]:
    for api in seen.absent:
        yield _absent(api)
    if seen.services is not None and "ray.io/v1" not in seen.absent:
        yield from _services(family, seen)
    if seen.nodes is not None and family.accelerator == "cuda":
        yield from _nodes(family, seen.nodes)
    for kind, name in seen.missing:
        yield Finding(
            where=f"namespace {seen.namespace}",
            found=f"no {kind} {name!r}",
            expected="what the RayService refers to",
            mend=f"{_creation(kind, name, seen.namespace)}, as k8s/README.md says",
        )
    for kind, count in (("PodMonitor", seen.monitors), ("PrometheusRule", seen.rules)):
        if count == 0 and seen.services and "monitoring.coreos.com/v1" not in seen.absent:
            yield Finding(
                where=f"namespace {seen.namespace}",
                found=f"no {kind}",
                expected="one",
                mend="apply the manifests: kubectl apply -k k8s/overlays/...",
            )
    for pod, reason in seen.stuck.items():
        yield Finding(
            where=f"pod {pod}",
            found=reason,
            expected="it runs",
            mend=f"kubectl -n {seen.namespace} describe pod {pod}",
        )


def _creation(kind: str, name: str, namespace: str) -> str:
    """No manifest of ours holds a secret."""
    if kind == "Secret":
        return f"kubectl -n {namespace} create secret generic {name} --from-literal=..."
    return "apply the manifests again, or create it"


def _absent(api: str) -> Finding:
    operator = "the KubeRay operator" if api.startswith("ray.io") else "prometheus-operator"
    return Finding(
        where="cluster",
        found=f"{api} is not installed",
        expected=f"the custom resources of {operator}",
        mend=f"install {operator}",
    )


def _services(family: Family, seen: Kubernetes) -> Iterator[Finding]:
    services = seen.services or ()
    if not services:
        there = ", ".join(seen.elsewhere)
        yield Finding(
            where=f"namespace {seen.namespace}",
            found=f"no RayService here, but in {there}" if there else "no RayService, here or elsewhere",
            expected="one",
            mend=f"give --namespace {seen.elsewhere[0]}" if there else "apply the manifests: kubectl apply -k k8s/...",
        )
    for service in services:
        where = f"RayService {service.name}"
        if service.unready:
            yield Finding(
                where=where,
                found=service.unready,
                expected="condition Ready",
                mend=f"kubectl -n {seen.namespace} describe rayservice {service.name}",
            )
        if service.ray_version != seen.ray_version:
            yield Finding(
                where=where,
                found=f"rayVersion {service.ray_version or 'not given'}",
                expected=seen.ray_version,
                mend="build the image from this version, or ask with the version that is served",
            )
        yield from _groups(family, where, service.groups, seen.nodes)


def _groups(
    family: Family, where: str, groups: Sequence[WorkerGroup], nodes: Sequence[KubeNode] | None
) -> Iterator[Finding]:
    for group in groups:
        if group.cell is not None and group.cell not in _labels(family):
            yield _unknown(family, f"{where}, worker group {group.name}", group.cell, "render the manifests again")
        if nodes is not None and group.most and not any(group.selector.items() <= n.labels.items() for n in nodes):
            yield _unselected(f"{where}, worker group {group.name}", group.selector, nodes)
    for cell, found in _short(family, [_Offer(group.cell, group.gpus, group.most) for group in groups]):
        yield Finding(
            where=f"{where}, cells.{cell.name}",
            found=f"worker groups for {found} of them",
            expected=f"{cell.count} of {cell.gpus} GPUs",
            mend="render the manifests again: moray render k8s",
        )


def _unselected(where: str, selector: Mapping[str, str], nodes: Sequence[KubeNode]) -> Finding:
    """The first label that no node carries; all are carried, but not together, where there is none."""
    carried = {label for node in nodes for label in node.labels.items()}
    wrong = next((f"{key}={value}" for key, value in selector.items() if (key, value) not in carried), "")
    meant = nearest(wrong, (f"{key}={value}" for key, value in carried))
    shown = wrong or ",".join(f"{key}={value}" for key, value in selector.items())
    return Finding(
        where=where,
        found=f"no node carries {shown}",
        expected="a node that nodeSelector matches" + (f" (is {meant} meant?)" if meant else ""),
        mend=f"kubectl label node NAME {shown.replace(',', ' ')}, or mend nodeSelector, or let the pool of nodes grow",
    )


def _nodes(family: Family, nodes: Sequence[KubeNode]) -> Iterator[Finding]:
    for node in nodes:
        where = f"node {node.name}"
        label = node.labels.get(CELL_LABEL)
        misspelt = None if label is not None else nearest(CELL_LABEL, node.labels, SURELY)
        if misspelt is not None:
            yield Finding(
                where=where,
                found=f"label {misspelt}",
                expected=CELL_LABEL,
                mend=f"kubectl label node {node.name} {CELL_LABEL}={node.labels[misspelt]} {misspelt}-",
            )
        elif label is not None and label not in _labels(family):
            relabel = f"kubectl label --overwrite node {node.name} {CELL_LABEL}="
            yield _unknown(family, where, label, f"{relabel}{nearest(label, _labels(family)) or 'CELL'}")
        elif not node.ready and node.gpus:
            yield Finding(
                where=where, found="is not ready", expected="ready", mend=f"kubectl describe node {node.name}"
            )
    offers = [_Offer(node.labels.get(CELL_LABEL), node.gpus, 1) for node in nodes if node.gpus]
    for cell, found in _short(family, offers):
        yield Finding(
            where=f"cells.{cell.name}",
            found=f"nodes for {found} of them",
            expected=f"{cell.count} of {cell.gpus} GPUs",
            mend="add nodes, or lower cells in the family file; `moray plan` says what then runs",
        )


def _unknown(family: Family, where: str, label: str, mend: str) -> Finding:
    meant = nearest(label, _labels(family))
    known = ", ".join(cell.name for cell in family.cells)
    return Finding(
        where=where,
        found=f"{CELL_LABEL}={label}",
        expected=f"a cell of the family file: {known}" + (f" (is {meant} meant?)" if meant else ""),
        mend=mend,
    )


def _labels(family: Family) -> tuple[str, ...]:
    """Of kinds and of single cells."""
    return tuple(dict.fromkeys(name for cell in family.cells for name in (cell.name, *cell.instances)))


def _short(family: Family, offers: Sequence[_Offer]) -> Iterator[tuple[Cell, int]]:
    """Kinds of cells of which there are not as many as the family says, and how many there are.

    Larger cells take what is unlabelled first: a smaller one could take what only they can use. A label of no cell is
    told elsewhere, and counts as none here.
    """
    known, most = _labels(family), sum(cell.count for cell in family.cells)
    spare = [offer for offer in offers for _ in range(min(offer.count, most)) if offer.label not in known]
    for cell in sorted(family.cells, key=lambda cell: -cell.gpus):
        found = _named(cell, offers)
        fitting = sorted((offer for offer in spare if offer.gpus >= cell.gpus), key=lambda offer: offer.gpus)
        for offer in fitting[: max(0, cell.count - found)]:
            spare.remove(offer)
            found += 1
        if found < cell.count:
            yield cell, found


def _named(cell: Cell, offers: Sequence[_Offer]) -> int:
    """Cells that are there by label. Several nodes with the label of one cell are that cell together."""
    own = {name: sum(o.gpus * o.count for o in offers if o.label == name) for name in cell.instances}
    named = sum(gpus >= cell.gpus for gpus in own.values())
    if cell.count == 1:
        return named
    return named + sum(offer.count for offer in offers if offer.label == cell.name and offer.gpus >= cell.gpus)
