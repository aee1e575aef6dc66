"""Answers held to JSON schemas: whatever the model says, what comes is JSON that meets the schema."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema_rs
import numpy as np
import pytest
from hypothesis import strategies as st
from torch_checkpoint import save_checkpoint
from torch_group import collected, running

from cluster.errors import InvalidRequest
from cluster.request import Generation, Message, Piece, Sampling, Tool
from deployments.engines.calls import CallText
from deployments.engines.torch_engine import engine as torch_engine
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.grammar import MOST_CALLS, Grammars, Held
from deployments.engines.torch_engine.spec import EngineSpec

MINI = Path(__file__).parents[3] / "deployments" / "demo" / "checkpoints" / "mini"
SPEC = EngineSpec(checkpoint=str(MINI), context_tokens=512, kv_tokens=8192, max_running=16)
SUM = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 10, "maximum": 99999}, "unit": {"enum": ["eels", "morays"]}},
    "required": ["sum", "unit"],
    "additionalProperties": False,
}
WHOLE = st.integers(-(2**53), 2**53)  # which every reader of JSON keeps exact
FREE = Sampling(temperature=0.9, seed=3, max_tokens=40)


def held(schema: object, **changes: Any) -> Sampling:
    return replace(Sampling(max_tokens=200, seed=5, json_schema=json.dumps(schema)), **changes)


def generation(key: str, sampling: Sampling, given: tuple[int, ...] = ()) -> Generation:
    return Generation(request_id=key, prompt=tuple(range(10, 30)), sampling=sampling, given=given)


def calling(sampling: Sampling, *tools: Tool, key: str = "a", given: tuple[int, ...] = ()) -> Generation:
    return replace(generation(key, sampling, given), tools=tools)


def text_of(pieces: list[Piece]) -> str:
    assert pieces[-1].error is None
    return "".join(piece.text for piece in pieces)


def ids_of(pieces: list[Piece]) -> tuple[int, ...]:
    return tuple(token for piece in pieces for token in piece.ids)


@pytest.fixture(autouse=True, scope="module")
def patient() -> Iterator[None]:
    """A busy machine compiles slowly, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_engine, "COMPILE_S", 60.0)
        yield


@pytest.fixture
async def engine() -> AsyncIterator[TorchEngine]:
    async with running(SPEC) as (engine, _):
        yield engine


def _values() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["integer", "null"], "maximum": 99}]),
        st.builds(
            lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
            st.integers(-1000, 1000),
            st.integers(0, 2000),
        ),
        st.builds(lambda most: {"type": "string", "maxLength": most}, st.integers(0, 9)),
        st.builds(lambda of: {"enum": of}, st.lists(st.text(max_size=5) | WHOLE, min_size=1, max_size=4)),
        st.just({"type": "string", "pattern": "^[a-z]{1,4}-[0-9]{2}$"}),
        st.just({"type": "string", "format": "date"}),
    )


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], required: int) -> dict[str, Any]:
        named = {"properties": properties, "required": [*properties][:required]}
        return {"type": "object", "additionalProperties": False, **named}

    return st.one_of(
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 3)),
        st.builds(an_object, st.dictionaries(st.text(max_size=4), inner, max_size=3), st.integers(0, 3)),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=3)),
    )


SCHEMAS = st.recursive(_values(), _nested, max_leaves=5)


@hypothesis.settings(max_examples=6, deadline=None)
@hypothesis.given(schemas=st.lists(SCHEMAS, min_size=6, max_size=6))
def test_every_answer_meets_its_schema_beside_answers_that_are_free(schemas: list[dict[str, Any]]) -> None:
    async def ask() -> list[list[Piece]]:
        async with running(SPEC) as (engine, _):
            samplings = [held(schema, temperature=i % 2) for i, schema in enumerate(schemas)] + [FREE]
            return await asyncio.gather(*(collected(engine, generation(f"{i}", s)) for i, s in enumerate(samplings)))

    *answers, free = asyncio.run(ask())
    for schema, pieces in zip(schemas, answers, strict=True):
        text = text_of(pieces)
        if pieces[-1].finish_reason == "stop":
            assert jsonschema_rs.is_valid(schema, json.loads(text)), (schema, text)
    assert any(pieces[-1].finish_reason == "stop" for pieces in answers)
    assert free[-1].error is None


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_whichever_allowed_tokens_are_drawn_the_bytes_are_json_that_meets_the_schema(
    schema: dict[str, Any], seed: int
) -> None:
    """Of tokens drawn uniformly: what no model would choose is tried, too."""
    answer = drawn(GRAMMARS.begin(generation("a", held(schema))), np.random.default_rng(seed))
    assert jsonschema_rs.is_valid(schema, json.loads(answer)), answer


