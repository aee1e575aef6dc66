"""More requests than a tier can hold, and fewer than it is awake for; and a replica of several ranks that loses one."""

import shutil
from pathlib import Path

import pytest
from integration.conftest import Family, Stage
from integration.server import QUIET_S, Server, eventually
from integration.talk import (
    ASK,
    CANCELLED_S,
    LONG,
    RESTART_S,
    Stream,
    assert_company_changes_nothing,
    idle,
    running,
    serves,
    simulated,
    status,
    whole,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def server(stage: Stage, small_family: Family) -> Server:
    return stage.serve("small", small_family)


def test_a_full_tier_refuses_at_once_and_says_when_to_come_again(server: Server) -> None:
    first = Stream(server, "narrow", 600).begun()
    second = Stream(server, "narrow", 20, seed=2)
    eventually(lambda: server.metric("moray_held_requests", tier="narrow") == 1, QUIET_S, "one waits")
    for stream in (False, True):
        body = {"model": "narrow", "messages": ASK, "stream": stream, "max_tokens": 2}
        refused = server.http().post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert first.ended().text == simulated(1, 600)
    assert second.ended().text == simulated(2, 20)


def test_two_hundred_requests_wake_a_sleeping_tier_once(server: Server) -> None:
    eventually(lambda: not server.replicas("sleepy"), RESTART_S, "asleep")
    streams = [Stream(server, "sleepy", 10, seed=seed) for seed in range(200)]
    seen: list[int] = []

    def ended() -> bool:
        seen.append(len(server.replicas("sleepy")))
        return not any(stream.is_alive() for stream in streams)

    eventually(ended, QUIET_S, "all answered")
    assert [stream.error for stream in streams] == [None] * 200
    assert [stream.text for stream in streams] == [simulated(seed, 10) for seed in range(200)]
    assert 1 <= max(seen) <= 2
    eventually(lambda: not server.replicas("sleepy"), RESTART_S, "asleep again")


def test_a_tier_that_cannot_start_says_so_and_starts_once_mended(server: Server, endless: Path) -> None:
    for _ in range(2):  # the first waits in vain, the second is told at once
        assert status(server, "broken") == "start_timeout"
    assert serves(server, "turbo")
    shutil.copy(endless / "model.safetensors", server.scratch / "broken")
    eventually(lambda: serves(server, "broken"), RESTART_S, "mended")


def test_an_expert_group_tells_one_text_for_one_seed_alone_and_in_company(server: Server) -> None:
    assert_company_changes_nothing(server, "pro", whole(server, "pro", 60, seed=7))


def test_a_client_that_hangs_up_frees_its_place_on_every_rank(server: Server) -> None:
    leaving = [Stream(server, "pro", LONG, seed=seed).begun() for seed in range(2)]
    assert running(server, "pro") == 2
    for stream in leaving:
        stream.hang_up()
    eventually(lambda: idle(server, "pro"), CANCELLED_S, "cancelled")


def test_a_killed_rank_pauses_the_streams_of_its_group_which_go_on_where_they_stopped(server: Server) -> None:
    hit, other = Stream(server, "pro", LONG, seed=3).begun(), Stream(server, "mini", LONG, seed=5).begun()
    (rank,) = server.processes("ray::Rank.follow")
    rank.kill()
    assert (hit.ended().finish_reason, hit.error) == ("length", None)
    assert (other.ended().finish_reason, other.error) == ("length", None)
    assert hit.text == whole(server, "pro", LONG, seed=3), "not the text of an unbroken run"
    assert other.text == whole(server, "mini", LONG, seed=5)


def test_a_rank_killed_while_its_group_loads_does_not_hold_up_the_next_start(server: Server) -> None:
    (replica,) = server.replicas("pro")
    (before,) = server.processes("ray::Rank")
    replica.kill()
    loading = eventually(lambda: [p for p in server.processes("ray::Rank") if p != before], RESTART_S, "a new rank")
    loading[0].kill()
    eventually(lambda: serves(server, "pro"), RESTART_S, "pro serves again")
