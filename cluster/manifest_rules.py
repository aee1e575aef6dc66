"""What is wrong with manifests that no schema catches: what the operator refuses, and what contradicts the family.

Each rule is a function from a RayService, or from all objects, to faults in the form `what: given; allowed; mend`.
"""

from collections.abc import Iterator, Mapping, Sequence

from cluster.family import Family
from cluster.manifest_operator import SERVICE_RULES, Object, containers, groups
from cluster.placement import CELL_LABEL, CPU_RESOURCE


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
    for where, group in groups(service):
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
    given = sum(
        int(ray.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for ray in containers(group)[:1]
    )
    if given != gpus:
        yield f"{group['groupName']}: a limit of {given} for nvidia.com/gpu; {gpus} are in the cell; set as many"


def _is_object(each: Object) -> bool:
    metadata = each.get("metadata")
    return "kind" in each and isinstance(metadata, Mapping) and "name" in metadata


def _called(each: Object) -> str:
    return f"{each['kind']} {each['metadata']['name']}"


def _named(each: Object) -> Iterator[tuple[str, str]]:
    """What the pods of an object name. Claims for checkpoints are made by hand: their storage is not ours."""
    if each["kind"] == "RayService":
        templates = [group["template"] for _, group in groups(each)]
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
