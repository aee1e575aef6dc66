import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run

from cluster.cost import prefill_us_per_token, step_ms
from cluster.errors import ContextTooLong, EngineFailed, InvalidRequest, MorayError, Overloaded
from cluster.family import Price, Replicas, Slo, StepCost, Tier
from cluster.request import Generation, Message, Piece, Sampling
from deployments.engines.engine import Engine, EngineReport
from deployments.engines.simulated import SimulatedEngine, natural_tokens, word

COST = StepCost(
    a_ms=10.0,
    b_ms_per_seq=1.0,
    c_ms_per_ktok=5.0,
    d_ms=4.0,
    experts=8,
    top_k=2,
    prefill_us_per_token={64: 100.0, 1024: 50.0},
    source="made for these tests",
)
STEADY = StepCost(a_ms=10.0, b_ms_per_seq=0.0, c_ms_per_ktok=0.0, prefill_us_per_token={64: 100.0}, source="as above")


class Stage:
    """An engine on a virtual loop, and what each of its streams received, with the time."""

    def __init__(self, **spec: Any) -> None:
        self.engine = SimulatedEngine(tier(**spec))
        self.pieces: dict[str, list[tuple[float, Piece]]] = {}

    def submit(self, name: str, *, prompt_tokens: int = 1, given: tuple[int, ...] = (), **sampling: Any) -> str:
        received = self.pieces.setdefault(name, [])
        loop = asyncio.get_running_loop()
        prompt, settings = (7,) * prompt_tokens, Sampling(**sampling)
        generation = Generation(request_id=name, prompt=prompt, sampling=settings, given=given)
        self.engine.submit(generation, lambda piece: received.append((loop.time(), piece)))
        return name

    def play(self, *, before: Callable[[], object], during: Mapping[float, Callable[[], object]] | None = None) -> None:
        async def scenario() -> None:
            await self.engine.start()
            before()
            loop = asyncio.get_running_loop()
            for at_s, act in (during or {}).items():
                loop.call_at(at_s, act)
            await asyncio.sleep(3600)

        run(scenario())

    def times_ms(self, name: str) -> list[float]:
        return [round(at_s * 1e3, 6) for at_s, piece in self.pieces[name] if piece.tokens]

    def text(self, name: str) -> str:
        return "".join(piece.text for _, piece in self.pieces[name])

    def last(self, name: str) -> Piece:
        return self.pieces[name][-1][1]


def tier(**changes: Any) -> Tier:
    spec: dict[str, Any] = {
        "names": ("tiny",),
        "checkpoint": "none",
        "engine": "simulated",
        "context_tokens": 4096,
        "kv_tokens": 100_000,
        "slo": Slo(ttft_s=1.0, tpot_ms=50.0),
        "price": Price(input_usd_per_mtok=1.0, output_usd_per_mtok=2.0),
        "replicas": Replicas(min=0, max=1, initial=0),
        "cost": STEADY,
    }
    return Tier(**(spec | changes))


def words(seed: int, count: int) -> str:
    return "".join(word(seed, position) for position in range(count))


def test_it_is_an_engine() -> None:
    engine: Engine = SimulatedEngine(tier())
    assert (engine.label, engine.context_tokens) == ("simulated", 4096)


def test_a_step_takes_what_the_cost_model_says() -> None:
    stage = Stage(cost=COST)
    stage.play(before=lambda: stage.submit("a", prompt_tokens=100, max_tokens=3))
    first = step_ms(COST, 0, 0) + 100 * prefill_us_per_token(COST, 100) / 1000
    second = first + step_ms(COST, 1, 101)
    third = second + step_ms(COST, 1, 102)
    assert stage.times_ms("a") == pytest.approx([first, second, third])


def test_a_long_prompt_is_read_in_chunks_beside_those_that_decode() -> None:
    stage = Stage()
    stage.play(
        before=lambda: stage.submit("a", max_tokens=6),
        during={0.001: lambda: stage.submit("b", prompt_tokens=800, max_tokens=2)},
    )
    # 10 ms a step, 0.1 ms for each prompt token, 47.5 ms planned for both: "b" is read in 375 + 375 + 50.
    assert stage.times_ms("a") == pytest.approx([10.1, 57.6, 105.1, 120.1, 130.1, 140.1])
    assert stage.times_ms("b") == pytest.approx([120.1, 130.1])


