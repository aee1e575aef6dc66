"""The videos API through the whole gateway; the workers are the test's, and do what a spec's prompt says."""

import asyncio
import contextlib
import json
import pickle
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shell import VIDEO as SHAPE
from shell import Exchange, Handle, application, family

from cluster.errors import EngineFailed, InvalidRequest
from cluster.family import Video
from deployments.control.words import Worker
from deployments.gateway.video_jobs import MAX_ATTEMPTS
from deployments.gateway.videos_wire import parse_json
from deployments.stores.jobs import JOBS_FILE
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.video.encode import write_mp4
from deployments.video.engine import RenderSpec
from deployments.video.jobs import queued
from deployments.video.worker import Begun, Rendered, StepDone

VIDEO = b"moving pictures"
FRAMES = np.zeros((4, 16, 16, 3), np.uint8)
PATH = "/v1/videos"


def multipart(**fields: str) -> tuple[bytes, str]:
    parts = (f'--b\r\ncontent-disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items())
    return "".join([*parts, "--b--\r\n"]).encode(), "multipart/form-data; boundary=b"


class Renderer:
    """Does as the prompt says: `done` at once, `lost N times`, `lent N times`, `refused`, `broken`, `hangs`, `encodes`

    until told. Its state is the process's: any number of workers may be made of it.
    """

    def __init__(self) -> None:
        self.specs: list[RenderSpec] = []
        self.stopped = asyncio.Event()
        self.may_encode = threading.Event()
        self.encoded: asyncio.Future[None] | None = None

    async def render(self, spec: RenderSpec, path: str) -> AsyncIterator[Begun | StepDone | Rendered]:
        self.specs.append(spec)
        yield Begun()
        for done in (1, 2):
            yield StepDone(done=done, total=spec.steps, seconds=0.1)
        async for news in self._end(spec, Path(path)):
            yield news

    async def _end(self, spec: RenderSpec, path: Path) -> AsyncIterator[Rendered]:
        match spec.prompt.split():
            case ["lost", times, "times"] if len(self.specs) <= int(times):
                raise RuntimeError("the actor died, and\n30 lines of its traceback")
            case ["lent", times, "times"] if len(self.specs) <= int(times):
                yield Rendered(preempted=True)
            case ["refused"]:
                yield Rendered(error=InvalidRequest("size: too large"))
            case ["broken"]:
                yield Rendered(error=EngineFailed("engine: out of memory; try again"))
            case ["silent"]:
                return
            case ["hangs"]:
                await asyncio.Event().wait()
            case ["encodes"]:
                self.encoded = asyncio.get_running_loop().run_in_executor(None, self._encode, path)
                await asyncio.shield(self.encoded)
                yield Rendered()
            case _:
                path.write_bytes(VIDEO)
                yield Rendered()

    def _encode(self, path: Path) -> None:
        self.may_encode.wait()
        write_mp4(FRAMES, 8, path)


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
        self._renderer = renderer
        self.render = Call(renderer.render)
        self.halt = Call(self._halt)

    async def _halt(self) -> None:
        self._renderer.stopped.set()


class Client:
    def __init__(self, folder: Path, gateway: Any, renderer: Renderer, app: Any, key: str) -> None:
        self.folder = folder
        self.renderer = renderer
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

    def files(self) -> list[str]:
        return sorted(str(each.relative_to(self.folder)) for each in (self.folder / "videos").rglob("*"))

    def of(self, key: str) -> "Client":
        return Client(self.folder, self._gateway, self.renderer, self._app, key)


@contextlib.asynccontextmanager
async def served(folder: Path, workers: int = 1, **video: Any) -> AsyncIterator[Client]:
    """The gateway until the end of the block, when it dies as a process does."""
    renderer = Renderer()
    spec = family(folder, video=True, gateway={"tokens": "streamed"})
    spec = spec.model_copy(update={"video": Video.model_validate(SHAPE | video)})
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    named = tuple(Worker(worker_id=f"w{n}", node_id="here", actor=Actor(renderer)) for n in range(workers))
    videos, before = gateway._videos, asyncio.all_tasks()
    assert videos is not None

    async def control() -> None:
        while True:
            videos.take(named)
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(control())
    yield Client(folder, gateway, renderer, app, key)
    renderer.may_encode.set()
    ticking.cancel()
    videos._jobs._jobs.clear()  # or what is cancelled would be begun anew
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
    async with served(tmp_path) as client:
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
        thumbnail = await client.send("GET", f"{PATH}/{video['id']}/content", query="variant=thumbnail")
        assert code(thumbnail) == (400, "unsupported_parameter")


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
        assert len(client.files()) == 2
        deleted = await client.send("DELETE", f"{PATH}/{video['id']}")
        assert deleted.json() == {"id": video["id"], "object": "video.deleted", "deleted": True}
        assert code(await client.send("GET", f"{PATH}/{video['id']}")) == (404, "video_not_found")
        assert client.files() == []


async def test_deleting_a_running_video_stops_the_rendering(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("hangs")
        await client.until(video, "in_progress")
        await client.send("DELETE", f"{PATH}/{video['id']}")
        await client.renderer.stopped.wait()
        assert client.files() == []


async def test_a_video_deleted_during_its_final_encode_leaves_no_file(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video = await client.create("encodes")
        await client.until(video, "in_progress", progress=50)
        while client.renderer.encoded is None:
            await asyncio.sleep(0)
        await client.send("DELETE", f"{PATH}/{video['id']}")
        client.renderer.may_encode.set()
        with pytest.raises(OSError, match="No such file"):
            await client.renderer.encoded
        assert client.files() == []


async def test_an_encode_that_nobody_disturbs_leaves_the_video(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        client.renderer.may_encode.set()
        video = await client.create("encodes")
        await client.until(video, "completed")
        assert client.files() == [f"videos/{video['id']}", f"videos/{video['id']}/video.mp4"]


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


async def test_a_rendering_that_ends_without_a_word_is_a_failure(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        assert (await client.until(await client.create("silent"), "failed"))["error"]["code"] == "replica_lost"


async def test_unfinished_videos_are_rendered_again_after_a_restart_and_finished_ones_are_not(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        finished, cut = await client.create("done"), await client.create("hangs")
        await client.until(finished, "completed")
        await client.until(cut, "in_progress", progress=50)
        key = client.key
    async with served(tmp_path) as restarted:
        client = restarted.of(key)
        await client.until(cut, "in_progress", progress=50)
        assert [spec.job_id for spec in restarted.renderer.specs] == [cut["id"]]
        assert (await client.retrieve(finished))["status"] == "completed"


async def test_a_job_that_took_the_gateway_down_each_time_is_not_started_for_ever(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        video, key = await client.create("hangs"), client.key
        await client.until(video, "in_progress")
    for _ in range(MAX_ATTEMPTS - 1):
        async with served(tmp_path) as restarted:
            await restarted.of(key).until(video, "in_progress")
            assert len(restarted.renderer.specs) == 1
    async with served(tmp_path) as restarted:
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


async def test_a_job_that_is_deleted_before_its_rendering_has_begun_keeps_no_worker(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.until(await client.create("done"), "completed")
        jobs = client.videos._jobs
        while not jobs._free:
            await asyncio.sleep(0)
        jobs.add(queued(parse_json(b'{"prompt": "hangs"}', jobs.video, 1), "video_x", "somebody", 1))
        jobs.drop("video_x")  # in the same turn of the loop
        await client.until(await client.create("done"), "completed")
        assert [spec.prompt for spec in client.renderer.specs] == ["done", "done"]


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