BYTES = ChatTokenizer(MINI, 512).bytes_of
ENDS = frozenset({0, 2})
GRAMMARS = Grammars(BYTES, ENDS, len(BYTES) + 70)


async def test_a_neighbour_that_is_held_changes_no_other_stream(engine: TorchEngine) -> None:
    alone = [ids_of(await collected(engine, generation(f"a{i}", s))) for i, s in enumerate((FREE, held(SUM)))]
    samplings = (FREE, held(SUM), held({"enum": ["x", "yy"]}, temperature=0), FREE)
    crowd = await asyncio.gather(*(collected(engine, generation(f"c{i}", s)) for i, s in enumerate(samplings)))
    assert [ids_of(pieces) for pieces in crowd[:2]] == alone


async def test_behind_the_last_token_of_the_schema_stands_the_end_token(engine: TorchEngine) -> None:
    pieces = await collected(engine, generation("a", held({"enum": ["moray"]}, temperature=0)))
    assert (text_of(pieces), pieces[-1].finish_reason) == ('"moray"', "stop")
    assert pieces[-1].ids[-1] in ENDS


async def test_an_answer_that_is_cut_ends_by_length(engine: TorchEngine) -> None:
    pieces = await collected(engine, generation("a", held({"type": "string", "minLength": 500}, max_tokens=9)))
    assert pieces[-1].finish_reason == "length"
    assert len(ids_of(pieces)) == 9


async def test_no_bias_leads_out_of_the_schema(engine: TorchEngine) -> None:
    wish = tuple((token, 100.0) for token in range(65, 91))  # most of them forbidden at most places
    pieces = await collected(engine, generation("a", held(SUM, logit_bias=wish)))
    assert jsonschema_rs.is_valid(SUM, json.loads(text_of(pieces)))


async def test_penalties_and_log_probabilities_stand_beside_a_schema(engine: TorchEngine) -> None:
    sampling = held(SUM, presence_penalty=2.0, frequency_penalty=2.0, top_p=0.5, top_logprobs=2)
    pieces = await collected(engine, generation("a", sampling))
    assert jsonschema_rs.is_valid(SUM, json.loads(text_of(pieces)))
    assert all(len(one.top) == 2 for piece in pieces for one in piece.logprobs)


async def test_an_answer_goes_on_elsewhere_behind_each_of_its_tokens(engine: TorchEngine) -> None:
    whole = await collected(engine, generation("whole", held(SUM)))
    tokens = ids_of(whole)
    for cut in range(1, len(tokens), 3):
        rest = await collected(engine, generation(f"from {cut}", held(SUM), tokens[:cut]))
        assert tokens[:cut] + ids_of(rest) == tokens
        assert rest[-1].usage == whole[-1].usage


async def test_given_tokens_that_leave_the_schema_are_refused(engine: TorchEngine) -> None:
    (piece,) = await collected(engine, generation("a", held(SUM), (50, 51)))
    assert isinstance(piece.error, InvalidRequest)
    assert engine.report().waiting == 0


HOPELESS: list[object] = [
    {"type": "nonsense"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"type": "object", "properties": {"a": False}, "required": ["a"]},
    {"enum": []},
    {"type": "array", "uniqueItems": True},
    {"type": "string", "pattern": "(?=a)b"},
    {"allOf": [{"type": "string", "pattern": f"^.*{c}.{{12}}$"} for c in "abcdefghijklmnop"]},
    {"$ref": "#"},
    {"$ref": "https://example.com/schema.json"},
    {"type": "integer", "multipleOf": 10**9 + 7},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 100_000},
    {"type": "object", "properties": {"in": {"$ref": "#"}}, "required": ["in"]},
    [],
]


