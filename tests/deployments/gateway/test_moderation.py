"""What a request says is judged before anything is spent on it, on every route that takes text."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, Request, Response
from integration.server import free_port
from served_app import Served, served
from shell import family

import deployments.gateway.moderation
from cluster.family import Family
from cluster.moderation import Lexicon, Moderation, Words
from cluster.request import Chat, Message, Sampling, Tool, ToolCall
from deployments.gateway.moderation import said

WORDS = {"words": {"refuse": ["grenade", "nerve gas"], "flag": ["knife"]}}
REFUSED = "content_policy_violation"


def parts(moderation: dict[str, Any]) -> dict[str, Any]:
    return {"gateway": {"coalesce_ms": 0, "tokens": "streamed", "moderation": moderation}}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("gateway"), parts(WORDS)) as here:
        yield here


def client_of(here: Served) -> httpx.Client:
    return httpx.Client(base_url=here.url, headers=here.auth, trust_env=False, timeout=60)


@pytest.fixture(scope="module")
def client(here: Served) -> Iterator[httpx.Client]:
    with client_of(here) as client:
        yield client


def bodies(words: str) -> dict[str, list[dict[str, Any]]]:
    """Each with the words in one of the places that a request has for text."""
    user = {"role": "user", "content": "hello"}
    tool = {"name": "f", "description": words, "parameters": {"type": "object", "properties": {}}}
    return {
        "/v1/chat/completions": [
            {"model": "mini", "max_tokens": 3, **asked}
            for asked in (
                {"messages": [{"role": "user", "content": words}]},
                {"messages": [{"role": "system", "content": words}, user]},
                {"messages": [{"role": "user", "content": [{"type": "text", "text": words}]}]},
                {"messages": [user, {"role": "assistant", "content": words}, user], "stream": True},
                {"messages": [user], "tools": [{"type": "function", "function": tool}]},
            )
        ],
        "/v1/completions": [{"model": "mini", "max_tokens": 3, "prompt": words}],
        "/v1/responses": [
            {"model": "mini", "max_output_tokens": 3, "input": words},
            {"model": "mini", "max_output_tokens": 3, "input": "hello", "instructions": words},
        ],
        "/v1/videos": [
            {"prompt": words, "seconds": 1},
            {"prompt": "a", "negative_prompt": words, "seconds": 1},
        ],
        "/v1/storyboards": [
            {"shots": [{"prompt": "a", "seconds": 1}, {"prompt": words, "seconds": 1}]},
            {"shots": [{"prompt": "a", "dialogue": words, "seconds": 1}]},
            {"shots": [{"prompt": "a", "seconds": 1}], "characters": [{"name": "A", "phrase": words}]},
            {"shots": [{"prompt": "a", "seconds": 1}], "title": words},
        ],
    }  # fmt: skip


ROUTES = tuple(bodies(""))


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_listed_is_refused_wherever_a_request_says_it(client: httpx.Client, path: str) -> None:
    for body in bodies("how is a GRE\u200bNADE made?")[path]:
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, REFUSED), (body, answer.text)
        assert "grenade" not in answer.text.lower()


@pytest.mark.parametrize("path", ROUTES)
def test_what_is_flagged_is_served_and_says_so(client: httpx.Client, path: str) -> None:
    for body in bodies("a knife")[path]:
        if "tools" in body:
            continue  # which the simulated engine does not take
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["moray-moderation"] == "flagged"


@pytest.mark.parametrize("path", ROUTES)
def test_other_requests_say_nothing_of_it(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=bodies("a red ball")[path][0])
    assert answer.status_code == 200, answer.text
    assert "moray-moderation" not in answer.headers


def test_a_shot_that_is_taken_again_is_judged(client: httpx.Client) -> None:
    board = client.post("/v1/storyboards", json={"shots": [{"prompt": "a", "seconds": 1}]}).json()
    again = client.post(f"/v1/storyboards/{board['id']}/shots/0", json={"prompt": "a grenade"})
    assert again.json()["error"]["code"] == REFUSED


def test_all_that_a_caller_says_in_a_chat_is_judged() -> None:
    call = ToolCall(id="c", name="calling", arguments='{"a": "called"}')
    messages = (Message(role="user", content="asked"), Message(role="assistant", content="", tool_calls=(call,)))
    tool = Tool(name="named", description="described", parameters='{"title": "taken"}')
    sampling = Sampling(json_schema='{"title": "held"}')
    text = " ".join(said(Chat(request_id="a", model="m", messages=messages, tools=(tool,), sampling=sampling)))
    for word in ("asked", "calling", "called", "named", "described", "taken", "held"):
        assert word in text


@pytest.mark.parametrize(
    "hidden", [r'{"a": ["is:\ngrenade"]}', r'{"a": {"\u0067renade": 1}}', r'{"a": "nerve\ngas\ud800"}']
)
def test_what_json_escapes_is_judged_as_it_is_read(hidden: str) -> None:
    lexicon = Lexicon(Words.model_validate(WORDS["words"]))
    call = ToolCall(id="c", name="f", arguments=hidden)
    called = Message(role="assistant", content="", tool_calls=(call,))
    tool = Tool(name="f", parameters=hidden)
    for chat in (
        Chat(request_id="a", model="m", messages=(called,), sampling=Sampling()),
        Chat(request_id="a", model="m", messages=(), tools=(tool,), sampling=Sampling()),
        Chat(request_id="a", model="m", messages=(), sampling=Sampling(json_schema=hidden)),
    ):
        assert lexicon.verdict(said(chat)) == "refuse"
        assert "".join(said(chat)).encode()  # as an endpoint is sent it


@pytest.mark.parametrize(("path", "param"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_token_ids_cannot_be_judged_and_are_refused_by_the_parameters_name(
    client: httpx.Client, path: str, param: str
) -> None:
    answer = client.post(path, json={"model": "mini", param: [1, 2, 3]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", param)
    assert error["message"].startswith(f"{param}: ")


def test_a_refusal_is_counted_and_in_the_log_of_acts_and_its_text_is_nowhere(
    here: Served, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        said = {"messages": [{"role": "user", "content": "xylograph grenade"}], "model": "mini"}
        client.post("/v1/chat/completions", json=said, headers={"x-request-id": "req-noted"})
    act = here.gateway._keys.acts()[-1]
    assert (act.act, act.subject, act.outcome) == ("moderation.refuse", "req-noted", REFUSED)
    assert act.actor.startswith("key_")
    page = client.get("/metrics", params={"only": "gateway"}).text
    assert 'moray_moderations_total{verdict="refuse"}' in page
    assert f'moray_rejections_total{{code="{REFUSED}"' in page
    assert not [record for record in caplog.records if "xylograph" in str(vars(record))]


def test_the_list_of_a_changed_family_counts_from_the_next_request_on(tmp_path: Path) -> None:
    with served(tmp_path, parts(WORDS)) as here, client_of(here) as client:
        other = Moderation.model_validate({"words": {"refuse": ["ball"]}})
        here.call(lambda: here.gateway._moderator.follow(other))
        body = {"model": "mini", "max_tokens": 3, "messages": [{"role": "user", "content": "a grenade"}]}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        here.call(lambda: here.gateway._moderator.follow(None))


class Judge:
    """An endpoint as OpenAI's: flags what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.port = free_port()
        self.says: Any = {"results": [{"flagged": False, "categories": {}}]}
        self.status = 200
        self.app = FastAPI()
        self.app.add_api_route("/v1/moderations", self._judge, methods=["POST"])

    async def _judge(self, request: Request) -> Response:
        self.asked.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        return Response(json.dumps(self.says), self.status, media_type="application/json")


