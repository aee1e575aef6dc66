"""Does a clip show what its prompt asked for? python -m deployments.demo.score_video [CHECKPOINT] [--write] ...

By plain measurements on the pixels, without a model: background and colour are the nearest of those that are drawn,
motion is read from the path and the size of the shape, shape is the template of the same area that overlaps it best.
`look` recognises the procedural clips themselves in a test.
"""

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.demo import clips
from deployments.demo.clips import Kind
from deployments.video.engine import Frames, RenderSpec, VideoEngine

FOLDER = Path(__file__).parent / "checkpoints" / "video"  # what ships
Layout = tuple[int, int, int]  # width, height, frames
NOTHING = "nothing"
CONTRAST = 40.0  # RGB distance from the background below which there is nothing to see
LEAST_AREA = 12  # pixels of a shape
LARGEST = 0.35  # share of the frame that a shape covers at most
ALIKE = 0.75  # mean intersection over union with a template, at least
MOVED, STAYED, GREW = 0.2, 0.06, 1.8  # shares of the shorter side; ratio of areas
PROPERTIES = ("colour", "shape", "motion", "background")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """NOTHING where it cannot be told."""

    colour: str
    shape: str
    motion: str
    background: str


def look(frames: Frames) -> Seen:
    """Frames [F, H, W, 3]."""
    pixels = frames.astype(np.float64)
    rim = np.concatenate([pixels[:, [0, -1]].reshape(-1, 3), pixels[:, :, [0, -1]].reshape(-1, 3)])
    ground = np.median(rim, 0)
    background = _nearest(ground, clips.BACKGROUNDS)
    apart = np.linalg.norm(pixels - ground, axis=-1)
    strong = apart >= 0.9 * np.quantile(apart, 0.99)
    if np.median(apart[strong]) < CONTRAST:
        return Seen(colour=NOTHING, shape=NOTHING, motion=NOTHING, background=background)
    colour = np.median(pixels[strong], 0)
    mask = apart > np.linalg.norm(colour - ground) / 2
    bounded = mask.sum((1, 2)).min() >= LEAST_AREA and mask.mean() <= LARGEST
    shape, motion = (_shape(mask), _motion(mask)) if bounded else (NOTHING, NOTHING)
    return Seen(colour=_nearest(colour, clips.COLOURS), shape=shape, motion=motion, background=background)


def _nearest(colour: NDArray[np.float64], named: dict[str, tuple[int, int, int]]) -> str:
    return min(named, key=lambda name: float(np.linalg.norm(colour - named[name])))