async def test_a_schema_that_no_answer_can_meet_is_its_callers_fault_and_nobody_elses(engine: TorchEngine) -> None:
    samplings = [FREE, held(SUM), *map(held, HOPELESS)]
    free, good, *refused = await asyncio.gather(
        *(collected(engine, generation(f"{i}", sampling)) for i, sampling in enumerate(samplings))
    )
    for schema, pieces in zip(HOPELESS, refused, strict=True):
        error = pieces[-1].error
        assert isinstance(error, InvalidRequest), schema
        assert error.param == "response_format"
        assert len(str(error)) < 600
    assert free[-1].finish_reason is not None
    assert jsonschema_rs.is_valid(SUM, json.loads(text_of(good)))


ADD = Tool(name="add", parameters=json.dumps(SUM))
LOOK = Tool(name="look-up", parameters=json.dumps({"type": "object", "properties": {}, "additionalProperties": False}))
CALLED: dict[str, Any] = {"max_tokens": 200, "least_calls": 1}


def called(pieces: list[Piece]) -> list[tuple[str, Any]]:
    assert pieces[-1].error is None
    return [(call.name, json.loads(call.arguments)) for call in pieces[-1].tool_calls]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_an_answer_that_must_call_is_calls_alone_with_arguments_that_meet_their_schema(
    engine: TorchEngine, temperature: float
) -> None:
    samplings = [Sampling(temperature=temperature, seed=seed, most_calls=1, **CALLED) for seed in range(6)]
    answers = await asyncio.gather(
        *(collected(engine, calling(s, ADD, LOOK, key=f"{i}")) for i, s in enumerate(samplings))
    )
    for pieces in answers:
        ((name, arguments),) = called(pieces)
        assert (text_of(pieces), pieces[-1].finish_reason) == ("", "tool_calls")
        assert arguments == {} if name == "look-up" else jsonschema_rs.is_valid(SUM, arguments)


async def test_calls_may_follow_each_other_where_several_are_allowed(engine: TorchEngine) -> None:
    two = "\n".join(['<tool_call>\n{"name": "look-up", "arguments": {}}\n</tool_call>'] * 2)
    given = tokens_of(two)
    pieces = await collected(engine, calling(Sampling(**CALLED), LOOK, given=given))
    assert [name for name, _ in called(pieces)][:2] == ["look-up"] * 2
    one = calling(Sampling(most_calls=1, **CALLED), LOOK, key="b", given=given)
    assert isinstance((await collected(engine, one))[-1].error, InvalidRequest)


def drawn(one: Held, rng: np.random.Generator) -> str:
    """An answer of tokens drawn uniformly, to its end."""
    answer = b""
    for _ in range(2000):
        bits = np.unpackbits(GRAMMARS.masks([one]).view(np.uint8), bitorder="little")
        token = int(rng.choice(bits.nonzero()[0]))
        if token in ENDS:
            return answer.decode()
        assert BYTES[token], "no control token, and none beyond the vocabulary"
        answer += BYTES[token]
        assert one.take(token) is None
    raise AssertionError(answer)


def test_an_answer_with_tools_and_a_schema_is_calls_or_meets_the_schema_whatever_is_drawn() -> None:
    kinds = set[bool]()
    for seed in range(16):
        text = drawn(GRAMMARS.begin(calling(held(SUM), ADD, LOOK)), np.random.default_rng(seed))
        told = CallText((ADD, LOOK), "a")
        rest = told.push(text)
        more, calls, _ = told.end("stop")
        assert bool(calls) != bool(rest + more)
        assert calls or jsonschema_rs.is_valid(SUM, json.loads(text))
        kinds.add(bool(calls))
    assert kinds == {True, False}


def test_an_answer_has_as_many_calls_as_are_let_be_and_then_ends() -> None:
    call = '<tool_call>\n{"name": "look-up", "arguments": {}}\n</tool_call>'
    for least, schema in ((1, None), (0, json.dumps(SUM))):
        sampling = Sampling(least_calls=least, json_schema=schema)
        begun = calling(sampling, LOOK, given=tokens_of("\n".join([call] * (MOST_CALLS - 1))))
        assert drawn(GRAMMARS.begin(begun), np.random.default_rng(1)) in ("", f"\n{call}")
        full = GRAMMARS.begin(replace(begun, given=tokens_of("\n".join([call] * MOST_CALLS))))
        assert drawn(full, np.random.default_rng(0)) == ""


