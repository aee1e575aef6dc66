"""Tools, schemas and domains from the client's bytes to the engine and back: all of the way but Serve and a model.

The engine says what a script tells it, and is labelled so; gateway, replica and stream are the real ones.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from shell import Exchange, Handle, Replica, application, family
from virtual_time import run

from cluster.errors import EngineFailed
from cluster.family import Family
from cluster.request import Generation, Message, Piece, Tool, ToolCall, Usage
from deployments import seen
from deployments.engines.engine import Emit, EngineReport
from deployments.stream import BEAT

STEP_S = 0.5
CALL = ToolCall(id="call_1", name="look_up", arguments='{"what":"x"}')
LAST = Piece(
    tokens=1,
    ids=(9,),
    tool_calls=(CALL,),
    finish_reason="tool_calls",
    usage=Usage(prompt_tokens=4, completion_tokens=10, cached_tokens=3),
)
SCRIPT = (Piece(tokens=1, ids=(0,), text="Let me look."), *(Piece(tokens=1, ids=(id,)) for id in range(1, 9)), LAST)
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
ASKED: dict[str, Any] = {"model": "mini", "messages": [{"role": "user", "content": "hello"}]}
ABLE: dict[str, Any] = {"engine": "vllm", "vllm": {"tool_parser": "hermes"}}
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}}
DEMANDS: list[tuple[dict[str, Any], str]] = [({"tools": TOOLS}, "tools"), (SCHEMA, "response_format")]
PARTS: dict[str, Any] = {
    "plans": {"all": {"tiers": ["mini", "turbo"], "priority": 2}},
    "personas": {"math": ["tutor"]},
}
AUTO: dict[str, Any] = {"names": ["any"], "default": "mini", "long": "mini", "long_prompt_tokens": 9000}


class Scripted:
    """Says one piece per step; what was given it has said already. With `dies_after`, that many tokens are its last."""

    label = "scripted"
    context_tokens = 2048

    def __init__(self, *, able: bool = True, dies_after: int | None = None) -> None:
        self.structured = self.tools = self.forced_tools = able
        self.asked: list[Generation] = []
        self.offered: list[Sequence[Tool]] = []
        self._dies_after = dies_after

    async def start(self) -> None: ...

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        self.offered.append(tools)
        return tuple(range(len(messages)))

    def submit(self, generation: Generation, emit: Emit) -> None:
        self.asked.append(generation)
        left = SCRIPT[len(generation.given) :]
        for step, piece in enumerate(left):
            said = Piece(error=EngineFailed("engine: gone")) if step == self._dies_after else piece
            asyncio.get_running_loop().call_later(step * STEP_S, emit, said)

    def cancel(self, request_id: str) -> None: ...

    def report(self) -> EngineReport:
        numbers = ("running", "waiting", "waiting_prefill_tokens", "kv_used_tokens", "kv_capacity_tokens", "steps")
        idle: dict[str, Any] = dict.fromkeys(numbers, 0)
        return EngineReport(**idle, step_ms=1.0, prefill_us_per_token=1.0)

    def check(self) -> None: ...

    async def stop(self) -> None: ...


Ask = Callable[..., Awaitable[Exchange]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a scenario with a gateway whose tiers mini and turbo have these engines, each with two replicas."""

    def play(
        scenario: Callable[[Ask], Awaitable[None]],
        engines: dict[str, Scripted],
        mini: dict[str, Any] | None = None,
        turbo: dict[str, Any] | None = None,
        specialists: Sequence[str] = (),
    ) -> None:
        async def played() -> None:
            raw = family(tmp_path, gateway={"tokens": "streamed"}, specialists=specialists, **ABLE).model_dump() | PARTS
            raw["tiers"]["mini"] |= mini or {}
            raw["tiers"]["turbo"] |= turbo or {}
            raw["auto"] = AUTO | {"hints": {"creative_writing": "turbo"} if specialists else {}}
            spec = Family.model_validate(raw)
            handles = {}
            for key, engine in engines.items():
                with patch("deployments.tier.build", return_value=engine):
                    handles[key] = Handle(await Replica.started(spec, key))
                seen.publish(key, tuple(seen.SeenReplica(replica_id=f"{key}-{n}", metrics_address="") for n in "ab"))
            gateway, app, key = await application(spec, handles)

            async def ask(headers: dict[str, str] | None = None, plan: str | None = None, **fields: Any) -> Exchange:
                secret = gateway._keys.create("a", 0.0, plan)[0] if plan else key
                given = {"authorization": f"Bearer {secret}"} | (headers or {})
                body = json.dumps(ASKED | fields).encode()
                return await Exchange(app, "/v1/chat/completions", body, headers=given).finished()

            await scenario(ask)

        monkeypatch.setattr(seen, "_replicas", {})
        monkeypatch.setattr(seen, "_listeners", [])
        run(played())

    return play


Play = Callable[..., None]


def chunks(exchange: Exchange) -> list[ChatCompletionChunk]:
    lines = exchange.body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [line.removeprefix("data: ") for line in lines[:-2] if line.startswith("data: ")]
    return [ChatCompletionChunk.model_validate(json.loads(event), strict=True) for event in events]


def assert_called(exchange: Exchange) -> None:
    """The text and the call of the script, once each, as the SDK's chunks."""
    told = [choice for chunk in chunks(exchange) for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in told) == "Let me look."
    (call,) = [call for choice in told for call in choice.delta.tool_calls or ()]
    assert call.function is not None
    assert (call.index, call.id, call.function.name, call.function.arguments) == (
        0,
        CALL.id,
        CALL.name,
        CALL.arguments,
    )
    assert [choice.finish_reason for choice in told if choice.finish_reason] == ["tool_calls"]


