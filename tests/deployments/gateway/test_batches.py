"""Batches from the official client, through the whole gateway in this process."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, ConflictError, NotFoundError
from openai.types import Batch
from sdk import Replies, Served, crashed, served

from cluster.errors import InvalidRequest, Overloaded, StartTimeout
from deployments import seen
from deployments.gateway import batch_runs
from deployments.gateway.batch_lines import lines_of
from deployments.gateway.objects_wire import DAY_S
from deployments.stores.keys import KEYS_FILE, KeyStore

CHAT, RESPONSES, TEXT = "/v1/chat/completions", "/v1/responses", "/v1/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runs, "TURN_S", 0.05)


@pytest.fixture
def replies() -> Replies:
    return Replies("Hello")


@pytest.fixture
async def here(tmp_path: Path, replies: Replies) -> AsyncIterator[Served]:
    async with served(tmp_path, replies, max_running=4) as here:
        yield here


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    chat = [{"role": "user", "content": custom_id}]
    bodies: dict[str, Any] = {RESPONSES: {"input": custom_id}, TEXT: {"prompt": custom_id}, CHAT: {"messages": chat}}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "mini", **bodies[url], **body}}


async def begin(client: AsyncOpenAI, *lines: Any, url: Any = CHAT, **more: Any) -> Batch:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    file = await client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return await client.batches.create(completion_window="24h", endpoint=url, input_file_id=file.id, **more)


async def over(client: AsyncOpenAI, batch: Batch) -> Batch:
    async with asyncio.timeout(60):
        while batch.status not in ENDED:
            await asyncio.sleep(0.02)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def told(client: AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """Lines of a file by custom id."""
    assert file_id is not None
    lines = (await client.files.content(file_id)).text.splitlines()
    return {one["custom_id"]: one for one in map(json.loads, lines)}


async def test_every_line_is_answered_under_its_own_id(here: Served, replies: Replies) -> None:
    made = await begin(here.client, *(line(f"q{n}", max_tokens=5) for n in range(9)), metadata={"a": "b"})
    assert (made.status, made.expires_at) == ("validating", made.created_at + DAY_S)
    done = await over(here.client, made)
    Batch.model_validate(done.model_dump())
    assert (done.status, done.metadata, done.model, done.error_file_id) == ("completed", {"a": "b"}, "mini", None)
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 9, "completed": 9, "failed": 0}
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (36, 90, 126)
    assert None not in (done.in_progress_at, done.finalizing_at, done.completed_at)
    answers = await told(here.client, done.output_file_id)
    assert sorted(answers) == [f"q{n}" for n in range(9)]
    assert answers["q3"]["response"]["status_code"] == 200
    assert answers["q3"]["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
    assert {chat.priority for chat in replies.asked} == {-1}, "after every plan's requests"
    assert (await here.client.files.retrieve(done.output_file_id or "")).purpose == "batch_output"


async def test_responses_are_answered_and_kept_too(here: Served) -> None:
    done = await over(here.client, await begin(here.client, line("a", RESPONSES), url=RESPONSES))
    body = (await told(here.client, done.output_file_id))["a"]["response"]["body"]
    assert (await here.client.responses.retrieve(body["id"])).output_text == "Hello"
    assert done.usage is not None
    assert done.usage.total_tokens == 14


async def test_lines_may_go_on_with_text_and_have_several_answers(here: Served, replies: Replies) -> None:
    made = await begin(here.client, line("a", TEXT), line("b", TEXT, n=3), line("c", TEXT, prompt=[]), url=TEXT)
    done = await over(here.client, made)
    answers, errors = await told(here.client, done.output_file_id), await told(here.client, done.error_file_id)
    assert [choice["text"] for choice in answers["a"]["response"]["body"]["choices"]] == ["Hello"]
    assert [choice["index"] for choice in answers["b"]["response"]["body"]["choices"]] == [0, 1, 2]
    assert errors["c"]["response"]["body"]["error"]["param"] == "prompt"
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (8, 40)
    chats = await over(here.client, await begin(here.client, line("a", n=2)))
    assert chats.usage is not None
    assert (chats.usage.input_tokens, chats.usage.output_tokens) == (4, 20)


async def test_what_a_line_got_wrong_is_told_in_the_file_of_errors(here: Served) -> None:
    made = await begin(here.client, line("good"), line("hot", temperature=9), line("who", model="nobody"))
    done = await over(here.client, made)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 1, 2)
    errors = await told(here.client, done.error_file_id)
    assert errors["hot"]["response"]["status_code"] == 400
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["who"]["response"]["status_code"] == 404


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["{"], "invalid_json"),
        ([line("a"), line("a")], "duplicate_custom_id"),
        ([line("a", RESPONSES)], "mismatched_endpoint"),
        ([line("a") | {"method": "GET"}], "invalid_value"),
        ([line("a", stream=True)], "invalid_value"),
        ([line("a") | {"colour": "red"}], "unknown_parameter"),
        ([""], "empty_file"),
    ],
)
async def test_a_file_with_a_fault_fails_and_says_where(here: Served, given: list[Any], code: str) -> None:
    done = await over(here.client, await begin(here.client, *given))
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert done.errors.data[0].code == code
    assert done.errors.data[0].line == (None if code == "empty_file" else len(given))


async def test_what_cannot_be_a_batch_is_refused(here: Served) -> None:
    other = await here.client.files.create(file=("a", b"x"), purpose="user_data")
    endpoint: Any
    for endpoint, file_id, param in (
        ("/v1/moderations", other.id, "endpoint"),
        (CHAT, other.id, "input_file_id"),
        (CHAT, "file-none", None),
    ):
        with pytest.raises(APIStatusError) as refused:
            await here.client.batches.create(completion_window="24h", endpoint=endpoint, input_file_id=file_id)
        assert refused.value.param == param


async def test_another_key_sees_nothing_of_it(here: Served) -> None:
    made, other = await begin(here.client, line("a")), here.other("stranger")
    assert [batch.id async for batch in other.batches.list()] == []
    for refused in (other.batches.retrieve(made.id), other.batches.cancel(made.id)):
        with pytest.raises(NotFoundError):
            await refused
    assert [batch.id async for batch in here.client.batches.list()] == [made.id]


async def test_no_more_lines_run_at_once_than_half_of_the_places(here: Served, replies: Replies) -> None:
    replies.step_s = 0.1
    most = 0
    made = asyncio.create_task(over(here.client, await begin(here.client, *(line(f"q{n}") for n in range(8)))))
    while not made.done():
        most = max(most, here.gateway._courses.ongoing["mini"])
        await asyncio.sleep(0.005)
    assert 1 <= most <= 3, "2 of 4 places, then half of those that are left"


async def test_lines_are_no_demand_and_no_promise_is_made_to_them(here: Served, replies: Replies) -> None:
    replies.step_s = 0.1
    made = asyncio.create_task(over(here.client, await begin(here.client, line("a"), line("b"))))
    while not here.gateway._courses.ongoing["mini"]:
        await asyncio.sleep(0.005)
    assert (here.gateway._desk.ongoing()["mini"], here.gateway._desk.held()["mini"]) == (0, (0, 0))
    await made
    page = (await here.gateway._metrics.page(only_gateway=True)).decode()
    for name in ("arrivals", "arrived_prompt_tokens", "finished", "finished_output_tokens"):
        assert f'moray_{name}_total{{tier="mini"}} 0.0' in page
    for outcome in ("kept", "missed"):
        assert f'moray_promises_total{{outcome="{outcome}",tier="mini"}} 0.0' in page
    assert 'moray_completion_tokens_total{tier="mini"} 20.0' in page, "as in the ledger"


async def test_a_cancelled_batch_stops_what_runs_and_tells_it_of_each_line(here: Served, replies: Replies) -> None:
    replies.step_s = 30
    made = await begin(here.client, *(line(f"q{n}") for n in range(4)))
    while not here.gateway._courses.ongoing["mini"]:
        await asyncio.sleep(0.005)
    assert (await here.client.batches.cancel(made.id)).status == "cancelling"
    done = await over(here.client, made)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.total, done.output_file_id) == ("cancelled", 4, None)
    assert done.cancelled_at is not None
    assert {one["error"]["code"] for one in (await told(here.client, done.error_file_id)).values()} == {
        "batch_cancelled"
    }
    assert here.gateway._courses.ongoing["mini"] == 0
    failed = await over(here.client, await begin(here.client, "{"))
    with pytest.raises(ConflictError):
        await here.client.batches.cancel(failed.id)


async def test_what_a_busy_or_failing_tier_did_not_answer_is_asked_again(here: Served, replies: Replies) -> None:
    replies.error = Overloaded("tier: busy", retry_after_s=1.0)
    made = await begin(here.client, line("a"))
    while len(replies.asked) < 4:
        await asyncio.sleep(0.005)
    replies.error = None
    assert (await told(here.client, (await over(here.client, made)).output_file_id))["a"]
    replies.error = InvalidRequest("prompt: no")
    done = await over(here.client, await begin(here.client, line("b")))
    assert (await told(here.client, done.error_file_id))["b"]["response"]["status_code"] == 400
    replies.error = StartTimeout("tier mini: none started")
    done = await over(here.client, await begin(here.client, line("c")))
    assert (await told(here.client, done.error_file_id))["c"]["response"]["status_code"] == 503


@pytest.mark.parametrize(
    ("change", "back", "status"),
    [
        ("revoked_s = 1", "revoked_s = NULL", 401),
        ("expires_s = 1", "expires_s = NULL", 401),
        ("scopes = 'files'", "scopes = 'chat files'", 403),
    ],
)
async def test_a_line_runs_only_while_its_key_may_ask(
    here: Served, replies: Replies, change: str, back: str, status: int
) -> None:
    objects, keys = here.gateway._responses._objects, KeyStore(here.folder / KEYS_FILE)
    here.gateway._batching.cancel()
    made = await begin(here.client, line("a"))
    keys._run(f"UPDATE keys SET {change}", ())
    here.gateway._batching = asyncio.create_task(here.gateway._batch_runs.run())
    async with asyncio.timeout(60):
        while objects.unfinished(here.owner, "batch"):
            await asyncio.sleep(0.01)
    keys._run(f"UPDATE keys SET {back}", ())
    done = await here.client.batches.retrieve(made.id)
    assert (await told(here.client, done.error_file_id))["a"]["response"]["status_code"] == status
    assert replies.asked == []


async def test_a_line_that_is_put_back_waits_for_the_next_turn(
    here: Served, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runs, "TURN_S", 3600.0)
    replies.error = Overloaded("tier: busy", retry_after_s=1.0)
    await begin(here.client, line("a"))
    async with asyncio.timeout(60):
        while not replies.asked:
            await asyncio.sleep(0.005)
    for _ in range(20):
        await here.client.batches.list()
    assert len(replies.asked) == 1


async def test_a_fault_of_ours_loses_no_line(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runs, "text_of", lambda *_: 1 / 0)
    done = await over(here.client, await begin(here.client, line("a")))
    answer = (await told(here.client, done.error_file_id))["a"]["response"]
    assert (answer["status_code"], answer["body"]["error"]["code"]) == (500, "internal_error")


async def test_another_gateway_goes_on_and_runs_no_answered_line_twice(tmp_path: Path) -> None:
    first, second = Replies("one"), Replies("two")
    async with served(tmp_path, first, max_running=4) as here:
        made, key = await begin(here.client, *(line(f"q{n}") for n in range(6))), here.key
        objects = here.gateway._responses._objects
        while len(objects.children(made.id)) < 2:
            await asyncio.sleep(0.001)
        first.step_s = 30
        await crashed(here.gateway)
    async with served(tmp_path, second, max_running=4) as here:
        here.gateway._batch_runs._now_s = lambda: time.time() + 2 * batch_runs.LEASE_S
        client = here.as_key(key)
        done = await over(client, made)
        answers = await told(client, done.output_file_id)
    said = [answer["response"]["body"]["choices"][0]["message"]["content"] for answer in answers.values()]
    assert (len(said), len(second.asked)) == (6, said.count("two"))
    assert said.count("one") >= 2


async def test_a_tier_that_sleeps_is_woken_only_when_the_batch_would_be_late_else(
    here: Served, replies: Replies, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = here.gateway._batch_runs
    woken: list[str] = []
    monkeypatch.setattr(here.gateway._desk, "_on_sleep", woken.append)
    seen.publish("mini", ())
    made = await begin(here.client, line("a"))
    while (await here.client.batches.retrieve(made.id)).status != "in_progress":
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.2)
    assert (woken, replies.asked) == ([], [])
    ahead_s = (made.expires_at or 0) - 300 - time.time()
    runs._now_s = lambda: time.time() + ahead_s
    async with asyncio.timeout(60):
        while not woken:
            await asyncio.sleep(0.01)
    seen.publish("mini", (seen.SeenReplica(replica_id="mini-1", metrics_address=""),))
    assert (await over(here.client, made)).status == "completed"


async def test_a_batch_that_is_not_done_in_a_day_expires_and_says_so_of_each_line(here: Served) -> None:
    seen.publish("mini", ())
    made = await begin(here.client, line("a"), line("b", model="turbo"))
    while not here.gateway._responses._objects.children(made.id):
        await asyncio.sleep(0.005)
    ahead_s = (made.expires_at or 0) - time.time()
    here.gateway._batch_runs._now_s = lambda: time.time() + ahead_s
    done = await over(here.client, made)
    assert done.request_counts is not None
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("expired", 1, 1)
    assert (await told(here.client, done.error_file_id))["a"]["error"]["code"] == "batch_expired"
    assert list(await told(here.client, done.output_file_id)) == ["b"]


def test_lines_are_found_where_they_are_and_one_that_is_too_long_is_refused() -> None:
    texts = [json.dumps(line(name)).encode() + b"\n" for name in ("a", "b")]
    lines, faults = lines_of([texts[0], b"\n", texts[1]], CHAT, 4096)
    assert faults == []
    assert [(one.custom_id, one.start, one.number) for one in lines] == [("a", 0, 1), ("b", len(texts[0]) + 1, 3)]
    assert [fault.code for fault in lines_of(texts, CHAT, 20)[1]] == ["body_too_large", "body_too_large"]
