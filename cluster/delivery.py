"""Which of the sizes, lengths and rates that a family serves a wish means: what is rendered, and what is delivered.

Rendered is what the family lists. Delivered may be more: a larger size of exactly a listed one's proportions, with
even sides, and a listed rate. Each refusal says what was given, what is allowed, and names the field. Pure.
"""

from dataclasses import dataclass

from cluster.errors import InvalidRequest
from cluster.video import Video

_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request says of its clip; None where it says nothing. `size` is WIDTHxHEIGHT in pixels."""

    seconds: int | None = None
    size: str | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """`size` and `frames` are rendered, at the model's own rate; `out_size` and `out_fps` are delivered where they

    differ. `seconds` are whole, the last one begun.
    """

    size: str
    seconds: int
    frames: int
    out_size: str | None
    out_fps: int | None


def delivery(video: Video, wish: Wish) -> Delivery:
    """Raises InvalidRequest."""
    size, out_size = _size(video, _asked_size(wish))
    seconds, frames = _length(video, wish)
    return Delivery(size=size, seconds=seconds, frames=frames, out_size=out_size, out_fps=_rate(video, wish.fps))


def sides(size: str) -> tuple[int, int]:
    """Width and height of WIDTHxHEIGHT. Raises ValueError."""
    width, cross, height = size.partition("x")
    if not (cross and width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ValueError(size)
    if max(len(width), len(height)) > _MOST_DIGITS:
        raise ValueError(size)
    return int(width), int(height)


def _asked_size(wish: Wish) -> str | None:
    if wish.width is None and wish.height is None:
        return wish.size
    if wish.width is None or wish.height is None:
        lacking = "width" if wish.width is None else "height"
        raise InvalidRequest(f"{lacking}: not given; width and height come together; add it", param=lacking)
    both = f"{wish.width}x{wish.height}"
    if wish.size not in (None, both):
        raise _refused("size", wish.size, f"{both}, as width and height say, is", "leave one of the two out")
    return both


def _size(video: Video, given: str | None) -> tuple[str, str | None]:
    """Of the listed sizes of the same proportions the largest that need not be scaled down."""
    if given is None or given in video.sizes:
        return given or video.sizes[0], None
    out = video.output
    try:
        width, height = sides(given)
    except ValueError:
        raise _refused("size", given, f"WIDTHxHEIGHT, such as {video.sizes[0]}, is", "mend it") from None
    fitting = [
        (own_width, size)
        for size in video.sizes
        for own_width, own_height in (sides(size),)
        if width * own_height == height * own_width and width > own_width
    ]
    if not fitting or width % 2 or height % 2 or width > out.max_width or height > out.max_height:
        listed = ", ".join(video.sizes)
        scaled = f"with even sides up to {out.max_width}x{out.max_height}"
        raise _refused(
            "size", given, f"{listed}, and larger ones of exactly these proportions {scaled}, are", "choose one"
        )
    return max(fitting)[1], given


def _length(video: Video, wish: Wish) -> tuple[int, int]:
    if wish.frames is None:
        seconds = _listed("seconds", wish.seconds, video.seconds)
        return seconds, seconds * video.fps
    most = max(video.seconds) * video.fps
    if not 1 <= wish.frames <= most:
        raise _refused("num_frames", wish.frames, f"1 to {most}, at {video.fps} a second, are", "change it")
    seconds = -(-wish.frames // video.fps)
    if wish.seconds not in (None, seconds):
        raise _refused("seconds", wish.seconds, f"{seconds}, as num_frames say, is", "leave one of the two out")
    return seconds, wish.frames


def _rate(video: Video, given: int | None) -> int | None:
    if given is None or given == video.fps:
        return None
    return _listed("fps", given, (video.fps, *video.output.fps))


def _listed(name: str, given: int | None, allowed: tuple[int, ...]) -> int:
    if given is None:
        return allowed[0]
    if given not in allowed:
        raise _refused(name, given, f"{', '.join(map(str, allowed))} are", "choose one")
    return given


def _refused(name: str, given: object, allowed: str, mend: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: given {str(given)[:40]}; {allowed} allowed; {mend}", param=name)