def test_an_engine_gets_the_tools_and_its_calls_are_answers(play: Play) -> None:
    engine = Scripted()

    async def scenario(ask: Ask) -> None:
        whole = ChatCompletion.model_validate((await ask(tools=TOOLS)).json(), strict=True)
        (choice,) = whole.choices
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me look.")
        assert [call.id for call in choice.message.tool_calls or ()] == [CALL.id]
        assert whole.usage is not None
        assert whole.usage.prompt_tokens_details is not None
        assert whole.usage.prompt_tokens_details.cached_tokens == 3
        assert whole.model == "mini (scripted)"
        streamed = await ask(tools=TOOLS, stream=True)
        assert_called(streamed)
        assert BEAT in streamed.body, "four seconds of a call show no text"
        assert engine.asked[0].tools == engine.offered[0] == (Tool(name="look_up"),)

    play(scenario, {"mini": engine, "turbo": engine})


@pytest.mark.parametrize("dies_after", [0, 1, 5, 9])
def test_a_stream_lost_before_amid_or_behind_its_call_is_told_once_and_whole(play: Play, dies_after: int) -> None:
    engine = Scripted(dies_after=dies_after)
    original = engine.submit

    def submit(generation: Generation, emit: Emit) -> None:
        original(generation, emit)
        engine._dies_after = None

    engine.submit = submit  # type: ignore[method-assign]

    async def scenario(ask: Ask) -> None:
        assert_called(await ask(tools=TOOLS, stream=True))
        first, second = engine.asked
        assert first.given == ()
        assert second.given == tuple(range(len(second.given)))
        assert len(second.given) <= dies_after
        assert replace(second, given=(), request_id="") == replace(first, request_id="")

    play(scenario, {"mini": engine, "turbo": engine})


@pytest.mark.parametrize(("fields", "param"), DEMANDS)
def test_a_tier_that_cannot_is_refused_by_name_and_never_chosen(play: Play, fields: dict[str, Any], param: str) -> None:
    engine = Scripted()

    async def scenario(ask: Ask) -> None:
        refused = await ask(plan="all", **fields)
        assert (refused.status, refused.json()["error"]["param"]) == (400, param)
        assert "are turbo, not mini; name one of turbo" in refused.json()["error"]["message"]
        chosen = await ask(plan="all", model="any", **fields)
        assert (chosen.status, chosen.headers["moray-tier"]) == (200, "turbo")
        assert len(engine.asked) == 1

    play(scenario, {"mini": engine, "turbo": engine}, mini={"engine": "simulated"})


FORCED: list[tuple[dict[str, Any], str]] = [
    ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [{"type": "function", "function": {"name": "look_up", "strict": True}}]}, "tools"),
    ({"tools": TOOLS, **SCHEMA}, "response_format"),
]


@pytest.mark.parametrize(("fields", "param"), FORCED)
def test_calls_are_demanded_of_tiers_that_can_alone(play: Play, fields: dict[str, Any], param: str) -> None:
    engine = Scripted()

    async def scenario(ask: Ask) -> None:
        refused = await ask(plan="all", **fields)
        assert (refused.status, refused.json()["error"]["param"]) == (400, param)
        assert "are turbo, not mini; name one of turbo" in refused.json()["error"]["message"]
        chosen = await ask(plan="all", model="any", **fields)
        assert (chosen.status, chosen.headers["moray-tier"]) == (200, "turbo")
        assert engine.asked[0].held

    unable = {"engine": "vllm", "vllm": {"tool_parser": "pythonic"}}
    play(scenario, {"mini": engine, "turbo": engine}, mini=unable, turbo={"engine": "torch"})


@pytest.mark.parametrize(("fields", "param"), DEMANDS)
def test_an_engine_that_cannot_what_its_family_file_says_is_not_asked(
    play: Play, fields: dict[str, Any], param: str
) -> None:
    engine = Scripted(able=False)

    async def scenario(ask: Ask) -> None:
        refused = await ask(**fields)
        assert (refused.status, refused.json()["error"]["param"]) == (400, param)
        assert engine.asked == []

    play(scenario, {"mini": engine, "turbo": engine})


def test_an_engine_gets_the_schema_that_its_answer_must_meet(play: Play) -> None:
    engine = Scripted()

    async def scenario(ask: Ask) -> None:
        assert (await ask(**SCHEMA)).status == 200
        assert engine.asked[0].sampling.json_schema == '{"type":"object"}'

    play(scenario, {"mini": engine, "turbo": engine})


@pytest.mark.parametrize(
    ("system", "hint", "domain", "tier"),
    [
        ("You are a tutor.", None, "math", "mini"),
        ("You are a tutor.", "creative_writing", "creative_writing", "turbo"),
        ("Be brief.", None, "", "mini"),
    ],
)
def test_an_engine_gets_the_domain_and_the_priority_and_only_a_hint_chooses_the_tier(
    play: Play, system: str, hint: str | None, domain: str, tier: str
) -> None:
    engine = Scripted()

    async def scenario(ask: Ask) -> None:
        headers = {"moray-hint": hint} if hint else {}
        messages = [{"role": "system", "content": system}, *ASKED["messages"]]
        answer = await ask(headers, plan="all", model="any", messages=messages)
        assert answer.headers["moray-tier"] == tier
        assert (engine.asked[0].domain, engine.asked[0].priority) == (domain, 2)
        assert domain == "" or domain not in answer.body.decode() + str(answer.headers)

    play(scenario, {"mini": engine, "turbo": engine}, specialists=["math", "creative_writing"])
