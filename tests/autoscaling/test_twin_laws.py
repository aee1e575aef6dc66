"""Laws of whole rehearsals: whatever the work, the scaling policy, the router and the failures."""

from dataclasses import dataclass, fields
from heapq import heappop
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_world import Planned, decision, family, jobs, shortest, tier, video, workload

from autoscaling.peer_routing import two_choices
from autoscaling.report import Report
from autoscaling.twin import Failure, Scenario, _Twin, rehearse
from cluster.family import Auto, Family, Plan
from cluster.loads import Router
from cluster.routing import choose
from cluster.workload import Jobs, Workload

NODE_GPUS = 4
TIERS = ("ultra", "pro", "mini")
FAMILY: Family = family(
    tier("ultra", ranks=6, quality=3, kv_tokens=12_000),
    tier("pro", ranks=2, quality=2, max_running=3),
    tier("mini", quality=1, cost={"d_ms": 5.0, "experts": 8, "top_k": 2, "c_ms_per_ktok": 1.0}),
    node_gpus=NODE_GPUS,
    video=video(gpus=2),
    auto=Auto(names=("any",), default="mini", long="pro", long_prompt_tokens=4000),
)
PLANS = {
    "small": Plan(tiers=("mini",), spill="none"),
    "large": Plan(tiers=("pro", "mini"), priority=1, share=3, floor="mini"),
}
TENANTS = ("small", "large", "free")
MODELS = ("ultra", "model-pro", "mini", "any", "nobody")


@dataclass(frozen=True)
class World:
    scenario: Scenario
    workload: Workload
    jobs: Jobs | None
    plan: dict[float, tuple[int, ...]]
    router: Router

    @property
    def scaler(self) -> Planned:
        return Planned(
            {
                at_s: decision(targets[3], **dict(zip(TIERS, targets, strict=False)))
                for at_s, targets in self.plan.items()
            },
            tick_s=5.0,
        )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    count = draw(st.integers(0, 25))
    row = st.tuples(st.floats(0, 40), st.integers(1, 10_500), st.integers(1, 120))
    rows = sorted(draw(st.lists(row, min_size=count, max_size=count)))

    def column(most: int) -> Any:
        return np.array(draw(st.lists(st.integers(0, most), min_size=count, max_size=count)), dtype=np.int64)

    blocks = None
    if draw(st.booleans()):
        blocks = tuple(tuple(range(start, start + prompt // 512)) for start, (_, prompt, _) in enumerate(rows))
    return workload(
        *rows,
        models=MODELS,
        model=column(len(MODELS) - 1).tolist(),
        tenant=column(len(TENANTS) - 1),
        tenants=TENANTS,
        blocks=blocks,
    )


failures = st.builds(Failure, at_s=st.floats(0, 60), node=st.integers(0, 5)) | st.builds(
    Failure, at_s=st.floats(0, 60), tier=st.sampled_from(TIERS)
)
rows = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 8), st.floats(0.2, 3), st.floats(40, 90)), max_size=4)
targets = st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 5), st.integers(0, 3))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    times = [0.0, *draw(st.lists(st.floats(0.5, 90), max_size=5))]
    scenario = Scenario(
        family=FAMILY,
        gpus=draw(st.none() | st.integers(1, 22)),
        cold_start_s=draw(st.none() | st.floats(0.5, 30)),
        initial=draw(st.none() | st.fixed_dictionaries({"pro": st.integers(0, 3), "video": st.integers(0, 2)})),
        seed=draw(st.integers(0, 9)),
        plans=PLANS,
        failures=tuple(draw(st.lists(failures, max_size=3))),
        imbalance=draw(st.sampled_from([{}, {"mini": 1.5}])),
        admission=draw(st.booleans()),
        chunking=draw(st.sampled_from(["slack", "fixed"])),
    )
    return World(
        scenario=scenario,
        workload=draw(workloads()),
        jobs=jobs(*draw(rows)) if draw(st.booleans()) else None,
        plan={at_s: draw(targets) for at_s in times},
        router=draw(st.sampled_from([choose, two_choices, shortest])),
    )


class Once(list[str]):
    """How requests ended; each may be told once."""

    def __setitem__(self, index: Any, end: Any) -> None:
        assert self[index] == ""
        super().__setitem__(index, end)