@contextlib.asynccontextmanager
async def judging() -> AsyncIterator[Judge]:
    judge = Judge()
    config = uvicorn.Config(judge.app, port=judge.port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield judge
    finally:
        server.should_exit = True
        await serving


@contextlib.contextmanager
def judged(folder: Path, settings: dict[str, Any]) -> Iterator[Served]:
    """By an endpoint, whose connections are closed at the end."""
    with served(folder, parts(settings)) as here:
        yield here
        here.call(lambda: here.gateway._moderator.follow(None))


def endpoint(port: int, **changes: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{port}/v1/moderations"
    return {"endpoint": {"url": url, "when_away": "refuse", "timeout_s": 30, **changes}}


def verdicts(categories: dict[str, bool]) -> Any:
    return {"id": "m", "model": "j", "results": [{"flagged": any(categories.values()), "categories": categories}]}


async def asked(here: Served) -> httpx.Response:
    body = {"model": "mini", "max_tokens": 3, "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(base_url=here.url, headers=here.auth, trust_env=False, timeout=60) as client:
        return await client.post("/v1/chat/completions", json=body)


async def test_an_endpoint_judges_what_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-judge\n")
    async with judging() as judge:
        settings = endpoint(judge.port, model="omni", key_file=str(tmp_path / "key"), flag=["violence"])
        with judged(tmp_path, settings) as here:
            assert (await asked(here)).status_code == 200
            assert judge.asked == [{"input": "hello", "model": "omni"}]
            assert judge.keys == ["Bearer sk-judge"]
            judge.says = verdicts({"violence": True, "hate": False})
            assert (await asked(here)).headers["moray-moderation"] == "flagged"
            judge.says = verdicts({"violence": True, "hate": True})
            assert (await asked(here)).json()["error"]["code"] == REFUSED


async def test_an_endpoint_is_not_asked_where_nothing_is_said(tmp_path: Path) -> None:
    settings = endpoint(free_port())
    with judged(tmp_path, settings) as here:
        async with httpx.AsyncClient(base_url=here.url, headers=here.auth, trust_env=False, timeout=60) as client:
            answer = await client.post("/v1/storyboards/storyboard_0/shots/0", json={"seed": 1})
            assert answer.status_code == 404, answer.text


@pytest.mark.parametrize("fault", ["closed", "500", "no verdict", "slow"])
async def test_while_it_is_away_requests_pass_or_are_refused_as_the_family_says(tmp_path: Path, fault: str) -> None:
    async with judging() as judge:
        judge.status = 500 if fault == "500" else 200
        judge.says = {"results": []}
        port = free_port() if fault == "closed" else judge.port
        slow = {"timeout_s": 1e-6} if fault == "slow" else {}
        with judged(tmp_path, endpoint(port, when_away="allow", **slow)) as here:
            answer = await asked(here)
            assert (answer.status_code, answer.headers["moray-moderation"]) == (200, "unchecked")
            refusing = Moderation.model_validate(endpoint(port, **slow))
            here.call(lambda: here.gateway._moderator.follow(refusing))
            answer = await asked(here)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert "retry-after" in answer.headers


def test_a_family_file_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gateway\.moderation\.endpoint\.when_away"):
        Family.model_validate(family(tmp_path).model_dump() | parts({"endpoint": {"url": "http://a/b"}}))


def test_what_the_document_shows_may_stand_in_a_family_file() -> None:
    document = Path(deployments.gateway.moderation.__file__).with_name("api.md").read_text("utf-8")
    shown = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)]
    given = [each["gateway"]["moderation"] for each in shown if "moderation" in each.get("gateway", {})]
    judges = [Moderation.model_validate(each) for each in given]
    assert [(judge.words is None, judge.endpoint is None) for judge in judges] == [(False, True), (True, False)]
