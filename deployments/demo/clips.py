"""Procedural clips with their prompts: one plain shape that moves before a plain background.

64 of the combinations of colour, shape, motion and background are held out: no clip and no prompt of them is ever
trained on.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLOURS = {
    "red": (225, 45, 45), "green": (45, 185, 70), "blue": (45, 85, 235), "yellow": (245, 215, 50),
    "purple": (160, 60, 205), "orange": (245, 135, 30),
}  # fmt: skip
BACKGROUNDS = {"black": (16, 16, 18), "grey": (128, 128, 132), "white": (242, 242, 242)}
SHAPES = {"circle": ("circle", "ball", "disc"), "square": ("square", "box"), "triangle": ("triangle", "pyramid")}
MOTIONS = {
    "left": ("moving left", "moves left", "moving to the left", "rolls to the left", "drifting left", "goes left"),
    "right": ("moving right", "moves right", "moving to the right", "rolls to the right", "drifting right"),
    "up": ("moving up", "moves up", "rising", "rises", "goes up"),
    "down": ("moving down", "moves down", "falling", "falls", "goes down"),
    "still": ("standing still", "stands still", "resting", "rests"),
    "growing": ("growing", "grows", "gets bigger", "growing larger"),
}
GROUNDS = ("on a {} background", "on {}", "before a {} background", "on a {} ground")
OPENINGS = ("a", "a", "a", "one", "the", "a video of a", "")
FURTHER = "an and , . is it very slowly quickly in of with at slides sliding sphere cube"
Offsets = NDArray[np.float64]  # from a centre, in pixels
HELD_OUT = 64
RADII = 0.165, 0.195  # shares of the shorter side
MARGIN = 1.4  # radii between the end of a way and the rim; the tip of a triangle reaches 1.56


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    colour: str
    shape: str
    motion: str
    background: str

    @property
    def prompt(self) -> str:
        subject = f"{_article(self.colour)} {self.colour} {self.shape}"
        return f"{subject} {MOTIONS[self.motion][0]} on a {self.background} background"


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Centres in pixels (x, y), radii of the circle of the same area; the way takes `share` of the clip, then rest."""

    start: tuple[float, float]
    end: tuple[float, float]
    radii: tuple[float, float]
    share: float


def kinds() -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """Those trained on, those held out."""
    every = [
        Kind(colour=colour, shape=shape, motion=motion, background=background)
        for colour, shape, motion, background in itertools.product(COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
    ]
    order = np.random.default_rng(64).permutation(len(every))
    return tuple(every[i] for i in order[HELD_OUT:]), tuple(every[i] for i in order[:HELD_OUT])


def words() -> list[str]:
    """All words of prompts, and a few that change nothing."""
    phrases = [*COLOURS, *BACKGROUNDS, *itertools.chain(*SHAPES.values(), *MOTIONS.values()), *GROUNDS, *OPENINGS]
    return sorted({word for phrase in (*phrases, FURTHER) for word in phrase.replace("{}", "").split()})


def phrased(kind: Kind, rng: np.random.Generator) -> str:
    """A prompt for the clip; now and then without its colour, its motion or its background."""
    colour = kind.colour if rng.random() > 0.04 else ""
    shape = str(rng.choice(SHAPES[kind.shape]))
    motion = str(rng.choice(MOTIONS[kind.motion])) if rng.random() > 0.04 else ""
    ground = str(rng.choice(GROUNDS)).format(kind.background) if rng.random() > 0.12 else ""
    opening = str(rng.choice(OPENINGS))
    if opening.endswith("a"):
        opening = opening[:-1] + _article(colour or shape)
    return " ".join(part for part in (opening, colour, shape, motion, ground) if part)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def drawn(kind: Kind, width: int, height: int, rng: np.random.Generator, freedom: float = 1.0) -> Path:
    """A way across most of the frame for the four directions; else a place near the middle.

    `freedom`, 0 to 1: how far from the middle; with little of it a prompt alone nearly decides where things are.
    """
    side = min(width, height)
    radius = side * rng.uniform(*RADII)
    edge = MARGIN * radius
    near, far = (edge + side * 0.06 * freedom * rng.random() for _ in range(2))
    x, y = (half + (half - edge) * 0.6 * freedom * rng.uniform(-1, 1) for half in (width / 2, height / 2))
    start, end = {
        "left": ((width - near, y), (far, y)),
        "right": ((near, y), (width - far, y)),
        "up": ((x, height - near), (x, far)),
        "down": ((x, near), (x, height - far)),
    }.get(kind.motion, ((x, y), (x, y)))
    radii = (0.5 * radius, 1.2 * radius) if kind.motion == "growing" else (radius, radius)
    return Path(start=start, end=end, radii=radii, share=rng.uniform(0.75, 1.0))


def rendered(kind: Kind, path: Path, width: int, height: int, frames: int) -> NDArray[np.uint8]:
    """RGB [F, H, W, 3] with smooth edges."""
    done = np.clip(np.arange(frames) / max(frames - 1, 1) / path.share, 0, 1)[:, None, None]
    x, y = (start + (end - start) * done for start, end in zip(path.start, path.end, strict=True))
    radius = path.radii[0] + (path.radii[1] - path.radii[0]) * done
    across = np.arange(width)[None, None, :] + 0.5 - x
    down = np.arange(height)[None, :, None] + 0.5 - y
    inside = covered(kind.shape, across, down, radius)[..., None]
    ground, colour = np.array(BACKGROUNDS[kind.background]), np.array(COLOURS[kind.colour])
    pictures: NDArray[np.uint8] = np.rint(ground + inside * (colour - ground)).astype(np.uint8)
    return pictures


def covered(
    shape: str, across: NDArray[np.float64], down: NDArray[np.float64], radius: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much of each pixel the shape covers, by its distance from the edge. All shapes have the circle's area."""
    if shape == "circle":
        outside = np.hypot(across, down) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(across), np.abs(down)) - radius * (np.pi**0.5 / 2)
    else:
        inner = radius * (np.pi / 27**0.5) ** 0.5  # of the circle inside the triangle
        outside = np.maximum(down, np.abs(across) * (3**0.5 / 2) - down / 2) - inner
    return np.clip(0.5 - outside, 0, 1)
