"""Files, responses, conversations and batches from the official client, on the family that ships."""

import json
from typing import Any

import pytest
from integration.server import Server, eventually
from openai import OpenAI
from openai.types.responses import ResponseCompletedEvent, ResponseIncompleteEvent

pytestmark = pytest.mark.slow
MODEL = "gpt-5.2-mini"
ANSWERED_S = 60.0


@pytest.fixture
def client(laptop: Server) -> OpenAI:
    return laptop.client()


def test_a_streamed_response_is_kept_and_the_next_turn_goes_on_from_it(client: OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="What is a prime?", max_output_tokens=16, stream=True))
    end = events[-1]
    assert isinstance(end, ResponseCompletedEvent | ResponseIncompleteEvent)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == end.response.output_text
    assert client.responses.retrieve(end.response.id) == end.response
    again = list(client.responses.retrieve(end.response.id, stream=True, starting_after=1))
    assert [event.model_dump() for event in again] == [event.model_dump() for event in events[2:]]
    more = client.responses.create(
        model=MODEL, input="More.", max_output_tokens=4, previous_response_id=end.response.id
    )
    assert more.usage is not None
    assert end.response.usage is not None
    assert more.usage.input_tokens > end.response.usage.input_tokens


def test_a_response_in_the_background_adds_to_its_conversation(client: OpenAI) -> None:
    talk = client.conversations.create(items=[{"type": "message", "role": "user", "content": "Hello"}])
    made = client.responses.create(
        model=MODEL, input="And now?", max_output_tokens=8, background=True, conversation=talk.id
    )
    ended = ("completed", "incomplete")
    eventually(lambda: client.responses.retrieve(made.id).status in ended, ANSWERED_S, "it has ended")
    roles: list[Any] = [getattr(item, "role", None) for item in client.conversations.items.list(talk.id, order="asc")]
    assert roles == ["user", "user", "assistant"]


def test_a_batch_is_answered_line_by_line(client: OpenAI) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body | more}
        for name, more in (("a", {}), ("b", {}), ("hot", {"temperature": 9}))
    ]
    text = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    made = client.batches.create(completion_window="24h", endpoint="/v1/chat/completions", input_file_id=file.id)
    eventually(lambda: client.batches.retrieve(made.id).status == "completed", ANSWERED_S, "it is completed")
    done = client.batches.retrieve(made.id)
    assert done.request_counts is not None
    assert done.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    answers = client.files.content(done.output_file_id or "").text.splitlines()
    assert {json.loads(answer)["custom_id"] for answer in answers} == {"a", "b"}
    (error,) = client.files.content(done.error_file_id or "").text.splitlines()
    assert json.loads(error)["response"]["body"]["error"]["param"] == "temperature"
