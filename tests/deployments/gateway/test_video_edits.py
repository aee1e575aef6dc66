"""The `openai` client against the whole gateway in this process, without a replica: what becomes of its requests."""

import asyncio
import base64
import contextlib
import io
import json
import math
import resource
import struct
import wave
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import numpy as np
import pytest
from openai import APIStatusError, AsyncOpenAI, omit
from PIL import Image
from shell import VIDEO as SHAPE
from shell import Handle, application, family

from cluster.clip import Region, Span
from cluster.family import Family, Video
from cluster.video import Takes, taken_by
from deployments.gateway.video_inputs import VideoInputs, taking
from deployments.gateway.video_requests import Caller
from deployments.stores.files import KEPT, Files
from deployments.stores.keys import KEYS_FILE, KeyRecord, KeyStore
from deployments.video import apart
from deployments.video.encode import write
from deployments.video.jobs import Jobs, VideoJob
from deployments.video.spec import Edit

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
EVERYTHING = Takes(
    inputs=("input_reference", "last_frame_reference", "image_references", "video_reference", "mask"), fast=True
)
STYLES = {"noir": "in high contrast"}


class Served:
    """A gateway, its client, and what lies in its stores."""

    def __init__(self, gateway: Any, app: Any, key: str, folder: Path) -> None:
        self.folder = folder
        self.jobs: Jobs = gateway._videos._store
        self.files: Files = gateway._videos._files
        self.owner = KeyStore(folder / KEYS_FILE).list()[0].id
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        self.client = AsyncOpenAI(api_key=key, base_url="http://moray/v1", http_client=http, max_retries=0)

    def job(self, video: Any) -> VideoJob:
        found = self.jobs.get(self.owner, video.id)
        assert found is not None
        return found

    async def completed(self, **asked: Any) -> Any:
        """A clip of two seconds as a replica would have left it."""
        video = await self.client.videos.create(prompt="a red ball", seconds="2", **asked)  # type: ignore[arg-type]
        assert self.jobs.update(replace(self.job(video), claimed_by=None).completed(2000))
        await self.files.put_bytes(f"{video.id}/{KEPT}", b"latents")
        return video

    async def edit(self, job_id: str, prompt: str, **more: Any) -> Any:
        """Its client takes files alone as `video`, so an id goes beside it."""
        body = {"video": {"id": job_id}} | more
        return await self.client.videos.edit(prompt=prompt, video=omit, extra_body=body)  # type: ignore[arg-type]

    async def picture(self, video: Any, name: str) -> Image.Image:
        data = await self.files.read(f"{video.id}/{name}")
        assert data is not None
        return Image.open(io.BytesIO(data))


@contextlib.asynccontextmanager
async def served(folder: Path, **video: Any) -> AsyncIterator[Served]:
    spec = family(folder, video=True, gateway={"tokens": "streamed"})
    given = {"takes": EVERYTHING, "styles": STYLES, "output": {"fps": [24]}} | video
    spec = spec.model_copy(update={"video": Video.model_validate(SHAPE | given)})
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    try:
        yield Served(gateway, app, key, folder)
    finally:
        gateway._rendering.cancel()
        with contextlib.suppress(BaseException):
            await gateway._rendering


