"""Storyboards through the whole gateway in this process; shots end as a replica would have left them."""

import asyncio
import base64
import contextlib
import errno
import io
import json
import logging
import threading
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from postgres import postgres
from prometheus_client.parser import text_string_to_metric_families
from shell import Exchange, Handle, application, family
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.errors import EngineFailed
from cluster.family import Family
from deployments.gateway import storyboard_progress
from deployments.stores.files import VIDEO
from deployments.stores.keys import KEYS_FILE, KeyStore
from deployments.video import credentials, cut, encode

PATH = "/v1/storyboards"
SHOTS = [{"prompt": "Anna waits", "seconds": 1}, {"prompt": "a road", "seconds": 2, "dialogue": "Hello"}]
ANNA = {"name": "Anna", "phrase": "a woman in a red coat"}


class Served:
    def __init__(self, gateway: Any, app: ASGIApp, key: str, folder: Path) -> None:
        self.gateway, self._app, self._key, self.folder = gateway, app, key, folder
        self.jobs, self.files = gateway._videos._store, gateway._videos._files
        self.owner = KeyStore(folder / KEYS_FILE).list()[0].id

    async def ask(self, method: str, path: str = "", body: Any = None, **headers: str) -> Exchange:
        sent = {"authorization": f"Bearer {self._key}"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        parts = () if body is None else (json.dumps(body).encode(),)
        return await Exchange(self._app, PATH + path, *parts, method=method, headers=sent).finished()

    async def made(self, **body: Any) -> Any:
        answer = await self.ask("POST", body={"shots": SHOTS, "characters": [ANNA]} | body)
        assert answer.status == 200, answer.body
        return answer.json()

    async def ended(self, video: Any, *, fault: bool = False) -> bytes:
        """The clip's decoded frames."""
        job = replace(self.jobs.get(self.owner, video["id"]), claimed_by=None)
        if fault:
            assert self.jobs.update(job.failed(EngineFailed("engine: out of memory; try again")))
            return b""
        clip = self.folder / f"{job.id}.mp4"
        drawn = np.random.default_rng(job.seed).integers(0, 256, (job.seconds * 8, 4, 4, 3), np.uint8)
        encode.write([drawn.repeat(16, 1).repeat(16, 2)], 8, clip)
        await self.files.put(f"{job.id}/{VIDEO}", clip)
        assert self.jobs.update(job.completed(2000))
        return b"".join(chunk.tobytes() for chunk in encode.read(clip))

    async def until(self, board: Any, met: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(120):
            while not met(told := (await self.ask("GET", f"/{board['id']}")).json()):
                await asyncio.sleep(0.01)
        return told

    async def once(self, board: Any, status: str) -> Any:
        return await self.until(board, lambda told: told["status"] == status)

    async def shown(self, name: str, **labels: str) -> float:
        """A metric's value."""
        page = (await Exchange(self._app, "/metrics", method="GET").finished()).body.decode()
        samples = [sample for found in text_string_to_metric_families(page) for sample in found.samples]
        (value,) = [sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)]
        return value


@contextlib.asynccontextmanager
async def served(folder: Path, **video: Any) -> AsyncIterator[Served]:
    spec: Family = family(folder, video=True)
    spec = spec.model_copy(update={"video": spec.video and spec.video.model_copy(update=video)})
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    try:
        yield Served(gateway, app, key, folder)
    finally:
        for task in (gateway._rendering, gateway._joining):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storyboard_progress, "TURN_S", 0.02)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as here:
        yield here


async def test_each_shot_is_a_video_job_of_its_own_with_who_is_in_it(here: Served) -> None:
    board = await here.made(seed=7, size="64x64")
    assert board["status"] == "in_progress"
    videos = [shot["video"] for shot in board["shots"]]
    assert [video["prompt"] for video in videos] == ["Anna waits. Anna: a woman in a red coat", "a road"]
    assert [(video["seconds"], video["moray"]["seed"]) for video in videos] == [("1", 7), ("2", 8)]
    assert [(one["shot"], one["kind"]) for one in board["warnings"]] == [(1, "dialogue")]