async def test_what_may_call_or_meet_a_schema_does_one_of_both(engine: TorchEngine) -> None:
    samplings = [held(SUM, temperature=1.0, seed=seed) for seed in range(6)]
    answers = await asyncio.gather(
        *(collected(engine, calling(s, ADD, LOOK, key=f"{i}")) for i, s in enumerate(samplings))
    )
    for pieces in answers:
        assert pieces[-1].error is None
        if pieces[-1].finish_reason == "stop":
            assert jsonschema_rs.is_valid(SUM, json.loads(text_of(pieces)))
        else:
            assert pieces[-1].finish_reason == "length" or (called(pieces) and not text_of(pieces))


async def test_text_stays_free_until_it_opens_a_call_which_then_meets_its_schema(engine: TorchEngine) -> None:
    strict, sampling = replace(ADD, strict=True), Sampling(max_tokens=200, temperature=0, most_calls=1)
    given = tokens_of("1 < 2, so I add: <tool_call>")
    pieces = await collected(engine, calling(sampling, strict, given=given))
    ((name, arguments),) = called(pieces)
    assert name == "add"
    assert jsonschema_rs.is_valid(SUM, arguments)
    prompt = engine.encode([Message(role="user", content="What is a prime number?")])
    unheld = replace(sampling, max_tokens=20, most_calls=None)
    asked = [replace(calling(unheld, tool, key="b"), prompt=prompt) for tool in (ADD, strict)]
    free = [await collected(engine, one) for one in asked]
    assert text_of(free[0]) == text_of(free[1]) != ""


async def test_a_tool_that_is_not_strict_may_have_parameters_that_no_grammar_holds(engine: TorchEngine) -> None:
    odd = Tool(name="odd", parameters=json.dumps({"type": "object", "not": {"required": ["x"]}}))
    sampling = Sampling(max_tokens=60, temperature=0, most_calls=1, least_calls=1)
    assert (await collected(engine, calling(sampling, odd)))[-1].error is None
    error = (await collected(engine, calling(sampling, replace(odd, strict=True), key="b")))[-1].error
    assert isinstance(error, InvalidRequest)
    assert str(error).startswith("tools: no arguments of 'odd' can be held to its parameters")


def tokens_of(text: str) -> tuple[int, ...]:
    """Byte by byte: any tokens that say it will do."""
    return tuple(BYTES.index(bytes([byte])) for byte in text.encode())


async def test_a_schema_that_takes_too_long_is_refused_by_name(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_engine, "COMPILE_S", 0.0)
    (piece,) = await collected(engine, generation("a", held(SUM)))
    assert "simplify the schema" in str(piece.error)


async def test_a_request_cancelled_before_its_schema_is_compiled_never_runs(engine: TorchEngine) -> None:
    seen: list[Piece] = []
    engine.submit(generation("a", held(SUM)), seen.append)
    assert engine.report().waiting == 1
    engine.cancel("a")
    assert text_of(await collected(engine, generation("b", held(SUM))))
    assert (seen, engine.report().waiting) == ([], 0)


async def test_what_ignores_end_tokens_goes_on_with_them_behind_the_schema(engine: TorchEngine) -> None:
    sampling = held({"enum": ["moray"]}, max_tokens=30, ignore_eos=True)
    pieces = await collected(engine, generation("a", sampling))
    assert (text_of(pieces), pieces[-1].finish_reason, len(ids_of(pieces))) == ('"moray"', "length", 30)


async def test_a_checkpoint_without_end_tokens_holds_no_answer(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, eos_token_id=None)
    async with running(replace(SPEC, checkpoint=str(folder), context_tokens=256)) as (engine, _):
        (piece,) = await collected(engine, generation("a", held(SUM)))
        assert "no end token" in str(piece.error)


@pytest.mark.slow
async def test_two_ranks_hold_their_answers_as_one_does(engine: TorchEngine) -> None:
    samplings = [held(SUM, seed=seed) for seed in range(5)] + [FREE]
    outcomes = []
    async with running(replace(SPEC, ranks=2)) as (two, _):
        for of in (engine, two):
            told = await asyncio.gather(*(collected(of, generation(f"{i}", s)) for i, s in enumerate(samplings)))
            outcomes.append([ids_of(pieces) for pieces in told])
    assert outcomes[0] == outcomes[1]
