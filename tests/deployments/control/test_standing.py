"""What is served outlives the loop's process, not the Ray cluster."""

from pathlib import Path

import pytest

from cluster.family import load
from deployments.control.standing import FILE, Served, keep, served

GIVEN = load("laptop")
CHANGED = GIVEN.model_copy(update={"gpu_budget_gpus": 5})


def test_a_changed_family_is_served_again_by_the_same_cluster(tmp_path: Path) -> None:
    assert served(tmp_path, "one", GIVEN) == Served(version=1, family=GIVEN, again=False)
    assert served(tmp_path, "one", GIVEN) == Served(version=1, family=GIVEN, again=True)
    keep(tmp_path, "one", 2, CHANGED)
    assert served(tmp_path, "one", GIVEN) == Served(version=2, family=CHANGED, again=True)


def test_a_new_cluster_serves_what_it_is_given_as_a_later_version(tmp_path: Path) -> None:
    keep(tmp_path, "one", 2, CHANGED)
    assert served(tmp_path, "two", GIVEN) == Served(version=3, family=GIVEN, again=False)
    assert served(tmp_path, "two", CHANGED) == Served(version=3, family=GIVEN, again=True)


@pytest.mark.parametrize("broken", [b"", b"{}", b"\xff"])
def test_a_file_that_cannot_be_read_is_replaced(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / FILE).write_bytes(broken)
    assert served(tmp_path, "one", GIVEN) == Served(version=1, family=GIVEN, again=False)
    assert served(tmp_path, "one", GIVEN).again