async def test_the_cut_is_every_frame_of_every_shot_signed_with_them_as_parts(here: Served) -> None:
    board = await here.made()
    frames = [await here.ended(shot["video"]) for shot in board["shots"]]
    told = await here.once(board, "completed")
    assert told["signed"]
    answer = await here.ask("GET", f"/{board['id']}/content")
    (here.folder / "cut.mp4").write_bytes(answer.body)
    assert b"".join(chunk.tobytes() for chunk in encode.read(here.folder / "cut.mp4")) == b"".join(frames)
    verdict = credentials.verify(here.folder / "cut.mp4", None)
    assert verdict.state == "Valid"
    parts = [part.title for part in verdict.manifests[0].ingredients]
    assert parts == [shot["video"]["id"] for shot in board["shots"]]
    part = await here.ask("GET", f"/{board['id']}/content", range="bytes=4-7")
    assert (part.status, part.body) == (206, b"ftyp")


async def test_a_shot_keeps_its_sound_over_its_takes(here: Served) -> None:
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(2 * 8000))
    url = f"data:audio/wav;base64,{base64.b64encode(sound.getvalue()).decode()}"
    board = await here.made(shots=[SHOTS[0] | {"audio_reference": {"audio_url": url}}, SHOTS[1]])
    assert [shot["video"]["moray"]["audio"] for shot in board["shots"]] == ["muxed", None]
    again = (await here.ask("POST", f"/{board['id']}/shots/0", {})).json()["shots"][0]
    assert again["video"]["moray"]["audio"] == "muxed"
    silent = {"audio_reference": {"audio_url": "data:audio/wav;base64,eA=="}}
    refused = (await here.ask("POST", f"/{board['id']}/shots/0", silent)).json()["shots"][0]
    assert (refused["status"], refused["video"]) == ("failed", None)
    assert "audio_reference" in refused["error"]["message"]


async def test_a_shot_that_fails_takes_no_other_and_is_rendered_again_alone(here: Served) -> None:
    board = await here.made()
    kept, lost = (shot["video"] for shot in board["shots"])
    await here.ended(kept)
    await here.ended(lost, fault=True)
    told = await here.once(board, "incomplete")
    assert [shot["status"] for shot in told["shots"]] == ["completed", "failed"]
    refused = await here.ask("GET", f"/{board['id']}/content")
    assert refused.json()["error"]["code"] == "storyboard_not_ready"
    again = (await here.ask("POST", f"/{board['id']}/shots/1", {"prompt": "a path"})).json()
    assert again["shots"][0]["video"]["id"] == kept["id"]
    assert again["shots"][1]["video"]["prompt"] == "a path"
    assert again["shots"][1]["earlier_videos"] == [lost["id"]]
    await here.ended(again["shots"][1]["video"])
    await here.once(board, "completed")


async def test_another_take_of_a_finished_storyboard_makes_another_cut(here: Served) -> None:
    board = await here.made()
    for shot in board["shots"]:
        await here.ended(shot["video"])
    await here.once(board, "completed")
    first = (await here.ask("GET", f"/{board['id']}/content")).headers["etag"]
    again = (await here.ask("POST", f"/{board['id']}/shots/0", {})).json()
    assert again["shots"][0]["video"]["moray"]["seed"] != board["shots"][0]["video"]["moray"]["seed"]
    await here.ended(again["shots"][0]["video"])
    await here.once(board, "completed")
    assert (await here.ask("GET", f"/{board['id']}/content")).headers["etag"] != first
    assert (await here.ask("POST", f"/{board['id']}/shots/2", {})).json()["error"]["code"] == "shot_not_found"


async def test_a_cut_outlives_the_videos_that_it_was_made_of(here: Served) -> None:
    board = await here.made()
    for shot in board["shots"]:
        await here.ended(shot["video"])
    await here.once(board, "completed")
    for shot in board["shots"]:
        assert here.jobs.delete(here.owner, shot["video"]["id"])
    told = await here.once(board, "completed")
    assert [shot["status"] for shot in told["shots"]] == ["deleted", "deleted"]
    assert (await here.ask("GET", f"/{board['id']}/content")).status == 200


async def test_shots_that_cannot_be_joined_are_there_one_by_one(here: Served) -> None:
    board = await here.made()
    for shot in board["shots"]:
        await here.ended(shot["video"])
        await here.files.put_bytes(f"{shot['video']['id']}/{VIDEO}", b"no video")
    told = await here.once(board, "failed")
    assert told["error"]["code"] == "cut_failed"
    assert [shot["status"] for shot in told["shots"]] == ["completed", "completed"]


