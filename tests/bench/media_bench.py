"""What a video costs after it was denoised: marking, encoding, signing; and what a mark survives.

Clips are made: `photograph` moves over a photograph (of matplotlib's samples, enlarged to the width), `shapes` is a
disc over a gradient. There is no film among them. `--part` one or more of speed, survival, chance.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from cluster.video import Provenance
from deployments.video import encode
from deployments.video.credentials import Claim, Signer
from deployments.video.spec import Frames
from deployments.video.watermark import BITS, FALSE_POSITIVES, Mark, threshold

RUNS = 5
SIZES = {(320, 192): 24, (640, 384): 16, (1280, 720): 16}  # frames of each
TIMED = {(1280, 720): 48, (1920, 1080): 24}
CRFS = (18, 23, 28, 33)
KEYS = 1000
PAYLOAD = 0x5A5A5
FPS = 24

Row = dict[str, Any]


def run(part: str = "speed,survival,chance") -> Row:
    parts: dict[str, Callable[[Path], Row]] = {"speed": _speed, "survival": _survival, "chance": _chance}
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: parts[name](Path(folder)) for name in part.split(",")}
    signed = [row["sign_ms"] for row in figures.get("speed", {}).values()]
    return {
        "figures": figures,
        "aim": {"sign_ms": "<= 50 at 720p"},
        "met": {"sign_ms": signed[0] <= 50} if signed else {},
        "runs": RUNS,
    }


def _speed(folder: Path) -> Row:
    """Medians, and lowest and highest, of one clip by one thread; x264 takes what threads it likes."""
    signer = Signer(Provenance(), folder)
    return {
        f"{width}x{height}": _timed(photograph(width, height, count), signer, folder / "clip.mp4")
        for (width, height), count in TIMED.items()
    }


def _timed(frames: Frames, signer: Signer, file: Path) -> Row:
    mark, claim = Mark(b"bench"), Claim(title="a clip", model="bench", job_id="video_bench", seed=1)
    mark.embed(frames[:1], PAYLOAD)  # its pattern is made once a clip
    embedded = [_took(lambda: mark.embed(frames, PAYLOAD)) / len(frames) * 1000 for _ in range(RUNS)]
    encoded = [len(frames) / _took(lambda: encode.write([frames], FPS, file)) for _ in range(RUNS)]
    signed = [_took(lambda: signer.sign(file, claim)) * 1000 for _ in range(RUNS)]
    return {
        **_spread("watermark_ms_per_frame", embedded),
        **_spread("encode_frames_per_s", encoded),
        **_spread("sign_ms", signed),
        "detect_ms_per_frame": round(_took(lambda: mark.detect([frames])) * 1000 / len(frames), 1),
        "file_bytes": file.stat().st_size,
    }


def _survival(folder: Path) -> Row:
    """Scores after x264; found where at least the threshold, and the payload is right."""
    rows: Row = {"threshold": round(threshold(1), 2)}
    for (width, height), count in SIZES.items():
        for clip in (photograph, shapes):
            frames = clip(width, height, count)
            marked = Mark(b"bench").embed(frames, PAYLOAD)
            error = np.mean((marked.astype(np.float32) - frames) ** 2)
            row: Row = {"psnr_db": round(float(10 * np.log10(255**2 / error)), 1)}
            for crf in CRFS:
                row[f"crf {crf}"] = _found(_encoded(marked, folder / "clip.mp4", crf))
            twenty = np.concatenate(list(_encoded(marked, folder / "clip.mp4", 20)))
            row["crf 20, then 28"] = _found(_encoded(twenty, folder / "clip.mp4", 28))
            twice = _encoded(marked, folder / "clip.mp4", 23, (2 * width, 2 * height, FPS))
            row["twice as large, crf 23"] = _found(twice, [(width, height)])
            row["unmarked"] = _found(_encoded(frames, folder / "clip.mp4", 23))
            rows[f"{clip.__name__} {width}x{height}"] = row
    return rows


def _chance(folder: Path) -> Row:
    """The best of all payloads' scores by so many keys that marked nothing, on one picture; a score is one trial."""
    picture = photograph(320, 192, 1)
    scores = [Mark(b"chance %d" % key).detect([picture]).score for key in range(KEYS)]
    return {
        "keys": KEYS,
        "payloads": 2**BITS,
        "median_best_score": round(statistics.median(scores), 2),
        "highest_score": round(max(scores), 2),
        "threshold": round(threshold(1), 2),
        "false_positives": sum(score >= threshold(1) for score in scores),
        "bound": FALSE_POSITIVES,
    }


def photograph(width: int, height: int, frames: int) -> Frames:
    """A window that moves by a pixel a frame to the right, by half of one down."""
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as image:
        wide = width + frames
        large = np.asarray(image.convert("RGB").resize((wide, image.height * wide // image.width)))
    top = large.shape[0] // 5
    return np.stack([large[top + at // 2 : top + at // 2 + height, at : at + width] for at in range(frames)])


def shapes(width: int, height: int, frames: int) -> Frames:
    y, x = np.mgrid[:height, :width]
    made = np.empty((frames, height, width, 3), np.uint8)
    for at in range(frames):
        made[at] = np.stack([90 + 80 * x / width, 100 + 60 * y / height, np.full_like(x, 120.0, float)], axis=-1)
        made[at, (x - width * (0.2 + 0.6 * at / frames)) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2] = 200, 40, 40
    return made


def _encoded(frames: Frames, file: Path, crf: int, out: tuple[int, int, int] | None = None) -> Iterator[Frames]:
    usual, encode.CRF = encode.CRF, str(crf)
    try:
        encode.write([frames], FPS, file, out=out)
    finally:
        encode.CRF = usual
    return encode.read(file)


def _found(frames: Iterator[Frames], sizes: list[tuple[int, int]] | None = None) -> Row:
    found = Mark(b"bench").detect(frames, sizes or ())
    return {"score": round(found.score, 1), "found": found.payload == PAYLOAD}


def _took(work: Callable[[], object]) -> float:
    begun_s = time.perf_counter()
    work()
    return time.perf_counter() - begun_s


def _spread(name: str, values: list[float]) -> Row:
    return {
        name: round(statistics.median(values), 2),
        f"{name}_range": [round(min(values), 2), round(max(values), 2)],
    }
