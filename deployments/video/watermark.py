"""An invisible mark in every frame: says which job made a clip after its credentials were stripped off.

Spread spectrum: the mid frequencies of each 16 x 16 block's DCT (mode numbers that sum to 3 to 6) are moved up or down,
each by a sign that the key draws and a parity of payload bits that the key draws, too. The same in every frame, in
luma, `RMS` of 255 levels strong. So every coefficient carries a parity of the whole payload: a random linear code as
long as the picture has coefficients, and a Walsh-Hadamard transform correlates with all 2^20 payloads at once.

Presence is a test with a bound, not a tuned number. Coefficients c are first limited, for the picture's own are far
stronger than the mark. Of an unmarked picture, whatever it shows, a sum of c times random signs over the norm of c
exceeds t with probability at most exp(-t^2/2) (Hoeffding) over the keys, the largest of 2^20 such sums with at
most 2^20 times that, and of several tries so many times more. `threshold` is the t at which all of it is
`FALSE_POSITIVES`.

It is found again after H.264, and after scaling from a size that is tried, as measured in provenance.md; not after
cropping. A weaker witness than the
credentials: who has the key can forge it, and who works at it can remove it.
"""

import contextlib
import hashlib
import itertools
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cluster.errors import ConfigurationError
from deployments.video.spec import Frames

BITS = 20
FALSE_POSITIVES = 1e-6  # per clip, at most
RMS = 1.5
KEY_FILE = "watermark.key"  # in the state folder
_KEY_BYTES = 32
_BLOCK = 16
_MODES = np.array([(u, v) for u in range(_BLOCK) for v in range(_BLOCK) if 3 <= u + v <= 6])
_LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709
_LIMIT = 0.5  # of the median of a mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """`score`: in standard deviations of a chance match, its best. `payload`: None where no mark is present.

    `others`: of what was marked more than once, the other payloads that pass the threshold, the stronger first.
    """

    payload: int | None
    score: float
    threshold: float
    others: tuple[int, ...] = ()

    @property
    def present(self) -> bool:
        return self.payload is not None


def threshold(tries: int) -> float:
    return math.sqrt(2 * math.log(tries * 2**BITS / FALSE_POSITIVES))


class Mark:
    """Raises nothing; frames smaller than a block are left as they are."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._last: tuple[tuple[int, int, int], Frames, Frames] | None = None

    def embed(self, frames: Frames, payload: int) -> Frames:
        """A copy. Beside it, it holds two patterns of one frame's size, made once per size and payload."""
        height, width = frames.shape[1:3]
        last = self._last
        if last is None or last[0] != (height, width, payload):
            last = ((height, width, payload), *self._pattern(height, width, payload))
            self._last = last
        _, up, down = last
        marked = np.empty_like(frames)
        for given, out in zip(frames, marked, strict=True):
            np.minimum(given, 255 - up, out=out)
            out += up
            np.maximum(out, down, out=out)
            out -= down
        return marked

    def detect(self, frames: Iterable[Frames], sizes: Sequence[tuple[int, int]] = ()) -> Detected:
        """Of chunks of one clip, all of one size. It holds one frame of sums, never the clip.

        `sizes`: widths and heights in which it may have been marked before it was scaled to its own.
        """
        total: NDArray[np.int64] | None = None
        for frame in itertools.chain.from_iterable(frames):
            total = frame.astype(np.int64) if total is None else np.add(total, frame, out=total)
        if total is None:
            return Detected(payload=None, score=0.0, threshold=threshold(1))
        tried = {total.shape[1::-1]: None, **dict.fromkeys(sizes)}
        luma = total @ _LUMA
        needed = threshold(len(tried))
        score, payloads = max(self._correlated(_coefficients(_scaled(luma, *size)), needed) for size in tried)
        best = payloads[0] if payloads else None
        return Detected(payload=best, score=score, threshold=needed, others=tuple(payloads[1:]))

    def _correlated(self, coefficients: NDArray[np.float64], needed: float) -> tuple[float, list[int]]:
        """The best score of all payloads, and those that score enough. coefficients: [blocks down, across, modes]."""
        norm = float(np.linalg.norm(coefficients))
        if norm == 0:
            return 0.0, []
        signs, parities = self._drawn(*coefficients.shape[:2])
        sums = np.bincount(parities, weights=signs * coefficients.ravel() / norm, minlength=2**BITS)
        scores = _walsh_hadamard(sums.astype(np.float32))
        found = np.flatnonzero(scores >= needed)
        return float(scores.max()), found[np.argsort(-scores[found])].tolist()

    def _drawn(self, down: int, across: int) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Of each coefficient its sign, and the payload bits whose parity it carries.

        By SHAKE-256, not a library's generator: it must be the same in years.
        """
        seed = b"moray watermark 1 %d %d " % (down, across) + self._key
        drawn = np.frombuffer(hashlib.shake_256(seed).digest(4 * down * across * len(_MODES)), "<u4")
        return 1 - 2 * (drawn >> 31).astype(np.int8), drawn & (2**BITS - 1)

    def _pattern(self, height: int, width: int, payload: int) -> tuple[Frames, Frames]:
        """What is added and what is taken away: [H, W, 3]."""
        down, across = height // _BLOCK, width // _BLOCK
        up, low = (np.zeros((height, width, 3), np.uint8) for _ in range(2))
        signs, parities = self._drawn(down, across)
        flipped = signs * (1 - 2 * (np.bitwise_count(parities & payload) & 1).astype(np.int8))
        spectrum = np.zeros((down, across, _BLOCK, _BLOCK))
        spectrum[:, :, _MODES[:, 0], _MODES[:, 1]] = flipped.reshape(down, across, len(_MODES))
        spectrum *= RMS * _BLOCK / math.sqrt(len(_MODES))  # the transform keeps the energy
        blocks = _DCT.T @ spectrum @ _DCT
        pixels = np.rint(blocks.transpose(0, 2, 1, 3).reshape(down * _BLOCK, across * _BLOCK, 1))
        inside = np.s_[: down * _BLOCK, : across * _BLOCK]
        up[inside], low[inside] = np.maximum(pixels, 0), np.maximum(-pixels, 0)
        return up, low


def payload_of(job_id: str) -> int:
    """The first `BITS` bits of its SHA-256: to be looked for among the jobs that are known."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big") >> (32 - BITS)


