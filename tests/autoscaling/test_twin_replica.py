import math
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_world import one_service

from autoscaling.twin_replica import NEVER_S, Replica, Request
from cluster.batching import chunk_tokens
from cluster.cost import Chunking, Service


def request(index: int, at_s: float, prompt: int, output: int, us: float = 100.0, cached: int = 0) -> Request:
    return Request(index, at_s, at_s, prompt, output, us_per_token=us, prefill_tokens=max(1, prompt - cached))


def replica(service: Service, imbalance: float = 1.0) -> Replica:
    return Replica(service, 0, 0.0, imbalance)


Times = dict[int, tuple[float, float]]  # first token and end, by request


def play(on: Replica, requests: list[Request]) -> Times:
    """Arrivals go before events of the same time, as in the twin."""
    waiting, ends = deque(requests), dict[int, float]()
    while waiting or on.next_s < NEVER_S:
        if waiting and waiting[0].arrival_s <= on.next_s:
            one = waiting.popleft()
            on.arrive(one, one.arrival_s)
            assert on.next_s >= one.arrival_s
            continue
        for done in on.complete()[1]:
            ends[done.index] = on.clock_s
    return {one.index: (one.first_s, ends[one.index]) for one in requests}


@dataclass
class StepByStep:
    """The same replica without a closed form: every step is visited."""

    service: Service
    imbalance: float
    now_s: float = 0.0
    queue: deque[Request] = field(default_factory=deque)
    running: dict[int, tuple[Request, int]] = field(default_factory=dict)  # with the tokens made
    reserved: int = 0
    left: int = 0
    chunk: int = 0  # of the prefill under way, 0: none is
    eligible: set[int] = field(default_factory=set)
    times: Times = field(default_factory=dict)

    def fits(self, one: Request, joining: int) -> bool:
        need = one.prompt_tokens + one.output_tokens
        room = self.reserved + need <= self.service.kv_tokens or self.reserved == 0
        return room and len(self.running) + joining < self.service.max_running

    def kv(self) -> int:
        return sum(one.prompt_tokens + made for one, made in self.running.values())

    def step_ms(self) -> float:
        service, batch = self.service, len(self.running)
        touched = 1 - (1 - service.cost.top_k / service.cost.experts) ** batch
        fixed = service.a_ms + service.b_ms * batch + self.imbalance * service.d_ms * touched
        return fixed + service.c_ms_per_token * self.kv()

    def begin(self) -> None:
        """Decide the chunk, for those who are here now."""
        self.chunk = 0
        if self.queue and (self.left or self.fits(self.queue[0], 0)):
            us = self.queue[0].us_per_token * self.imbalance
            self.chunk = chunk_tokens(self.service, len(self.running), self.step_ms(), us)
            self.eligible = {one.index for one in self.queue}

    def prefill(self) -> tuple[float, list[Request]]:
        """One chunk: its milliseconds, and whose prompts it completes."""
        budget, took_ms, complete = self.chunk, 0.0, list[Request]()
        while budget and self.queue and self.queue[0].index in self.eligible:
            head = self.queue[0]
            if not self.left:
                if not self.fits(head, len(complete)):
                    break
                self.reserved += head.prompt_tokens + head.output_tokens
                self.left = head.prefill_tokens
            tokens = min(budget, self.left)
            budget, self.left = budget - tokens, self.left - tokens
            took_ms += tokens * head.us_per_token * self.imbalance / 1000
            if not self.left:
                complete.append(self.queue.popleft())
        return took_ms, complete

    def end(self, one: Request, first_s: float) -> None:
        self.reserved -= one.prompt_tokens + one.output_tokens
        self.times[one.index] = (first_s, self.now_s)

    def step(self) -> None:
        took_ms, complete = self.prefill() if self.chunk else (0.0, [])
        self.now_s += (self.step_ms() + took_ms) / 1000
        done = []
        for index, (one, made) in self.running.items():
            self.running[index] = (one, made + 1)
            if made + 1 == one.output_tokens:
                done.append(index)
        for index in done:
            one = self.running.pop(index)[0]
            self.end(one, self.times[index][0])
        for one in complete:
            self.times[one.index] = (self.now_s, math.nan)
            if one.output_tokens == 1:
                self.end(one, self.now_s)
            else:
                self.running[one.index] = (one, 1)
        if done or complete:
            self.chunk = 0

    def play(self, requests: list[Request]) -> Times:
        waiting = deque(requests)
        while waiting or self.queue or self.running:
            while waiting and waiting[0].arrival_s <= self.now_s + 1e-12:
                self.queue.append(waiting.popleft())
            if not self.queue and not self.running:
                self.now_s = waiting[0].arrival_s
                self.queue.append(waiting.popleft())  # who finds it idle begins alone
            if not self.chunk:
                self.begin()
            self.step()
        return self.times


