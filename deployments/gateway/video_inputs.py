"""What a videos request sends along, as checked files in a folder of its own until they are in the file store.

What is sent is read once, by deployments.video.inputs, in processes of their own and a few at a time. References to
characters, and the sound of a clip that is worked on, are files of ours.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import Request

from cluster.clip import Span
from cluster.delivery import sides
from cluster.errors import NotFound, RequestError
from cluster.family import Family
from cluster.video import taken_by
from deployments.gateway.video_form import UploadFile, fields, no_room
from deployments.gateway.video_requests import Asked, Caller, References, longer
from deployments.gateway.video_uploads import Uploads
from deployments.gateway.videos_wire import Given, Pointer
from deployments.gateway.wishes import plan_of
from deployments.stores.files import Files
from deployments.stores.keys import KeyRecord
from deployments.stores.threads import in_thread
from deployments.video import inputs, stills
from deployments.video.fit import Clip, refused
from deployments.video.jobs import Jobs, VideoRequest
from deployments.video.spec import Inputs

MOST_AT_ONCE = 2  # requests whose media are read: each may take some 400 MB and a core
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # how those begin that are no video
Ready = tuple[VideoRequest, Mapping[str, Path]]
Sent = Callable[[str, str, int], Awaitable[bytes]]  # the bytes of an owner's file, of at most so many


class VideoInputs:
    """`files` and `jobs` have what is ours already."""

    def __init__(self, family: Family, files: Files, jobs: Jobs) -> None:
        self._files = files
        self._jobs = jobs
        self.sent: Sent | None = None  # who knows /v1/files
        self._uploads = Uploads()
        self._reading = asyncio.Semaphore(MOST_AT_ONCE)
        self.follow(family)

    def follow(self, family: Family) -> None:
        assert family.video is not None
        self._family, self.video = family, family.video

    def caller(self, record: KeyRecord, seed: int) -> Caller:
        """A key without a plan may ask for any priority that there is. Raises NotInPlan."""
        plan = plan_of(record, self._family)
        highest = max((each.priority for each in self._family.plans.values()), default=0)
        return Caller(seed=seed, priority=plan.priority if plan else 0, highest=plan.priority if plan else highest)

    @asynccontextmanager
    async def fields(self, request: Request, *, data_urls: bool = False) -> AsyncIterator[dict[str, Any]]:
        """See video_form. Raises Overloaded, too."""
        body, most, together = self._family.gateway.max_body_bytes, self._limit, self.video.max_uploading_bytes
        with self._uploads.counted(request, free=body, most=most, together=together) as counted:
            async with fields(counted, max_body_bytes=body, max_input_bytes=most, data_urls=data_urls) as given:
                yield given

    @asynccontextmanager
    async def ready(self, asked: Asked, owner: str, *, more_seconds: int = 0) -> AsyncIterator[Ready]:
        """What is asked with its inputs, and their files by name until the end of the block.

        `more_seconds`: of an extension of a video that is sent along, whose length shows only now. Raises
        InvalidRequest, NotFound, Unavailable.
        """
        with tempfile.TemporaryDirectory(prefix="moray-inputs-") as made:
            folder = Path(made)
            request = await self._source(asked, folder, more_seconds)
            request = await self._rest(asked.references, request, owner, folder)
            yield request, {name: folder / name for name in _names(request.inputs)}

    async def character(self, given: Given, key: str) -> None:
        """Its picture, to the file store: of a video the middle one. Raises InvalidRequest, Unavailable."""
        width, height = sides(self.video.sizes[0])
        clip = Clip(width=width, height=height, frames=max(self.video.seconds) * self.video.fps, fps=self.video.fps)
        data, param = await self._bytes(given, "", "video"), "video"
        with tempfile.TemporaryDirectory(prefix="moray-inputs-") as made:
            picture = Path(made) / "picture"

            def draw() -> None:
                if data.startswith(PICTURES):
                    inputs.image(data, clip, picture, param=param, limit_bytes=self._limit)
                    return
                inputs.video(data, clip, picture.with_suffix(".mkv"), param=param, limit_bytes=self._limit)
                stills.thumbnail(picture.with_suffix(".mkv"), picture)

            await self._read(draw)
            await self._files.put(key, picture)

    @property
    def _limit(self) -> int:
        return self.video.max_input_bytes

    async def _source(self, asked: Asked, folder: Path, more_seconds: int) -> VideoRequest:
        """The job is as long as its source, at most as long as it was asked for; an extension of it longer."""
        request, given = asked.request, asked.references.source
        if given is None:
            return request
        param = "video_reference" if request.task == "remix" or request.parent_id else "video"
        data = await self._bytes(given, "", param)
        clip, name = _clip(request), "source.mkv"
        frames = await self._read(lambda: inputs.video(data, clip, folder / name, param=param, limit_bytes=self._limit))
        request = replace(request, frames=frames, seconds=-(-frames // request.fps))
        request = replace(request, inputs=replace(request.inputs, source=name))
        return longer(request, more_seconds, self.video) if request.task == "extend" else _within(request)

    async def _rest(self, given: References, request: VideoRequest, owner: str, folder: Path) -> VideoRequest:
        clip, found = _clip(request), request.inputs
        if given.first is not None:
            await self._image(given.first, clip, folder / "first.png", owner, "input_reference")
            found = replace(found, first="first.png")
        if given.last is not None:
            await self._image(given.last, clip, folder / "last.png", owner, "last_frame_reference")
            found = replace(found, last="last.png")
        references = (*given.images, *(Pointer(id=each) for each in given.characters))
        for index, reference in enumerate(references):
            await self._image(reference, clip, folder / f"reference-{index}.png", owner, "image_references")
        found = replace(found, references=tuple(f"reference-{index}.png" for index in range(len(references))))
        if given.mask is not None:
            await self._mask(given.mask, request, folder / "mask.png", owner)
            found = replace(found, mask="mask.png")
        return replace(request, inputs=replace(found, audio=await self._audio(given.audio, request, folder)))

    async def _image(self, given: Given, clip: Clip, out: Path, owner: str, param: str) -> None:
        data = await self._bytes(given, owner, param)
        await self._read(lambda: inputs.image(data, clip, out, param=param, limit_bytes=self._limit))

    async def _mask(self, given: Given, request: VideoRequest, out: Path, owner: str) -> None:
        """It is as large as what is delivered; of what is rendered it marks every pixel that it touches."""
        data = await self._bytes(given, owner, "mask")
        width, height = sides(request.delivered_size)
        clip = replace(_clip(request), width=width, height=height)

        def draw() -> None:
            inputs.mask(data, clip, out, param="mask", limit_bytes=self._limit)
            if request.out_size is not None:
                _shrink(out, sides(request.size))

        await self._read(draw)

    async def _audio(self, given: Given | None, request: VideoRequest, folder: Path) -> str | None:
        """A new one; or that of the clip which is worked on, unless it has gone."""
        name = "audio.wav"
        if given is not None:
            data, param = await self._bytes(given, "", "audio_reference"), "audio_reference"
            clip, out = _clip(request), folder / name
            await self._read(lambda: inputs.audio(data, clip, out, param=param, limit_bytes=self._limit))
            return name
        if request.inputs.audio is None:
            return None
        try:
            await self._files.get(f"{request.parent_id}/{request.inputs.audio}", folder / name)
        except NotFound:
            return None
        return name

    async def _bytes(self, given: Given, owner: str, param: str) -> bytes:
        match given:
            case Pointer(url=str(url)):
                return await inputs.fetch(url, self._limit, param=param)
            case Pointer(id=str(file_id)) if self.sent is not None and file_id.startswith("file-"):
                with _named(param):
                    return await self.sent(owner, file_id, self._limit)
            case Pointer(id=str(character_id)):
                return await self._picture(owner, character_id, param)
            case UploadFile():
                return await given.read()
        raise AssertionError(given)

    async def _picture(self, owner: str, character_id: str, param: str) -> bytes:
        character = await in_thread(self._jobs.character, owner, character_id)
        data = await self._files.read(character.file) if character else None
        if data is None:
            raise NotFound(
                f"{param}: {character_id[:64]!r} is unknown; ids of your characters are allowed; send the file instead",
                param=param,
                code="character_not_found",
            )
        return data

    async def _read(self, work: Callable[[], Any]) -> Any:
        async with self._reading:
            try:
                return await asyncio.to_thread(work)
            except OSError as error:
                raise no_room(error) from error


@contextmanager
def _named(param: str) -> Iterator[None]:
    """Refusals name the parameter that a file was given for."""
    try:
        yield
    except RequestError as error:
        error.param = param
        raise


def _names(found: Inputs) -> list[str]:
    names: list[str] = []
    for each in fields_of(found):
        value = getattr(found, each.name)
        names += value if isinstance(value, tuple) else [value] if value else []
    return names


def _clip(request: VideoRequest) -> Clip:
    width, height = sides(request.size)
    return Clip(width=width, height=height, frames=request.frames or request.seconds * request.fps, fps=request.fps)


def _within(request: VideoRequest) -> VideoRequest:
    """Of an edit, its time range within a video that may be shorter than clips get."""
    span, length_s = request.edit.span if request.edit else None, request.frames / request.fps
    if request.edit is None or span is None or span.end_s <= length_s:
        return request
    if span.start_s >= length_s:
        raise refused("time_range", f"begins at {span.start_s:g} s", f"0 to {length_s:g} s are allowed", "mend it")
    within = Span(start_s=span.start_s, end_s=length_s)
    return replace(request, edit=replace(request.edit, span=within))


def _shrink(mask: Path, size: tuple[int, int]) -> None:
    from PIL import Image

    with Image.open(mask) as found:
        smaller = found.resize(size, Image.Resampling.BOX).point(lambda grey: 255 if grey else 0)
    smaller.save(mask, "PNG")


def taking(family: Family) -> Family:
    """With what the video checkpoint says that it takes, where the family says nothing and the checkpoint is here."""
    if family.video is None or family.video.takes is not None:
        return family
    try:
        index = json.loads((Path(family.video.checkpoint) / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # a replica will say what is wrong with it
        return family
    if not isinstance(index, dict):
        return family
    takes = taken_by(str(index.get("_class_name")), index.get("expand_timesteps") is True)
    return family.model_copy(update={"video": family.video.model_copy(update={"takes": takes})})
