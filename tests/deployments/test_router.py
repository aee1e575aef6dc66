"""The router as Serve builds it, without a cluster; replicas are as much of Serve's as a router looks at."""

from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private.common import DeploymentHandleSource, DeploymentID
from ray.serve.request_router import ReplicaID

from cluster.fleet import DEAD
from cluster.request import Chat, Message, Sampling, Served
from deployments import router as module
from deployments import seen
from deployments.router import LatencyRouter

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
    monkeypatch.setattr(seen, "_listeners", [])
    monkeypatch.setattr(seen, "routing_errors", Counter())


def built() -> LatencyRouter:
    router = LatencyRouter(deployment_id=APP, handle_source=DeploymentHandleSource.REPLICA)
    router.initialize_state(tier="mini")
    return router


def pending(*arguments: Any) -> Any:
    return SimpleNamespace(args=list(arguments), routing_context=SimpleNamespace(should_backoff=False))


def chat() -> Chat:
    messages = (Message(role="user", content="hello"),)
    return Chat(request_id="r", model="mini", messages=messages, sampling=Sampling())


def pinned(replica: str) -> Chat:
    return replace(chat(), served=Served(tier="mini", replica=replica, queued_s=0.0))


def names(ranks: list[list[Any]]) -> list[list[str]]:
    return [[replica.name for replica in rank] for rank in ranks]


@pytest.mark.parametrize(
    ("request_of", "ranks"),
    [
        ((pinned("b"),), [["b"], ["a", "c"]]),
        ((pinned("gone"),), [["a", "b", "c"]]),
        ((chat(),), [["a", "b", "c"]]),
        (("no chat",), [["a", "b", "c"]]),
        ((), [["a", "b", "c"]]),
    ],
)
async def test_the_replica_that_was_chosen_goes_first_and_all_others_are_left_to_serve(
    request_of: tuple[Any, ...], ranks: list[list[str]]
) -> None:
    replicas: Any = [Replica(name) for name in "abc"]
    assert names(await built().choose_replicas(replicas, pending(*request_of))) == ranks


async def test_a_chosen_replica_may_be_the_only_one() -> None:
    replicas: Any = [Replica("a")]
    assert names(await built().choose_replicas(replicas, pending(pinned("a")))) == [["a"]]
    assert await built().choose_replicas([], pending(pinned("a"))) == []


anything = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.fixed_dictionaries({}, optional={name: st.none() | st.integers() | st.floats() | st.text() for name in IDLE}),
    st.fixed_dictionaries({name: st.integers(0, 10**9) | st.floats(0, 1e308) for name in IDLE}),
)


@settings(deadline=None)
@given(
    stats=st.lists(anything, max_size=6),
    arguments=st.lists(st.sampled_from([chat(), pinned("0"), pinned("9")]) | anything, max_size=2),
)
async def test_every_candidate_is_ranked_once_whatever_the_reports_and_the_request_look_like(
    stats: list[Any], arguments: list[Any]
) -> None:
    router = built()
    replicas: Any = [Replica(str(number), each) for number, each in enumerate(stats)]
    request = pending(*arguments)
    router.update_replicas(replicas)
    ranks = await router.choose_replicas(replicas, request)
    assert sorted(name for rank in names(ranks) for name in rank) == [replica.name for replica in replicas]
    assert request.routing_context.should_backoff
    assert seen.routing_errors == {}


async def test_a_choice_that_raises_is_left_to_serve_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "_ranks", broken)
    router, replicas = built(), [Replica("a", IDLE), Replica("b", IDLE)]
    router.update_replicas(replicas)
    request = pending(chat())
    assert await router.choose_replicas(replicas, request) == [replicas]
    assert request.routing_context.should_backoff
    assert seen.routing_errors == {"mini": 1}


async def test_the_process_learns_which_replicas_there_are_and_what_they_report() -> None:
    router = built()
    assert seen.replicas("mini") == ()
    router.update_replicas([Replica("a", IDLE | {"running": 3}), Replica("b", None, {})])
    a, b = seen.replicas("mini")
    assert (a.replica_id, a.metrics_address, b.metrics_address) == ("a", "10.0.0.1:9", "")
    assert a.report is not None
    assert (a.report.running, b.report) == (3, None)
    router.update_replicas([])
    assert seen.everywhere() == {"mini": ()}


async def test_a_report_is_dated_by_this_process_when_it_first_came(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 2.0, 3.0))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    router, heard = built(), list[float]()
    for beat_s in (5.0, 5.0, 6.0):
        router.update_replicas([Replica("a", IDLE | {"beat_s": beat_s})])
        report = seen.replicas("mini")[0].report
        assert report is not None
        heard.append(report.at_s)
    assert heard == [1.0, 1.0, 3.0]


async def test_a_replica_that_says_it_is_dead_is_told_as_dead() -> None:
    router = built()
    for stats, dead in ((IDLE, False), (dict(DEAD), True)):
        router.update_replicas([Replica("a", stats)])
        assert seen.replicas("mini")[0].dead == dead


async def test_a_bad_report_leaves_the_last_good_one() -> None:
    router = built()
    for stats in (IDLE, {"running": "many"}):
        router.update_replicas([Replica("a", stats)])
        assert seen.replicas("mini")[0].report is not None


async def test_replicas_that_are_gone_are_forgotten() -> None:
    router, stays, goes = built(), Replica("stays", IDLE), Replica("goes", IDLE)
    router.update_replicas([stays, goes])
    router.update_replicas([stays])
    for remembered in (router._stats, router._reports):
        assert set(remembered) == {"stays"}
