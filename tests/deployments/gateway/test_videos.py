"""The videos API through the whole gateway; the workers are the test's, and do what a spec's prompt says."""

import asyncio
import base64
import contextlib
import io
import json
import os
import pickle
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from postgres import Server, postgres
from shell import VIDEO as SHAPE
from shell import Exchange, Handle, application, family

from cluster.errors import EngineFailed, InvalidRequest, NotFound, Unavailable
from cluster.family import Video
from cluster.faults import LASTING_S, MAX_ATTEMPTS, MOST_BROKEN
from deployments.control.words import Worker
from deployments.gateway.video_jobs import LEASE_S
from deployments.stores.files import MASTER, THUMBNAIL
from deployments.stores.files import VIDEO as VIDEO_FILE
from deployments.stores.jobs import JOBS_FILE, JobStore
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.stores.local_files import LocalFiles
from deployments.video.messages import Asked, Begun, News, Rendered, StepDone
from deployments.video.spec import RenderSpec

VIDEO = b"moving pictures"
PATH = "/v1/videos"
ENDS = {
    "lent": Rendered(preempted=True),
    "hindered": Rendered(hindered="no space left on device"),
    "full": Rendered(hindered="no space left on device", lasting=True),
    "breaks": Rendered(broke="CUDA error: an illegal memory access"),
    "silent": None,
    "refused": Rendered(error=InvalidRequest("size: too large")),
    "broken": Rendered(error=EngineFailed("engine: it failed; try again")),
}


