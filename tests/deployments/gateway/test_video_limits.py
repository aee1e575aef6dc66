"""Videos under their plans' limits: reserved before anything is kept, settled by whichever gateway sees their end."""

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI, RateLimitError
from sdk import Replies, Served, served
from shell import VIDEO, Handle, application

from cluster.clip import Region, Span
from cluster.cost import video_step_s
from cluster.errors import EngineFailed, NotFound, Unavailable
from cluster.video import Acceleration, Takes, Video
from deployments.control.words import Worker
from deployments.gateway import storyboard_progress
from deployments.gateway.quota import tenant_of
from deployments.gateway.video_booking import _gpu_s
from deployments.stores.files import VIDEO as FILE
from deployments.stores.limits import LIMITS_FILE
from deployments.stores.usage import USAGE_FILE
from deployments.video.jobs import VideoRequest
from deployments.video.messages import Asked, Begun, News, Rendered, StepDone
from deployments.video.spec import Edit

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
PLANS: dict[str, Any] = {
    "small": {
        "tiers": ["mini"],
        "requests_per_minute": 20,
        "gpu_seconds_per_minute": 100,
        "concurrent": 1,
        "video_seconds_per_day": 10,
        "budget_usd_per_month": 5,
    },
    "narrow": {"tiers": ["mini"], "requests_per_minute": 9, "gpu_seconds_per_minute": 0.5},
    "open": {"tiers": ["mini"]},
}
GPU_S = 4 * 0.1  # steps of the test's video model


class Actor:
    """A replica that does as the prompt says: `done`, `fails` after two steps, `hangs` after two steps."""

    def __init__(self, put: Callable[[str, bytes], Any]) -> None:
        self.render = self.halt = self.withdraw = self
        self.begun = asyncio.Event()
        self._put = put

    def options(self, num_returns: str) -> "Actor":
        assert num_returns == "streaming"
        return self

    def remote(self, asked: Any = None) -> Any:
        return self._news(asked) if isinstance(asked, Asked) else asyncio.sleep(0)

    async def _news(self, asked: Asked) -> AsyncIterator[asyncio.Future[News]]:
        for done in (1, 2):
            yield _ready(Begun() if done == 1 else StepDone(done=2, total=4, seconds=0.1))
        self.begun.set()
        if asked.spec.prompt == "hangs":
            await asyncio.Event().wait()
        if asked.spec.prompt == "fails":
            yield _ready(Rendered(error=EngineFailed("engine: it failed; none; try again")))
            return
        with contextlib.suppress(NotFound):
            await self._put(f"{asked.spec.job_id}/{FILE}", b"pictures")
        yield _ready(Rendered())


def _ready(news: News) -> asyncio.Future[News]:
    told = asyncio.get_running_loop().create_future()
    told.set_result(news)
    return told


@contextlib.asynccontextmanager
async def videos(folder: Path, **video: Any) -> AsyncIterator[Served]:
    """No time passes for limits; nothing is rendered before `render`."""
    async with served(folder, Replies("Hello"), video=VIDEO | video, plans=PLANS) as here:
        here.gateway._chat._bookings._quotas._limits._clock = lambda: 1e9
        yield here
        await dead(here.gateway)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Served]:
    async with videos(tmp_path) as here:
        yield here


async def dead(gateway: Any) -> None:
    """As a process is that was killed."""
    tasks = [gateway._rendering, gateway._joining, *gateway._videos._jobs._mine.values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def render(gateway: Any) -> Actor:
    actor = Actor(gateway._videos._files.put_bytes)
    gateway._videos.take((Worker(worker_id="w", node_id="here", actor=actor),))
    return actor


async def create(client: AsyncOpenAI, prompt: str = "done", **words: Any) -> Any:
    return await client.videos.create(model="sora-2", prompt=prompt, extra_body={"seconds": "2"} | words)


async def ended(client: AsyncOpenAI, video: Any) -> str:
    async with asyncio.timeout(60):
        while (now := await client.videos.retrieve(video.id)).status not in ("completed", "failed"):
            await asyncio.sleep(0.01)
    return str(now.status)


async def spent(here: Served, plan: str = "small") -> dict[str, Any]:
    """Once all that was begun is settled."""
    bookings = here.gateway._videos.bookings
    async with asyncio.timeout(60):
        while bookings._tasks or bookings._quotas._tasks - {bookings._quotas._renewing}:
            await asyncio.sleep(0.01)
    record = next(key for key in here.gateway._keys.list() if key.plan == plan)
    found = await bookings._quotas._limits.state(tenant_of(record), here.gateway._family.plans[plan].limits)
    return {one.limit.currency: pytest.approx(one.limit.amount - one.remaining) for one in found}


def used(seconds: float, gpu_s: float, requests: float = 1) -> dict[str, float]:
    return {"requests": requests, "gpu_s": gpu_s, "concurrent": 0, "video_s": seconds, "usd": seconds * 0.1}


def ledger(here: Served) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(here.folder / USAGE_FILE)) as file:
        asked = "SELECT code, video_s, gpu_s, price_nusd FROM usage_events ORDER BY seq"
        return [(code, s, round(gpu_s, 6), nusd) for code, s, gpu_s, nusd in file.execute(asked)]