async def test_a_disk_that_is_full_only_makes_the_cut_late(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Path] = []

    def join(clips: list[Path], out: Path) -> bool:
        tries.append(out)
        if len(tries) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return joined(clips, out)

    joined = cut.join
    monkeypatch.setattr(cut, "join", join)
    monkeypatch.setattr(storyboard_progress, "JOIN_S", 0.02)
    board = await here.made()
    for shot in board["shots"]:
        await here.ended(shot["video"])
    await here.once(board, "completed")
    assert len(tries) == 2
    assert not tries[0].parent.exists()


async def test_a_storyboard_that_cannot_be_seen_to_holds_up_no_other(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    board, other = await here.made(), await here.made()
    join = cut.join

    def faulty(clips: list[Path], out: Path) -> bool:
        if clips[0].stem == board["shots"][0]["video"]["id"]:
            raise ZeroDivisionError
        return join(clips, out)

    monkeypatch.setattr(cut, "join", faulty)
    monkeypatch.setattr(storyboard_progress, "JOIN_S", 0.0)  # it is tried at each turn, before the other
    for shot in (*board["shots"], *other["shots"]):
        await here.ended(shot["video"])
    await here.once(other, "completed")
    assert (await here.ask("GET", f"/{board['id']}")).json()["status"] == "joining"


async def test_a_gateway_that_begins_goes_on_with_what_another_left(tmp_path: Path) -> None:
    async with served(tmp_path) as first:
        board = await first.made()
    async with served(tmp_path) as second:
        second._key, second.owner = first._key, first.owner
        for shot in board["shots"]:
            await second.ended(shot["video"])
        await second.once(board, "completed")


async def test_gateways_that_share_a_database_share_storyboards_and_join_and_count_them_once(tmp_path: Path) -> None:
    with postgres() as server:
        url = server.fresh()
        async with served(tmp_path, database=url) as one, served(tmp_path, database=url) as two:
            two._key = one._key
            board = await one.made()
            for shot in board["shots"]:
                await one.ended(shot["video"])
            told = [await each.once(board, "completed") for each in (one, two)]
            assert told[0]["completed_at"] == told[1]["completed_at"]
            again = (await two.ask("POST", f"/{board['id']}/shots/0", {})).json()
            await one.ended(again["shots"][0]["video"])
            await one.once(board, "completed")
            assert (await two.ask("GET", f"/{board['id']}/content")).status == 200
            for name, count in (("moray_storyboard_shots_total", 3), ("moray_storyboard_cuts_total", 2)):
                assert sum([await each.shown(name, outcome="ok") for each in (one, two)]) == count
            assert not (tmp_path / "storyboards.sqlite").exists()


async def test_a_request_that_is_sent_again_makes_nothing_twice(here: Served) -> None:
    body = {"shots": SHOTS}
    first, again = [(await here.ask("POST", body=body, idempotency_key="k")).json() for _ in range(2)]
    assert again["id"] == first["id"]
    assert [shot["video"]["id"] for shot in again["shots"]] == [shot["video"]["id"] for shot in first["shots"]]
    other = await here.ask("POST", body={"shots": SHOTS[:1]}, idempotency_key="k")
    assert (other.status, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_another_take_that_is_asked_for_again_is_one_take(here: Served) -> None:
    board = await here.made()
    asked = ("POST", f"/{board['id']}/shots/0", {"prompt": "a path"})
    first, again = [(await here.ask(*asked, idempotency_key="k")).json() for _ in range(2)]
    assert again["shots"][0]["video"]["id"] == first["shots"][0]["video"]["id"]
    assert again["shots"][0]["earlier_videos"] == [board["shots"][0]["video"]["id"]]
    later = (await here.ask(*asked, idempotency_key="other")).json()
    assert len(later["shots"][0]["earlier_videos"]) == 2
    assert (await here.ask(*asked, idempotency_key="k")).json()["shots"] == later["shots"]
    for other in ((f"/{board['id']}/shots/1", {"prompt": "a path"}), (asked[1], {"prompt": "a road"})):
        refused = await here.ask("POST", *other, idempotency_key="k")
        assert (refused.status, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_a_storyboard_and_its_cut_expire_as_a_video_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storyboard_progress, "SWEEP_S", 0.0)
    async with served(tmp_path, expires_s=100) as here:
        kept, lost = await here.made(), await here.made(shots=SHOTS[:1])
        for shot in (*kept["shots"], *lost["shots"]):
            await here.ended(shot["video"], fault=shot in lost["shots"])
        told = await here.once(kept, "completed")
        assert told["expires_at"] == told["completed_at"] + 100
        await here.until(lost, lambda told: told["expires_at"] is not None)
        assert list((here.folder / "videos" / kept["id"]).iterdir())
        progress = here.gateway._storyboards._progress
        monkeypatch.setattr(progress, "_now_s", lambda: told["expires_at"] + 10.0)
        async with asyncio.timeout(120):
            while (await here.ask("GET")).json()["data"]:
                await asyncio.sleep(0.01)
        assert not (here.folder / "videos" / kept["id"]).exists()


async def test_another_take_keeps_a_storyboard_from_expiring(tmp_path: Path) -> None:
    async with served(tmp_path, expires_s=100) as here:
        board = await here.made(shots=SHOTS[:1])
        await here.ended(board["shots"][0]["video"])
        await here.once(board, "completed")
        assert (await here.ask("POST", f"/{board['id']}/shots/0", {})).json()["expires_at"] is None


async def test_states_shots_and_cuts_are_counted_once(here: Served) -> None:
    board = await here.made()
    kept, lost = (shot["video"] for shot in board["shots"])
    assert await here.shown("moray_storyboards", state="in_progress") == 1
    await here.ended(kept)
    await here.ended(lost, fault=True)
    await here.once(board, "incomplete")
    again = (await here.ask("POST", f"/{board['id']}/shots/1", {})).json()
    await here.ended(again["shots"][1]["video"])
    await here.once(board, "completed")
    assert await here.shown("moray_storyboards", state="completed") == 1
    shots = [await here.shown("moray_storyboard_shots_total", outcome=each) for each in ("ok", "failed")]
    assert shots == [2, 1]
    cuts = [await here.shown("moray_storyboard_cuts_total", outcome=each) for each in ("ok", "failed", "hindered")]
    assert cuts == [1, 0, 0]


async def test_storyboards_are_listed_and_deleted_and_their_videos_stay(here: Served) -> None:
    one, two = await here.made(), await here.made()
    told = (await here.ask("GET")).json()
    assert [board["id"] for board in told["data"]] == [two["id"], one["id"]]
    gone = (await here.ask("DELETE", f"/{one['id']}")).json()
    assert gone == {"id": one["id"], "object": "storyboard.deleted", "deleted": True}
    assert (await here.ask("GET", f"/{one['id']}")).status == 404
    assert here.jobs.get(here.owner, one["shots"][0]["video"]["id"]) is not None


async def test_the_file_of_a_cut_goes_with_its_storyboard(here: Served) -> None:
    board = await here.made(shots=SHOTS[:1])
    await here.ended(board["shots"][0]["video"])
    await here.once(board, "completed")
    files = here.folder / "videos"
    assert (files / board["id"]).exists()
    await here.ask("DELETE", f"/{board['id']}")
    assert [each.name for each in files.iterdir()] == [board["shots"][0]["video"]["id"]]


async def test_a_cut_whose_storyboard_is_deleted_meanwhile_leaves_no_file(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining, deleted = threading.Event(), threading.Event()

    def join(clips: list[Path], out: Path) -> bool:
        joining.set()
        assert deleted.wait(30)
        return joined(clips, out)

    joined = cut.join
    monkeypatch.setattr(cut, "join", join)
    board = await here.made(shots=SHOTS[:1])
    await here.ended(board["shots"][0]["video"])
    await asyncio.to_thread(joining.wait, 30)
    assert (await here.ask("DELETE", f"/{board['id']}")).status == 200
    deleted.set()
    following = await here.made(shots=SHOTS[:1])
    await here.ended(following["shots"][0]["video"])
    await here.once(following, "completed")  # the loop has come past the first
    folder = here.folder / "videos" / board["id"]
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "shots"),
        ({"shots": SHOTS, "script": "a film"}, "shots"),
        ({"script": "a film"}, "script"),
        ({"shots": []}, "shots"),
        ({"shots": SHOTS, "size": "63x63"}, "shots[0].size"),
        ({"shots": SHOTS, "style": "none such"}, "shots[0].style"),
        ({"shots": [*SHOTS, {"prompt": "x", "seconds": 1, "characters": ["Zoe"]}]}, "shots[2].characters"),
        ({"shots": SHOTS, "characters": [ANNA, ANNA]}, "characters"),
        ({"shots": SHOTS, "characters": [ANNA | {"reference": "char_x"}]}, "characters"),
        ({"shots": [{"prompt": "secret", "seconds": -1}]}, "shots[0].seconds"),
    ],
)
async def test_what_cannot_be_made_is_refused_by_the_name_of_its_field_and_nothing_is_begun(
    here: Served, body: Any, param: str
) -> None:
    answer = await here.ask("POST", body=body)
    assert answer.status in (400, 404)
    assert answer.json()["error"]["param"] == param
    assert here.jobs.unfinished() == ()


