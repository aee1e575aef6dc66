"""Files from the official client, through the whole gateway in this process."""

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError
from PIL import Image
from sdk import Served, served
from shell import VIDEO

from deployments.gateway.objects_wire import MONTH_S
from deployments.stores.objects import OBJECTS_FILE, Page, in_file

LINES = b'{"a": 1}\n{"b": "\xe2\x9c\x93"}\n'


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path, gateway={"max_file_bytes": 300_000}) as here:
        yield here


@pytest.fixture
def client(here: Served) -> AsyncOpenAI:
    return here.client


async def put(client: AsyncOpenAI, name: str = "in.jsonl", purpose: Any = "batch", **more: Any) -> Any:
    return await client.files.create(file=(name, LINES), purpose=purpose, **more)


async def test_a_file_is_created_retrieved_and_its_content_is_what_was_sent(client: AsyncOpenAI) -> None:
    made = await put(client, "fö/✓ö.jsonl")
    assert (made.object, made.bytes, made.filename, made.purpose) == ("file", len(LINES), "✓ö.jsonl", "batch")
    assert made.status == "processed"
    assert await client.files.retrieve(made.id) == made
    content = await client.files.content(made.id)
    assert content.content == LINES
    assert unquote(content.response.headers["content-disposition"]).endswith("''✓ö.jsonl")


async def test_batches_expire_after_30_days_and_others_when_their_client_says(client: AsyncOpenAI) -> None:
    batch, other = await put(client), await put(client, purpose="user_data")
    said = await put(client, purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600})
    assert batch.expires_at == batch.created_at + MONTH_S
    assert other.expires_at is None
    assert said.expires_at == said.created_at + 3600


async def test_listings_have_pages_orders_and_purposes(client: AsyncOpenAI) -> None:
    made = [await put(client, f"{n}", purpose) for n, purpose in enumerate(["batch", "vision", "batch"])]
    assert [file.id async for file in client.files.list(limit=1)] == [file.id for file in reversed(made)]
    assert [file.id async for file in client.files.list(order="asc")] == [file.id for file in made]
    assert [file.id async for file in client.files.list(purpose="vision")] == [made[1].id]
    assert [file.id async for file in client.files.list(after=made[1].id)] == [made[0].id]


async def test_another_key_sees_nothing_of_it(here: Served) -> None:
    made, other = await put(here.client), here.other("stranger")
    assert [file.id async for file in other.files.list()] == []
    for ask in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(NotFoundError) as refused:
            await ask(made.id)
        assert refused.value.code == "file_not_found"
    with pytest.raises(BadRequestError):
        await other.files.list(after=made.id)


async def test_a_deleted_file_is_gone_from_rows_and_disk(here: Served) -> None:
    made = await put(here.client)
    assert (here.folder / "files" / made.id).read_bytes() == LINES
    gone = await here.client.files.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "file", True)
    with pytest.raises(NotFoundError):
        await here.client.files.retrieve(made.id)
    assert list((here.folder / "files").iterdir()) == []


async def test_what_expires_is_deleted_bytes_and_row(here: Served) -> None:
    stays, goes = await put(here.client, purpose="user_data"), await put(here.client)
    here.gateway._api_files._now_s = lambda: goes.created_at + MONTH_S
    await here.gateway._api_files.expire()
    assert [file.id async for file in here.client.files.list()] == [stays.id]
    assert [file.name for file in (here.folder / "files").iterdir()] == [stays.id]


@pytest.mark.parametrize(
    ("given", "status", "param"),
    [
        ({"file": ("a", b"x"), "purpose": "poetry"}, 400, "purpose"),
        ({"file": ("a", b"x" * 300_001), "purpose": "batch"}, 413, None),
        ({"file": ("a", b"x"), "purpose": "batch", "extra_body": {"colour": "red"}}, 400, "colour"),
        (
            {"file": ("a", b"x"), "purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 5}},
            400,
            "expires_after.seconds",
        ),
    ],
)
async def test_what_is_wrong_is_refused_by_name_and_leaves_nothing(
    here: Served, given: dict[str, Any], status: int, param: str | None
) -> None:
    with pytest.raises(APIStatusError) as refused:
        await here.client.files.create(**given)
    assert (refused.value.status_code, refused.value.param) == (status, param)
    assert not (here.folder / "files").exists()
    assert in_file(here.folder / OBJECTS_FILE).page(here.owner, "file", Page()) == ((), False)


async def test_a_body_without_a_file_is_refused(here: Served) -> None:
    answer = await here.raw("POST", "/v1/files", json.dumps({"purpose": "batch", "file": "text"}).encode())
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "file"


async def test_ids_that_lead_elsewhere_are_unknown(here: Served) -> None:
    for strange in ("..%2f..", "%00", "a" * 200, "keys"):
        answer = await here.raw("GET", f"/v1/files/{strange}")
        assert answer.status == 404, strange


async def test_a_video_takes_a_picture_that_was_sent_before(tmp_path: Path) -> None:
    video = VIDEO | {"takes": {"inputs": ["input_reference"]}}
    async with served(tmp_path, video=video) as here:
        drawn = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(drawn, "PNG")
        sent = await here.client.files.create(file=("red.png", drawn.getvalue()), purpose="vision")
        stranger = await here.other("stranger").files.create(file=("a.png", drawn.getvalue()), purpose="vision")
        answers = []
        for file_id in (sent.id, stranger.id):
            asked = {"model": "sora-2", "prompt": "x", "input_reference": {"file_id": file_id}}
            answers.append(await here.raw("POST", "/v1/videos", json.dumps(asked).encode()))
        assert [answer.status for answer in answers] == [200, 404]
        with Image.open(tmp_path / "videos" / answers[0].json()["id"] / "first.png") as kept:
            assert kept.getpixel((32, 32)) == (255, 0, 0)
        for task in (here.gateway._rendering, here.gateway._joining):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
