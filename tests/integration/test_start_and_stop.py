"""`moray up` either serves or says why not; stopped at any moment, it leaves nothing behind."""

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import Family, Stage
from integration.server import STOP_S, Server, eventually

pytestmark = pytest.mark.slow

REFUSED_S = 90.0


@contextmanager
def starting(stage: Stage, family: Family) -> Iterator[Server]:
    server = stage.start(family)
    try:
        yield server
        assert server.left_behind() == []
        assert "Traceback" not in server.output
        shutil.rmtree(server.scratch)
    finally:
        server.destroy()


def refusal(server: Server) -> str:
    """What it printed in the end, once it has given up."""

    def ended() -> bool:
        server.processes()  # so that none of them goes unnoticed
        return server.exit_code is not None

    eventually(ended, REFUSED_S, "exit")
    assert server.exit_code == 1, server.output
    return server.output[server.output.index("moray: ") :].strip()


def only(family: Family, **change: Any) -> Family:
    """The family with its one torch tier changed, and a simulated one beside it."""

    def changed(folder: Path, port: int) -> dict[str, Any]:
        raw = family(folder, port)
        tiers = raw["tiers"]
        return raw | {"tiers": {"turbo": tiers["turbo"], "mini": tiers["mini"] | change}}

    return changed


def test_a_port_in_use_is_refused_before_anything_starts(stage: Stage, small_family: Family) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with starting(stage, lambda folder, _: small_family(folder, port)) as server:
            said = refusal(server)
            assert said == (
                f"moray: gateway: 127.0.0.1:{port}: Address already in use; a free port is needed; stop the other "
                "program or use --port"
            )
            assert "Ray" not in server.output


def test_a_family_that_does_not_fit_is_refused_before_anything_starts(stage: Stage, small_family: Family) -> None:
    cells = {"cells": [{"name": "here", "gpus": 2}]}
    with starting(stage, lambda folder, port: small_family(folder, port) | cells) as server:
        assert "small: mini[0]: needs 1 GPUs; the emptiest cell has 0 free" in refusal(server)
        assert "Ray" not in server.output


def test_a_missing_checkpoint_is_refused_by_its_name(stage: Stage, small_family: Family, tmp_path: Path) -> None:
    with starting(stage, only(small_family, checkpoint=str(tmp_path / "gone"))) as server:
        assert refusal(server) == (
            f"moray: small: tiers.mini.checkpoint: {tmp_path / 'gone'}: no such directory; the folder of a checkpoint "
            "is needed; mend the path, or fetch or train it first"
        )
        assert "Ray" not in server.output


def test_a_checkpoint_of_another_architecture_is_refused(
    stage: Stage, small_family: Family, endless: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(endless, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with starting(stage, only(small_family, checkpoint=str(other))) as server:
        assert refusal(server) == (
            f"moray: {server.family}: tiers.mini.engine: torch with model_type llama; it computes glm4_moe alone; "
            "choose vllm, or another checkpoint"
        )
        assert "Ray" not in server.output


def test_a_cache_larger_than_the_memory_is_refused(stage: Stage, small_family: Family, endless: Path) -> None:
    with starting(stage, only(small_family, kv_tokens=2**40)) as server:
        assert f"{endless}: weights and KV cache need" in refusal(server)


@pytest.mark.parametrize("moment", ["starting Ray", "Ray is up"])
def test_ctrl_c_during_the_start_leaves_nothing_not_even_when_repeated(
    stage: Stage, small_family: Family, moment: str
) -> None:
    with starting(stage, only(small_family)) as server:
        eventually(lambda: moment in server.output, REFUSED_S, moment)
        server.interrupt()
        eventually(lambda: "stopping" in server.output, STOP_S)
        server.interrupt()
        assert server.wait(STOP_S) == 0