async def refused(client: AsyncOpenAI, **words: Any) -> RateLimitError:
    with pytest.raises(RateLimitError) as caught:
        await create(client, **words)
    return caught.value


async def test_a_video_reserves_what_it_will_take_and_keeps_it_when_it_is_made(here: Served) -> None:
    client = here.other("a", "small")
    told = await client.videos.with_raw_response.create(model="sora-2", prompt="done", extra_body={"seconds": "2"})
    assert told.headers["x-ratelimit-limit-requests"] == "20"
    assert told.headers["x-ratelimit-remaining-requests"] == "19"
    assert await spent(here) == used(2, GPU_S)
    render(here.gateway)
    assert await ended(client, told.parse()) == "completed"
    assert await spent(here) == used(2, GPU_S)
    assert ledger(here) == [("ok", 2, GPU_S, 200_000_000)]


async def test_a_video_beyond_the_day_is_refused_by_name_and_nothing_of_it_is_kept(here: Served) -> None:
    client = here.other("a", "small")
    for _ in range(5):
        await create(client)
    error = await refused(client)
    assert (error.code, "video_seconds_per_day" in error.message) == ("insufficient_quota", True)
    assert int(error.response.headers["retry-after"]) > 60
    assert error.response.headers["x-ratelimit-remaining-requests"] == "15"
    kept = [path for path in (here.folder / "videos").rglob("*") if path.is_file()]
    assert (len((await client.videos.list()).data), kept) == (5, [])
    assert await spent(here) == used(10, 5 * GPU_S, requests=5)
    assert (await create(here.other("b", "open"))).status == "queued", "another plan's is not held to it"


async def test_a_video_that_fails_gives_back_seconds_and_money_but_not_what_was_computed(here: Served) -> None:
    client = here.other("a", "small")
    video = await create(client, "fails")
    render(here.gateway)
    assert await ended(client, video) == "failed"
    assert await spent(here) == used(0, GPU_S / 2)
    assert ledger(here) == [("engine_failed", 0, GPU_S / 2, 0)]


async def test_a_video_that_is_deleted_before_its_end_gives_back_what_was_not_made(here: Served) -> None:
    client = here.other("a", "small")
    await client.videos.delete((await create(client)).id)
    assert await spent(here) == used(0, 0)
    video, actor = await create(client, "hangs"), render(here.gateway)
    await actor.begun.wait()
    async with asyncio.timeout(60):
        while (await client.videos.retrieve(video.id)).progress < 50:
            await asyncio.sleep(0.01)
    await client.videos.delete(video.id)
    assert await spent(here) == used(0, GPU_S / 2, requests=2)
    assert [event[0] for event in ledger(here)] == ["deleted", "deleted"]


async def test_what_one_gateway_reserved_another_settles_and_told_twice_it_is_once(here: Served) -> None:
    client = here.other("a", "small")
    videos = [await create(client, "fails"), await create(client)]
    await dead(here.gateway)
    handles = {name: Handle(Replies("Hello")) for name in here.gateway._family.tiers}
    other: Any = (await application(here.gateway._family, handles, key="second"))[0]
    other._chat._bookings._quotas._limits._clock = lambda: 1e9
    render(other)
    assert [await ended(client, video) for video in videos] == ["failed", "completed"]
    assert await spent(here) == used(2, 1.5 * GPU_S, requests=2)
    owner = next(key.id for key in here.gateway._keys.list() if key.plan == "small")
    for gateway in (here.gateway, other):
        for video in videos:
            await gateway._videos.bookings.ended(gateway._videos._store.get(owner, video.id))
    assert await spent(here) == used(2, 1.5 * GPU_S, requests=2)
    assert len(ledger(here)) == 2
    await dead(other)