async def test_a_form_with_a_file_is_refused_as_any_wrong_body_is(here: Served) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="shots"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    headers = {"authorization": f"Bearer {here._key}", "content-type": "multipart/form-data; boundary=b"}
    answer = await Exchange(here._app, PATH, part, headers=headers).finished()
    assert (answer.status, answer.json()["error"]["param"]) == (400, "shots")


async def test_more_shots_than_may_wait_are_refused_before_any_is_begun(here: Served) -> None:
    answers = [await here.ask("POST", body={"shots": [SHOTS[0]] * 20}) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert len(here.jobs.unfinished()) == 20


async def test_no_prompt_is_in_the_log_or_in_a_refusal(here: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await here.made(shots=[{"prompt": "a-whisper", "seconds": 1}], title="a-whisper")
    refused = await here.ask(
        "POST", body={"shots": [{"prompt": {"a-whisper": 1}, "seconds": 1}], "title": ["a-whisper"]}
    )
    assert b"a-whisper" not in refused.body
    assert "a-whisper" not in caplog.text


class Writer:
    """A language tier's endpoint, without the tier: it answers as one would that is held to the schema."""

    def __init__(self, content: str, finish_reason: str = "stop") -> None:
        self._answer = {"choices": [{"message": {"content": content}, "finish_reason": finish_reason}]}
        self.asked: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked = json.loads((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(self._answer).encode()})


def writing(here: Served, monkeypatch: pytest.MonkeyPatch, writer: Writer) -> None:
    """As if tier mini could hold an answer to a schema."""
    boards = here.gateway._storyboards
    mini = boards._family.tiers["mini"].model_copy(update={"engine": "vllm"})
    monkeypatch.setattr(boards, "_family", boards._family.model_copy(update={"tiers": {"mini": mini}}))
    monkeypatch.setattr(boards, "_chat", writer)


async def test_a_script_is_turned_into_shots_by_a_tier_that_holds_to_the_schema(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    shots = [{"prompt": "Anna runs", "seconds": 2, "camera": "static", "dialogue": "", "characters": ["Anna"]}]
    writer = Writer(json.dumps({"shots": shots}))
    writing(here, monkeypatch, writer)
    board = (await here.ask("POST", body={"script": "Anna is late.", "characters": [ANNA]})).json()
    assert board["shots"][0]["video"]["prompt"] == "Anna runs. camera: static. Anna: a woman in a red coat"
    assert writer.asked["model"] == "mini"
    fields = writer.asked["response_format"]["json_schema"]["schema"]["properties"]["shots"]["items"]["properties"]
    assert fields["characters"]["items"]["enum"] == ["Anna"]
    assert fields["seconds"]["enum"] == list(here.gateway._storyboards._video.seconds)
    assert writer.asked["messages"][1] == {"role": "user", "content": "Anna is late."}


@pytest.mark.parametrize(
    ("content", "finish_reason", "why"), [('{"shots": [', "length", "cut at its length"), ("[]", "stop", "no list")]
)
async def test_an_answer_that_is_no_list_of_shots_makes_nothing(
    here: Served, monkeypatch: pytest.MonkeyPatch, content: str, finish_reason: str, why: str
) -> None:
    writing(here, monkeypatch, Writer(content, finish_reason))
    answer = await here.ask("POST", body={"script": "a film"})
    assert answer.status == 500
    assert why in answer.json()["error"]["message"]
    assert here.jobs.unfinished() == ()
