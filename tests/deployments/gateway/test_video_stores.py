"""The videos API where its database is cut off, hangs or is gone: a real PostgreSQL behind a way that loses things."""

import asyncio
import base64
import contextlib
import io
import json
import re
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from lossy import Lossy
from PIL import Image
from postgres import Server, postgres
from shell import VIDEO as SHAPE
from shell import Exchange, Handle, application, family

from cluster.family import Video
from deployments.stores import postgres_tables
from deployments.stores.local_files import LocalFiles
from deployments.stores.postgres import PostgresJobs

TAKES = {"inputs": ["input_reference"]}


@pytest.fixture(scope="module")
def database() -> Iterator[Server]:
    with postgres() as server:
        yield server


@pytest.fixture
def lossy(database: Server) -> Iterator[Lossy]:
    with (
        tempfile.TemporaryDirectory(prefix="moray-lossy-", dir="/tmp") as folder,  # a socket's path is short
        Lossy(Path(folder), database.socket) as way,
    ):
        yield way


class Client:
    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key

    async def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> Exchange:
        named = {"authorization": f"Bearer {self._key}"} | headers
        return await Exchange(self._app, path, body, method=method, headers=named).finished()


@contextlib.asynccontextmanager
async def served(folder: Path, database: str) -> AsyncIterator[Client]:
    spec = family(folder, video=True, gateway={"tokens": "streamed"})
    given = {"takes": TAKES, "database": database, "files": f"file://{folder}/videos"}
    spec = spec.model_copy(update={"video": Video.model_validate(SHAPE | given)})
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    try:
        yield Client(app, key)
    finally:
        for task in (gateway._rendering, gateway._joining):
            task.cancel()
            with contextlib.suppress(BaseException):
                await task
        assert gateway._videos is not None
        assert gateway._storyboards is not None
        for store in (gateway._videos._store, gateway._storyboards._boards):
            await asyncio.to_thread(cast("Any", store).close)


def body(prompt: str = "a ball") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return json.dumps({"prompt": prompt, "input_reference": {"image_url": url}}).encode()


async def test_a_job_whose_acceptance_nobody_heard_of_keeps_its_inputs(
    tmp_path: Path, database: Server, lossy: Lossy
) -> None:
    url = database.fresh()
    far = re.sub(r"host=[^&]+&port=\d+", f"host={lossy.path.parent}&port=5432", url)
    async with served(tmp_path, far) as client:
        lossy.then_gone, lossy.lose = True, b"INSERT INTO video_jobs"
        refused = await client.send("POST", "/v1/videos", body())
    assert (refused.status, refused.json()["error"]["code"], refused.headers["Retry-After"]) == (
        503,
        "unavailable",
        "5",
    )
    store = PostgresJobs(url)
    (job,) = store.unfinished()
    store.close()
    assert job.inputs.first == "first.png"
    assert await LocalFiles(tmp_path / "videos").size(f"{job.id}/first.png")


async def test_a_database_that_hangs_fails_videos_and_nothing_else(
    tmp_path: Path, database: Server, lossy: Lossy, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = re.sub(r"host=[^&]+&port=\d+", f"host={lossy.path.parent}&port=5432", database.fresh())
    async with served(tmp_path, far) as client:
        assert (await client.send("POST", "/v1/videos", body())).status == 200
        for name in ("ANSWER_S", "WAIT_S"):
            monkeypatch.setattr(postgres_tables, name, 0.5)
        lossy.deaf = True
        paths = ["/v1/videos", "/v1/storyboards"] * 10  # more than there are threads
        asking: list[asyncio.Task[Any]] = [asyncio.create_task(client.send("GET", path)) for path in paths]
        done, _ = await asyncio.wait(asking, timeout=0.05)
        assert not done
        assert (await client.send("GET", "/health")).status == 200
        other: asyncio.Task[Any] = asyncio.create_task(asyncio.to_thread(lambda: True))
        done, _ = await asyncio.wait([other, *asking], return_when=asyncio.FIRST_COMPLETED)
        assert other in done  # the others' threads are free
        assert (await client.send("GET", "/metrics")).status == 200
        assert {each.status for each in await asyncio.gather(*asking)} == {503}
        lossy.deaf = False


async def test_a_gateway_starts_though_its_database_is_not_there_yet(tmp_path: Path, database: Server) -> None:
    with tempfile.TemporaryDirectory(prefix="moray-lossy-", dir="/tmp") as folder:
        far = re.sub(r"host=[^&]+&", f"host={folder}&", database.fresh())
        async with served(tmp_path, far) as client:
            assert (await client.send("GET", "/health")).status == 200
            refused = await client.send("POST", "/v1/videos", body())
            assert (refused.status, refused.headers["Retry-After"]) == (503, "5")
            (Path(folder) / database.socket.name).symlink_to(database.socket)
            assert (await client.send("POST", "/v1/videos", body())).status == 200
