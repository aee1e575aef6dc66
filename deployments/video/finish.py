"""From the last step to the files in the store: decoded, encoded, signed, put there; video.mp4 comes last.

decoding   latents, chunk by chunk, into the master: frames as rendered, lossless, without the mark. The engine is free
           once it is written.
encoding   the master, chunk by chunk, marked, into the MP4 with its sound; then the stills
signing    the MP4 and the stills, with what they were made from
storing    the master stays for later edits, and never leaves

A clip is bounded by the disk, not by memory. Whatever ends it midway, what is there is made again in the same way from
the job's last state.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Lock

from cluster.video import Video
from deployments.stores.files import KEPT, MASTER, SPRITESHEET, THUMBNAIL, VIDEO, Files
from deployments.video import credentials, encode, stills
from deployments.video.credentials import Action, Claim, Signer
from deployments.video.messages import Asked
from deployments.video.spec import Frames, RenderSpec, Stage, Task
from deployments.video.watermark import Mark, key_of, payload_of

PARENT_VIDEO = "parent.mp4"
ACTIONS: dict[Task, Action] = {"create": "created", "edit": "edited", "remix": "remixed", "extend": "extended"}


class Finish:
    """Of one worker; jobs may be finished side by side, each in a thread of its own."""

    def __init__(self, video: Video, state_folder: Path) -> None:
        """Raises ConfigurationError where the certificate or the mark's key cannot be used."""
        provenance = video.provenance
        self._signer = Signer(provenance, state_folder) if provenance.sign else None
        self._key = key_of(state_folder) if provenance.watermark else None
        self._signing = Lock()
        self._title = "simulated" if video.engine == "simulated" else ""

    @property
    def signs(self) -> bool:
        return self._signer is not None

    def make(self, asked: Asked, chunks: Iterable[Frames], folder: Path, at: Callable[[Stage], None]) -> None:
        """All files but the kept latents, into the sub-folder `made`. Blocking.

        `folder` has what the job is made from. `at` is called as a stage begins and before each chunk; what it raises
        ends the work. Raises InvalidRequest, EngineFailed; OSError where the disk is full.
        """
        spec, made = asked.spec, folder / "made"
        shutil.rmtree(made, ignore_errors=True)  # of a try that memory did not suffice for
        made.mkdir()
        at("decoding")
        encode.write_master(_watched(chunks, lambda: at("decoding")), spec.fps, made / MASTER)
        at("encoding")
        self._encode(spec, folder, made, lambda: at("encoding"))
        at("signing")
        self._sign(asked, folder, made)

    def _encode(self, spec: RenderSpec, folder: Path, made: Path, watch: Callable[[], None]) -> None:
        frames, audio = _watched(encode.read(made / MASTER), watch), spec.inputs.audio
        if self._key is not None:
            frames = _marked(frames, Mark(self._key), payload_of(spec.job_id))
        out = spec.out_width or spec.width, spec.out_height or spec.height, spec.out_fps or spec.fps
        sound = folder / audio if audio else None
        encode.write(frames, spec.fps, made / VIDEO, title=self._title, audio=sound, out=out)
        stills.thumbnail(made / VIDEO, made / THUMBNAIL)
        stills.spritesheet(made / VIDEO, made / SPRITESHEET)

    def _sign(self, asked: Asked, folder: Path, made: Path) -> None:
        if self._signer is None:
            return
        spec = asked.spec
        claim = Claim(
            title=spec.job_id,
            model=asked.model,
            job_id=spec.job_id,
            seed=spec.seed,
            action=ACTIONS[spec.task],
            ingredients=tuple(_ingredients(spec, folder)),
            watermark=None if self._key is None else payload_of(spec.job_id),
        )
        with self._signing:
            for name in (VIDEO, THUMBNAIL, SPRITESHEET):
                self._signer.sign(made / name, claim)


async def store(files: Files, job_id: str, kept: bytes, folder: Path) -> None:
    """Put all that was made; the video last: where it is, the others are. Raises Unavailable."""
    await files.put_bytes(f"{job_id}/{KEPT}", kept)
    for name in (MASTER, THUMBNAIL, SPRITESHEET, VIDEO):
        await files.put(f"{job_id}/{name}", folder / "made" / name)


async def fetch(files: Files, spec: RenderSpec, folder: Path, *, sign: bool) -> None:
    """All that the job is made from, as StepEngine.open and the signer find it. Raises NotFound, Unavailable."""
    inputs = spec.inputs
    for name in (inputs.first, inputs.last, *inputs.references, inputs.source, inputs.mask, inputs.audio):
        if name is not None:
            await files.get(f"{spec.job_id}/{name}", _place(folder, name))
    if spec.parent is None:
        return
    taken = {KEPT: "parent.safetensors"}
    taken |= {VIDEO: PARENT_VIDEO} if sign else {}
    taken |= {} if spec.task == "remix" else {MASTER: MASTER}
    for name, called in taken.items():
        await files.get(f"{spec.parent}/{name}", folder / called)


def signed(video: Path) -> bool:
    return credentials.verify(video, None).state != "Unsigned"


def _place(folder: Path, name: str) -> Path:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _watched(frames: Iterable[Frames], watch: Callable[[], None]) -> Iterator[Frames]:
    for chunk in frames:
        watch()
        yield chunk


def _marked(frames: Iterator[Frames], mark: Mark, payload: int) -> Iterator[Frames]:
    for chunk in frames:
        yield mark.embed(chunk, payload)


def _ingredients(spec: RenderSpec, folder: Path) -> Iterator[tuple[str, Path]]:
    """What the clip was begun from comes first; it is a video of ours, or one that was sent, as MP4."""
    if spec.parent is not None:
        yield spec.parent, folder / PARENT_VIDEO
    elif spec.inputs.source is not None:
        video = folder / PARENT_VIDEO
        encode.write(encode.read(folder / spec.inputs.source), spec.fps, video)
        yield spec.inputs.source, video
    inputs = spec.inputs
    for name in (inputs.first, inputs.last, *inputs.references, inputs.audio):
        if name is not None:
            yield name, folder / name
