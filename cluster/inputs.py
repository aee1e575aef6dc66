"""What a client sends beside text: images, sound and short clips, as it sent them and as a model may be given them.

How many tokens they take is estimated here, for plans, limits and the desk; what the engine counts settles it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.engines import Closed

Input = Literal["image", "audio", "video"]
Detail = Literal["auto", "low", "high"]
HZ = 16_000  # of sound; samples have 16 bits, one channel
FRAMES_PER_S = 2  # of a clip
MOST_SENT = 32  # parts beside text, of a request
MOST_CLIPS = 4  # of these
MOST_CLIP_S = 30
LEAST_IMAGE_TOKENS = 4  # smaller images are scaled up by those who count patches
_AROUND = 2  # tokens that begin and end an input
_TIME = 6  # tokens that tell the time of a frame


class InputTokens(Closed):
    """How the tier's model counts: an image by squares of `patch_px` pixels, or as `per_image` tokens of any size.

    The defaults are those of Qwen2-VL and Qwen2.5-VL (a token per 28 x 28 pixels) and of Qwen2-Audio (a token per
    40 ms), as their reports say. Qwen3-VL has patch_px 32, LLaVA 1.5 per_image 576. A clip counts as its frames.
    """

    patch_px: PositiveInt = 28
    per_image: PositiveInt | None = Field(default=None, le=65_536)
    audio_per_s: PositiveFloat = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One part of a message beside its text, unread. `message`: its index; `at`: the character of its text before
    which it stands. `where`: the parameter that has it: `url`, base64 `data` in the format `form`, or `file_id`.
    """

    kind: Literal["image", "audio", "video", "file"]
    message: int
    at: int
    where: str
    url: str | None = field(default=None, repr=False)
    data: str | None = field(default=None, repr=False)
    form: Literal["wav", "mp3"] | None = None
    file_id: str | None = None
    name: str = "file"
    detail: Detail = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One input, decoded, checked and written anew. It stands before character `at` of its message's text.

    `pictures`: JPEG of `width` x `height` pixels: one of an image; of a clip, FRAMES_PER_S of each second from the
    first on. `sound`: little-endian samples of 16 bits, one channel, HZ; of a clip without sound there are none.
    """

    kind: Input
    at: int
    where: str
    pictures: tuple[bytes, ...] = field(default=(), repr=False)
    sound: bytes = field(default=b"", repr=False)
    width: int = 0
    height: int = 0

    @property
    def seconds(self) -> float:
        return max(len(self.sound) / 2 / HZ, len(self.pictures) / FRAMES_PER_S if self.kind == "video" else 0.0)

    @property
    def size_bytes(self) -> int:
        return len(self.sound) + sum(map(len, self.pictures))


def first_of(kinds: Iterable[tuple[Input, str]]) -> dict[Input, str]:
    """Each kind once, with the parameter that has the first of it."""
    found: dict[Input, str] = {}
    for kind, where in kinds:
        found.setdefault(kind, where)
    return found


def tokens_of(media: Media, counts: InputTokens, takes: Iterable[Input]) -> int:
    """Of the context. `takes`: what the tier takes; where it takes no sound, a clip's is left out."""
    match media.kind:
        case "audio":
            return _AROUND + _heard(media, counts)
        case "image":
            return _AROUND + _seen(media, counts)
        case "video":
            sound = _AROUND + _heard(media, counts) if media.sound and "audio" in takes else 0
            return len(media.pictures) * (_TIME + _AROUND + _seen(media, counts)) + sound


def _heard(media: Media, counts: InputTokens) -> int:
    return max(1, round(len(media.sound) / 2 / HZ * counts.audio_per_s))


def _seen(media: Media, counts: InputTokens) -> int:
    if counts.per_image is not None:
        return counts.per_image
    wide, high = (max(1, round(side / counts.patch_px)) for side in (media.width, media.height))
    return max(LEAST_IMAGE_TOKENS, wide * high)
