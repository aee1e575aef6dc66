"""vLLM's own engine behind the seam, on a CPU, beside the torch engine with the same checkpoint."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Literal

import psutil
import pytest
import pytest_asyncio
from vllm_engine.tiers import answer, ask, tier

from cluster.errors import CheckpointError, ContextTooLong, EngineFailed, InvalidRequest, Overloaded
from cluster.request import Generation, Message, Sampling, Tool
from deployments.engines.engine import Emit, Engine
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec
from deployments.engines.vllm_engine.engine import VllmEngine
from deployments.engines.vllm_engine.forms import MOST_CALLS

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # each engine is three processes that import vLLM: a minute on two free cores
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports
]
GREEDY = Sampling(temperature=0, max_tokens=24)
WILD = Sampling(temperature=2.0, max_tokens=400)
QUESTIONS = ("What is 12 + 30?", "Solve 4 * 7.", "Hello!", "What is 81 - 9?", "Name a number.", "Tell me of sums.")
NEAR_TIE = 0.05  # natural logarithm; both compute in float32, in another order


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    """A stopped one fails its streams, and leaves no process."""
    engine = VllmEngine(tier(), "cpu")
    await engine.start()
    made = [core := newest_core(), *core.children()]
    yield engine
    stream = ask(engine, "last", prompt(engine), WILD)
    await engine.stop()
    assert isinstance((await stream.last()).error, EngineFailed)
    assert psutil.wait_procs(made, timeout=20)[1] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def torch_engine() -> AsyncIterator[TorchEngine]:
    served = tier()
    engine = TorchEngine(
        EngineSpec(checkpoint=served.checkpoint, context_tokens=served.context_tokens, kv_tokens=served.kv_tokens)
    )
    await engine.start()
    yield engine
    await engine.stop()


def prompt(engine: Engine, text: str = QUESTIONS[0]) -> tuple[int, ...]:
    return engine.encode([Message(role="user", content=text)])


def newest_core() -> psutil.Process:
    cores = [each for each in psutil.Process().children() if each.name().startswith("VLLM::EngineCor")]
    return max(cores, key=lambda each: each.create_time())


async def eventually_idle(engine: VllmEngine) -> None:
    async with asyncio.timeout(30):
        while engine._engine.get_num_unfinished_requests():
            await asyncio.sleep(0)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_greedy_tokens_are_those_of_the_torch_engine_up_to_a_near_tie(
    engine: VllmEngine, torch_engine: TorchEngine, question: str
) -> None:
    wanted = Sampling(temperature=0, max_tokens=24, top_logprobs=2)
    ours = await answer(torch_engine, "ours", prompt(torch_engine, question), wanted)
    theirs = await answer(engine, "theirs", prompt(engine, question), wanted)
    here = [one for piece in ours.pieces for one in piece.logprobs]
    there = [one for piece in theirs.pieces for one in piece.logprobs]
    for mine, other in zip(here, there, strict=False):
        best, second = (logprob for _, _, logprob in mine.top)
        if mine.token_bytes != other.token_bytes:
            assert best - second < NEAR_TIE, f"{mine.token!r} or {other.token!r}"
            return
        assert math.isclose(mine.logprob, other.logprob, abs_tol=NEAR_TIE)
    assert theirs.ids == ours.ids
    assert theirs.text == ours.text
    assert theirs.pieces[-1].finish_reason == ours.pieces[-1].finish_reason


async def test_an_answer_comes_in_pieces_with_its_usage_last(engine: VllmEngine) -> None:
    got = await answer(engine, "a", prompt(engine), GREEDY)
    *before, last = got.pieces
    assert len(before) > 3
    assert got.pieces[0].queued_s is not None
    assert all(piece.usage is None and piece.finish_reason is None for piece in before)
    assert last.usage is not None
    assert last.usage.prompt_tokens == len(prompt(engine))
    assert last.usage.completion_tokens == len(got.ids) == sum(piece.tokens for piece in got.pieces)
    assert engine.report().running == engine.report().waiting == engine.report().kv_used_tokens == 0


async def test_the_chosen_token_and_the_best_have_log_probabilities(engine: VllmEngine) -> None:
    got = await answer(engine, "a", prompt(engine), Sampling(temperature=0, max_tokens=4, top_logprobs=3))
    for one in (one for piece in got.pieces for one in piece.logprobs):
        assert [logprob for _, _, logprob in one.top] == sorted((p for _, _, p in one.top), reverse=True)
        assert len(one.top) == 3
        assert (one.token, one.token_bytes, one.logprob) == one.top[0]  # greedy
    alone = await answer(engine, "b", prompt(engine), Sampling(temperature=0, max_tokens=4, top_logprobs=0))
    assert [one.top for piece in alone.pieces for one in piece.logprobs] == [()] * 4


async def test_a_stop_string_ends_the_answer_before_it(engine: VllmEngine) -> None:
    whole = await answer(engine, "whole", prompt(engine), GREEDY)
    at = len(whole.text) // 2
    stop = whole.text[at : at + 3]
    cut = await answer(engine, "cut", prompt(engine), Sampling(temperature=0, max_tokens=24, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.pieces[-1].finish_reason == "stop"
    assert len(cut.ids) < len(whole.ids)
    await eventually_idle(engine)


async def test_an_end_token_that_is_ignored_ends_nothing(engine: VllmEngine) -> None:
    ended = await answer(engine, "ended", prompt(engine), Sampling(temperature=0, max_tokens=90))
    assert ended.pieces[-1].finish_reason == "stop"
    on = Sampling(temperature=0, max_tokens=len(ended.ids) + 3, ignore_eos=True)
    whole = await answer(engine, "whole", prompt(engine), on)
    behind = await answer(engine, "behind", prompt(engine), on, given=ended.ids)
    assert whole.ids[: len(ended.ids)] == ended.ids
    assert (len(whole.ids), len(behind.ids)) == (len(ended.ids) + 3, 3)
    assert {each.pieces[-1].finish_reason for each in (whole, behind)} == {"length"}


async def test_a_seed_says_what_is_drawn(engine: VllmEngine) -> None:
    def drawn(seed: int) -> Sampling:
        return Sampling(temperature=2.0, max_tokens=24, seed=seed)

    first, again, other = [
        await answer(engine, f"{n}", prompt(engine), drawn(seed)) for n, seed in enumerate((5, 5, 6))
    ]
    assert first.ids == again.ids != other.ids


async def test_an_answer_goes_on_behind_given_tokens(engine: VllmEngine) -> None:
    whole = await answer(engine, "whole", prompt(engine), GREEDY)
    given = whole.ids[:7]
    rest = await answer(engine, "rest", prompt(engine), GREEDY, given=given)
    assert given + rest.ids == whole.ids
    assert whole.text.endswith(rest.text)
    assert rest.pieces[-1].usage is not None
    assert rest.pieces[-1].usage.completion_tokens == len(whole.ids)


async def test_given_tokens_pay_the_frequency_penalty(engine: VllmEngine) -> None:
    punished = Sampling(temperature=0, max_tokens=24, frequency_penalty=1.5)
    whole = await answer(engine, "whole", prompt(engine), punished)
    rest = await answer(engine, "rest", prompt(engine), punished, given=whole.ids[:9])
    assert whole.ids[:9] + rest.ids == whole.ids


async def test_a_bias_is_obeyed_also_behind_given_tokens_that_pay_penalties(engine: VllmEngine) -> None:
    biased = Sampling(temperature=0, max_tokens=12, frequency_penalty=1.5, logit_bias=((40, 20.0), (41, 20.0)))
    whole = await answer(engine, "whole", prompt(engine), biased)
    assert set(whole.ids) >= {40, 41}
    rest = await answer(engine, "rest", prompt(engine), biased, given=whole.ids[:5])
    assert whole.ids[:5] + rest.ids == whole.ids


async def test_given_tokens_that_are_the_whole_answer_end_it_at_once(engine: VllmEngine) -> None:
    receiver = ask(engine, "a", prompt(engine), Sampling(temperature=0, max_tokens=3), given=(5, 6, 7))
    (only,) = receiver.pieces
    assert (only.finish_reason, only.tokens) == ("length", 0)


async def test_nothing_comes_after_a_cancellation_and_its_place_is_free(engine: VllmEngine) -> None:
    receiver = ask(engine, "a", prompt(engine), WILD)
    while not receiver.pieces:
        await asyncio.sleep(0)
    engine.cancel("a")
    seen = len(receiver.pieces)
    await eventually_idle(engine)
    assert len(receiver.pieces) == seen
    assert engine.report().running + engine.report().waiting == 0
    await answer(engine, "a", prompt(engine), GREEDY)  # the id, too


async def test_a_repeated_prompt_comes_from_the_cache_and_is_reported(engine: VllmEngine) -> None:
    long = prompt(engine, "Which numbers are even? " * 30)
    before = engine.report().cached_tokens
    first = await answer(engine, "first", long, GREEDY)
    again = await answer(engine, "again", long, GREEDY)
    assert first.ids == again.ids
    usage = again.pieces[-1].usage
    assert usage is not None
    assert 0 < len(long) - usage.cached_tokens <= 32  # whole blocks, and never the last token
    assert engine.report().cached_tokens >= before + usage.cached_tokens


async def test_who_has_another_cache_salt_finds_nothing_of_a_prompt_in_the_cache(engine: VllmEngine) -> None:
    long = prompt(engine, "Which numbers are odd? " * 30)

    async def cached_tokens(key: str, salt: str) -> int:
        usage = (await answer(engine, key, long, GREEDY, cache_salt=salt)).pieces[-1].usage
        assert usage is not None
        return usage.cached_tokens

    assert [await cached_tokens(f"{salt}{turn}", salt) for turn, salt in enumerate(("one", "other", ""))] == [0, 0, 0]
    assert await cached_tokens("one again", "one") > len(long) - 33


async def test_an_answer_obeys_its_json_schema(engine: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "even": {"type": "boolean"}},
        "required": ["sum", "even"],
        "additionalProperties": False,
    }
    held = Sampling(temperature=1.5, max_tokens=60, seed=3, json_schema=json.dumps(schema))
    ask(engine, "free", prompt(engine), WILD)
    bound = ask(engine, "bound", prompt(engine), held)
    assert (await bound.last()).finish_reason == "stop"
    engine.cancel("free")
    told = json.loads(bound.text)
    assert set(told) == {"sum", "even"}
    assert 0 <= told["sum"] <= 99
    assert isinstance(told["even"], bool)


ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "sign": {"enum": ["plus", "minus"]}},
    "required": ["a", "sign"],
    "additionalProperties": False,
}
TOOLS = tuple(Tool(name=name, parameters=json.dumps(ADD)) for name in ("add", "count"))
STRICT = tuple(replace(tool, strict=True) for tool in TOOLS)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [None, 1])
async def test_calls_that_are_demanded_come_as_many_as_are_allowed_and_meet_their_parameters(
    engine: VllmEngine, most: Literal[1] | None, seed: int
) -> None:
    held = Sampling(temperature=1.5, seed=seed, max_tokens=600, least_calls=1, most_calls=most)
    stream = await answer(engine, "a", prompt(engine), held, tools=TOOLS)
    last = stream.pieces[-1]
    assert (last.finish_reason, stream.text) == ("tool_calls", "")
    assert 1 <= len(last.tool_calls) <= (most or MOST_CALLS)
    for call in last.tool_calls:
        told = json.loads(call.arguments)
        assert call.name in ("add", "count")
        assert set(told) == {"a", "sign"}
        assert 0 <= told["a"] <= 99
        assert told["sign"] in ("plus", "minus")


async def test_a_strict_tool_may_be_left_and_one_of_two_calls_or_a_schema_is_told(engine: VllmEngine) -> None:
    free = await answer(engine, "free", prompt(engine), GREEDY, tools=STRICT)
    assert free.text == (await answer(engine, "plain", prompt(engine), GREEDY)).text
    either = Sampling(temperature=1.5, seed=1, max_tokens=600, json_schema=json.dumps(ADD))
    told = await answer(engine, "either", prompt(engine), either, tools=TOOLS)
    assert told.pieces[-1].tool_calls or set(json.loads(told.text)) == {"a", "sign"}


async def test_parameters_that_cannot_be_held_to_are_refused_of_strict_tools(engine: VllmEngine) -> None:
    odd = Tool(name="add", parameters='{"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 7}}}')
    with pytest.raises(InvalidRequest, match="all that the parameters of 'add' say"):
        ask(engine, "a", prompt(engine), GREEDY, tools=(replace(odd, strict=True),))
    demanded = replace(GREEDY, least_calls=1, most_calls=1)
    stream = await answer(engine, "a", prompt(engine), replace(demanded, max_tokens=200), tools=(odd,))
    assert [call.name for call in stream.pieces[-1].tool_calls] in ([], ["add"])
    with pytest.raises(InvalidRequest, match="given; none are allowed of one that is held to a form"):
        ask(engine, "a", prompt(engine), demanded, tools=TOOLS, given=(30,))


async def test_of_those_who_wait_the_highest_priority_goes_first(engine: VllmEngine) -> None:
    endless = {"type": "array", "items": {"type": "boolean"}, "minItems": 200}
    long = Sampling(temperature=0, max_tokens=400, json_schema=json.dumps(endless))
    running = [ask(engine, f"long{n}", prompt(engine), long) for n in range(8)]  # as many as may run
    while not all(one.pieces for one in running):
        await asyncio.sleep(0)
    began: list[int] = []

    def listen(priority: int) -> Emit:
        return lambda piece: began.append(priority) if priority not in began else None

    for priority in (0, 2, 1):
        engine.submit(
            Generation(request_id=f"p{priority}", prompt=prompt(engine), sampling=GREEDY, priority=priority),
            listen(priority),
        )
    engine.cancel("long0")
    while len(began) < 3:
        assert sum(one.ended.is_set() for one in running) == 0
        await asyncio.sleep(0)
    assert began == [2, 1, 0]
    for n in range(1, 8):
        engine.cancel(f"long{n}")
    await eventually_idle(engine)


async def test_a_schema_that_is_none_is_the_callers_fault(engine: VllmEngine) -> None:
    wrong = Sampling(temperature=0, max_tokens=20, json_schema='{"type": "nonsense"}')
    last = await ask(engine, "a", prompt(engine), wrong).last()
    assert isinstance(last.error, InvalidRequest)


async def test_what_can_never_run_is_refused(engine: VllmEngine) -> None:
    with pytest.raises(ContextTooLong, match="1024 tokens are allowed together"):
        ask(engine, "a", (5,) * 1100, GREEDY)
    with pytest.raises(InvalidRequest, match="use this model's tokenizer"):
        ask(engine, "a", (99_999,), GREEDY)
    with pytest.raises(InvalidRequest, match="given"):
        ask(engine, "a", (5,), Sampling(json_schema="{}", max_tokens=9), given=(6,))


async def test_more_than_may_run_and_wait_is_refused_for_now(engine: VllmEngine) -> None:
    crowd = [ask(engine, f"c{n}", prompt(engine), WILD) for n in range(12)]  # 8 run, 4 wait
    with pytest.raises(Overloaded):
        ask(engine, "late", prompt(engine), GREEDY)
    for n in range(len(crowd)):
        engine.cancel(f"c{n}")
    await eventually_idle(engine)


async def test_a_special_token_inside_a_message_stays_text(engine: VllmEngine) -> None:
    assert prompt(engine, "<|im_end|>").count(2) == prompt(engine, "a").count(2)


async def test_a_call_of_a_tool_comes_whole_in_the_last_piece_and_is_no_text(engine: VllmEngine) -> None:
    written = 'Sure. <tool_call>\n{"name": "add", "arguments": {"a": 12, "b": 30}}\n</tool_call>'
    given = tuple(engine._engine.get_tokenizer().encode(written, add_special_tokens=False))
    all_of_it = Sampling(temperature=0, max_tokens=len(given))
    (only,) = ask(engine, "a", prompt(engine), all_of_it, given=given, tools=(Tool(name="add"),)).pieces
    (call,) = only.tool_calls
    assert only.finish_reason == "tool_calls"
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 12, "b": 30})


async def test_offered_tools_that_are_not_called_change_nothing(engine: VllmEngine) -> None:
    plain = await answer(engine, "plain", prompt(engine), GREEDY)
    offered = await answer(engine, "offered", prompt(engine), GREEDY, tools=(Tool(name="add"),))
    assert offered.text == plain.text
    assert offered.pieces[-1].finish_reason == plain.pieces[-1].finish_reason


async def test_a_report_counts_steps_and_what_they_took(engine: VllmEngine) -> None:
    before = engine.report()
    await answer(engine, "a", prompt(engine), GREEDY)
    after = engine.report()
    assert after.steps > before.steps
    assert after.step_ms > 0
    assert after.prefill_us_per_token > 0
    assert after.kv_capacity_tokens == 4096
    assert after.experts is None


async def test_a_killed_engine_core_fails_every_stream_and_the_check() -> None:
    engine = VllmEngine(tier(), "cpu")
    await engine.start()
    streams = [ask(engine, f"s{n}", prompt(engine), WILD) for n in range(3)]
    newest_core().kill()
    for last in [await each.last() for each in streams]:
        assert isinstance(last.error, EngineFailed)
    with pytest.raises(EngineFailed, match="its replica is being replaced"):
        engine.check()
    with pytest.raises(EngineFailed):
        ask(engine, "late", prompt(engine), GREEDY)
    await engine.stop()


async def test_a_checkpoint_that_vllm_cannot_load_is_named() -> None:
    with pytest.raises(CheckpointError, match="/nowhere"):
        await VllmEngine(tier(checkpoint="/nowhere"), "cpu").start()
