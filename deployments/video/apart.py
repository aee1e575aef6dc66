"""A client's video or sound is read in a process of its own, which may crash, run out of its memory or of its time.

libav decodes in C whatever it is sent, so its faults end that process and no other, and the kernel bounds it. Bytes go
in, a file and one line of JSON come out. Some 0.5 s of a start each.
"""

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from cluster.errors import InvalidRequest
from deployments.video.fit import Clip, refused

MOST_BYTES = 3 << 30  # of memory, writable and private
MOST_CPU_S = 300
MOST_WALL_S = 600


def run(kind: Literal["video", "sound"], data: bytes, clip: Clip, out: Path, param: str) -> int:
    """What demux says of it. Blocking. Raises InvalidRequest; OSError where the disk says no."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".reading-") as folder:
        made = Path(folder) / out.name
        command = [sys.executable, "-m", __name__, kind, json.dumps(asdict(clip)), str(made), param]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=MOST_WALL_S, check=False)
        except subprocess.TimeoutExpired:
            done = None
        if done is None or done.returncode < 0:  # by a signal
            raise _too_much(param)
        if done.returncode:
            raise OSError(f"{kind}: its reader failed: {done.stderr.decode(errors='replace')[-500:]}")
        return _told(json.loads(done.stdout), made, out, param)


def _told(answer: dict[str, int | str], made: Path, out: Path, param: str) -> int:
    match answer:
        case {"refused": str(message)}:
            raise InvalidRequest(message, param=param)
        case {"errno": int(number), "error": str(text)}:
            raise OSError(number, text)
        case {"made": int(value)}:
            made.replace(out)
            return value
    raise AssertionError(answer)


def _too_much(param: str) -> InvalidRequest:
    allowed = f"{MOST_CPU_S} s and {MOST_BYTES >> 30} GiB are allowed"
    return refused(param, "takes too much time or memory to read", allowed, "send a smaller one")


def main(kind: str, clip: str, out: str, param: str) -> None:
    for bound, most in (
        (resource.RLIMIT_DATA, MOST_BYTES),
        (resource.RLIMIT_CPU, MOST_CPU_S),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(bound)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(bound, (most, most))
    from deployments.video import demux

    read = demux.video if kind == "video" else demux.sound
    answer: dict[str, int | str]
    try:
        answer = {"made": read(sys.stdin.buffer.read(), Clip(**json.loads(clip)), Path(out), param)}
    except MemoryError:
        answer = {"refused": _too_much(param).message}
    except InvalidRequest as error:
        answer = {"refused": error.message}
    except OSError as error:
        answer = {"errno": error.errno or 0, "error": str(error.strerror or error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
