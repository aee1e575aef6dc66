"""How a client's input is to be read, and what comes of it: what a gateway and its reading process tell each other."""

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass
from pathlib import Path

from cluster.inputs import Media
from deployments.video.fit import refused

MOST_READ_BYTES = 32 << 20  # of one request, once written anew
MOST_CHARS = 4_000_000  # of text, of one request: more than any context holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`side_px`: the longest side a picture keeps. `form`: of sound, the container that was named. `name`: the file's.

    `pages`: whether pages of a document that have no text become pictures; `others`: the tiers that would take them.
    """

    side_px: int = 2048
    form: str | None = None
    name: str = "file"
    pages: bool = False
    others: str = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Text, and what stands in it: `at` of each counts in this text."""

    text: str = ""
    media: tuple[Media, ...] = ()


def write(found: Found, out: Path, where: str) -> int:
    """Its bytes. Raises InvalidRequest where they are too many."""
    size = sum(media.size_bytes for media in found.media)
    if size > MOST_READ_BYTES:
        raise refused(
            where, f"{size} bytes once decoded", f"at most {MOST_READ_BYTES} are allowed", "send fewer or smaller ones"
        )
    media = [
        {
            "kind": one.kind,
            "at": one.at,
            "pictures": [b64encode(picture).decode() for picture in one.pictures],
            "sound": b64encode(one.sound).decode(),
            "width": one.width,
            "height": one.height,
        }
        for one in found.media
    ]
    return out.write_text(json.dumps({"text": found.text, "media": media}), encoding="utf-8")


def read(file: Path, where: str) -> Found:
    told = json.loads(file.read_text(encoding="utf-8"))
    media = [
        Media(
            kind=one["kind"],
            at=one["at"],
            where=where,
            pictures=tuple(map(b64decode, one["pictures"])),
            sound=b64decode(one["sound"]),
            width=one["width"],
            height=one["height"],
        )
        for one in told["media"]
    ]
    return Found(text=told["text"], media=tuple(media))