def key_of(state_folder: Path) -> bytes:
    """Of this state folder, made where there is none; all workers must have the same. Raises ConfigurationError."""
    path = state_folder / KEY_FILE
    try:
        if not path.exists():
            state_folder.mkdir(parents=True, exist_ok=True)
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror}; a file that this user may read and write is allowed; mend its owner and mode"
        ) from error
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"{path}: {len(key)} bytes; {_KEY_BYTES} are allowed; put the lost key back, or remove the file: a new "
            "key is made then, and what was marked with the old one is not found"
        )
    return key


def _make(path: Path) -> None:
    """It appears whole: of processes that start together one makes it, and all read the same."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / path.name
        draft.touch(0o600)
        draft.write_bytes(secrets.token_bytes(_KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)


def _scaled(luma: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    if luma.shape == (height, width):
        return luma
    return np.asarray(Image.fromarray(luma.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC), float)


def _coefficients(luma: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] to [blocks down, across, modes], limited: no coefficient of a mode counts more than half its median."""
    down, across = luma.shape[0] // _BLOCK, luma.shape[1] // _BLOCK
    blocks = luma[: down * _BLOCK, : across * _BLOCK].reshape(down, _BLOCK, across, _BLOCK).transpose(0, 2, 1, 3)
    spectrum = (_DCT @ blocks @ _DCT.T)[:, :, _MODES[:, 0], _MODES[:, 1]]
    if not spectrum.size:
        return spectrum
    # To a millionth of a level: what of a flat picture is there by rounding alone is no sign of anything.
    limit = np.maximum(_LIMIT * np.median(np.abs(spectrum), axis=(0, 1)), 1e-6)
    return np.clip(np.where(np.abs(spectrum) < 1e-6, 0, spectrum) / limit, -1, 1)


def _walsh_hadamard(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """sum over m of values[m] * (-1)^(bits in m & p), for each p at once."""
    half = 1
    while half < len(values):
        pairs = values.reshape(-1, 2, half)
        values = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
        half *= 2
        values = values.reshape(-1)
    return values


def _dct() -> NDArray[np.float64]:
    """Orthonormal DCT-II of a block's side: mode by sample."""
    mode, sample = np.mgrid[:_BLOCK, :_BLOCK]
    matrix = math.sqrt(2 / _BLOCK) * np.cos(math.pi * (2 * sample + 1) * mode / (2 * _BLOCK))
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix, np.float64)


_DCT = _dct()
