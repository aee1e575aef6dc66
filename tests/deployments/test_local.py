import re
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from shell import family

from cluster.errors import ConfigurationError
from cluster.family import Cell
from deployments import local

PATHS = ("CONFIG_FILE_LOC", "SOCKET_PATH", "SERVER_STATE_BASE", "SERVER_STATE_FILE", "METRICS_SOCKET_PATH")


def test_a_taken_port_is_refused_with_the_mend() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"gateway: 127.0.0.1:{port}: Address already in use;.*--port"):
            local.check_port("127.0.0.1", port)
    local.check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="gateway: 203"):
        local.check_port("203.0.113.77", 8000)


def test_free_ports_are_distinct_and_below_those_of_outgoing_connections() -> None:
    ports = local.free_ports(100)
    assert len(set(ports)) == 100
    assert max(ports) < 32_768  # where Linux begins, unless told otherwise


def test_a_port_in_use_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        taken = other.getsockname()[1]
        draws = iter([taken, taken - 1, *local.free_ports(1)])
        monkeypatch.setattr(secrets, "choice", lambda _: next(draws))
        assert taken not in local.free_ports(2)


def ranges(environment: dict[str, str]) -> list[int]:
    """Every port that the environment gives away."""
    single = [int(value) for name, value in environment.items() if name.endswith("_PORT") and "INGRESS" not in name]
    for kind in ("HTTP", "GRPC"):
        first, last = (int(environment[f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT"]) for end in ("MIN", "MAX"))
        single += range(first, last + 1)
    return single


def test_no_port_of_an_environment_is_given_away_twice(tmp_path: Path) -> None:
    ports = ranges(local.environment(tmp_path))
    assert len(ports) == len(set(ports)) > 100


def test_two_environments_share_no_path(tmp_path: Path) -> None:
    first, second = local.environment(tmp_path / "a"), local.environment(tmp_path / "b")
    for name in (f"RAY_SERVE_HAPROXY_{path}" for path in PATHS):
        assert first[name].startswith(str(tmp_path / "a"))
        assert second[name].startswith(str(tmp_path / "b"))


def test_two_environments_share_no_port_while_both_are_in_use(tmp_path: Path) -> None:
    first = ranges(local.environment(tmp_path))
    sockets = [socket.socket() for _ in first]
    try:
        for each, port in zip(sockets, first, strict=True):
            each.bind(("", port))
        assert set(first).isdisjoint(ranges(local.environment(tmp_path)))
    finally:
        for each in sockets:
            each.close()


def test_serves_fast_ways_are_on(tmp_path: Path) -> None:
    given = local.environment(tmp_path)
    assert (given["RAY_SERVE_ENABLE_HA_PROXY"], given["RAY_SERVE_THROUGHPUT_OPTIMIZED"]) == ("1", "1")


def test_small_replicas_fill_nodes_before_they_take_an_empty_one(tmp_path: Path) -> None:
    assert local.environment(tmp_path)["RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"] == "1"


def test_one_machine_stands_for_one_node(tmp_path: Path) -> None:
    local.check_size(family(tmp_path))
    two = family(tmp_path).model_copy(update={"cells": (Cell(name="here", gpus=8, count=2),)})
    with pytest.raises(ConfigurationError, match=r"tested: cells: 2 nodes; one machine stands for one.*--nodes 2"):
        local.check_size(two)


def test_a_rehearsal_has_as_many_nodes_as_asked_all_their_gpus_and_simulated_engines(tmp_path: Path) -> None:
    real = family(tmp_path, video=True, engine="torch")
    told = local.rehearsed(real, 3)
    assert told.cells == (Cell(name="here", gpus=8, count=3),)
    assert told.gpu_budget_gpus == 24
    assert told.video is not None
    assert {told.video.engine, *(tier.engine for tier in told.tiers.values())} == {"simulated"}
    assert told.tiers["mini"].cold_start == real.tiers["mini"].cold_start
    local.check_checkpoints(told)


def test_a_rehearsal_needs_a_node_and_one_kind_of_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--nodes: 0; 1 and more"):
        local.rehearsed(family(tmp_path), 0)
    mixed = family(tmp_path).model_copy(update={"cells": (Cell(name="here", gpus=8), Cell(name="there", gpus=4))})
    with pytest.raises(ConfigurationError, match="--nodes: tested has the cells here, there; one kind"):
        local.rehearsed(mixed, 2)


def test_a_missing_checkpoint_is_refused_before_the_start_and_named(tmp_path: Path) -> None:
    local.check_checkpoints(family(tmp_path))  # simulated engines need none
    local.check_checkpoints(family(tmp_path, engine="torch", checkpoint=str(tmp_path)))
    with pytest.raises(ConfigurationError) as missing:
        local.check_checkpoints(family(tmp_path, video=True, engine="torch", checkpoint="/nowhere"))
    lines = missing.value.message.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [
        "tiers.mini.checkpoint",
        "tiers.turbo.checkpoint",
        "video.checkpoint",
    ]


@pytest.mark.parametrize(
    ("index", "fault"),
    [
        (
            '{"_class_name": "FluxPipeline"}',
            "model_index.json: _class_name is 'FluxPipeline'; 'WanPipeline' is allowed; give another checkpoint",
        ),
        ("[]", "a JSON object is needed"),
        ("{", "a JSON object is needed"),
    ],
)
def test_a_video_checkpoint_of_another_kind_is_refused_before_the_start(tmp_path: Path, index: str, fault: str) -> None:
    (tmp_path / "model_index.json").write_text(index)
    served = family(tmp_path, video=True)
    assert served.video is not None
    video = served.video.model_copy(update={"checkpoint": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="tested: video.checkpoint: .*" + re.escape(fault)):
        local.check_checkpoints(served.model_copy(update={"video": video}))


@pytest.mark.parametrize(
    ("engine", "settings"), [("vllm", {"vllm": {}}), ("deepspeed", {"offload": {"to": "cpu"}})], ids=str
)
def test_an_engine_whose_package_is_not_installed_is_refused_with_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)  # what Python takes for absent
    with pytest.raises(ConfigurationError) as absent:
        local.check_engines(family(tmp_path, engine=engine, **settings))
    assert absent.value.message.splitlines()[0] == (
        f"tested: tiers.mini.engine: {engine}; the package {engine} is not installed here; "
        f"pip install 'moray[{engine}]', or choose another engine"
    )


def test_engines_that_need_no_package_of_their_own_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in local.EXTRAS:
        monkeypatch.setitem(sys.modules, engine, None)
    local.check_engines(family(tmp_path))
    local.check_engines(family(tmp_path, engine="torch"))
