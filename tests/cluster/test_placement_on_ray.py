"""The reservations of the plan on a real Ray: bundles, the cell's label, and what happens where there is no room."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.family import load
from cluster.fleet import Node
from cluster.placement import CELL_LABEL, CPU_RESOURCE, bundles, observed_cells, selector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cell a with 1 slot, cell b with 2."""
    common = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = Cluster()
    nodes.add_node(**common, resources={CPU_RESOURCE: 1}, labels={CELL_LABEL: "a"})
    nodes.add_node(**common, resources={CPU_RESOURCE: 2}, labels={CELL_LABEL: "b"})
    ray.init(address=nodes.address, log_to_driver=False)
    yield
    ray.shutdown()
    nodes.shutdown()


def cell_of(bundle: list[dict[str, float]], where: dict[str, str], wait_s: float = 30) -> str | None:
    """The cell in which Ray reserves it in time, None where it does not."""
    group = placement_group(bundle, strategy="STRICT_PACK", bundle_label_selector=[where] * len(bundle))
    try:
        ray.get(group.ready(), timeout=wait_s)
    except ray.exceptions.GetTimeoutError:
        return None
    finally:
        table = ray.util.placement_group_table(group)
        remove_placement_group(group)
    names = {node["NodeID"]: node["Labels"][CELL_LABEL] for node in ray.nodes()}
    (name,) = {names[node_id] for node_id in table["bundles_to_node_id"].values()}
    return str(name)


@pytest.mark.usefixtures("two_cells")
def test_a_group_of_two_ranks_lands_in_the_selected_cell_that_holds_it_and_nowhere_else() -> None:
    group = bundles(load("laptop").tiers["pro"], "cpu")
    assert cell_of(group, selector(["b"])) == "b"
    assert cell_of(group, selector(["a", "b"])) == "b"
    assert cell_of(group, selector(["a"]), wait_s=3) is None


@pytest.mark.usefixtures("two_cells")
def test_the_cells_of_a_running_cluster_are_those_of_its_labels() -> None:
    nodes = [
        Node(
            name=node["NodeID"],
            gpus=int(node["Resources"].get(CPU_RESOURCE, 0)),
            free_gpus=int(node["Resources"].get(CPU_RESOURCE, 0)),
            labels=node["Labels"],
        )
        for node in ray.nodes()
    ]
    assert sorted((cell.name, cell.gpus) for cell in observed_cells(nodes)) == [("a", 1), ("b", 2)]
