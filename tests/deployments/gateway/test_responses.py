"""Responses and conversations from the official client, through the whole gateway in this process."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from sdk import Replies, Served, crashed, served
from shell import Exchange

from cluster.errors import InvalidRequest, StartTimeout, Unavailable
from cluster.request import ToolCall
from deployments.gateway import response_runs
from deployments.gateway.objects_wire import MONTH_S
from deployments.gateway.response_request import parse_response
from deployments.gateway.response_wire import Answer, Narration, ended, so_far
from deployments.gateway.response_wire import begun as begun_response
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.stores.objects import Page

ABLE: dict[str, Any] = {"engine": "vllm", "vllm": {"tool_parser": "hermes"}}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL: dict[str, Any] = {"type": "function", "name": "look_up", "parameters": {"type": "object"}, "strict": False}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,aaaa"}
CALL = ToolCall(id="call_1", name="look_up", arguments='{"what":"x"}')
OPENING = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added"]
CLOSING = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALLED = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("TURN_S", 0.05), ("PAUSE_S", 0.05)):
        monkeypatch.setattr(response_runs, name, seconds)


@pytest.fixture
def replies() -> Replies:
    return Replies("Hel", "lo ✓")


@pytest.fixture
async def here(tmp_path: Path, replies: Replies) -> AsyncIterator[Served]:
    async with served(tmp_path, replies, **ABLE) as here:
        yield here


async def ask(client: AsyncOpenAI, said: Any = "hello", **more: Any) -> Any:
    return await client.responses.create(model="mini", input=said, **more)


async def events(stream: Any) -> list[Any]:
    """Each of them checked against the API's own shapes, and numbered without a gap."""
    found = [event async for event in stream]
    for event in found:
        EVENT.validate_python(event.model_dump(exclude_unset=True, by_alias=True), strict=False)
    first = found[0].sequence_number
    assert [event.sequence_number for event in found] == list(range(first, first + len(found)))
    return found


def _said(item: Any) -> str:
    return str(item.content[0].text)


def types(found: list[Any]) -> list[str]:
    return [event.type for event in found]


async def over(client: AsyncOpenAI, response: Any) -> Any:
    async with asyncio.timeout(60):
        while response.status in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
            response = await client.responses.retrieve(response.id)
    return response


async def test_an_answer_has_the_shape_of_the_api_and_is_kept_as_it_was_told(here: Served) -> None:
    told = await ask(here.client, instructions="be kind", metadata={"a": "b"}, temperature=0.5, user="u")
    Response.model_validate(told.model_dump(by_alias=True))
    assert (told.status, told.output_text, told.model) == ("completed", "Hello ✓", "mini")
    assert (told.instructions, told.metadata, told.temperature, told.user) == ("be kind", {"a": "b"}, 0.5, "u")
    assert (told.usage.input_tokens, told.usage.output_tokens, told.usage.total_tokens) == (4, 10, 14)
    assert told.usage.input_tokens_details.cached_tokens == 3
    assert await here.client.responses.retrieve(told.id) == told


