"""What a client's media is fitted to, and by which rule."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Sides are pixels. Inputs that are longer than `frames` at `fps` lose their end."""

    width: int
    height: int
    frames: int
    fps: int


def fitted(picture: "Image", clip: Clip) -> "Image":
    """RGB of the clip's size: the middle of the picture in the clip's aspect ratio, scaled; on white where clear."""
    from PIL import Image, ImageOps

    mode = "RGBA" if picture.has_transparency_data else "RGB"
    clear = picture if picture.mode == mode else picture.convert(mode)
    cut = ImageOps.fit(clear, (clip.width, clip.height), Image.Resampling.LANCZOS)
    if cut.mode == "RGB":
        return cut
    return Image.alpha_composite(Image.new("RGBA", cut.size, "white"), cut).convert("RGB")


def refused(param: str, given: str, allowed: str, mend: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {given}; {allowed}; {mend}", param=param)
