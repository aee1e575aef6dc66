"""The family on four simulated nodes of eight GPUs: Ray, placement and scaling are real, GPUs and engines are not."""

from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from integration.conftest import Stage
from integration.families import spread
from integration.server import Server, eventually

pytestmark = pytest.mark.slow

NODES = 4
UPDATE_S = 60.0
GROUPS = {"ultra": 1, "pro": 2, "turbo": 2}


@pytest.fixture
def server(stage: Stage) -> Server:
    return stage.serve("spread", spread, NODES)


def pids(server: Server) -> dict[str, set[int]]:
    return {key: {process.pid for process in server.replicas(key)} for key in GROUPS}


def node_of(replica: psutil.Process) -> int:
    """A node's raylet is the parent of all that runs there."""
    return replica.ppid()


def test_it_says_that_it_is_a_rehearsal(server: Server) -> None:
    assert f"a rehearsal: {NODES} nodes of 8 GPUs and all engines are simulated" in server.output


def test_all_groups_start_each_on_one_node_and_no_node_holds_more_than_its_gpus(server: Server) -> None:
    assert {key: len(found) for key, found in pids(server).items()} == GROUPS
    ranks = {"ultra": 8, "pro": 4, "turbo": 1}
    held: dict[int, int] = {}
    for key, of_one in ranks.items():
        for replica in server.replicas(key):
            held[node_of(replica)] = held.get(node_of(replica), 0) + of_one
    (head,) = {node_of(gateway) for gateway in server.gateways()}
    assert head not in held
    assert len(server.processes("ray::RuntimeEnvAgent")) == NODES + 1
    assert max(held.values()) <= 8


def test_every_tier_answers(server: Server) -> None:
    client = server.client()
    for key in GROUPS:
        answer = client.chat.completions.create(
            model=key, messages=[{"role": "user", "content": "hi"}], max_completion_tokens=4
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4


def test_a_video_is_rendered_beside_the_groups_and_not_on_the_head(server: Server) -> None:
    http = server.http()
    job = {"model": "sora-2", "prompt": "a wave", "seconds": "1", "size": "64x64"}
    made = http.post("/v1/videos", json=job).raise_for_status().json()
    (worker,) = eventually(server.workers, UPDATE_S, "a video worker")
    (head,) = {node_of(gateway) for gateway in server.gateways()}
    assert node_of(worker) != head
    eventually(lambda: http.get(f"/v1/videos/{made['id']}").json()["status"] == "completed", UPDATE_S, "rendered")


def test_an_edited_tier_is_replaced_while_the_others_keep_their_processes(server: Server) -> None:
    before = pids(server)

    def fewer(raw: dict[str, Any]) -> None:
        raw["tiers"]["turbo"]["max_running"] = 7

    server.edit(fewer)
    eventually(lambda: server.output.count("\nchanged") == 1, UPDATE_S, "changed")
    assert "tiers.turbo.max_running: 8 -> 7" in server.output
    eventually(lambda: len(pids(server)["turbo"]) == GROUPS["turbo"], UPDATE_S, "turbo is back")
    after = pids(server)
    assert after["turbo"].isdisjoint(before["turbo"])
    assert (after["ultra"], after["pro"]) == (before["ultra"], before["pro"])


def test_an_edit_that_needs_a_restart_is_refused_and_the_family_goes_on(server: Server) -> None:
    before = pids(server)

    def renamed(raw: dict[str, Any]) -> None:
        raw["name"] = "other"

    server.edit(renamed)
    eventually(lambda: "not changed: spread: name: spread -> other" in server.output, UPDATE_S, "refused")
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert pids(server) == before


def test_ctrl_c_leaves_nothing(stage: Stage, server: Server) -> None:
    """`Stage.clear` asserts it: exit code 0, no process, port or folder left."""
    scratch: Path = server.scratch
    stage.clear()
    assert not scratch.exists()