Gap = tuple[float, tuple[int, int, float, int]]  # to the arrival before; prompt, output, us per token, cached


def arrivals(gaps: list[Gap]) -> list[Request]:
    at_s = accumulate(gap_s for gap_s, _ in gaps)
    return [request(index, now_s, *lengths) for index, (now_s, (_, lengths)) in enumerate(zip(at_s, gaps, strict=True))]


lengths = st.tuples(st.integers(1, 3000), st.integers(1, 60), st.floats(5, 200), st.integers(0, 3000))
gaps = st.lists(st.tuples(st.floats(1e-6, 1.0) | st.floats(1e-6, 0.02), lengths), min_size=1, max_size=14)
costs = st.fixed_dictionaries(
    {
        "a_ms": st.floats(0.5, 20),
        "b_ms_per_seq": st.floats(0, 2),
        "c_ms_per_ktok": st.sampled_from([0.0, 0.01, 1.0, 10.0]),
        "d_ms": st.floats(0, 20),
        "experts": st.just(32),
        "top_k": st.just(4),
    }
)


@settings(max_examples=300, deadline=None)
@given(
    gaps=gaps,
    cost=costs,
    chunking=st.sampled_from(["slack", "fixed"]),
    kv_tokens=st.sampled_from([3000, 6000, 1_000_000]),
    max_running=st.sampled_from([1, 2, 4, 64]),
    imbalance=st.sampled_from([1.0, 1.7]),
)
def test_the_closed_form_agrees_with_every_single_step(
    gaps: list[Gap],
    cost: dict[str, float],
    chunking: Chunking,
    kv_tokens: int,
    max_running: int,
    imbalance: float,
) -> None:
    service = one_service(chunking, cost=cost, context_tokens=3000, kv_tokens=kv_tokens, max_running=max_running)
    requests = arrivals(gaps)
    naive = StepByStep(service, imbalance).play(requests)
    closed = play(replica(service, imbalance), requests)
    for one in requests:
        assert closed[one.index] == pytest.approx(naive[one.index], rel=1e-6, abs=1e-9)


@settings(deadline=None)
@given(gaps=gaps, kv_tokens=st.sampled_from([3000, 6000]), max_running=st.sampled_from([1, 3]))
def test_nothing_is_left_of_a_replica_that_has_emptied(gaps: list[Gap], kv_tokens: int, max_running: int) -> None:
    on = replica(one_service(context_tokens=3000, kv_tokens=kv_tokens, max_running=max_running))
    play(on, arrivals(gaps))
    assert (on.sequences, on.decoding, on.kv_tokens, on.left_tokens) == (0, 0, 0, 0)
    assert (on.waiting_tokens, on.waiting_prompt_tokens) == (0, 0)
    assert (on.reserved_tokens, on.reserved_output_tokens, on.prefill_ms, on.next_s) == (0, 0, 0.0, NEVER_S)


