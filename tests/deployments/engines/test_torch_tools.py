"""Tools with a checkpoint that ships: prompts that offer them, and the calls that it truly writes."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from torch_checkpoint import SPECIAL
from transformers import AutoTokenizer

from cluster.errors import ContextTooLong, InvalidRequest
from cluster.request import Generation, Message, Piece, Sampling, Tool, ToolCall
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec

MINI = Path(__file__).parents[3] / "deployments" / "demo" / "checkpoints" / "mini"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool(name="get_weather", description="The weather in a city", parameters=json.dumps(CITY))
ASKED = Message(role="user", content="What is the weather in Paris?")
CALLED = ToolCall(id="call_1", name="get_weather", arguments='{"city": "Paris"}')
HISTORY = (
    ASKED,
    Message(role="assistant", content="", tool_calls=(CALLED,)),
    Message(role="tool", content='{"degrees": 7}', tool_call_id="call_1"),
)


@pytest.fixture(scope="module")
def chat() -> ChatTokenizer:
    return ChatTokenizer(MINI, 2048)


@pytest.fixture
async def engine() -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(EngineSpec(checkpoint=str(MINI), context_tokens=512, kv_tokens=1024, max_running=2))
    await engine.start()
    yield engine
    await engine.stop()


async def answer(engine: TorchEngine, request_id: str, *messages: Message, given: tuple[int, ...] = ()) -> list[Piece]:
    generation = Generation(
        request_id=request_id,
        prompt=engine.encode(messages, (WEATHER,)),
        sampling=Sampling(temperature=0, max_tokens=64),
        tools=(WEATHER,),
        given=given,
    )
    pieces: list[Piece] = []
    ended = asyncio.Event()

    def emit(piece: Piece) -> None:
        pieces.append(piece)
        if piece.last:
            ended.set()

    engine.submit(generation, emit)
    await ended.wait()
    return pieces


def test_prompts_with_tools_and_calls_equal_those_of_transformers(chat: ChatTokenizer) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    said: list[Any] = [
        {"role": "user", "content": ASKED.content},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"degrees": 7}'},
    ]
    theirs = AutoTokenizer.from_pretrained(MINI).apply_chat_template(
        said,
        tools=[
            {
                "type": "function",
                "function": {"name": "get_weather", "description": "The weather in a city", "parameters": CITY},
            }
        ],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert list(chat.encode(HISTORY, (WEATHER,))) == theirs


@hypothesis.settings(deadline=None)
@hypothesis.given(st.sampled_from([*SPECIAL, "<|im_start|>", "<|im_end|>"]))
def test_no_tool_and_no_call_writes_a_control_token(chat: ChatTokenizer, token: str) -> None:
    plain, wicked = ("x", token)

    def control(word: str) -> list[int]:
        tool = Tool(name="f", description=word, parameters=json.dumps({"properties": {word: {"const": word}}}))
        call = ToolCall(id="c", name="f", arguments=json.dumps({word: [word]}).replace("<", "\\u003c"))
        said = (ASKED, Message(role="assistant", content="", tool_calls=(call,)))
        return [token for token in chat.encode(said, (tool,)) if not chat.bytes_of[token]]

    assert control(wicked) == control(plain) != []


def test_half_a_character_in_a_call_is_refused(chat: ChatTokenizer) -> None:
    call = ToolCall(id="c", name="f", arguments='{"x": "\\ud800"}')
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        chat.encode((Message(role="assistant", content="", tool_calls=(call,)),))


def test_tools_count_as_text_before_they_are_rendered(chat: ChatTokenizer) -> None:
    with pytest.raises(ContextTooLong):
        chat.encode((ASKED,), (Tool(name="f", description="x" * 1_000_000),))


def with_template(folder: Path, template: str) -> ChatTokenizer:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MINI / name).read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return ChatTokenizer(folder, 2048)


def test_templates_write_json_as_transformers_does(tmp_path: Path) -> None:
    """GLM-4.5 gives ensure_ascii, others indent, separators and the order of keys."""
    said = [{"role": "user", "content": "<é>"}]
    for options in ("ensure_ascii=False", "ensure_ascii=True, indent=2", "separators=(',', ':'), sort_keys=True"):
        ours = with_template(tmp_path, f"{{{{ messages[0] | tojson({options}) }}}}{{{{ tools | tojson({options}) }}}}")
        theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
            said,
            tools=[{"type": "function", "function": {"name": "f", "description": "ü", "parameters": CITY}}],
            return_dict=False,
        )
        tool = Tool(name="f", description="ü", parameters=json.dumps(CITY))
        assert list(ours.encode((Message(role="user", content="<é>"),), (tool,))) == theirs


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.tool_call_id or m.role }}]{% endfor %}",  # Mistral's templates name the call
        "{% for m in messages %}{% generation %}{{ m.content }}\n{% endgeneration %}{% endfor %}",
    ],
)
def test_prompts_of_other_templates_equal_those_of_transformers(tmp_path: Path, template: str) -> None:
    ours = with_template(tmp_path, template)
    said = [{"role": "user", "content": ASKED.content}, {"role": "assistant", "content": ""}]
    said.append({"role": "tool", "content": '{"degrees": 7}', "tool_call_id": "call_1"})
    theirs = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(said, return_dict=False)
    assert list(ours.encode(HISTORY)) == theirs


def test_a_call_that_a_template_does_not_expect_is_the_callers_to_mend(tmp_path: Path) -> None:
    adding = with_template(tmp_path, "{{ 'a' + messages[0].tool_calls[0].function.arguments.city }}")
    call = ToolCall(id="c", name="f", arguments='{"city": 7}')
    with pytest.raises(InvalidRequest, match="the chat template refuses them"):
        adding.encode((Message(role="assistant", content="", tool_calls=(call,)),))


def test_a_template_that_knows_no_tools_refuses_them(tmp_path: Path) -> None:
    plain = with_template(tmp_path, "{{ messages[0].content }}")
    assert plain.encode((ASKED,))
    with pytest.raises(InvalidRequest, match="tools: given; the checkpoint's chat template"):
        plain.encode((ASKED,), (WEATHER,))


async def test_the_shipped_checkpoint_calls_a_tool_and_says_what_it_returned(engine: TorchEngine) -> None:
    *pieces, last = await answer(engine, "asked", ASKED)
    assert [piece.text for piece in (*pieces, last) if piece.text] == []
    assert last.finish_reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in last.tool_calls] == [("get_weather", {"city": "Paris"})]
    said = await answer(engine, "told", *HISTORY)
    assert "7 degrees" in "".join(piece.text for piece in said)
    assert said[-1].finish_reason == "stop"


async def test_behind_any_part_of_a_call_the_same_call_is_told(engine: TorchEngine) -> None:
    whole = await answer(engine, "whole", ASKED)
    ids = tuple(id for piece in whole for id in piece.ids)
    for given_tokens in (1, len(ids) // 2, len(ids) - 1):
        *_, last = await answer(engine, "whole", ASKED, given=ids[:given_tokens])
        assert (last.tool_calls, last.usage) == (whole[-1].tool_calls, whole[-1].usage)