def _centres(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[F, 2]: x, y in pixels of the pixels set in every frame; none may be empty."""
    _, height, width = mask.shape
    area = mask.sum((1, 2))
    across = (mask.sum(1) * (np.arange(width) + 0.5)).sum(1) / area
    down = (mask.sum(2) * (np.arange(height) + 0.5)).sum(1) / area
    return np.stack([across, down], 1)


def _motion(mask: NDArray[np.bool_]) -> str:
    """Along one axis from the first frame to the last, or none; the last area beside the first where it stayed."""
    area = mask.sum((1, 2))
    path = _centres(mask) / min(mask.shape[1:])
    way = path[-1] - path[0]
    along = int(np.abs(way[1]) > np.abs(way[0]))
    if np.abs(path - path[0]).max() < STAYED:
        grown = area[-1] / area[0]
        return "growing" if grown > GREW else "still" if 1 / 1.3 < grown < 1.3 else NOTHING
    steps = np.diff(path[:, along]) * np.sign(way[along])
    straight = np.abs(path[:, 1 - along] - path[0, 1 - along]).max() < STAYED * 1.5
    if np.abs(way[along]) < MOVED or not straight or steps.min() < -STAYED:
        return NOTHING
    return (("left", "right"), ("up", "down"))[along][int(way[along] > 0)]


def _shape(mask: NDArray[np.bool_]) -> str:
    """The shape whose outline of the same place and area overlaps the mask best, over all frames."""
    _, height, width = mask.shape
    centres, radius = _centres(mask), np.sqrt(mask.sum((1, 2)) / np.pi)[:, None, None]
    across = np.arange(width)[None, None, :] + 0.5 - centres[:, :1, None]
    down = np.arange(height)[None, :, None] + 0.5 - centres[:, 1:, None]
    overlap = {}
    for shape in clips.SHAPES:
        template = clips.covered(shape, across, down, radius) > 0.5
        overlap[shape] = float(((mask & template).sum((1, 2)) / (mask | template).sum((1, 2))).mean())
    best = max(overlap, key=lambda shape: overlap[shape])
    return best if overlap[best] >= ALIKE else NOTHING


def asked(kind: Kind, layout: Layout, steps: int, guidance: float, seed: int) -> RenderSpec:
    width, height, frames = layout
    return RenderSpec(
        job_id=f"score_{seed}",
        prompt=kind.prompt,
        width=width,
        height=height,
        frames=frames,
        fps=8,
        steps=steps,
        guidance=guidance,
        seed=seed,
    )


def rendered(engine: VideoEngine, spec: RenderSpec) -> Frames:
    return engine.render(spec)


def scores(kinds: list[Kind], videos: list[Frames]) -> dict[str, float]:
    """Shares of clips right in each property, and in all of them."""
    right = Counter[str]()
    for kind, video in zip(kinds, videos, strict=True):
        seen = look(video)
        hits = [name for name in PROPERTIES if getattr(seen, name) == getattr(kind, name)]
        right.update(hits)
        right["all"] += len(hits) == len(PROPERTIES)
    return {name: right[name] / len(kinds) for name in (*PROPERTIES, "all")}


def write_sheet(videos: list[Frames], path: Path) -> None:
    """One clip per row."""
    from PIL import Image

    rows = [np.concatenate(list(video[:: max(1, len(video) // 8)]), 1) for video in videos]
    Image.fromarray(np.concatenate(rows)).save(path)


def scored(engine: VideoEngine, layout: Layout, given: argparse.Namespace) -> dict[str, Any]:
    """Prompts in the order of `clips.kinds`; the seed of a clip is its prompt's place."""
    kinds = list(clips.kinds()[0 if given.trained else 1][: given.prompts])
    specs = [asked(kind, layout, given.steps, given.guidance, seed) for seed, kind in enumerate(kinds)]
    videos = [rendered(engine, spec) for spec in specs]
    if given.sheet:
        write_sheet(videos[:16], given.sheet)
    if given.verbose:
        for kind, video in zip(kinds, videos, strict=True):
            wrong = {name: found for name, found in asdict(look(video)).items() if found != getattr(kind, name)}
            print(kind.prompt, wrong or "")
    conditions = {"layout": layout, "steps": given.steps, "guidance": given.guidance, "prompts": len(kinds)}
    return conditions | {name: round(share, 3) for name, share in scores(kinds, videos).items()}


def _layout(text: str) -> Layout:
    width, height, frames = (int(number) for number in text.split("x"))
    return width, height, frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--layout", type=_layout, nargs="+", default=[(64, 64, 8)], metavar="WIDTHxHEIGHTxFRAMES")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--prompts", type=int, default=clips.HELD_OUT)
    parser.add_argument("--trained", action="store_true", help="prompts of trained combinations instead")
    parser.add_argument("--sheet", type=Path, help="PNG of the first 16 clips of the last layout, one per row")
    parser.add_argument("--verbose", action="store_true", help="print what was seen where it is not what was asked")
    parser.add_argument("--write", action="store_true", help="scores.json beside the weights")
    given = parser.parse_args()
    engine = VideoEngine(given.checkpoint, "float32", "cpu")
    engine.load()
    found = []
    for layout in given.layout:
        found.append(scored(engine, layout, given))
        print(json.dumps(found[-1]), flush=True)
    if given.write:
        text = ",\n ".join(json.dumps(each) for each in found)
        (given.checkpoint / "scores.json").write_text(f"[{text}]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
