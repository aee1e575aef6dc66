"""`moray render k8s`: what is committed is what it writes; what cannot run is refused before it is written."""

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from integration.families import spread, written
from k8s.manifests import K8S, kustomized, service_of

from cluster.errors import PlacementError
from cluster.family import Family, load, parse
from cluster.manifest_rules import faults
from cluster.manifests import documents, hosts_of_group, inside
from deployments.cli import main
from deployments.render import rendered, setting

IMAGE = "moray:0.1.0"


@pytest.mark.parametrize("name", ["h200", "laptop"])
def test_what_is_committed_is_what_is_rendered(name: str) -> None:
    found = {file.name: file.read_text(encoding="utf-8") for file in (K8S / "families" / name).iterdir()}
    mend = f"moray --family {name} render k8s"
    assert found == rendered(load(name, serving=False), IMAGE), mend


@pytest.mark.parametrize("name", ["h200", "laptop"])
def test_the_family_comes_back_from_its_config_map(name: str) -> None:
    family = load(name, serving=False)
    config, _ = documents(family, setting(IMAGE))
    assert parse(config["data"]["family.yaml"], "config map") == inside(family, setting(IMAGE))


def test_checkpoints_that_ship_are_where_the_image_has_them() -> None:
    family = inside(load("laptop"), setting(IMAGE))
    here = Path(setting(IMAGE).shipped)
    for tier in family.tiers.values():
        rest = Path(tier.checkpoint).relative_to(setting(IMAGE).packages)
        assert (here / rest / "model.safetensors").is_file()


def test_a_changed_family_is_another_config_map_and_so_another_pod() -> None:
    before = load("h200", serving=False)
    after = before.model_copy(update={"gpu_usd_per_hour": 4.0})
    (config, service), (other, changed) = (documents(each, setting(IMAGE)) for each in (before, after))
    assert config["metadata"]["name"] != other["metadata"]["name"]
    assert service["spec"]["rayClusterConfig"] != changed["spec"]["rayClusterConfig"]


def family(tmp_path: Path, **changes: Any) -> Family:
    return load(written(tmp_path, spread(tmp_path, 8000) | changes))


def workers(family: Family) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = documents(family, setting(IMAGE))[1]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return groups


def test_a_kind_of_cell_is_a_group_that_may_shrink_to_what_always_runs(tmp_path: Path) -> None:
    (group,) = workers(family(tmp_path))
    assert (group["groupName"], group["replicas"], group["maxReplicas"], group["numOfHosts"]) == ("node", 4, 4, 1)
    assert group["minReplicas"] == 1  # pro of 4 ranks and turbo always run
    assert group["resources"] == {"CPU": "96", "GPU": "8"}


def test_a_group_wider_than_a_cell_comes_and_goes_as_so_many_hosts(tmp_path: Path) -> None:
    wide = family(tmp_path, cells=[{"name": "node", "count": 8, "gpus": 4}])
    (group,) = workers(wide)
    assert (group["numOfHosts"], group["maxReplicas"]) == (2, 4)


@pytest.mark.parametrize(
    "cells",
    [
        [{"name": "node", "count": 7, "gpus": 4}],
        [{"name": "node", "count": 6, "gpus": 4}, {"name": "other", "count": 2, "gpus": 4}],
    ],
)
def test_hosts_that_make_no_whole_group_are_refused(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    with pytest.raises(PlacementError, match=r"a group of 8 ranks spans 2 of them.* is allowed; change the cells"):
        workers(family(tmp_path, cells=cells))


@given(gpus=st.integers(1, 64), count=st.integers(1, 64))
def test_so_many_hosts_hold_the_widest_group_and_one_less_does_not(gpus: int, count: int) -> None:
    base = load("h200", serving=False)
    cell = base.cells[0].model_copy(update={"gpus": gpus, "count": count})
    wide = base.model_copy(update={"cells": (cell,)})
    try:
        hosts = hosts_of_group(wide, cell)
    except PlacementError:
        assert count % -(-8 // gpus)
    else:
        assert count % hosts == 0
        assert (hosts - 1) * gpus < 8 <= hosts * gpus


def test_only_a_family_without_video_is_upgraded_beside_itself(tmp_path: Path) -> None:
    def strategy(family: Family) -> str:
        return str(documents(family, setting(IMAGE))[1]["spec"]["upgradeStrategy"]["type"])

    both = family(tmp_path)
    assert strategy(both) == "None"
    assert strategy(both.model_copy(update={"video": None})) == "NewCluster"


def test_a_family_that_its_cells_cannot_hold_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, spread(tmp_path, 8000) | {"cells": [{"name": "node", "count": 1, "gpus": 8}]})
    assert main(["--family", str(file), "render", "k8s", "--out", str(tmp_path / "out")]) == 1
    assert "needs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    assert main(["--family", "h200", "render", "k8s", "--out", str(tmp_path / "out")]) == 1
    assert "--out" in capsys.readouterr().err


def test_an_overlay_is_checked_against_its_family(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = kustomized(K8S / "overlays" / "h200")
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["--family", "h200", "render", "k8s", "--check", "-"]) == 0
    assert "agree with h200" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(text.replace("moray/cell: h200", "moray/cell: h20")))
    assert main(["--family", "h200", "render", "k8s", "--check", "-"]) == 1
    assert "moray/cell is 'h20'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a: [", "just words", "- 1", "kind: RayService"])
def test_what_is_no_manifest_is_refused_in_words(tmp_path: Path, text: str) -> None:
    file = tmp_path / "given.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["--family", "h200", "render", "k8s", "--check", str(file)]) == 1


def test_every_secret_is_named_and_none_is_there() -> None:
    objects = list(yaml.safe_load_all(kustomized(K8S / "overlays" / "h200")))
    cluster = service_of(objects)["spec"]["rayClusterConfig"]
    assert cluster["authOptions"]["secretName"] == "moray-ray"
    assert "Secret" not in {each["kind"] for each in objects}
    assert not faults(load("h200", serving=False), objects)


def test_a_missing_reference_to_redis_is_said() -> None:
    objects = list(yaml.safe_load_all(kustomized(K8S / "overlays" / "h200")))
    service_of(objects)["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"].pop("redisPassword")
    assert any("redisPassword" in fault for fault in faults(load("h200", serving=False), objects))