async def test_a_request_that_is_sent_again_counts_once_though_nothing_is_left(here: Served) -> None:
    client = here.other("a", "small").with_options(default_headers={"idempotency-key": "one"})
    first = await create(client, seconds="2")
    for _ in range(4):
        await create(here.other("b", "small"))
    assert (await create(client, seconds="2")).id == first.id
    again = await asyncio.gather(*(create(client, seconds="2") for _ in range(3)))
    assert {video.id for video in again} == {first.id}
    assert await spent(here) == used(10, 5 * GPU_S, requests=5)


async def test_requests_with_one_key_at_once_count_once(here: Served) -> None:
    client = here.other("a", "small").with_options(default_headers={"idempotency-key": "one"})
    made = await asyncio.gather(*(create(client) for _ in range(4)))
    assert len({video.id for video in made}) == 1
    assert await spent(here) == used(2, GPU_S)


async def test_a_row_that_cannot_be_kept_gives_back_what_was_reserved(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = here.gateway._videos._store
    for kept in (False, True):

        def create_(job: Any, kept: bool = kept, real: Any = store.create) -> Any:
            if kept:
                real(job)
            raise Unavailable("videos: the answer was lost; none; try again")

        with monkeypatch.context() as patched:
            patched.setattr(store, "create", create_)
            with pytest.raises(APIStatusError):
                await create(here.other(f"a{kept}", "small"))
        assert (await spent(here))["video_s"] == (2 if kept else 0), "what was written after all stays reserved"


async def test_a_video_that_needs_more_than_a_minutes_gpu_seconds_is_made_and_owes_the_rest(tmp_path: Path) -> None:
    async with videos(tmp_path, steps=10) as here:
        client = here.other("a", "narrow")
        video = await create(client)
        assert (await spent(here, "narrow"))["gpu_s"] == 0.5, "the whole minute"
        assert "gpu_seconds_per_minute" in (await refused(client)).message
        render(here.gateway)
        await ended(client, video)
        record = next(key for key in here.gateway._keys.list() if key.plan == "narrow")
        limits = here.gateway._chat._bookings._quotas._limits
        limits._clock = lambda: 1e9 + 60
        (_, gpu_s) = await limits.state(tenant_of(record), here.gateway._family.plans["narrow"].limits)
        assert (gpu_s.remaining, gpu_s.reset_s) == (0, pytest.approx(60)), "1.0 used: another minute's worth is owed"


async def test_without_the_store_of_limits_those_with_limits_wait_and_nobody_else(here: Served) -> None:
    limited, unlimited = here.other("a", "small"), here.other("b", "open")
    video = await create(limited, "fails")
    with contextlib.closing(sqlite3.connect(here.folder / LIMITS_FILE, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(APIStatusError) as caught:
            await create(limited)
        assert (caught.value.status_code, caught.value.code) == (503, "unavailable")
        render(here.gateway)
        assert await ended(unlimited, await create(unlimited)) == "completed", "its one replica is free"
        assert (await limited.videos.retrieve(video.id)).status == "in_progress"
        other.execute("ROLLBACK")
    assert await ended(limited, video) == "failed"
    assert (await spent(here))["video_s"] == 0
    assert len((await limited.videos.list()).data) == 1


async def test_clients_that_leave_at_any_time_hold_what_their_jobs_hold(here: Served) -> None:
    client, chance = here.other("a", "small"), random.Random(3)
    for _ in range(15):
        asking = asyncio.create_task(create(client, seconds="1"))
        await asyncio.sleep(chance.uniform(0, 0.02))
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, RateLimitError):
            await asking
    await asyncio.sleep(0)
    spending = (await spent(here))["video_s"]
    assert spending == len((await client.videos.list()).data)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storyboard_progress, "TURN_S", 0.02)


async def board(client: AsyncOpenAI, path: str = "", *, method: str = "post", **body: Any) -> dict[str, Any]:
    sent = {"body": body} if body else {}
    told: dict[str, Any] = await getattr(client, method)(f"/storyboards{path}", cast_to=dict, **sent)
    return told


SHOTS = [{"prompt": "done", "seconds": 2}, {"prompt": "done", "seconds": 1}]


@pytest.mark.usefixtures("quick")
async def test_each_shot_of_a_storyboard_is_reserved_once(here: Served) -> None:
    client = here.other("a", "small")
    made = await board(client, shots=SHOTS)
    assert await spent(here) == used(3, 2 * GPU_S, requests=2)
    async with asyncio.timeout(60):
        while len((await client.videos.list()).data) < 2:
            await asyncio.sleep(0.01)
    assert await spent(here) == used(3, 2 * GPU_S, requests=2)
    await board(client, f"/{made['id']}/shots/0", prompt="done")
    assert await spent(here) == used(5, 3 * GPU_S, requests=3)


async def test_a_storyboard_of_which_a_shot_is_refused_is_refused_whole(here: Served) -> None:
    client = here.other("a", "small")
    for _ in range(4):
        await create(client)
    before = await spent(here)
    with pytest.raises(RateLimitError) as caught:
        await board(client, shots=SHOTS)
    assert "video_seconds_per_day: asked 1, 0 of 10 are left" in caught.value.message
    assert (await board(client, method="get"))["data"] == []
    assert await spent(here) == before
    with pytest.raises(RateLimitError, match="ask for less"):
        await board(client, shots=[SHOTS[0]] * 6)


@pytest.mark.usefixtures("quick")
async def test_a_shot_that_is_not_accepted_gives_back_what_was_reserved(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = here.gateway._videos.accept

    async def only_first(asked: Any, *given: Any, **words: Any) -> Any:
        if asked.seconds == 1:
            raise NotFound("image_references: it is unknown; send the file instead")
        return await accept(asked, *given, **words)

    monkeypatch.setattr(here.gateway._videos, "accept", only_first)
    await board(here.other("a", "small"), shots=SHOTS)
    assert (await spent(here))["video_s"] == 2


async def test_a_storyboard_that_is_deleted_gives_back_what_nobody_renders(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("videos: the database is away; none; try again")

    client = here.other("a", "small")
    monkeypatch.setattr(here.gateway._videos, "accept", away)
    made = await board(client, shots=SHOTS)
    assert (await spent(here))["video_s"] == 3
    await board(client, f"/{made['id']}", method="delete")
    assert (await spent(here))["video_s"] == 0


MODEL = Video.model_validate(
    VIDEO | {"cost": {"base_s": 0.1, "linear_s_per_mtok": 1000, "quadratic_s_per_mtok2": 0, "source": "a test"}}
)
ASKED = VideoRequest(
    model="sora-2", prompt="x", negative_prompt="", seconds=2, size="96x64", fps=8, steps=4, guidance=5, seed=1
)


def test_an_edit_reserves_what_is_computed() -> None:
    whole = _gpu_s(MODEL, ASKED, 4)
    assert whole == pytest.approx(4 * video_step_s(MODEL, "96x64", 2))
    quarter = Edit(span=Span(start_s=0, end_s=2), region=Region(x=0, y=0, width=48, height=32), mode="fast")
    fast = MODEL.model_copy(update={"takes": Takes(fast=True)})
    edit = replace(ASKED, task="edit", edit=quarter)
    assert _gpu_s(fast, edit, 4) == pytest.approx(4 * video_step_s(MODEL, "96x64", 2, 0.25 + 0.75 / 4))
    for exact in (replace(edit, edit=replace(quarter, mode="exact")), edit):
        served_by = MODEL if exact is edit else fast
        assert _gpu_s(served_by, exact, 4) == pytest.approx(whole)
    cached = fast.model_copy(update={"acceleration": Acceleration(first_block_cache=0.1)})
    assert _gpu_s(cached, edit, 4) == pytest.approx(whole), "such a replica computes all of it"


def test_a_remix_reserves_the_steps_that_it_takes() -> None:
    half = replace(ASKED, task="remix", strength=0.5)
    assert _gpu_s(MODEL, half, 4) == pytest.approx(_gpu_s(MODEL, ASKED, 2))
    assert _gpu_s(MODEL, replace(half, strength=0.0), 4) == pytest.approx(_gpu_s(MODEL, ASKED, 1))
