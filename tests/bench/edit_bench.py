"""An edit of a quarter of a clip: exact and fast against a full render, and how far the fast one is from the exact.

PSNR is of decoded frames inside the mark, fast against exact; outside it latents must be those kept. Seconds are of the
CPU, of the steps alone. The weights are those of the demonstration, at a size that they were trained on and at one that
they were not.
"""

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from video_work import done, frames, latents, opened, parent, spec

from cluster.clip import Region, Span, marked, pixels
from cluster.video import Acceleration
from deployments.demo.score_video import FOLDER
from deployments.video.engine import VideoEngine
from deployments.video.spec import Edit, RenderSpec

ROUNDS = 5
STEPS = 20
SIZES = {"64x64, 17 frames": (64, 64, 17), "192x128, 33 frames": (192, 128, 33)}
REFRESHES = (STEPS, 4)  # the first step alone, and every fourth


def run(quick: bool = False) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = dict(list(SIZES.items())[: 1 if quick else None])
        rounds = 2 if quick else ROUNDS
        figures = {size: _size(FOLDER, folder, sides, rounds) for size, sides in sizes.items()}
    edits = [edit for size in figures.values() for edit in size["edits"].values()]
    return {
        "figures": figures,
        "aim": "latents outside the mark identical, in every edit",
        "met": all(edit["outside_identical"] for edit in edits),
        "runs": rounds,
    }


def _loaded(checkpoint: Path, refresh_steps: int) -> VideoEngine:
    engine = VideoEngine(checkpoint, "float32", "cpu", Acceleration(refresh_steps=refresh_steps))
    engine.load()
    return engine


def _size(checkpoint: Path, folder: Path, sides: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    width, height, count = sides
    clip = {"width": width, "height": height, "frames": count, "steps": STEPS, "prompt": "a red circle moving left"}
    engine = _loaded(checkpoint, 1)
    parent(engine, folder, **clip)
    full_s = _cpu_s(engine, spec(**clip), folder, rounds)
    quarter_s = count / 8 / 4
    marks = {
        "a quarter of the time": Edit(span=Span(start_s=quarter_s, end_s=2 * quarter_s)),
        "a quarter of the frame": Edit(region=Region(x=0, y=0, width=width // 2, height=height // 2)),
    }
    changed = clip | {"task": "edit", "parent": "video_0", "prompt": "a blue circle moving left"}
    edits = {
        f"{name}, {way}": figures
        for name, mark in marks.items()
        for way, figures in _edits(checkpoint, folder, spec(**changed, edit=mark), full_s, rounds).items()
    }
    return {"tokens": engine.tokens(spec(**clip)), "full_render_cpu_s": round(full_s, 3), "edits": edits}


def _edits(checkpoint: Path, folder: Path, asked: RenderSpec, full_s: float, rounds: int) -> dict[str, Any]:
    engine = _loaded(checkpoint, 1)
    exact = done(engine, asked, folder)
    shown = frames(engine, exact)
    chosen = _inside(engine, asked)
    found = {"exact": (engine, asked)}
    mark = asked.edit or Edit()
    for refresh in REFRESHES:
        quick = spec(**{name: getattr(asked, name) for name in asked.__slots__} | {"edit": _fast(mark)})
        found[f"fast, all tokens every {refresh} steps"] = (_loaded(checkpoint, refresh), quick)
    return {
        way: {
            "tokens": int(chosen.sum()),
            "cpu_s": round(seconds := _cpu_s(each, request, folder, rounds), 3),
            "times_faster_than_full": round(full_s / seconds, 2),
            "outside_identical": _identical(each, request, folder),
            "psnr_db": _psnr(frames(each, done(each, request, folder)), shown, each, request),
        }
        for way, (each, request) in found.items()
    }


def _fast(mark: Edit) -> Edit:
    return Edit(span=mark.span, region=mark.region, mode="fast")


def _inside(engine: VideoEngine, asked: RenderSpec) -> np.ndarray[Any, np.dtype[np.bool_]]:
    family: Any = engine.family
    mark = asked.edit or Edit()
    return marked(family.grid(asked), asked.fps, mark.span, mark.region)


def _identical(engine: VideoEngine, asked: RenderSpec, folder: Path) -> bool:
    family: Any = engine.family
    outside = ~_inside(engine, asked).repeat(family.patch, 1).repeat(family.patch, 2)
    before = latents((folder / "parent.safetensors").read_bytes())
    return torch.equal(latents(engine.kept(done(engine, asked, folder)))[:, :, outside], before[:, :, outside])


def _psnr(shown: Any, exact: Any, engine: VideoEngine, asked: RenderSpec) -> float | None:
    """None: nothing differs."""
    family: Any = engine.family
    inside = pixels(family.grid(asked), _inside(engine, asked))
    error = float(np.square(shown[inside].astype(float) - exact[inside]).mean())
    return round(10 * math.log10(255**2 / error), 1) if error else None


def _cpu_s(engine: VideoEngine, asked: RenderSpec, folder: Path, rounds: int) -> float:
    """Of the steps alone, the median of some jobs."""
    seconds = []
    for _ in range(rounds):
        job = opened(engine, asked, folder)
        start_s = time.process_time()
        while job.done < job.total:
            engine.step([job])
        seconds.append(time.process_time() - start_s)
    return statistics.median(seconds)
