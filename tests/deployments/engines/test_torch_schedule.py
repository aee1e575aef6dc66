"""Laws of the scheduler, over random loads: it never over-grants, never locks up, and serves in order."""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.engines.torch_engine.schedule import Limits, Plan, Scheduler

LIMITS = st.builds(
    Limits,
    ranks=st.integers(1, 3),
    blocks=st.integers(4, 12),
    block_tokens=st.just(4),
    max_running=st.integers(1, 6),
    chunk_tokens=st.integers(1, 12),
)


@dataclass
class Load:
    """What the ranks would see: every plan is checked against it."""

    limits: Limits
    scheduler: Scheduler = field(init=False)
    prompt: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    admitted: list[str] = field(default_factory=list)
    at: dict[int, str] = field(default_factory=dict)
    rank: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    stored: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits)

    def submit(self, key: str, prompt: int, most: int) -> None:
        self.prompt[key], self.most[key] = prompt, most
        self.scheduler.submit(key, prompt, most)

    def step(self) -> Plan:
        plan = self.scheduler.plan()
        for admission in plan.admissions:
            self.at[admission.place] = admission.key
            self.rank[admission.key] = admission.rank
            self.admitted.append(admission.key)
        for grant in plan.grants:
            self.blocks[self.at[grant.place]] += grant.blocks
        for place in plan.decodes:
            assert self.stored[self.at[place]] >= self.prompt[self.at[place]]
            self.stored[self.at[place]] += 1
            self.tokens[self.at[place]] += 1
        for chunk in plan.chunks:
            key = self.at[chunk.place]
            assert chunk.start == self.stored[key]
            self.stored[key] += chunk.tokens
            assert chunk.last == (self.stored[key] == self.prompt[key])
            self.tokens[key] += chunk.last
        self.check(plan)
        for key in [k for k, n in self.tokens.items() if n == self.most[k]]:
            self.remove(key)
        return plan

    def check(self, plan: Plan) -> None:
        granted = [(self.rank[key], block) for key, blocks in self.blocks.items() for block in blocks]
        assert len(set(granted)) == len(granted), "no block serves two sequences"
        assert all(0 <= block < self.limits.blocks for _, block in granted)
        for key, blocks in self.blocks.items():
            assert self.stored[key] <= len(blocks) * self.limits.block_tokens, "KV is stored in granted blocks only"
        for rank in range(self.limits.ranks):
            mine = [chunk.tokens for chunk in plan.chunks if self.rank[self.at[chunk.place]] == rank]
            assert sum(mine) <= self.limits.chunk_tokens
        assert self.scheduler.held_tokens == len(granted) * self.limits.block_tokens
        assert self.scheduler.running == len(self.blocks) <= self.limits.max_running

    def remove(self, key: str) -> None:
        self.scheduler.remove(key)
        for seen in (self.blocks, self.stored, self.tokens, self.rank):
            seen.pop(key, None)


@st.composite
def requests(draw: st.DrawFn, limits: Limits) -> list[tuple[int, int]]:
    room = limits.rank_tokens
    prompts = draw(st.lists(st.integers(1, room), min_size=1, max_size=14))
    return [(prompt, draw(st.integers(1, room - prompt + 1))) for prompt in prompts]


@settings(deadline=None)
@given(st.data(), LIMITS)
def test_every_request_runs_to_its_limit_in_order_and_frees_what_it_held(data: st.DataObject, limits: Limits) -> None:
    load = Load(limits)
    asked = data.draw(requests(limits))
    for index, (prompt, most) in enumerate(asked):
        load.submit(f"{index}", prompt, most)
    steps = 0
    while load.scheduler.busy:
        assert load.step().computes, "a busy scheduler always computes something"
        steps += 1
    assert load.admitted == [f"{index}" for index in range(len(asked))]
    assert load.scheduler.held_tokens == 0
    assert steps <= sum(prompt + most for prompt, most in asked)


@settings(deadline=None)
@given(st.data(), LIMITS)
def test_cancellation_at_any_time_frees_a_place_and_harms_no_other(data: st.DataObject, limits: Limits) -> None:
    load = Load(limits)
    for index, (prompt, most) in enumerate(data.draw(requests(limits))):
        load.submit(f"{index}", prompt, most)
        if data.draw(st.booleans()):
            load.step()
        if data.draw(st.booleans()):
            load.remove(f"{data.draw(st.integers(0, index))}")
    while load.scheduler.busy:
        assert load.step().computes
    assert load.scheduler.held_tokens == 0


def test_decodes_go_on_beside_a_chunked_prompt() -> None:
    load = Load(Limits(ranks=1, blocks=16, block_tokens=4, max_running=4, chunk_tokens=8))
    load.submit("short", 4, 6)
    load.step()
    load.submit("long", 20, 2)  # 20 = 8 + 8 + 4
    plans = [load.step() for _ in range(3)]
    assert [plan.decodes for plan in plans] == [(0,), (0,), (0,)]
    assert [plan.prefill_tokens for plan in plans] == [8, 8, 4]
    assert load.step().decodes == (0, 1)


def test_sequences_go_to_the_emptiest_rank() -> None:
    load = Load(Limits(ranks=2, blocks=8, block_tokens=4, max_running=8, chunk_tokens=64))
    for key, prompt in {"a": 16, "b": 4, "c": 4, "d": 4}.items():
        load.submit(key, prompt, 2)
    load.step()
    assert load.rank == {"a": 0, "b": 1, "c": 1, "d": 1}


def test_kv_is_oversubscribed_only_as_far_as_all_can_finish() -> None:
    # Each may need 4 of the 8 blocks: two could be reserved. Four begin, since one can always finish first.
    load = Load(Limits(ranks=1, blocks=8, block_tokens=4, max_running=8, chunk_tokens=64))
    for index in range(4):
        load.submit(f"{index}", 4, 13)
    load.step()
    assert load.scheduler.running == 4