def multipart(**fields: str) -> tuple[bytes, str]:
    parts = (f'--b\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    return "".join([*parts, "--b--\r\n"]).encode(), "multipart/form-data; boundary=b"


class Renderer:
    """Does as the prompt says: `done` at once, `lost N times`, `lent N times`, `hindered N times`, `gains N times` a

    step and is lost, `breaks N times` its replica after a step, `silent N times`, `full`, `refused`, `broken`,
    `unsigned`, `hangs`, `stores` once told. Its state is the process's: many workers may be made of it.
    """

    def __init__(self, files: LocalFiles) -> None:
        self.specs: list[RenderSpec] = []
        self.asked: list[Asked] = []
        self.withdrawn: list[str] = []
        self.halted = 0
        self.may_store = asyncio.Event()
        self.stores_though_withdrawn = False
        self.storing: asyncio.Task[None] | None = None
        self.files = files
        self._under_way: dict[str, asyncio.Event] = {}

    async def render(self, asked: Asked) -> AsyncIterator[News]:
        spec = asked.spec
        self.asked.append(asked)
        self.specs.append(spec)
        over = self._under_way[spec.job_id] = asyncio.Event()
        try:
            yield Begun()
            for done in (len(self.specs),) if spec.prompt.split()[0] in ("gains", "breaks") else (1, 2):
                yield StepDone(done=done, total=spec.steps, seconds=0.1, way="full")
            ended = await self._end(spec)
        finally:
            over.set()
        if ended is not None:
            yield ended

    async def withdraw(self, job_id: str) -> None:
        self.withdrawn.append(job_id)
        if not self.stores_though_withdrawn:
            self.may_store.set()
        if self.storing is not None:
            await asyncio.shield(self.storing)
        if job_id in self._under_way:
            await self._under_way[job_id].wait()

    async def halt(self) -> None:
        self.halted += 1

    async def _end(self, spec: RenderSpec) -> Rendered | None:
        match spec.prompt.split():
            case [kind, times, "times"] if len(self.specs) <= int(times):
                if kind in ("lost", "gains"):
                    raise RuntimeError("the actor died, and\n30 lines of its traceback")
                return ENDS[kind]
            case [kind] if kind in ENDS:
                return ENDS[kind]
            case ["hangs"]:
                await asyncio.Event().wait()
            case ["stores"]:
                self.storing = asyncio.create_task(self._store(spec))
                await asyncio.shield(self.storing)  # a replica stores on while nobody listens
                return Rendered(signed=True)
        self.may_store.set()
        await self._store(spec)
        return Rendered(signed=spec.prompt != "unsigned")

    async def _store(self, spec: RenderSpec) -> None:
        await self.may_store.wait()
        with contextlib.suppress(NotFound):  # what is just deleted has no place for it
            for name in (VIDEO_FILE, THUMBNAIL, MASTER):
                await self.files.put_bytes(f"{spec.job_id}/{name}", VIDEO)


class Call:
    """A method of an actor's handle: an awaitable, or with num_returns="streaming" a stream of them."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call

    def options(self, num_returns: str) -> "Call":
        assert num_returns == "streaming"
        return Call(lambda *given: self._streamed(pickle.loads(pickle.dumps(given))))

    async def _streamed(self, given: Sequence[Any]) -> AsyncIterator[asyncio.Future[Any]]:
        async for item in self.remote(*given):
            ready = asyncio.get_running_loop().create_future()
            ready.set_result(pickle.loads(pickle.dumps(item)))
            yield ready


class Actor:
    """Ray's handle of a worker."""

    def __init__(self, renderer: Renderer) -> None:
        self.render = Call(renderer.render)
        self.halt = Call(renderer.halt)
        self.withdraw = Call(renderer.withdraw)


class Client:
    def __init__(self, folder: Path, gateway: Any, renderer: Renderer, app: Any, key: str) -> None:
        self.folder = folder
        self.renderer = renderer
        self.workers: tuple[Worker, ...] = ()  # that the control loop names
        self.key = key
        self.videos = gateway._videos
        self._gateway = gateway
        self._app = app

    async def send(
        self, method: str, path: str = PATH, *, body: bytes = b"", query: str = "", **headers: str
    ) -> Exchange:
        named = {"authorization": f"Bearer {self.key}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return await Exchange(self._app, path, body, method=method, query=query, headers=named).finished()

    async def create(self, prompt: str, **fields: Any) -> dict[str, Any]:
        made = await self.send("POST", body=json.dumps({"prompt": prompt} | fields).encode())
        assert made.status == 200, made.body
        video: dict[str, Any] = made.json()
        return video

    async def retrieve(self, video: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (await self.send("GET", f"{PATH}/{video['id']}")).json()
        return found

    async def until(self, video: dict[str, Any], *states: str, progress: int = 0) -> dict[str, Any]:
        while True:
            now = await self.retrieve(video)
            if now["status"] in states and now["progress"] >= progress:
                return now

    async def begun(self, times: int) -> None:
        while len(self.renderer.specs) < times:
            await asyncio.sleep(0)

    async def content(self, video: dict[str, Any], method: str = "GET", query: str = "", **headers: str) -> Exchange:
        return await self.send(method, f"{PATH}/{video['id']}/content", body=b"", query=query, **headers)

    async def page(self) -> str:
        return (await self.send("GET", "/metrics", query="only=gateway")).body.decode()

    def files(self) -> list[str]:
        """Also while some are deleted."""
        walked = os.walk(self.folder / "videos")
        return sorted(
            str((Path(at) / name).relative_to(self.folder)) for at, below, here in walked for name in (*below, *here)
        )

    def of(self, key: str) -> "Client":
        return Client(self.folder, self._gateway, self.renderer, self._app, key)


@contextlib.asynccontextmanager
async def served(folder: Path, workers: int = 1, later_s: float = 0.0, **video: Any) -> AsyncIterator[Client]:
    """The gateway until the end of the block, when it dies as a process does. Its clock is ahead by `later_s`."""
    renderer = Renderer(LocalFiles(folder / "videos"))
    spec = family(folder, video=True, gateway={"tokens": "streamed"})
    spec = spec.model_copy(update={"video": Video.model_validate(SHAPE | {"concurrent": 1} | video)})
    before = asyncio.all_tasks()
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    client = Client(folder, gateway, renderer, app, key)
    client.workers = tuple(Worker(worker_id=f"w{n}", node_id="here", actor=Actor(renderer)) for n in range(workers))
    videos = gateway._videos
    assert videos is not None
    videos._now_s = videos._jobs._now_s = lambda: time.time() + later_s
    videos._jobs._workers.rest_s = 0.0

    async def control() -> None:
        while True:
            videos.take(client.workers)
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(control())
    yield client
    ticking.cancel()
    gateway._rendering.cancel()
    while tasks := asyncio.all_tasks() - before:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def code(exchange: Exchange) -> tuple[int, str]:
    body = exchange.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return exchange.status, body["error"]["code"]


async def test_a_video_is_queued_rendered_and_downloaded(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("a red ball", seconds="2", size="96x64")
        assert (video["object"], video["status"], video["progress"]) == ("video", "queued", 0)
        done = await client.until(video, "completed")
        assert (done["progress"], done["seconds"], done["size"], done["error"]) == (100, "2", "96x64", None)
        assert done["moray"]["stage"] is None
        content = await client.send("GET", f"{PATH}/{video['id']}/content")
        assert (content.status, content.headers["content-type"], content.body) == (200, "video/mp4", VIDEO)
        assert video["id"] in content.headers["content-disposition"]


async def test_form_fields_and_json_ask_for_the_same(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.create("done", seed=5, seconds=2)
        body, kind = multipart(prompt="done", seed="5", seconds="2")
        made = await client.send("POST", body=body, content_type=kind)
        assert made.status == 200
        await client.until(made.json(), "completed")
        first, second = client.renderer.specs
        assert (
            (first.prompt, first.seed, first.frames) == (second.prompt, second.seed, second.frames) == ("done", 5, 16)
        )


@pytest.mark.parametrize(
    ("body", "kind", "refusal"),
    [
        (b"{", "application/json", (400, "invalid_json")),
        (b'{"prompt": "x", "size": "1x1"}', "application/json", (400, "invalid_value")),
        (b"no form at all", "multipart/form-data; boundary=b", (400, "invalid_value")),
        (b"no boundary", "multipart/form-data", (400, "invalid_value")),
        (multipart(prompt="x")[0][:-9], "multipart/form-data; boundary=b", (400, "missing_parameter")),
        (b"x" * 5_000_000, "application/json", (413, "body_too_large")),
    ],
)
async def test_a_wrong_body_is_refused_and_leaves_no_job(
    tmp_path: Path, body: bytes, kind: str, refusal: tuple[int, str]
) -> None:
    async with served(tmp_path, max_input_bytes=1_000_000) as client:
        assert code(await client.send("POST", body=body, content_type=kind)) == refusal
        assert (await client.send("GET")).json()["data"] == []


async def test_progress_is_seen_while_it_renders(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("hangs")
        assert (await client.until(video, "in_progress", progress=50))["progress"] == 50


async def test_content_before_completion_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("hangs")
        await client.until(video, "in_progress")
        assert code(await client.send("GET", f"{PATH}/{video['id']}/content")) == (400, "video_not_ready")
        poster = await client.send("GET", f"{PATH}/{video['id']}/content", query="variant=poster")
        assert code(poster) == (400, "invalid_value")


async def test_the_list_is_walked_page_by_page(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        made = [(await client.create("done"))["id"] for _ in range(5)]
        seen: list[str] = []
        query = "limit=2&order=asc"
        while True:
            page = (await client.send("GET", query=query)).json()
            seen += [video["id"] for video in page["data"]]
            if not page["has_more"]:
                break
            query = f"limit=2&order=asc&after={page['last_id']}"
        assert seen == made
        newest = (await client.send("GET", query="limit=1")).json()
        assert [video["id"] for video in newest["data"]] == made[-1:]
        assert code(await client.send("GET", query="limit=0")) == (400, "invalid_value")
        assert code(await client.send("GET", query="after=video_unknown")) == (400, "invalid_value")


async def test_another_key_sees_nothing_of_a_video(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        other_key, _ = KeyStore(tmp_path / KEYS_FILE).create("other", 0.0)
        other = client.of(other_key)
        assert (await other.send("GET")).json()["data"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
            assert code(await other.send(method, f"{PATH}/{video['id']}{path}")) == (404, "video_not_found")
        assert code(await client.of("none").send("GET")) == (401, "invalid_api_key")
        assert (await client.retrieve(video))["status"] == "completed"


async def test_deleting_a_finished_video_removes_its_file(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        assert len(client.files()) == 4  # its folder too
        deleted = await client.send("DELETE", f"{PATH}/{video['id']}")
        assert deleted.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
        assert code(await client.send("GET", f"{PATH}/{video['id']}")) == (404, "video_not_found")
        assert client.files() == []


async def test_deleting_a_running_video_withdraws_it_and_the_next_one_begins(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video, next_one = await client.create("hangs"), await client.create("done")
        await client.until(video, "in_progress")
        await client.send("DELETE", f"{PATH}/{video['id']}")
        await client.until(next_one, "completed")
        assert client.renderer.withdrawn == [video["id"]]
        assert all(next_one["id"] in name for name in client.files())


async def test_a_video_deleted_while_its_files_are_stored_leaves_none(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("stores")
        while client.renderer.storing is None:
            await asyncio.sleep(0)
        await client.send("DELETE", f"{PATH}/{video['id']}")
        await client.renderer.storing
        while client.files():
            await asyncio.sleep(0)
        assert client.renderer.withdrawn == [video["id"]]


async def test_a_replica_that_stores_for_longer_than_it_is_waited_for_leaves_no_file_of_a_deleted_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deployments.gateway.video_workers.HALT_S", 0.01)
    async with served(tmp_path) as client:
        video = await client.create("stores")
        await client.until(video, "in_progress", progress=50)
        client.renderer.stores_though_withdrawn = True
        await client.send("DELETE", f"{PATH}/{video['id']}")
        while caplog.text.count("is still at it") < 2:
            await asyncio.sleep(0)
        client.renderer.may_store.set()
        await client.until(await client.create("done"), "completed")
        while any(video["id"] in name for name in client.files()):
            await asyncio.sleep(0)


async def test_a_video_deleted_by_another_gateway_is_withdrawn_at_its_next_word(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("stores")
        while client.renderer.storing is None:
            await asyncio.sleep(0)
        (job,) = JobStore(tmp_path / JOBS_FILE).unfinished()
        JobStore(tmp_path / JOBS_FILE).delete(job.owner, job.id)
        client.renderer.may_store.set()
        while video["id"] not in client.renderer.withdrawn or client.files():
            await asyncio.sleep(0)


@pytest.mark.parametrize(("prompt", "why"), [("refused", "invalid_value"), ("broken", "engine_failed")])
async def test_a_rendering_that_fails_says_why_and_is_not_repeated(tmp_path: Path, prompt: str, why: str) -> None:
    async with served(tmp_path) as client:
        failed = await client.until(await client.create(prompt), "failed")
        assert failed["error"]["code"] == why
        assert len(client.renderer.specs) == 1


async def test_a_replica_lost_twice_is_followed_by_a_third_that_succeeds(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create(f"lost {MAX_ATTEMPTS - 1} times"), "completed")
        assert len(client.renderer.specs) == MAX_ATTEMPTS


async def test_a_job_that_loses_its_replica_each_time_fails_with_a_reason(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        failed = await client.until(await client.create(f"lost {MAX_ATTEMPTS} times"), "failed")
        assert failed["error"]["code"] == "replica_lost"
        assert f"lost {MAX_ATTEMPTS} times" in failed["error"]["message"]
        assert "traceback" not in failed["error"]["message"]
        assert len(client.renderer.specs) == MAX_ATTEMPTS


async def test_a_job_that_gains_a_step_each_time_may_lose_its_replica_more_often(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create(f"gains {2 * MAX_ATTEMPTS} times", num_inference_steps=50)
        await client.until(video, "completed")
        assert "moray_video_lost_steps_total 0.0" in await client.page()
        assert f"moray_video_resumed_total {2 * MAX_ATTEMPTS}.0" in await client.page()


async def test_a_rendering_that_ends_without_a_word_is_tried_again_and_counts(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create("silent 2 times"), "completed")
        assert len(client.renderer.specs) == 3
    async with served(tmp_path) as client:
        failed = await client.until(await client.create(f"silent {MAX_ATTEMPTS} times"), "failed")
        assert failed["error"]["code"] == "replica_lost"


async def test_a_job_whose_replica_breaks_goes_on_elsewhere_and_soon_alone(tmp_path: Path) -> None:
    async with served(tmp_path, concurrent=2) as client:
        done = await client.until(await client.create(f"breaks {MOST_BROKEN - 1} times"), "completed")
        assert [asked.alone for asked in client.renderer.asked] == [False, False, True]
        assert done["moray"]["way"] == "full"
        assert f"moray_video_broken_total {MOST_BROKEN - 1}.0" in await client.page()


async def test_a_job_that_breaks_replicas_fails_with_the_reason_though_it_gains_a_step_each_time(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as client:
        video = await client.create(f"breaks {2 * MOST_BROKEN} times", num_inference_steps=50)
        failed = await client.until(video, "failed")
        assert failed["error"]["code"] == "engine_failed"
        assert f"{MOST_BROKEN} replicas broke" in failed["error"]["message"]
        assert "an illegal memory access" in failed["error"]["message"]
        assert len(client.renderer.specs) == MOST_BROKEN
        await client.until(await client.create("done"), "completed")


async def test_how_many_replicas_a_job_broke_outlives_its_gateway(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video, key = await client.create("breaks 9 times", num_inference_steps=50), client.key
        await client.begun(1)
        while not JobStore(tmp_path / JOBS_FILE).unfinished()[0].broke:
            await asyncio.sleep(0)
    async with served(tmp_path, later_s=2 * LEASE_S) as restarted:
        await restarted.of(key).until(video, "failed")
        assert len(client.renderer.specs) + len(restarted.renderer.specs) == MOST_BROKEN


async def test_a_disk_that_stays_full_fails_a_job_in_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("deployments.gateway.video_jobs.FIRST_PAUSE_S", 0.0)
    async with served(tmp_path) as client:
        video = await client.create("full")
        await client.begun(3)
        assert (await client.retrieve(video))["status"] != "failed"
        client.videos._jobs._now_s = lambda: time.time() + LASTING_S
        failed = await client.until(video, "failed")
        assert failed["error"]["code"] == "unavailable"
        assert "no space left on device; so for" in failed["error"]["message"]


async def test_unfinished_videos_are_rendered_again_after_a_restart_and_finished_ones_are_not(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        finished, cut = await client.create("done"), await client.create("hangs")
        await client.until(finished, "completed")
        await client.until(cut, "in_progress", progress=50)
        key = client.key
    async with served(tmp_path, later_s=2 * LEASE_S) as restarted:
        client = restarted.of(key)
        await restarted.begun(1)
        await client.until(cut, "in_progress", progress=50)
        assert [spec.job_id for spec in restarted.renderer.specs] == [cut["id"]]
        assert (await client.retrieve(finished))["status"] == "completed"


async def test_jobs_of_a_model_that_a_family_does_not_serve_stay_queued_until_one_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, names=("old",)) as client:
        video, key = await client.create("hangs"), client.key
        await client.until(video, "in_progress", progress=50)
    async with served(tmp_path, later_s=2 * LEASE_S, names=("new",)) as other:
        client = other.of(key)
        await client.until(await client.create("done"), "completed")
        waiting = await client.until(video, "queued")
        assert (waiting["model"], waiting["progress"], waiting["moray"]["queue_position"]) == ("old", 50, None)
        assert client.videos.jobs() == ()
        assert [spec.job_id for spec in other.renderer.specs].count(video["id"]) == 0
        assert "not serve: 1 of old;" in caplog.text
    async with served(tmp_path, later_s=4 * LEASE_S, names=("new", "old")) as again:
        await again.of(key).until(video, "in_progress", progress=50)


async def test_a_job_that_took_the_gateway_down_each_time_is_not_started_for_ever(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video, key = await client.create("hangs"), client.key
        await client.until(video, "in_progress", progress=50)
    for times in range(1, MAX_ATTEMPTS):
        async with served(tmp_path, later_s=2 * times * LEASE_S) as restarted:
            await restarted.begun(1)
            while "moray_video_steps_total 2.0" not in await restarted.page():
                pass  # until its first step is written it reads as far as it was before
            await restarted.of(key).until(video, "in_progress", progress=50)
            assert len(restarted.renderer.specs) == 1
    async with served(tmp_path, later_s=2 * MAX_ATTEMPTS * LEASE_S) as restarted:
        failed = await restarted.of(key).until(video, "failed")
        assert failed["error"]["code"] == "replica_lost"
        assert restarted.renderer.specs == []


async def test_a_disk_that_is_busy_holds_up_this_request_and_no_other(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        with contextlib.closing(sqlite3.connect(tmp_path / JOBS_FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            creating = asyncio.ensure_future(client.create("done"))
            for _ in range(20):
                assert (await client.send("GET", "/health")).status == 200
            assert not creating.done()
            other.execute("COMMIT")
        await client.until(await creating, "completed")


async def test_a_job_whose_client_leaves_while_it_is_written_is_rendered(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        with contextlib.closing(sqlite3.connect(tmp_path / JOBS_FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            creating = asyncio.ensure_future(client.create("done"))
            for _ in range(20):
                await client.send("GET", "/health")
            creating.cancel()
            await asyncio.wait([creating])
            other.execute("COMMIT")
        while not (listed := (await client.send("GET")).json()["data"]):
            await asyncio.sleep(0)
        await client.until(listed[0], "completed")


async def test_steps_and_ends_are_counted(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create("done"), "completed")
        await client.until(await client.create("broken"), "failed")
        page = (await client.send("GET", "/metrics", query="only=gateway")).body.decode()
        assert "moray_video_steps_total 4.0" in page
        assert 'moray_video_jobs_finished_total{code="ok"} 1.0' in page
        assert 'moray_video_jobs_finished_total{code="engine_failed"} 1.0' in page


async def test_a_job_whose_worker_is_lent_goes_on_elsewhere_and_no_attempt_counts(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create(f"lent {MAX_ATTEMPTS + 2} times"), "completed")
        assert len(client.renderer.specs) == MAX_ATTEMPTS + 3
        page = (await client.send("GET", "/metrics", query="only=gateway")).body.decode()
        assert f"moray_video_preemptions_total {MAX_ATTEMPTS + 2}.0" in page


async def test_jobs_wait_in_order_for_a_free_worker(tmp_path: Path) -> None:
    async with served(tmp_path, workers=2) as client:
        hanging = [await client.create("hangs") for _ in range(3)]
        for video in hanging[:2]:
            await client.until(video, "in_progress", progress=50)
        assert (await client.retrieve(hanging[2]))["status"] == "queued"
        await client.send("DELETE", f"{PATH}/{hanging[0]['id']}")
        await client.until(hanging[2], "in_progress", progress=50)
        assert [spec.job_id for spec in client.renderer.specs] == [video["id"] for video in hanging]


async def test_jobs_wait_where_there_is_no_worker_and_the_scaling_sees_them(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0) as client:
        assert client.videos.jobs() == ()
        made = [await client.create("done", seconds=seconds) for seconds in (1, 2)]
        first, second = client.videos.jobs()
        assert (first.left_gpu_s, second.left_gpu_s) == (pytest.approx(0.4), pytest.approx(0.4))
        assert first.deadline_s == made[0]["created_at"] + 60
        assert second.value_usd == pytest.approx(0.2)


async def test_the_steps_that_are_done_are_not_work_any_more(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create("hangs"), "in_progress", progress=50)
        (job,) = client.videos.jobs()
        assert job.left_gpu_s == pytest.approx(0.2)
        await client.send("DELETE", f"{PATH}/{(await client.send('GET')).json()['data'][0]['id']}")
        assert client.videos.jobs() == ()


async def test_more_jobs_than_may_wait_are_refused(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0, max_waiting=1) as client:
        await client.create("done")
        assert code(await client.send("POST", body=b'{"prompt": "x"}')) == (429, "overloaded")


async def test_a_simulated_video_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, engine="simulated") as client:
        video = await client.create("done")
        await client.until(video, "completed")
        for path in (f"{PATH}/{video['id']}", f"{PATH}/{video['id']}/content"):
            assert (await client.send("GET", path)).headers["moray-engine"] == "simulated"


async def test_a_changed_family_is_served_to_new_jobs_and_the_queue(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0) as client:
        await client.create("done")
        before = family(tmp_path, video=True)
        slower = SHAPE | {"cost": SHAPE["cost"] | {"base_s": 0.5}, "seconds": [3]}
        client.videos.follow(before.model_copy(update={"video": Video.model_validate(slower)}))
        assert client.videos.jobs()[0].left_gpu_s == pytest.approx(2.0)
        assert (await client.create("done"))["seconds"] == "3"


async def test_a_file_is_read_whole_or_by_a_range_of_its_bytes(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        whole = await client.content(video)
        assert (whole.headers["accept-ranges"], whole.headers["content-length"]) == ("bytes", str(len(VIDEO)))
        part = await client.content(video, range="bytes=7-9", if_range=whole.headers["etag"])
        assert (part.status, part.body, part.headers["content-length"]) == (206, VIDEO[7:10], "3")
        assert part.headers["content-range"] == f"bytes 7-9/{len(VIDEO)}"
        assert (await client.content(video, range="bytes=7-9", if_range='"older"')).body == VIDEO
        behind = await client.content(video, range="bytes=99-")
        assert code(behind) == (416, "invalid_range")
        assert behind.headers["content-range"] == f"bytes */{len(VIDEO)}"
        assert (await client.content(video, range="bytes=0-1,3-4")).status == 416


async def test_the_head_of_a_file_says_what_it_is_and_sends_nothing(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        head = await client.content(video, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert (head.headers["content-type"], head.headers["content-length"]) == ("video/mp4", str(len(VIDEO)))


@pytest.mark.parametrize(("variant", "kind"), [("thumbnail", "image/webp"), ("master", "video/matroska")])
async def test_a_variant_has_its_own_kind(tmp_path: Path, variant: str, kind: str) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        found = await client.content(video, query=f"variant={variant}")
        assert (found.status, found.headers["content-type"]) == (200, kind)


async def test_a_variant_that_was_not_made_is_not_found(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("done")
        await client.until(video, "completed")
        assert code(await client.content(video, query="variant=spritesheet")) == (404, "file_not_found")


async def test_one_idempotency_key_makes_one_job_whatever_the_clients_do(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        body = json.dumps({"prompt": "hangs"}).encode()
        sent = [client.send("POST", body=body, idempotency_key="one") for _ in range(3)]
        made = {exchange.json()["id"] for exchange in await asyncio.gather(*sent)}
        assert len(made) == 1
        assert len((await client.send("GET")).json()["data"]) == 1
        other_key, _ = KeyStore(tmp_path / KEYS_FILE).create("other", 0.0)
        elsewhere = await client.of(other_key).send("POST", body=body, idempotency_key="one")
        assert elsewhere.json()["id"] not in made


async def test_another_request_with_the_same_idempotency_key_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0) as client:
        first = await client.send("POST", body=b'{"prompt": "done"}', idempotency_key="one")
        other = await client.send("POST", body=b'{"prompt": "other"}', idempotency_key="one")
        assert code(other) == (409, "idempotency_key_reused")
        assert [each["id"] for each in (await client.send("GET")).json()["data"]] == [first.json()["id"]]
        assert code(await client.send("POST", body=b'{"prompt": "x"}', idempotency_key="")) == (400, "invalid_value")


async def test_another_picture_makes_it_another_request(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0, takes={"inputs": ["input_reference"]}) as client:

        async def send(colour: str) -> Exchange:
            png = io.BytesIO()
            Image.new("RGB", (64, 64), colour).save(png, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
            body = json.dumps({"prompt": "x", "input_reference": {"image_url": url}}).encode()
            return await client.send("POST", body=body, idempotency_key="one")

        first = (await send("red")).json()["id"]
        for _ in range(2):
            again, other = await send("red"), await send("blue")
            assert again.json()["id"] == first
            assert code(other) == (409, "idempotency_key_reused")
            await client.videos._files.delete(first)  # as when it ends


async def test_a_request_sent_again_is_answered_though_the_queue_is_full(tmp_path: Path) -> None:
    async with served(tmp_path, workers=0, max_waiting=1) as client:
        made = [await client.send("POST", body=b'{"prompt": "x"}', idempotency_key="one") for _ in range(2)]
        assert made[0].json()["id"] == made[1].json()["id"]


async def test_who_waits_is_told_its_place_and_when_it_begins_and_ends(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        client.videos._now_s = lambda: 2e9  # estimates of two moments are compared
        running, waiting = await client.create("hangs"), await client.create("done")
        at_work = (await client.until(running, "in_progress", progress=50))["moray"]
        assert (at_work["queue_position"], at_work["stage"]) == (None, "rendering")
        told = (await client.retrieve(waiting))["moray"]
        assert told["queue_position"] == 1
        assert at_work["estimated_completed_at"] == pytest.approx(told["estimated_start_at"], abs=1)
        assert told["estimated_start_at"] <= told["estimated_completed_at"]
        newest = (await client.send("GET", query="limit=1")).json()["data"][0]
        assert newest["moray"]["queue_position"] == 1


async def test_a_worker_takes_as_many_jobs_as_it_may(tmp_path: Path) -> None:
    async with served(tmp_path, concurrent=2) as client:
        hanging = [await client.create("hangs") for _ in range(3)]
        for video in hanging[:2]:
            await client.until(video, "in_progress", progress=50)
        assert (await client.retrieve(hanging[2]))["status"] == "queued"
        assert len(client.renderer.specs) == 2


async def test_a_job_that_is_hindered_waits_and_no_attempt_counts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("deployments.gateway.video_jobs.FIRST_PAUSE_S", 0.0)
    async with served(tmp_path) as client:
        await client.until(await client.create(f"hindered {MAX_ATTEMPTS + 1} times"), "completed")
        assert f"moray_video_hindered_total {MAX_ATTEMPTS + 1}.0" in await client.page()


async def test_a_job_begun_again_tells_which_steps_were_lost(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create("lent 1 times"), "completed")
        assert "moray_video_lost_steps_total 2.0" in await client.page()  # this replica saves nothing


async def test_a_video_that_leaves_unsigned_is_counted(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        done = await client.until(await client.create("unsigned"), "completed")
        assert done["moray"]["signed"] is False
        await client.until(await client.create("done"), "completed")
        assert 'moray_video_unsigned_total{intended="no"} 1.0' in await client.page()


async def test_what_has_expired_is_gone_with_its_files(tmp_path: Path) -> None:
    async with served(tmp_path, expires_s=60) as client:
        video = await client.until(await client.create("done"), "completed")
        assert video["expires_at"] == video["completed_at"] + 60
        await client.videos._jobs._sweep()
        assert (await client.content(video)).status == 200
        client.videos._jobs._now_s = lambda: time.time() + 61
        await client.videos._jobs._sweep()
        assert code(await client.content(video)) == (404, "video_not_found")
        assert client.files() == []


async def test_what_a_failed_job_wrote_is_deleted(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("hangs")
        await client.renderer.files.put_bytes(f"{video['id']}/first.png", b"an input")
        await client.send("DELETE", f"{PATH}/{video['id']}")
        broken = await client.create("broken")
        await client.until(broken, "failed")
        while client.files():
            await asyncio.sleep(0)


async def test_a_store_that_does_not_answer_stops_no_rendering_and_loses_no_end(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("stores")
        while client.renderer.storing is None:
            await asyncio.sleep(0)
        store, jobs = client.videos._jobs._store, client.videos._jobs
        jobs._store = Silent()
        client.renderer.may_store.set()
        while "moray_video_store_errors_total 0.0" in await client.page():
            await asyncio.sleep(0)
        jobs._store = store
        await client.until(video, "completed")
        assert len(client.renderer.specs) == 1


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as server:
        yield server


@pytest.fixture
def database(server: Server) -> str:
    """A queue of its own: what a test leaves is no other's."""
    return server.fresh()


async def test_several_gateways_share_a_queue_in_postgresql_and_render_each_job_once(
    tmp_path: Path, database: str
) -> None:
    shared: dict[str, Any] = {"database": database, "files": f"file://{tmp_path}/videos"}
    async with served(tmp_path, workers=2, **shared) as one, served(tmp_path, workers=2, **shared) as two:
        made = [await gateway.create("done") for gateway in (one, two) for _ in range(10)]
        client = one.of(two.key)
        for video in made:
            while True:
                found = [await each.send("GET", f"{PATH}/{video['id']}") for each in (one, client)]
                if any(each.status == 200 and each.json()["status"] == "completed" for each in found):
                    break
        rendered = sorted(spec.job_id for gateway in (one, two) for spec in gateway.renderer.specs)
        assert rendered == sorted(video["id"] for video in made)


async def test_a_gateway_goes_on_with_what_one_that_died_had_claimed_in_postgresql(
    tmp_path: Path, database: str
) -> None:
    shared: dict[str, Any] = {"database": database, "files": f"file://{tmp_path}/videos"}
    async with served(tmp_path, later_s=2 * LEASE_S, workers=0, **shared) as waiting:
        async with served(tmp_path, **shared) as dying:
            video = await dying.create("hangs")
            await dying.until(video, "in_progress", progress=50)
        waiting.workers = (Worker(worker_id="w", node_id="here", actor=Actor(waiting.renderer)),)
        await waiting.begun(1)
        assert [spec.job_id for spec in waiting.renderer.specs] == [video["id"]]


class Silent:
    """A database that is away."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> None:
            raise Unavailable("database: it does not answer; try again")

        return call
