"""The router as Serve builds it, without a cluster; replicas are as much of Serve's as a router looks at."""

import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentHandleSource, DeploymentID
from ray.serve.request_router import ReplicaID
from shell import TIER, chat

from cluster.family import Tier
from cluster.fleet import DEAD
from cluster.request import Message
from deployments import router as module
from deployments import seen
from deployments.router import CHARS_PER_TOKEN, LatencyRouter

SPEC = Tier.model_validate(TIER | {"names": ["mini"]}).model_dump(mode="json")
APP = DeploymentID("mini", "moray")
IDLE: dict[str, float] = {
    "running": 0,
    "waiting": 0,
    "waiting_prefill_tokens": 0,
    "kv_used_tokens": 0,
    "kv_capacity_tokens": 65_536,
    "step_ms": 10.0,
    "prefill_us_per_token": 1.0,
}
FULL = IDLE | {"running": 64, "waiting": 100, "waiting_prefill_tokens": 50_000, "kv_used_tokens": 60_000}


@dataclass
class Replica:
    name: str
    routing_stats: Any = field(default_factory=dict)
    replica_metadata: dict[str, str] = field(default_factory=lambda: {"metrics": "10.0.0.1:9"})

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, APP)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_replicas", {})
    monkeypatch.setattr(seen, "routing_decisions", Counter())
    monkeypatch.setattr(seen, "routing_errors", Counter())


def built() -> LatencyRouter:
    router = LatencyRouter(deployment_id=APP, handle_source=DeploymentHandleSource.REPLICA)
    router.initialize_state(tier="mini", spec=SPEC)
    router._rng = random.Random(7)
    return router


def pending(*arguments: Any) -> Any:
    return SimpleNamespace(args=list(arguments), routing_context=SimpleNamespace(should_backoff=False))


def names(ranks: list[list[Any]]) -> list[str]:
    return [replica.name for rank in ranks for replica in rank]


async def test_the_replica_with_the_least_predicted_latency_goes_first() -> None:
    router, replicas = built(), [Replica("full", FULL), Replica("idle", IDLE)]
    router.update_replicas(replicas)
    assert names(await router.choose_replicas(replicas, pending(chat()))) == ["idle", "full"]
    assert seen.routing_decisions == {("mini", "predicted"): 1}


async def test_a_replica_that_says_it_is_dead_is_the_last_to_be_asked() -> None:
    router, replicas = built(), [Replica("dead", IDLE), Replica("full", FULL)]
    router.update_replicas(replicas)
    replicas[0].routing_stats = dict(DEAD)
    router.update_replicas(replicas)
    assert names(await router.choose_replicas(replicas, pending(chat()))) == ["full", "dead"]


async def test_the_reason_of_a_choice_is_in_the_log_of_who_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    router, replicas = built(), [Replica("full", FULL), Replica("idle", IDLE)]
    router.update_replicas(replicas)
    caplog.set_level(logging.DEBUG, "ray.serve")
    await router.choose_replicas(replicas, pending(chat()))
    assert "tier mini: idle first: 1 predicted to keep the SLO" in caplog.text


anything = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.fixed_dictionaries({}, optional={name: st.none() | st.integers() | st.floats() | st.text() for name in IDLE}),
    st.fixed_dictionaries({name: st.integers(0, 10**9) | st.floats(0, 1e308) for name in IDLE}),
)


@settings(deadline=None)
@given(stats=st.lists(anything, max_size=6), arguments=st.lists(st.just(chat()) | anything, max_size=2))
async def test_every_candidate_is_ranked_once_whatever_the_reports_and_the_request_look_like(
    stats: list[Any], arguments: list[Any]
) -> None:
    router = built()
    replicas: Any = [Replica(str(number), each) for number, each in enumerate(stats)]
    request = pending(*arguments)
    router.update_replicas(replicas)
    ranks = await router.choose_replicas(replicas, request)
    assert sorted(names(ranks)) == sorted(replica.name for replica in replicas)
    assert request.routing_context.should_backoff
    for replica in replicas:
        router.on_request_routed(request, replica.replica_id, None)
    assert len(await router.choose_replicas(replicas, None)) == len(replicas)
    assert seen.routing_errors == {}


async def test_a_policy_that_raises_leaves_the_choice_to_serve_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "order", broken)
    router, replicas = built(), [Replica("a", IDLE), Replica("b", IDLE)]
    router.update_replicas(replicas)
    request = pending(chat())
    assert await router.choose_replicas(replicas, request) == [replicas]
    assert request.routing_context.should_backoff
    assert seen.routing_errors == {"mini": 1}


async def test_candidates_that_were_never_announced_are_ranked_too() -> None:
    replicas = [Replica("a", IDLE), Replica("b", IDLE)]
    assert sorted(names(await built().choose_replicas(replicas, pending(chat())))) == ["a", "b"]


async def test_what_was_sent_since_the_last_report_counts_until_the_next() -> None:
    router, replicas = built(), [Replica("a", IDLE | {"beat_s": 1.0}), Replica("b", IDLE | {"beat_s": 1.0})]
    router.update_replicas(replicas)
    for _ in range(5):
        router.on_request_routed(pending(chat()), replicas[0].replica_id, None)
    assert names(await router.choose_replicas(replicas, pending(chat())))[0] == "b"
    assert router._candidate("a", replicas[0]).sent_requests == 5

    router.update_replicas(replicas)  # the same report again is no news
    assert router._candidate("a", replicas[0]).sent_requests == 5

    replicas[0].routing_stats = IDLE | {"beat_s": 2.0}
    router.update_replicas(replicas)
    assert router._candidate("a", replicas[0]).sent_requests == 0


async def test_a_sent_request_counts_with_its_prompt() -> None:
    router, replica = built(), Replica("a", IDLE)
    router.update_replicas([replica])
    long = chat()
    long = type(long)(
        request_id="r", model="mini", messages=(Message(role="user", content="x" * 300),), sampling=long.sampling
    )
    for request in (pending(long), pending(), pending("no chat")):
        router.on_request_routed(request, replica.replica_id, None)
    assert router._candidate("a", replica).sent_prefill_tokens == 300 // CHARS_PER_TOKEN + 1 + 1 + 1


async def test_replicas_that_are_gone_are_forgotten() -> None:
    router, stays, goes = built(), Replica("stays", IDLE), Replica("goes", IDLE)
    router.update_replicas([stays, goes])
    router.update_replicas([stays])
    router.on_request_routed(pending(chat()), goes.replica_id, None)  # it was chosen before it went
    router.update_replicas([stays])
    for remembered in (router._stats, router._reports, router._sent):
        assert set(remembered) == {"stays"}


async def test_the_process_learns_which_replicas_there_are() -> None:
    router = built()
    assert seen.replicas("mini") == ()
    router.update_replicas([Replica("a", IDLE), Replica("b", IDLE, {})])
    assert seen.replicas("mini") == (
        seen.SeenReplica(replica_id="a", metrics_address="10.0.0.1:9"),
        seen.SeenReplica(replica_id="b", metrics_address=""),
    )
    router.update_replicas([])
    assert seen.everywhere() == {"mini": ()}
