"""POST /v1/embeddings from the client to a torch engine, all in this process."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from openai import AsyncOpenAI
from shell import Exchange, Handle, Replica, application, family
from torch_checkpoint import save_checkpoint

from cluster.access import Grant
from cluster.errors import EngineFailed
from cluster.family import Family
from deployments import seen
from deployments.gateway.embeddings_wire import WHAT
from deployments.stores.usage import USAGE_FILE, SqliteUsage

PATH = "/v1/embeddings"
PLANS = {"some": {"tiers": ["mini"], "tokens_per_minute": 10_000}}


class Stage:
    """Tier mini makes vectors of 32 numbers, turbo is simulated, and `any` leaves the choice to us."""

    def __init__(self, gateway: Any, app: Any, key: str) -> None:
        self.gateway, self.app, self.headers = gateway, app, {"authorization": f"Bearer {key}"}

    async def ask(self, input: object, **more: Any) -> Exchange:
        return await self.send({"model": "mini", "input": input} | more)

    async def send(self, body: dict[str, Any], path: str = PATH) -> Exchange:
        return await Exchange(self.app, path, json.dumps(body).encode(), headers=self.headers).finished()

    async def vectors(self, input: object, **more: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        exchange = await self.ask(input, **more)
        assert exchange.status == 200, exchange.body
        return np.array([row["embedding"] for row in exchange.json()["data"]])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=None)


@pytest.fixture
async def stage(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(seen, "_replicas", {})
    monkeypatch.setattr(seen, "_listeners", [])
    given = family(tmp_path).model_dump() | {"plans": PLANS}
    given["tiers"]["mini"] |= {"engine": "torch", "checkpoint": str(checkpoint), "context_tokens": 128}
    given["tiers"]["mini"] |= {"kv_tokens": 512, "patience_s": 30.0, "slo": {"ttft_s": 30, "tpot_ms": 1000}}
    given["auto"] = {"names": ["any"], "default": "mini", "long": "mini", "long_prompt_tokens": 1000}
    spec = Family.model_validate(given)
    replica = await Replica.started(spec)
    seen.publish("mini", (seen.SeenReplica(replica_id="mini-1", metrics_address=""),))
    gateway, app, key = await application(spec, {"mini": Handle(replica), "turbo": Handle(replica)})
    yield Stage(gateway, app, key)
    await replica._engine.stop()


async def test_each_input_has_its_vector_of_length_1_and_the_answer_says_what_it_is(stage: Stage) -> None:
    exchange = await stage.ask(["Hello there", "What is a prime number?"])
    body = exchange.json()
    assert (exchange.status, body["object"], body["model"]) == (200, "list", "mini")
    assert [(row["object"], row["index"]) for row in body["data"]] == [("embedding", 0), ("embedding", 1)]
    assert np.linalg.norm([row["embedding"] for row in body["data"]], axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert body["moray"] == {"vectors": WHAT}
    usage = body["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] > 2
    assert (usage["moray"]["tier"], exchange.headers["moray-tier"]) == ("mini", "mini")


async def test_a_text_has_the_same_vector_alone_beside_others_by_its_ids_and_in_base64(stage: Stage) -> None:
    texts = ["one", "two and two", "three is a prime number"]
    (alone,) = await stage.vectors(texts[1])
    together = await stage.vectors(texts)
    replica = stage.gateway._handles["mini"]._target
    ids = [list(replica._engine.encode_text(text)) for text in texts]
    for other in (together[1], (await stage.vectors(ids[1]))[0], (await stage.vectors(ids))[1]):
        np.testing.assert_allclose(other, alone, rtol=0, atol=1e-5)
    assert (await stage.vectors(texts[1])).tolist() == [alone.tolist()]
    coded = (await stage.ask(texts[1], encoding_format="base64")).json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == alone.tolist()


async def test_the_official_client_reads_vectors_which_it_asks_for_in_base64(stage: Stage) -> None:
    web = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=stage.app))
    key = stage.headers["authorization"].removeprefix("Bearer ")
    client = AsyncOpenAI(api_key=key, base_url="http://moray/v1", http_client=web, max_retries=0)
    told = await client.embeddings.create(model="mini", input=["one", "two"], dimensions=8)
    assert [len(one.embedding) for one in told.data] == [8, 8]
    assert told.usage.total_tokens == told.usage.prompt_tokens
    plain = await client.embeddings.create(model="mini", input="one", dimensions=8, encoding_format="float")
    np.testing.assert_allclose(told.data[0].embedding, plain.data[0].embedding, rtol=0, atol=1e-5)
    await client.close()


async def test_fewer_dimensions_are_the_first_ones_brought_back_to_length_1(stage: Stage) -> None:
    (whole,) = await stage.vectors("hello")
    (cut,) = await stage.vectors("hello", dimensions=5)
    assert (len(whole), len(cut)) == (32, 5)
    np.testing.assert_allclose(cut, whole[:5] / np.linalg.norm(whole[:5]), rtol=0, atol=1e-6)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "input", "text of at least one character"),
    ({"input": []}, "input", "or a list of either"),
    ({"input": ["a", ""]}, "input[1]", "text of at least one character"),
    ({"input": ["a", 7]}, "input[1]", "given 7"),
    ({"input": [[1], "a"]}, "input", "either all texts or all lists of ids"),
    ({"input": [[1, -1]]}, "input[0]", "token ids from 0 on"),
    ({"input": [5, 320_000]}, "input[0]", "0..319 are allowed"),
    ({"input": ["a"] * 2049}, "input", "at most 2048"),
    ({"input": [[1] * 100, [2] * 100]}, "input", "200 tokens together; 127 are allowed in one request"),
    ({"dimensions": 33}, "dimensions", "1 to 32 are allowed"),
    ({"dimensions": 0}, "dimensions", "greater than or equal to 1"),
    ({"encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
    ({"inputs": "a"}, "inputs", "did you mean input?"),
    ({"model": "turbo"}, "model", "'turbo' makes no vectors; mini make some"),
    ({"model": "any"}, "model", "vectors of two tiers cannot be compared"),
]


@pytest.mark.parametrize(("changed", "param", "told"), REFUSED)
async def test_what_is_wrong_is_told_by_the_name_of_its_parameter(
    stage: Stage, changed: dict[str, Any], param: str, told: str
) -> None:
    exchange = await stage.send({"model": "mini", "input": "hello"} | changed)
    error = exchange.json()["error"]
    assert (exchange.status, error["param"]) == (400, param)
    assert told in error["message"]


async def test_vectors_are_charged_and_limited_by_the_tokens_of_their_inputs(stage: Stage) -> None:
    stage.headers = {"authorization": f"Bearer {stage.gateway._keys.create('a', 0.0, 'some')[0]}"}
    exchange = await stage.ask(["hello there"] * 3)
    tokens = exchange.json()["usage"]["total_tokens"]
    assert int(exchange.headers["x-ratelimit-remaining-tokens"]) < 10_000
    ledger = SqliteUsage(Path(stage.gateway._family.state_folder) / USAGE_FILE)
    (event,) = ledger.report(0, 2**40, 2**40, ("kind", "tier_served"))
    assert event.by == ("embedding", "mini")
    assert (event.input_tokens, event.output_tokens, event.price_nusd) == (tokens, 0, tokens * 1000)
    assert event.gpu_s > 0


async def test_an_admin_reads_how_much_was_embedded(stage: Stage) -> None:
    tokens = (await stage.ask("hello there")).json()["usage"]["total_tokens"]
    admin = stage.gateway._keys.create("ops", 0.0, None, Grant(scopes=("admin",)))[0]
    path, query = "/v1/organization/usage/embeddings", f"start_time={int(time.time()) - 60}"
    headers = {"authorization": f"Bearer {admin}"}
    page = (await Exchange(stage.app, path, method="GET", query=query, headers=headers).finished()).json()
    (result,) = [one for bucket in page["data"] for one in bucket["results"]]
    assert (result["object"], result["input_tokens"]) == ("organization.usage.embeddings.result", tokens)


async def test_a_client_that_leaves_leaves_nothing_at_the_engine(stage: Stage) -> None:
    replica = stage.gateway._handles["mini"]._target
    body = json.dumps({"model": "mini", "input": ["hello"] * 20}).encode()
    asked = Exchange(stage.app, PATH, body, headers=stage.headers)
    async with asyncio.timeout(30):
        while not replica._engine.report().running:
            await asyncio.sleep(0)
        asked.task.cancel()
        while replica._answers:
            await asyncio.sleep(0)
    assert (replica._engine.report().running, replica._engine.report().waiting) == (0, 0)


async def test_vectors_that_a_failing_engine_does_not_give_are_asked_for_again(stage: Stage) -> None:
    replica = stage.gateway._handles["mini"]._target
    asked = asyncio.ensure_future(stage.ask(["hello"] * 20))
    async with asyncio.timeout(30):
        while not replica._engine.report().running:
            await asyncio.sleep(0)
        (vectors,) = replica._answers
        vectors.fail(EngineFailed("engine: it failed"))
        exchange = await asked
    assert (exchange.status, exchange.json()["usage"]["moray"]["resumed"]) == (200, 1)


async def test_models_say_whether_they_make_vectors(stage: Stage) -> None:
    exchange = await Exchange(stage.app, "/v1/models", method="GET", headers=stage.headers).finished()
    told = {model["id"]: model.get("embeddings") for model in exchange.json()["data"]}
    assert told == {"mini": True, "turbo": False, "any": None}