def test_requests_of_one_moment_share_every_step() -> None:
    stage = Stage()
    stage.play(before=lambda: [stage.submit(name, max_tokens=5) for name in "abc"])
    assert stage.times_ms("a") == stage.times_ms("b") == stage.times_ms("c")
    assert stage.engine.report().steps == 5


def test_late_wake_ups_do_not_add_up() -> None:
    stage = Stage()
    loop_late_s = 0.004

    def delay() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.clock.now_s += loop_late_s

    ticks = {0.0099 + 0.01 * step: delay for step in range(100)}
    stage.play(before=lambda: stage.submit("a", max_tokens=100), during=ticks)
    # Token i is due after (i + 1) steps of 10 ms and a prefill of 0.1 ms, and never later than one delay after that.
    late_ms = [at_ms - (10 * (i + 1) + 0.1) for i, at_ms in enumerate(stage.times_ms("a"))]
    assert 0 <= min(late_ms) <= max(late_ms) <= 4.0001
    assert max(late_ms) > 3


def test_time_for_which_it_was_stopped_is_lost_and_its_report_says_how_slow_it_is() -> None:
    stage = Stage()
    reported_ms: list[float] = []

    def stopped() -> None:
        """Nine tenths of the time, as by a signal."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.clock.now_s += 0.9

    stage.play(
        before=lambda: stage.submit("a", max_tokens=100),
        during={0.05 + at_s: stopped for at_s in range(10)}
        | {9.5: lambda: reported_ms.append(stage.engine.report().step_ms)},
    )
    assert stage.times_ms("a")[90] == pytest.approx(8500, rel=0.1)
    assert reported_ms[0] == pytest.approx(100, rel=0.2)


def test_an_answer_is_its_words_in_order_and_a_last_piece_with_usage() -> None:
    stage = Stage()
    stage.play(before=lambda: stage.submit("a", prompt_tokens=9, max_tokens=20, seed=5))
    assert stage.text("a") == words(5, 20)
    last = stage.last("a")
    assert (last.finish_reason, last.error) == ("length", None)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (9, 20)
    assert [piece.last for _, piece in stage.pieces["a"]] == [False] * 19 + [True]


def test_words_tell_their_seed_and_position() -> None:
    assert len({word(seed, position) for seed in (-(2**63), 0, 1, 2**63 - 1) for position in range(500)}) == 2000
    assert word(7, 3).startswith("w3-")


def test_without_a_limit_the_seed_draws_the_length() -> None:
    stage = Stage()
    stage.play(before=lambda: [stage.submit(str(seed), seed=seed) for seed in range(20)])
    assert all(stage.text(str(seed)) == words(seed, natural_tokens(seed)) for seed in range(20))
    assert {stage.last(str(seed)).finish_reason for seed in range(20)} == {"stop"}
    assert len({natural_tokens(seed) for seed in range(20)}) > 10


def test_without_a_limit_the_context_is_the_limit() -> None:
    stage = Stage(context_tokens=40)
    stage.play(before=lambda: stage.submit("a", prompt_tokens=30))
    assert stage.text("a") == words(0, 10)
    assert stage.last("a").finish_reason == "length"


def test_where_the_end_is_ignored_the_context_is_the_limit() -> None:
    stage = Stage(context_tokens=1000)
    stage.play(before=lambda: stage.submit("a", prompt_tokens=30, ignore_eos=True))
    assert stage.text("a") == words(0, 970)
    assert stage.last("a").finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ((word(0, 5),), words(0, 5)),  # a whole word
        ((word(0, 5)[-3:] + word(0, 6)[:4],), words(0, 6)[:-3]),  # across two words
        ((words(0, 30), "w4-"), words(0, 4)),  # the earliest of two
        (("never",), words(0, 20)),
        ((word(0, 19) + "more",), words(0, 20)),  # held back, and said after all
    ],
)
def test_a_stop_string_ends_the_answer_before_itself(stop: tuple[str, ...], text: str) -> None:
    stage = Stage()
    stage.play(before=lambda: stage.submit("a", max_tokens=20, stop=stop))
    assert stage.text("a") == text
    assert stage.last("a").finish_reason == ("length" if text == words(0, 20) else "stop")


def test_log_probabilities_are_those_of_certainty() -> None:
    stage = Stage()
    stage.play(before=lambda: stage.submit("a", max_tokens=1, top_logprobs=2))
    (logprob,) = stage.last("a").logprobs
    data = word(0, 0).encode()
    assert (logprob.token_bytes, logprob.logprob, logprob.top) == (data, 0.0, ((word(0, 0), data, 0.0),))


@settings(deadline=None)
@given(
    limit=st.integers(1, 12),
    cut=st.integers(1, 12),
    stop=st.sampled_from([(), (word(3, 4),), (word(3, 4)[-3:] + word(3, 5)[:4],), (word(3, 11) + "more",)]),
    top_logprobs=st.sampled_from([None, 1]),
)
def test_an_answer_cut_anywhere_goes_on_elsewhere_as_if_it_had_not_been(
    limit: int, cut: int, stop: tuple[str, ...], top_logprobs: int | None
) -> None:
    asked: dict[str, Any] = {"prompt_tokens": 9, "max_tokens": limit, "seed": 3, "stop": stop}
    asked |= {"top_logprobs": top_logprobs}
    whole, rest = Stage(), Stage()
    whole.play(before=lambda: whole.submit("a", **asked))
    begun = [piece for _, piece in whole.pieces["a"]][:cut]
    ids = tuple(id for piece in begun for id in piece.ids)
    rest.play(before=lambda: rest.submit("a", given=ids, **asked))
    joined = [*begun, *(piece for _, piece in rest.pieces["a"])]
    assert "".join(piece.text for piece in joined) == whole.text("a")
    assert [one for piece in joined for one in piece.logprobs] == [
        one for _, piece in whole.pieces["a"] for one in piece.logprobs
    ]
    assert (joined[-1].finish_reason, joined[-1].usage) == (whole.last("a").finish_reason, whole.last("a").usage)
    assert [piece.queued_s for _, piece in rest.pieces["a"]][:1] == [None if begun[-1].last else 0.0]
    assert rest.engine.report().running == 0


def test_given_tokens_are_read_as_a_prompt_and_take_their_room_once() -> None:
    stage, reports = Stage(cost=COST), list[EngineReport]()
    stage.play(
        before=lambda: stage.submit("a", prompt_tokens=60, max_tokens=50, given=tuple(range(40))),
        during={0.001: lambda: reports.append(stage.engine.report())},
    )
    (begun,) = reports
    assert (begun.waiting_prefill_tokens, begun.kv_used_tokens) == (100, 110)
    first = step_ms(COST, 0, 0) + 100 * prefill_us_per_token(COST, 100) / 1000
    assert stage.times_ms("a")[:2] == pytest.approx([first, first + step_ms(COST, 1, 101)])
    assert [piece.ids for _, piece in stage.pieces["a"]] == [(position,) for position in range(40, 50)]


def test_places_are_given_first_come_first_served() -> None:
    stage = Stage(max_running=2)
    stage.play(before=lambda: [stage.submit(name, max_tokens=3) for name in "abcd"])
    firsts = {name: stage.times_ms(name)[0] for name in "abcd"}
    assert firsts["a"] == firsts["b"] < firsts["c"] == firsts["d"]
    assert firsts["c"] > stage.times_ms("a")[-1]
    queued_s = [[piece.queued_s for _, piece in stage.pieces[name]] for name in "ac"]
    assert queued_s == [[0.0, None, None], [pytest.approx(stage.times_ms("a")[-1] / 1e3), None, None]]


def test_a_sequence_waits_for_kv_room_and_nobody_overtakes() -> None:
    stage = Stage(context_tokens=100, kv_tokens=100)
    asked = {"a": 60, "b": 50, "c": 10}  # with a prompt of 1: 61 + 51 > 100, though 61 + 11 would fit
    stage.play(before=lambda: [stage.submit(name, max_tokens=tokens) for name, tokens in asked.items()])
    assert stage.times_ms("b")[0] > stage.times_ms("a")[-1]
    assert stage.times_ms("c")[0] == stage.times_ms("b")[0]


def refused(stage: Stage, name: str, **asked: Any) -> MorayError:
    with pytest.raises(MorayError) as caught:
        stage.submit(name, **asked)
    return caught.value


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    stage, caught = Stage(max_running=1, max_waiting=2), list[MorayError]()

    def crowd() -> None:
        stage.submit("b")
        stage.submit("c")
        caught.append(refused(stage, "d"))

    stage.play(before=lambda: stage.submit("a", max_tokens=11), during={0.011: crowd})
    (error,) = caught
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(0.1)  # ten tokens of "a" are left, 10 ms each


def test_what_can_never_fit_is_refused_at_once() -> None:
    stage, caught = Stage(context_tokens=100), list[MorayError]()

    def ask() -> None:
        caught.append(refused(stage, "a", prompt_tokens=90, max_tokens=11))
        caught.append(refused(stage, "b", prompt_tokens=100))
        caught.append(refused(stage, "c", prompt_tokens=0))
        stage.submit("d", prompt_tokens=90, max_tokens=10)
        caught.append(refused(stage, "d"))

    stage.play(before=ask)
    assert [type(error) for error in caught] == [ContextTooLong, ContextTooLong, InvalidRequest, InvalidRequest]
    assert "90 tokens, and 11 to generate; 100 in all are allowed; shorten" in caught[0].message
    assert stage.last("d").finish_reason == "length"


def test_a_cancelled_request_is_silent_and_its_place_is_free_at_the_next_step() -> None:
    stage = Stage(max_running=1)

    def cancel() -> None:
        for name in ("a", "b", "unknown"):
            stage.engine.cancel(name)

    stage.play(before=lambda: [stage.submit(name, max_tokens=10) for name in "abc"], during={0.025: cancel})
    assert len(stage.pieces["a"]) == 2
    assert stage.pieces["b"] == []
    # The step under way ends at 30.1 ms; "c" reads its prompt of one token in the next.
    assert stage.times_ms("c")[0] == pytest.approx(30.1 + 10.1)


def test_a_stream_may_be_cancelled_from_within_its_own_piece() -> None:
    stage = Stage()

    seen: list[Piece] = []

    def hear(piece: Piece) -> None:
        seen.append(piece)
        stage.engine.cancel("b")

    def ask() -> None:
        stage.submit("a", max_tokens=3)
        stage.engine.submit(Generation(request_id="b", prompt=(1,), sampling=Sampling(max_tokens=9)), hear)

    stage.play(before=ask)
    assert len(seen) == 1
    assert stage.text("a") == words(0, 3)


def test_the_report_tells_load_and_pace() -> None:
    stage, reports = Stage(cost=COST, max_running=2), list[EngineReport]()
    stage.play(
        before=lambda: [stage.submit(name, prompt_tokens=60, max_tokens=40) for name in "abc"],
        during={0.025: lambda: reports.append(stage.engine.report())},
    )
    (busy,) = reports
    assert (busy.running, busy.waiting, busy.kv_used_tokens, busy.kv_capacity_tokens) == (2, 1, 200, 100_000)
    # The first step read "a" and "b"; "c" has no place yet.
    assert (busy.steps, busy.waiting_prefill_tokens) == (1, 60)
    assert busy.prefill_us_per_token == pytest.approx(100.0)
    assert busy.step_ms == pytest.approx(step_ms(COST, 2, 122))
    idle = stage.engine.report()
    assert (idle.running, idle.waiting, idle.kv_used_tokens, idle.waiting_prefill_tokens) == (0, 0, 0, 0)


def test_the_report_may_be_asked_from_another_thread_while_requests_come_and_go() -> None:
    stage = Stage(max_running=4, max_waiting=3000)
    asked: list[EngineReport] = []
    ending = threading.Event()

    def scrape() -> None:
        while not ending.is_set():
            asked.append(stage.engine.report())

    def crowd() -> None:
        for number in range(3000):
            stage.submit(f"{number}", max_tokens=3)

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        try:
            stage.play(before=lambda: None, during={0.0: crowd})
        finally:
            ending.set()
        scraping.result(30)
    assert asked


def test_stopping_ends_every_stream_with_an_error() -> None:
    stage = Stage(max_running=1)
    stops: list[asyncio.Task[None]] = []
    stage.play(
        before=lambda: [stage.submit(name, max_tokens=10) for name in "ab"],
        during={0.015: lambda: stops.append(asyncio.ensure_future(stage.engine.stop()))},
    )
    assert len(stage.pieces["a"]) == 2
    assert isinstance(stage.last("a").error, EngineFailed)
    assert isinstance(stage.last("b").error, EngineFailed)
    with pytest.raises(EngineFailed, match="stopped"):
        stage.engine.check()


def test_a_broken_listener_fails_the_engine_aloud(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()

    def break_down(piece: Piece) -> None:
        raise RuntimeError("broken")

    def ask() -> None:
        stage.engine.submit(Generation(request_id="x", prompt=(1,), sampling=Sampling()), break_down)
        stage.submit("a", max_tokens=9)

    stage.play(before=ask)
    assert isinstance(stage.last("a").error, EngineFailed)
    with pytest.raises(EngineFailed, match="engine: it failed; its replica is being replaced"):
        stage.engine.check()
    assert "RuntimeError: broken" in caplog.text


def test_encoding_counts_roles_and_pieces_of_four_characters() -> None:
    engine = SimulatedEngine(tier())
    ask = [Message(role="user", content="good  morning\nworld"), Message(role="assistant", content="")]
    assert len(engine.encode(ask)) == 2 + 1 + 2 + 2
    assert engine.encode(ask) == engine.encode(ask)
    assert engine.encode(ask) != engine.encode([Message(role="user", content="good evening, world"), ask[1]])


def test_encoding_ends_where_the_context_does() -> None:
    engine = SimulatedEngine(tier(context_tokens=100))
    assert len(engine.encode([Message(role="user", content="word \n" * 99)])) == 100
    with pytest.raises(ContextTooLong, match="messages: 400000 characters, more than 100 tokens; as many") as told:
        engine.encode([Message(role="user", content="word" * 100_000)])
    assert told.value.param == "messages"


arrivals = st.lists(
    st.tuples(st.integers(0, 300), st.integers(1, 60), st.integers(1, 40), st.none() | st.integers(0, 300)), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(1, 4))
def test_every_accepted_request_gets_exactly_its_words_or_is_cancelled(
    asked: list[tuple[int, int, int, int | None]], max_running: int
) -> None:
    stage = Stage(cost=COST, context_tokens=100, kv_tokens=200, max_running=max_running)
    held: list[int] = []

    def watch() -> None:
        report = stage.engine.report()
        held.append(report.kv_used_tokens)
        assert report.running <= max_running

    async def scenario() -> None:
        await stage.engine.start()
        loop = asyncio.get_running_loop()
        for number, (at_ms, prompt, output, cancel_ms) in enumerate(asked):
            name = str(number)
            submit = partial(stage.submit, name, prompt_tokens=prompt, max_tokens=output, seed=number)
            loop.call_at(at_ms / 1e3, submit)
            if cancel_ms is not None:  # perhaps before it came: then it is unknown and ignored
                loop.call_at(cancel_ms / 1e3, stage.engine.cancel, name)
        for at_ms in range(0, 2000, 50):
            loop.call_at(at_ms / 1e3, watch)
        await asyncio.sleep(3600)

    run(scenario())
    assert max(held, default=0) <= 200
    for number, (_, _, output, cancel_ms) in enumerate(asked):
        text, whole = stage.text(str(number)), words(number, output)
        assert text == whole or (cancel_ms is not None and whole.startswith(text))
