"""What a client sees when a part dies under its request: a pause, or an error that says so, never a bare end.

Every fault is tried on both ways that tokens can take from a replica to the gateway.
"""

from functools import partial
from pathlib import Path

import pytest
from integration.conftest import Family, Stage
from integration.server import Server, eventually
from integration.talk import (
    CANCELLED_S,
    LONG,
    RESTART_S,
    Stream,
    assert_company_changes_nothing,
    idle,
    running,
    serves,
    simulated,
    whole,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["pushed", "streamed"])
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(stage: Stage, small_family: Family, path: str) -> Server:
    def family(folder: Path, port: int) -> dict[str, object]:
        raw = small_family(folder, port)
        tiers = {key: raw["tiers"][key] for key in ("mini", "turbo")}
        return raw | {"gateway": raw["gateway"] | {"tokens": path}, "tiers": tiers}

    return stage.serve("small", small_family) if path == "pushed" else stage.serve("streamed", family)


def test_one_seed_gives_one_text_on_every_path_alone_and_in_company(server: Server, told: dict[str, str]) -> None:
    alone = whole(server, "mini", 60, seed=7)
    assert told.setdefault("mini", alone) == alone, "another token path told another text"
    assert_company_changes_nothing(server, "mini", alone)


def test_every_token_of_many_streams_arrives_once_and_in_order(server: Server) -> None:
    streams = {seed: Stream(server, "turbo", 200, seed=seed) for seed in range(8)}
    for seed, stream in streams.items():
        assert (stream.ended().text, stream.finish_reason) == (simulated(seed, 200), "length")


@pytest.mark.parametrize("tier", ["turbo", "mini"])
def test_a_client_that_hangs_up_frees_its_place_and_disturbs_nobody(server: Server, tier: str) -> None:
    leaving, staying = Stream(server, tier, LONG, seed=1).begun(), Stream(server, tier, 600, seed=2).begun()
    assert running(server, tier) == 2
    leaving.hang_up()
    eventually(lambda: running(server, tier) != 2, CANCELLED_S, "cancelled")
    assert (staying.ended().finish_reason, staying.error) == ("length", None)
    assert staying.text == whole(server, tier, 600, seed=2)
    eventually(lambda: idle(server, tier), CANCELLED_S, "all ended")


@pytest.mark.parametrize(("tier", "bystander"), [("turbo", "mini"), ("mini", "turbo")])
def test_a_killed_replica_pauses_its_streams_which_go_on_where_they_stopped(
    server: Server, tier: str, bystander: str
) -> None:
    hit, other = Stream(server, tier, LONG, seed=3).begun(), Stream(server, bystander, LONG, seed=5).begun()
    (replica,) = server.replicas(tier)
    replica.kill()
    assert (hit.ended().finish_reason, hit.error) == ("length", None)
    assert (other.ended().finish_reason, other.error) == ("length", None)
    assert hit.text == whole(server, tier, LONG, seed=3), "not the text of an unbroken run"
    assert other.text == whole(server, bystander, LONG, seed=5)
    assert server.metric("moray_resumed_total", tier=tier) >= 1


def test_a_killed_gateway_takes_its_requests_along_and_is_replaced(server: Server) -> None:
    hit = [Stream(server, tier, LONG).begun() for tier in ("turbo", "mini")]
    (gateway,) = server.gateways()
    gateway.kill()
    for stream in hit:
        assert stream.ended(30).finish_reason is None
        assert stream.error is not None, "the connection ended as if the answer were whole"
    for tier in ("turbo", "mini"):
        eventually(partial(serves, server, tier), RESTART_S, f"{tier} serves again")
        eventually(partial(idle, server, tier), CANCELLED_S, f"the work of the lost requests in {tier} ended")