def test_the_expert_imbalance_slows_decoding_and_prefill() -> None:
    # Step of one sequence: 10 + 1 + 8 * 4/32 = 12 ms; a prompt of 100 tokens beside nobody: 10 + 100 * 0.1 = 20 ms.
    cost = {"d_ms": 8.0, "experts": 32, "top_k": 4}
    even = play(replica(one_service(cost=cost)), [request(0, 0, 100, 11)])
    uneven = play(replica(one_service(cost=cost), imbalance=2.0), [request(0, 0, 100, 11)])
    assert even[0] == pytest.approx((0.020, 0.020 + 10 * 0.012))
    assert uneven[0] == pytest.approx((0.030, 0.030 + 10 * 0.013))


def test_the_correction_is_the_true_step_over_the_modelled_one() -> None:
    on = replica(one_service(cost={"d_ms": 8.0, "experts": 32, "top_k": 4}), imbalance=2.0)
    assert on.correction == pytest.approx(13 / 12)  # of a first sequence
    on.arrive(request(0, 0, 100, 11), 0)
    on.complete()
    assert on.correction == pytest.approx(13 / 12)
    free = {"a_ms": 0.0, "b_ms_per_seq": 0.0}
    assert replica(one_service(cost=free), imbalance=2.0).correction == 1.0


def test_an_answer_of_one_token_ends_with_its_prompt() -> None:
    assert play(replica(one_service()), [request(0, 0, 100, 1)])[0] == pytest.approx((0.020, 0.020))


def test_a_whole_wait_is_told_while_prompts_are_queued() -> None:
    on = replica(one_service("fixed"))
    on.arrive(request(0, 0, 500, 1), 0)
    assert on.prefill_done_s == pytest.approx(0.060)  # a step of 10 ms and 50 ms of prefill
    on.arrive(request(1, 0, 1000, 1), 0)
    assert on.prefill_done_s == pytest.approx(0.060 + 0.120)  # two more such steps
    on.complete()
    on.complete()
    assert on.prefill_done_s == pytest.approx(0.180)  # nothing more


def test_a_sequence_longer_than_the_cache_runs_alone() -> None:
    service = one_service(kv_tokens=10_000)
    times = play(replica(service), [request(0, 0, 9_990, 20), request(1, 0.001, 10, 2), request(2, 0.002, 9_990, 20)])
    assert times[0][1] < times[1][0] < times[1][1] < times[2][0]


@pytest.mark.parametrize(("died_s", "made"), [(0.0200, 1), (0.0309, 1), (0.0311, 2), (0.074, 5), (0.130, 11)])
def test_who_is_lost_keeps_the_tokens_that_were_made(died_s: float, made: int) -> None:
    """The first token at 20 ms, then one every 11 ms, the last at 130 ms."""
    on, one = replica(one_service()), request(0, 0, 100, 11)
    on.arrive(one, 0)
    on.complete()
    assert on.lost(died_s) == [one]
    assert (one.prompt_tokens, one.output_tokens) == (100 + min(made, 10), 11 - min(made, 10))


def test_who_is_lost_while_its_prompt_is_computed_begins_anew() -> None:
    on, waiting, running = replica(one_service("fixed")), request(1, 0.02, 2000, 5), request(0, 0, 100, 50)
    on.arrive(running, 0)
    on.complete()
    version = on.version
    on.arrive(waiting, 0.02)
    on.arrive(last := request(2, 0.02, 10, 5), 0.02)
    assert on.lost(0.1) == [running, waiting, last]
    assert (waiting.prompt_tokens, waiting.output_tokens, waiting.first_s) == (2000, 5, -1.0)
    assert on.version > version  # its events are void
    assert replica(one_service()).lost(1.0) == []


def test_who_goes_on_after_a_loss_keeps_its_first_token() -> None:
    one = request(0, 0, 100, 11)
    one.first_s = 0.5
    on = replica(one_service())
    on.arrive(one, 5.0)
    on.complete()
    assert one.first_s == 0.5