def png(colour: object = (255, 0, 0), size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")  # type: ignore[arg-type]
    return out.getvalue()


def wav(seconds: float = 0.5) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        samples = (round(9000 * math.sin(at / 3)) for at in range(int(seconds * 8000)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return out.getvalue()


def mp4(folder: Path, frames: int = 12) -> bytes:
    path = folder / "sent.mp4"
    write([np.full((frames, 64, 64, 3), 200, np.uint8)], 8, path)
    return path.read_bytes()


def refusal(caught: pytest.ExceptionInfo[APIStatusError]) -> tuple[int, str | None, str | None]:
    body: Any = caught.value.body
    return caught.value.status_code, body["code"], body["param"]


async def test_an_image_that_is_uploaded_is_the_jobs_before_its_client_has_the_id(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        video = await here.client.videos.create(prompt="a ball", input_reference=("a.png", png(), "image/png"))
        assert here.job(video).inputs.first == "first.png"
        picture = await here.picture(video, "first.png")
        assert (picture.size, picture.getpixel((3, 3))) == ((64, 64), (255, 0, 0))


async def test_references_as_urls_and_files_of_every_kind_are_taken_together(tmp_path: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    async with served(tmp_path) as here:
        video = await here.client.videos.create(
            prompt="a ball",
            extra_body={
                "input_reference": {"image_url": url},
                "image_references": [{"image_url": url}, {"image_url": url}],
                "last_frame_reference": url,
                "fps": 24, "width": 128, "height": 128, "style": "noir",
            },
        )  # fmt: skip
        job = here.job(video)
        assert (job.inputs.first, job.inputs.last) == ("first.png", "last.png")
        assert job.inputs.references == ("reference-0.png", "reference-1.png")
        assert (video.size, job.size, job.delivered_fps, job.style_phrase) == (
            "128x128",
            "64x64",
            24,
            "in high contrast",
        )


async def post(here: Served, path: str, files: dict[str, bytes], **fields: str) -> Any:
    headers = {"authorization": f"Bearer {here.client.api_key}"}
    sent = {name: (name, data) for name, data in files.items()}
    body: dict[str, Any] = {"files": sent, "data": fields} if files else {"json": fields}
    return (await here.client._client.post(f"http://moray/v1{path}", headers=headers, **body)).json()


async def test_a_video_and_its_sound_are_read_and_the_job_is_as_long_as_the_video(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        sent = {"video_reference": mp4(tmp_path), "audio_reference": wav()}
        told = await post(here, "/videos", sent, prompt="a ball", seconds="2")
        assert (told["moray"]["task"], told["moray"]["frames"], told["moray"]["audio"]) == ("remix", 12, "muxed")
        for name in ("source.mkv", "audio.wav"):
            assert (await here.files.size(f"{told['id']}/{name}") or 0) > 100


async def test_a_bad_reference_is_refused_by_name_and_leaves_no_job_and_no_file(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.create(prompt="a ball", input_reference=("a.png", b"no image", "image/png"))
        assert refusal(caught) == (400, "invalid_value", "input_reference")
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.create(
                prompt="a ball", extra_body={"input_reference": {"image_url": "http://127.0.0.1/a.png"}}
            )
        assert refusal(caught) == (400, "invalid_value", "input_reference")
        assert "is not public" in caught.value.message
        assert (await here.client.videos.list()).data == []
        assert [each for each in (tmp_path / "videos").rglob("*") if each.is_file()] == []


async def test_a_form_larger_than_inputs_may_be_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path, max_input_bytes=1000) as here:
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.create(prompt="x", input_reference=("a.png", bytes(3_000_000), "image/png"))
        assert refusal(caught) == (413, "body_too_large", None)


async def test_a_data_url_may_be_as_large_as_a_file_where_videos_are_made_and_nowhere_else(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    assert len(url) > family(tmp_path).gateway.max_body_bytes
    async with served(tmp_path, max_input_bytes=3_000_000) as here:
        video = await here.client.videos.create(prompt="x", extra_body={"input_reference": {"image_url": url}})
        assert here.job(video).inputs.first == "first.png"
        clip = await here.completed()
        edited = await here.edit(clip.id, "x", image_references=[url])
        assert here.job(edited).inputs.references == ("reference-0.png",)
        assert "id" in await post(here, "/videos/characters", {}, name="Ada", video=url)
        shots = [{"prompt": "x", "audio_reference": {"audio_url": url}}]
        refused = (await post(here, "/storyboards", {}, shots=shots))["error"]  # type: ignore[arg-type]
        assert refused["code"] == "body_too_large"
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.create(prompt="x", extra_body={"input_reference": {"image_url": url * 3}})
        assert refusal(caught) == (413, "body_too_large", None)


async def test_a_remix_is_a_child_of_its_clip(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        clip = await here.completed()
        remix = await here.client.videos.remix(clip.id, prompt="a blue ball", extra_body={"strength": 0.3})
        assert (remix.remixed_from_video_id, remix.seconds, remix.prompt) == (clip.id, "2", "a blue ball")
        job = here.job(remix)
        assert (job.task, job.parent_id, job.strength) == ("remix", clip.id, 0.3)


async def test_an_edit_of_an_edit_shows_the_tree_and_every_version_can_be_fetched(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        clip = await here.completed()
        time, region = {"start_seconds": 0.5, "end_seconds": 1}, {"x": 0, "y": 8, "width": 16, "height": 8}
        first = await here.edit(clip.id, prompt="a blue ball", time_range=time, region=region)
        job = here.job(first)
        assert job.edit == Edit(span=Span(start_s=0.5, end_s=1.0), region=Region(x=0, y=8, width=16, height=8))
        here.jobs.update(replace(job, claimed_by=None).completed(2000))
        await here.files.put_bytes(f"{first.id}/{KEPT}", b"latents")
        second = await here.edit(first.id, prompt="a green ball", edit_mode="fast")
        seen = {each.id: (each.model_extra or {})["moray"] for each in (await here.client.videos.list()).data}
        tree = {job_id: (told["parent"], told["children"]) for job_id, told in seen.items()}
        assert tree == {
            clip.id: (None, [first.id]), first.id: (clip.id, [second.id]), second.id: (first.id, []),
        }  # fmt: skip
        assert [(await here.client.videos.retrieve(each.id)).prompt for each in (clip, first, second)] == [
            "a red ball", "a blue ball", "a green ball",
        ]  # fmt: skip


async def test_a_mask_is_as_large_as_what_is_delivered_and_marks_all_that_it_touches(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        clip = await here.completed(size="128x128")
        painted = Image.new("L", (128, 128), 0)
        painted.putpixel((9, 4), 255)
        out = io.BytesIO()
        painted.save(out, "PNG")
        told = await post(here, "/videos/edits", {"mask": out.getvalue()}, prompt="blue", **{"video[id]": clip.id})
        found = Image.open(io.BytesIO(await here.files.read(f"{told['id']}/mask.png") or b""))
        assert (found.size, np.argwhere(np.asarray(found) == 255).tolist()) == ((64, 64), [[2, 4]])
        assert told["moray"]["edit"]["mask"] is True
        small = await post(here, "/videos/edits", {"mask": png(255, mode="L")}, prompt="x", **{"video[id]": clip.id})
        assert small["error"]["param"] == "mask"
        assert "the clip's 128x128 is allowed" in small["error"]["message"]


async def test_a_video_that_is_uploaded_can_be_edited_and_extended(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        sent: Any = ("a.mp4", mp4(tmp_path, 8), "video/mp4")
        edit = await here.client.videos.edit(prompt="blue", video=sent)
        longer = await here.client.videos.extend(prompt="on", video=sent, seconds="1")  # type: ignore[arg-type]
        assert (here.job(edit).inputs.source, here.job(edit).frames, edit.seconds) == ("source.mkv", 8, "1")
        assert (here.job(longer).task, here.job(longer).frames, longer.seconds) == ("extend", 16, "2")
        late: Any = {"time_range": {"start_seconds": 1.5}}
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.edit(prompt="blue", video=sent, extra_body=late)
        assert refusal(caught) == (400, "invalid_value", "time_range")


async def test_the_sound_of_a_clip_stays_with_its_versions(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        clip = await post(here, "/videos", {"audio_reference": wav()}, prompt="a ball")
        job = here.jobs.get(here.owner, clip["id"])
        assert job is not None
        here.jobs.update(replace(job, claimed_by=None).completed(2000))
        await here.files.put_bytes(f"{job.id}/{KEPT}", b"latents")
        remix = await here.client.videos.remix(job.id, prompt="a blue ball")
        kept = [await here.files.read(f"{each}/audio.wav") for each in (job.id, remix.id)]
        assert kept[0] == kept[1] != None  # noqa: E711 - neither is missing


async def test_only_an_own_finished_clip_that_is_kept_can_be_begun_from(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        waiting, gone = await here.client.videos.create(prompt="x"), await here.completed()
        await here.files.delete(gone.id)
        expected = {
            waiting.id: (400, "video_not_ready", "video"),
            gone.id: (400, "video_not_kept", "video"),
            "video_of_nobody": (404, "video_not_found", "video"),
        }
        for job_id, told in expected.items():
            with pytest.raises(APIStatusError) as caught:
                await here.edit(job_id, prompt="blue")
            assert refusal(caught) == told
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.remix("video_of_nobody", prompt="blue")
        assert refusal(caught) == (404, "video_not_found", "video")


async def test_a_character_appears_by_its_id(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        ada = await here.client.videos.create_character(name="Ada", video=("a.mp4", mp4(tmp_path), "video/mp4"))
        assert ada.id is not None
        assert (await here.client.videos.get_character(ada.id)).name == "Ada"
        video = await here.client.videos.create(prompt="Ada waves", extra_body={"characters": [{"id": ada.id}]})
        grey = (await here.picture(video, here.job(video).inputs.references[0])).getpixel((30, 30))
        assert isinstance(grey, tuple)
        assert max(abs(part - 200) for part in grey) < 10
        by_id = {"input_reference": {"file_id": ada.id}}
        begun = await here.client.videos.create(prompt="Ada waves", extra_body=by_id)
        assert here.job(begun).inputs.first == "first.png"
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.create(prompt="x", extra_body={"input_reference": {"file_id": "file-1"}})
        assert refusal(caught) == (404, "file_not_found", "input_reference")
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.get_character("char_of_nobody")
        assert refusal(caught) == (404, "character_not_found", None)


async def test_characters_are_listed_and_deleted_and_other_keys_see_none(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        made = await post(here, "/videos/characters", {"video": png()}, name="Ada")
        other, _ = KeyStore(tmp_path / KEYS_FILE).create("other", 0.0)
        path, http = "http://moray/v1/videos/characters", here.client._client
        mine, theirs = ({"authorization": f"Bearer {key}"} for key in (here.client.api_key, other))
        assert (await http.get(path, headers=mine)).json()["data"] == [made]
        assert (await http.get(path, headers=theirs)).json()["data"] == []
        assert (await http.delete(f"{path}/{made['id']}", headers=theirs)).status_code == 404
        assert (await http.delete(f"{path}/{made['id']}", headers=mine)).json()["deleted"] is True
        assert (await http.get(path, headers=mine)).json()["data"] == []
        assert await here.files.size(f"characters/{made['id']}") is None


async def test_a_key_has_so_many_characters_and_no_more_however_many_are_sent_at_once(tmp_path: Path) -> None:
    async with served(tmp_path, max_characters=2) as here:

        async def send() -> Any:
            return await post(here, "/videos/characters", {"video": png()}, name="Ada")

        told = await asyncio.gather(*(send() for _ in range(4)))
        made = [each["id"] for each in told if "id" in each]
        refused = [each["error"] for each in [*told, await send()] if "error" in each]
        assert (len(made), {each["code"] for each in refused}) == (2, {"too_many_characters"})
        assert "at most 2 are allowed; delete one" in refused[0]["message"]
        assert sorted(each.name for each in (tmp_path / "videos" / "characters").iterdir()) == sorted(made)
        await here.client.delete(f"/videos/characters/{made[0]}", cast_to=object)
        assert "id" in await send()


async def test_a_clip_is_extended_by_its_id_up_to_the_longest(tmp_path: Path) -> None:
    async with served(tmp_path, seconds=[1, 2, 4]) as here:
        clip = await here.completed()
        by_id: Any = {"prompt": "on", "video": omit, "extra_body": {"video": {"id": clip.id}}}
        longer = await here.client.videos.extend(**by_id, seconds="2")  # type: ignore[arg-type]
        assert (longer.seconds, here.job(longer).parent_id, here.job(longer).frames) == ("4", clip.id, 32)
        with pytest.raises(APIStatusError) as caught:
            await here.client.videos.extend(**by_id, seconds="3")  # type: ignore[arg-type]
        assert refusal(caught) == (400, "invalid_value", "seconds")


@pytest.mark.parametrize("path", ["edits", "extensions", "characters"])
async def test_what_is_made_of_a_video_needs_one(tmp_path: Path, path: str) -> None:
    named: dict[str, str] = {"name": "Ada"} if path == "characters" else {"prompt": "x"}
    more: dict[str, str] = {"seconds": "1"} if path == "extensions" else {}
    async with served(tmp_path) as here:
        told = (await post(here, f"/videos/{path}", {}, **named, **more))["error"]
        assert (told["code"], told["param"]) == ("missing_parameter", "video")


async def test_a_model_publishes_its_limits(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        told = (await here.client.models.retrieve("sora-2")).model_extra or {}
        assert (told["sizes"], told["largest_size"]) == (["64x64", "96x64"], "4096x2160")
        assert (told["fps"], told["delivered_fps"], told["max_frames"]) == (8, [8, 24], 16)
        assert (told["styles"], told["audio"]) == (["noir"], "muxed")
        assert told["takes"] == EVERYTHING.model_dump(mode="json")


async def test_a_disk_without_room_refuses_the_request_and_no_job_is_made(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        made = await here.client.videos.create(prompt="a ball", input_reference=("a.png", png(), "image/png"))
        reader = apart.SERVER.process
        assert reader is not None
        resource.prlimit(reader.pid, resource.RLIMIT_FSIZE, (100, 100))  # the kernel refuses more, as a full disk
        try:
            with pytest.raises(APIStatusError) as caught:
                await here.client.videos.create(prompt="a ball", input_reference=("a.png", png(), "image/png"))
        finally:
            apart.SERVER.end()
        assert refusal(caught) == (503, "unavailable", None)
        assert "File too large" in caught.value.message
        assert [each.id for each in (await here.client.videos.list()).data] == [made.id]


def test_a_key_has_its_plans_priority_and_may_ask_for_less(tmp_path: Path) -> None:
    raw = family(tmp_path, video=True).model_dump(mode="json", exclude_unset=True)
    plans = {"small": {"tiers": ["mini"], "priority": 1}, "large": {"tiers": ["mini"], "priority": 3}}
    inputs = VideoInputs(Family.model_validate(raw | {"plans": plans}), Mock(), Mock())  # neither is asked
    keys = {plan: KeyRecord(id="k", name="k", plan=plan, created_s=0, revoked_s=None) for plan in ("small", None)}
    assert inputs.caller(keys["small"], 5) == Caller(seed=5, priority=1, highest=1)
    assert inputs.caller(keys[None], 5) == Caller(seed=5, priority=0, highest=3)


def checkpoint(folder: Path, text: str) -> Family:
    (folder / "model_index.json").write_text(text)
    spec = family(folder, video=True)
    return spec.model_copy(update={"video": Video.model_validate(SHAPE | {"checkpoint": str(folder)})})


@pytest.mark.parametrize(
    ("index", "takes"),
    [
        ({"_class_name": "WanPipeline"}, taken_by("WanPipeline", False)),
        ({"_class_name": "WanPipeline", "expand_timesteps": True}, taken_by("WanPipeline", True)),
        ({"_class_name": "MochiPipeline"}, None),
        ([], None),
    ],
)
def test_what_a_checkpoint_says_of_itself_is_what_the_model_takes(tmp_path: Path, index: Any, takes: Any) -> None:
    told = taking(checkpoint(tmp_path, json.dumps(index))).video
    assert told is not None
    assert told.takes == takes
    assert taking(family(tmp_path)).video is None


def test_a_checkpoint_that_is_not_here_or_broken_leaves_it_to_the_replica(tmp_path: Path) -> None:
    broken = checkpoint(tmp_path, "{")
    assert taking(broken) is broken