async def test_it_is_the_same_chat_that_the_chat_endpoint_serves(here: Served, replies: Replies) -> None:
    items = [
        {"role": "developer", "content": "short"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    ]
    await ask(here.client, items, instructions="be kind", max_output_tokens=7, top_p=0.5, tools=[TOOL])
    assert replies.messages() == [("developer", "be kind"), ("developer", "short"), ("user", "a\nb")]
    chat = replies.asked[-1]
    assert (chat.sampling.max_tokens, chat.sampling.top_p) == (7, 0.5)
    assert [tool.name for tool in chat.tools] == ["look_up"]
    page = (await here.raw("GET", "/metrics?only=gateway")).body.decode()
    assert 'moray_requests_total{code="ok",tier="mini"} 1.0' in page


async def test_a_stream_tells_the_events_of_the_api_in_their_order(here: Served) -> None:
    found = await events(await ask(here.client, stream=True))
    delta = "response.output_text.delta"
    assert types(found) == [*OPENING, *MESSAGE, delta, delta, *CLOSING, "response.completed"]
    assert [event.delta for event in found if event.type == delta] == ["Hel", "lo ✓"]
    assert found[-1].response.output_text == "Hello ✓"
    assert await here.client.responses.retrieve(found[-1].response.id) == found[-1].response


async def test_a_stream_is_heard_again_from_any_event_on(here: Served) -> None:
    found = await events(await ask(here.client, stream=True))
    again = await here.client.responses.retrieve(found[0].response.id, stream=True, starting_after=4)
    assert [event.model_dump() for event in await events(again)] == [event.model_dump() for event in found[5:]]
    whole = await ask(here.client)
    with pytest.raises(BadRequestError, match="was not made as a stream"):
        await here.client.responses.retrieve(whole.id, stream=True)


async def test_calls_of_tools_come_as_items_and_go_back_with_their_results(tmp_path: Path) -> None:
    replies = Replies("Let me look.", calls=[CALL])
    async with served(tmp_path, replies, **ABLE) as here:
        found = await events(await ask(here.client, stream=True, tools=[TOOL]))
        assert types(found)[-5:] == [*CALLED, "response.completed"]
        told = found[-1].response
        assert [item.type for item in told.output] == ["message", "function_call"]
        assert (told.output[1].call_id, told.output[1].arguments) == ("call_1", '{"what":"x"}')
        result = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
        replies.last, replies.texts = Replies().last, ("It is 42.",)
        for more in (
            {"said": [result], "previous_response_id": told.id},
            {"said": [{"role": "user", "content": "hello"}, *told.output, result]},
        ):
            assert (await ask(here.client, tools=[TOOL], **more)).output_text == "It is 42."
            assert replies.messages() == [("user", "hello"), ("assistant", "Let me look."), ("tool", "42")]
            assert replies.asked[-1].messages[1].tool_calls == (CALL,)


async def test_an_answer_that_is_cut_at_its_length_is_incomplete(tmp_path: Path) -> None:
    async with served(tmp_path, Replies("Hel", finish="length")) as here:
        whole, stream = await ask(here.client), await events(await ask(here.client, stream=True))
    for told in (whole, stream[-1].response):
        assert (told.status, told.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert told.output[0].status == "incomplete"
    assert stream[-1].type == "response.incomplete"


async def test_a_stream_that_breaks_ends_as_failed_and_is_kept_so(here: Served, replies: Replies) -> None:
    replies.error = InvalidRequest("prompt: no")
    found = await events(await ask(here.client, stream=True))
    assert found[-1].type == "response.failed"
    assert (found[-1].response.error.code, found[-1].response.output_text) == ("server_error", "Hello ✓")
    assert (await here.client.responses.retrieve(found[-1].response.id)).status == "failed"
    with pytest.raises(BadRequestError):
        await ask(here.client)


async def test_turns_follow_each_other_and_instructions_are_not_carried_on(here: Served, replies: Replies) -> None:
    first = await ask(here.client, instructions="be kind")
    second = await ask(here.client, "more", previous_response_id=first.id)
    await ask(here.client, "and more", previous_response_id=second.id)
    said = ("assistant", "Hello ✓")
    assert replies.messages() == [("user", "hello"), said, ("user", "more"), said, ("user", "and more")]
    await here.client.responses.delete(first.id)
    with pytest.raises(NotFoundError) as refused:
        await ask(here.client, "x", previous_response_id=second.id)
    assert refused.value.code == "previous_response_not_found"


async def test_input_items_are_listed_in_pages(here: Served) -> None:
    made = await ask(here.client, [{"role": "user", "content": text} for text in "abc"])
    newest = [item async for item in here.client.responses.input_items.list(made.id, limit=1)]
    assert [_said(item) for item in newest] == ["c", "b", "a"]
    oldest = [item.id async for item in here.client.responses.input_items.list(made.id, order="asc")]
    assert oldest == [item.id for item in reversed(newest)]


async def test_another_key_sees_nothing_of_it(here: Served) -> None:
    made, talk = await ask(here.client), await here.client.conversations.create()
    other = here.other("stranger")
    for refused in (
        other.responses.retrieve(made.id),
        other.responses.cancel(made.id),
        other.responses.delete(made.id),
        other.responses.input_items.list(made.id),
        ask(other, previous_response_id=made.id),
        ask(other, conversation=talk.id),
        other.conversations.retrieve(talk.id),
        other.conversations.items.list(talk.id),
    ):
        with pytest.raises(NotFoundError):
            await refused
    assert (await here.client.responses.retrieve(made.id)).id == made.id


async def test_what_is_deleted_or_not_to_be_stored_is_not_there(here: Served) -> None:
    made, secret = await ask(here.client), await ask(here.client, store=False)
    await here.client.responses.delete(made.id)
    for gone in (made, secret):
        with pytest.raises(NotFoundError):
            await here.client.responses.retrieve(gone.id)


async def test_a_response_expires_after_30_days(here: Served) -> None:
    made, objects = await ask(here.client), here.gateway._responses._objects
    assert objects.expired("response", made.created_at + MONTH_S - 1) == ()
    assert [row.id for row in objects.expired("response", made.created_at + MONTH_S)] == [made.id]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"service_tier": "scale"}, "service_tier"),
        ({"extra_body": {"service_tier": []}}, "service_tier"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "any", "tools": [TOOL]}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "#"}}}}, "text.format.schema"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "refusal"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [IMAGE | {"text": "a"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [IMAGE | {"file_id": "file-1"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [IMAGE | {"type": "input_text", "text": "a"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0]"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "previous_response_id"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"extra_body": {"colour": "red"}}, "colour"),
        ({"model": "nobody"}, "model"),
    ],
)
async def test_what_is_not_served_is_refused_by_its_name_here(here: Served, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(APIStatusError) as refused:
        await here.client.responses.create(**({"model": "mini", "input": "hello"} | asked))
    body: Any = refused.value.body
    assert refused.value.status_code in (400, 404)
    assert str(body["param"]).startswith(param), body
    assert "messages[" not in body["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_is_served_in_the_class_that_it_asks_and_says_so(
    here: Served, replies: Replies, stream: bool
) -> None:
    for asked, told in (("flex", "flex"), ("priority", "priority"), ("auto", "default"), (None, "default")):
        made = await ask(here.client, "hello", service_tier=asked, stream=stream)
        if stream:
            made = (await events(made))[-1].response
        assert made.service_tier == told
        assert (replies.asked[-1].service_class or "default") == told


async def test_little_effort_is_taken_and_told_and_allowed_tools_are_those_of_a_chat(tmp_path: Path) -> None:
    replies = Replies("Hello")
    able: Any = {"engine": "vllm", "vllm": {"tool_parser": "hermes"}}
    async with served(tmp_path, replies, **able) as here:
        made = await ask(here.client, "hello", reasoning={"effort": "low"})
        assert made.reasoning is not None
        assert made.reasoning.effort == "low"
        tools = [TOOL, {**TOOL, "name": "other"}]
        choice = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "other"}]}
        made = await ask(here.client, "hello", tools=tools, tool_choice=choice)
        assert [tool.name for tool in replies.asked[-1].tools] == ["other"]
        assert made.tool_choice.model_dump() == choice


async def test_a_conversation_gives_its_items_and_gains_those_of_the_answer(here: Served, replies: Replies) -> None:
    talk = await here.client.conversations.create(
        items=[{"role": "user", "content": "before"}], metadata={"topic": "a"}
    )
    first = await ask(here.client, "one", conversation=talk.id)
    assert first.conversation is not None
    assert first.conversation.id == talk.id
    await events(await ask(here.client, "two", conversation=talk.id, stream=True))
    await over(here.client, await ask(here.client, "three", conversation=talk.id, background=True))
    said = ("assistant", "Hello ✓")
    before = [("user", "before"), ("user", "one"), said, ("user", "two"), said, ("user", "three")]
    assert replies.messages() == before
    items = [item async for item in here.client.conversations.items.list(talk.id, order="asc", limit=3)]
    assert [_said(item) for item in items] == [text for _, text in [*before, said]]


async def test_a_conversation_that_is_more_than_a_chat_may_have_is_refused_before_it_is_all_read(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, Replies("x"), gateway={"max_body_bytes": 4096}, **ABLE) as here:
        talk = await here.client.conversations.create()
        for _ in range(7):
            item: Any = {"role": "user", "content": "x" * 3000}
            await here.client.conversations.items.create(talk.id, items=[item])
        with pytest.raises(BadRequestError, match="more than 2048 items, or than 16384 bytes") as refused:
            await ask(here.client, conversation=talk.id)
    assert refused.value.param == "conversation"


async def test_a_stream_whose_answer_cannot_be_kept_says_that_it_failed(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise Unavailable("objects: away")

    monkeypatch.setattr(here.gateway._responses._objects, "create", away)
    events = [event async for event in await ask(here.client, stream=True)]
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"


async def test_conversations_are_made_changed_and_deleted_with_their_items(here: Served) -> None:
    talks = here.client.conversations
    talk = await talks.create(metadata={"a": "b"})
    assert (await talks.update(talk.id, metadata={"c": "d"})).metadata == {"c": "d"}
    assert (await talks.retrieve(talk.id)).metadata == {"c": "d"}
    added = await talks.items.create(
        talk.id, items=[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    )
    one = added.data[0]
    assert await talks.items.retrieve(one.id or "", conversation_id=talk.id) == one
    assert (await talks.items.delete(one.id or "", conversation_id=talk.id)).id == talk.id
    assert [item.id async for item in talks.items.list(talk.id)] == [added.data[1].id]
    other = await talks.create()
    with pytest.raises(NotFoundError):
        await talks.items.retrieve(added.data[1].id or "", conversation_id=other.id)
    assert (await talks.delete(talk.id)).object == "conversation.deleted"
    for gone in (talks.retrieve(talk.id), talks.items.list(talk.id)):
        with pytest.raises(NotFoundError):
            await gone


async def test_a_response_in_the_background_is_polled_to_its_end(here: Served) -> None:
    made = await ask(here.client, background=True)
    assert (made.status, made.output) == ("queued", [])
    told = await over(here.client, made)
    assert (told.status, told.output_text, told.background) == ("completed", "Hello ✓", True)


async def test_one_in_the_background_is_cancelled_and_others_are_not(here: Served, replies: Replies) -> None:
    replies.step_s = 30
    made = await ask(here.client, background=True)
    while not replies.asked:
        await asyncio.sleep(0.01)
    assert (await here.client.responses.cancel(made.id)).status == "cancelled"
    assert (await here.client.responses.cancel(made.id)).status == "cancelled"
    await asyncio.sleep(0.2)
    assert (await here.client.responses.retrieve(made.id)).status == "cancelled"
    assert here.gateway._desk.ongoing()["mini"] == 0
    replies.step_s = 0
    with pytest.raises(BadRequestError, match="not in the background"):
        await here.client.responses.cancel((await ask(here.client)).id)


async def test_a_replica_that_fails_is_asked_again_and_a_wrong_prompt_is_not(here: Served, replies: Replies) -> None:
    replies.error = StartTimeout("tier mini: none started")
    made = await ask(here.client, background=True)
    while len(replies.asked) < 2:
        await asyncio.sleep(0.01)
    replies.error = None
    assert (await over(here.client, made)).status == "completed"
    replies.error = InvalidRequest("prompt: no")
    told = await over(here.client, await ask(here.client, background=True))
    assert (told.status, told.error.code) == ("failed", "invalid_prompt")


@pytest.mark.parametrize("change", ["revoked_s = 1", "expires_s = 1", "scopes = 'files'"])
async def test_what_a_key_left_in_the_background_fails_where_it_may_ask_no_more(
    here: Served, replies: Replies, change: str
) -> None:
    here.gateway._answering.cancel()
    made = await ask(here.client, background=True)
    KeyStore(here.folder / KEYS_FILE)._run(f"UPDATE keys SET {change}", ())
    here.gateway._answering = asyncio.create_task(here.gateway._runs.run())
    state = here.gateway._responses._objects
    async with asyncio.timeout(60):
        while state.unfinished(here.owner, "response"):
            await asyncio.sleep(0.02)
    assert '"status": "failed"' in state.get(here.owner, "response", made.id).document
    assert replies.asked == []


@contextlib.asynccontextmanager
async def begun(folder: Path, slow: Replies, said: str) -> AsyncIterator[tuple[Served, str]]:
    """A gateway that answers a stream in the background, of which so much is written down; and the stream's id.

    The stream does not end before the gateway does.
    """
    slow.may_end.clear()
    async with served(folder, slow, **ABLE) as here:
        body = b'{"model":"mini","input":"hello","background":true,"stream":true}'
        asked = asyncio.create_task(here.raw("POST", "/v1/responses", body))
        objects = here.gateway._responses._objects
        async with asyncio.timeout(60):
            while not (rows := objects.page(here.owner, "response", Page())[0]) or said not in rows[0].document:
                await asyncio.sleep(0.01)
        yield here, rows[0].id
        await crashed(here.gateway)
        asked.cancel()


@contextlib.asynccontextmanager
async def later(folder: Path, replies: Replies) -> AsyncIterator[Served]:
    """A gateway for which every lease has run out."""
    async with served(folder, replies, **ABLE) as here:
        here.gateway._runs._now_s = lambda: time.time() + 2 * response_runs.LEASE_S
        yield here


async def test_another_gateway_takes_up_what_a_dead_one_left_and_its_stream_goes_on(tmp_path: Path) -> None:
    """With the same seed. A client that comes back hears each event once, under the numbers of before."""
    slow, quick = Replies("a", "b", "c", "d", step_s=0.2), Replies("abc", "d", "e")
    async with begun(tmp_path, slow, '"text": "ab') as (first, response_id):
        key = first.key
    async with later(tmp_path, quick) as second:
        client = second.as_key(key)
        found = await events(await client.responses.retrieve(response_id, stream=True))
        told = await client.responses.retrieve(response_id)
    assert (told.status, told.output_text) == ("completed", "abcde")
    deltas = [event.delta for event in found if event.type == "response.output_text.delta"]
    assert (deltas[:2], "".join(deltas)) == (["a", "b"], "abcde")
    assert types(found)[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert quick.asked[0].sampling.seed == slow.asked[0].sampling.seed


async def test_a_taken_up_stream_whose_answer_is_another_one_fails(tmp_path: Path) -> None:
    async with begun(tmp_path, Replies("a", "b", step_s=0.5), '"text": "a') as (first, response_id):
        key = first.key
    async with later(tmp_path, Replies("xyz")) as second:
        client = second.as_key(key)
        told = await over(client, await client.responses.retrieve(response_id))
    assert told.status == "failed"
    assert "another answer" in told.error.message


async def test_a_stream_in_the_background_ends_with_an_error_where_it_is_deleted(tmp_path: Path) -> None:
    async with begun(tmp_path, Replies("a", "b", step_s=0.5), '"text": "a') as (here, response_id):
        named = {"authorization": f"Bearer {here.key}"}
        heard = Exchange(here.app, f"/v1/responses/{response_id}", method="GET", query="stream=true", headers=named)
        async with asyncio.timeout(60):
            while not heard.sent:
                await asyncio.sleep(0.01)
        await here.client.responses.delete(response_id)
        last = (await heard.finished()).body.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: ")
        assert b'"code":"response_not_found"' in last


CUTS = st.lists(st.tuples(st.integers(1, 4), st.just(0)), max_size=8)


@given(cuts=CUTS, looks=st.lists(st.integers(0, 8), max_size=4))
def test_a_stream_is_the_same_however_often_it_was_looked_at(cuts: list[tuple[int, int]], looks: list[int]) -> None:
    response = begun_response(parse_response(b'{"model":"m","input":"x","background":true}'), "resp_1", 1)
    answer = Answer(text="x" * sum(chars for chars, _ in cuts), cuts=cuts, finish_reason="stop", model="m")
    done = ended(response, answer, 2)
    often, once = Narration(), Narration()
    found = often.until(response, [])
    for look in sorted(looks):
        part = Answer(text=answer.text[: sum(chars for chars, _ in cuts[:look])], cuts=cuts[:look])
        found += often.until(so_far(response, part), part.cuts)
    assert found + often.until(done, cuts) == once.until(done, cuts)


@given(told=CUTS, cuts=CUTS)
def test_what_was_told_stays_and_what_goes_beyond_follows(told: list[tuple[int, int]], cuts: Any) -> None:
    pieces = response_runs.behind(told, cuts)
    assert pieces[: len(told)] == told
    length = max(sum(chars for chars, _ in told), sum(chars for chars, _ in cuts))
    assert sum(chars for chars, _ in pieces) == length
    assert response_runs.behind(told, cuts[:-1]) == pieces[: len(response_runs.behind(told, cuts[:-1]))]