class Observed:
    """A rehearsal whose GPUs are looked at before every event."""

    def __init__(self, world: World) -> None:
        self.twin = _Twin(world.scenario, world.workload, world.jobs, world.scaler, world.router)
        self.twin.tally.end = Once(self.twin.tally.end)
        self.now_s = self.gpu_s = 0.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("autoscaling.twin.heappop", self.pop)
            self.report: Report = self.twin.run(None)

    def pop(self, events: list[Any]) -> Any:
        event, nodes, horizon_s = heappop(events), self.twin.nodes, self.twin.horizon_s
        assert event[0] >= self.now_s
        self.gpu_s += nodes.used_gpus * (min(event[0], horizon_s) - min(self.now_s, horizon_s))
        self.now_s = event[0]
        held: dict[int, int] = {}
        for lease in nodes._leases:
            for node, gpus in lease.places:
                held[node] = held.get(node, 0) + gpus
        assert sum(held.values()) == nodes.used_gpus
        assert max(held.values(), default=0) <= NODE_GPUS
        assert nodes.used_gpus <= (nodes.budget_gpus or nodes.used_gpus)
        return event


laws = settings(max_examples=50, deadline=None)


@laws
@given(worlds())
def test_every_request_ends_once_as_completed_rejected_or_failed_with_a_reason(world: World) -> None:
    seen = Observed(world)
    found = seen.report.figures
    assert found.requests == len(world.workload)
    assert found.completed + sum(found.rejected.values()) + sum(found.failed.values()) == found.requests
    assert set(found.rejected) <= {"overloaded", "model_not_found", "not_in_plan", "context_length_exceeded"}
    assert set(found.failed) <= {"replica_lost", "never_served"}
    assert seen.twin.desk.open == found.failed.get("never_served", 0)
    asked = sum(one.requests for one in seen.report.tiers.values())
    assert asked == found.requests - sum(found.rejected.get(code, 0) for code in found.rejected if code != "overloaded")


@laws
@given(worlds())
def test_gpu_seconds_are_billed_as_gpus_are_held_and_never_beyond_the_budget(world: World) -> None:
    seen = Observed(world)
    assert seen.report.figures.gpu_hours * 3600 == pytest.approx(seen.gpu_s, abs=1e-6)
    assert seen.report.figures.cost_usd == pytest.approx(seen.gpu_s / 3600 * FAMILY.gpu_usd_per_hour, abs=1e-6)
    assert sum(one.gpu_hours for one in seen.report.tiers.values()) <= seen.report.figures.gpu_hours + 1e-12


@laws
@given(worlds())
def test_tokens_are_conserved(world: World) -> None:
    seen = Observed(world)
    complete = [index for index, end in enumerate(seen.twin.tally.end) if end == "completed"]
    made = sum(one.counters.finished_output_tokens for one in seen.twin.tiers)
    assert made == sum(int(world.workload.output_tokens[index]) for index in complete)
    for one in seen.twin.tiers:
        assert one.pool.loads.sequences.sum() == one.pool.loads.prefill_tokens.sum() == 0
        assert all(replica.reserved_tokens == replica.kv_tokens == 0 for replica in one.pool.replicas.values())
    ended = sum(one.counters.kept + one.counters.missed + len(one.held) for one in seen.twin.tiers)
    assert ended == sum(one.counters.arrived_requests for one in seen.twin.tiers)


@laws
@given(worlds())
def test_a_plan_never_gets_a_tier_that_it_has_no_right_to(world: World) -> None:
    seen = Observed(world)
    for index, served in enumerate(seen.twin.tally.served):
        plan = PLANS.get(TENANTS[world.workload.tenant[index]])
        if served >= 0 and plan is not None:
            assert TIERS[served] in plan.tiers
            assert plan.spill != "none" or served == seen.twin.tally.asked[index]


@laws
@given(worlds())
def test_nobody_gets_a_token_before_its_prompt_can_have_been_computed(world: World) -> None:
    seen = Observed(world)
    for index, end in enumerate(seen.twin.tally.end):
        if end == "completed":
            least_s = 0.010 if world.workload.blocks else 0.010 + world.workload.prompt_tokens[index] * 1e-4
            assert seen.twin.tally.ttft_s[index] >= least_s - 1e-9
            # A step takes 11 ms at least. Only a token that a lost replica was computing comes for nothing.
            assert seen.twin.tally.tpot_ms[index] >= (11 - 1e-6 if world.workload.output_tokens[index] > 1 else 0)


@laws
@given(worlds())
def test_the_same_seed_gives_the_same_report_bit_for_bit(world: World) -> None:
    one, other = (
        rehearse(world.scenario, world.workload, world.jobs, world.scaler, world.router) for _ in range(2)
    )  # fmt: skip
    assert repr((one.figures, one.tiers)) == repr((other.figures, other.tiers))
    for column in fields(one.course):
        first, second = getattr(one.course, column.name), getattr(other.course, column.name)
        pairs = [(first[name], second[name]) for name in first] if isinstance(first, dict) else [(first, second)]
        assert all(np.array_equal(*pair) for pair in pairs)
