"""`decisions.jsonl` in the state folder: every decision of the control loop, one line each, written by one loop alone.

A lock beside it refuses a second writer; it falls with the process that holds it. A line that could not be written
whole is cut off again, so that each line of the file can be replayed. While the disk is full the loop goes on, and
writes again when it can. Most lines are ticks, a twentieth of a whole decision; one after EVERY of them is whole, and
so is the first of a file.
"""

import fcntl
import functools
import os
from collections.abc import Iterator
from pathlib import Path

from autoscaling.record import Record, Scaling, Tick, follow, line, parse
from cluster.errors import ConfigurationError

FILE, OLDER, LOCK = "decisions.jsonl", "decisions.1.jsonl", "decisions.lock"
BLOCK_BYTES = 1 << 20
EVERY = 30


class RecordFile:
    """`most_mib`: beyond it the file becomes the older one. Raises ConfigurationError where another loop writes, or

    where the folder cannot be written.
    """

    def __init__(self, folder: Path, most_mib: float) -> None:
        self._file, self._older = folder / FILE, folder / OLDER
        self._most_bytes = most_mib * 2**20
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(f"{self._file}: {error}; a folder that can be written; change it") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"{self._file}: another control loop writes it; one is allowed; stop the other one"
            ) from error
        self._mended = False
        self._before: Scaling | None = None  # in the file; None: the next one is written whole
        self._ticks = 0

    def close(self) -> None:
        os.close(self._lock)

    def last(self) -> Scaling | None:
        """The newest scaling decision that can be read, None where there is none."""
        ticks: list[Tick] = []
        for file in (self._file, self._older):
            for text in _backwards(file):
                try:
                    record = parse(text.decode(), 0)
                except (ConfigurationError, UnicodeDecodeError):  # torn, or of another version
                    ticks.clear()  # those that follow it follow from it
                    continue
                if isinstance(record, Scaling):
                    return functools.reduce(follow, reversed(ticks), record)
                if isinstance(record, Tick):
                    ticks.append(record)
        return None

    def write(self, record: Record) -> None:
        """Raises OSError where the disk is full: then the record is lost, and the file as it was."""
        if not isinstance(record, Scaling):
            self._append(_bytes(record))
            return
        before, self._before = self._before, None
        whole = _bytes(record)
        if before is None or before.after is not record.memory or self._ticks == EVERY:
            self._ticks = 0
            self._append(whole)
        else:
            self._ticks += 1
            self._append(_bytes(Tick(seen=record.seen, decision=record.decision)), first=whole)
        self._before = record

    def _append(self, data: bytes, first: bytes | None = None) -> None:
        """`first`: in its place where it begins a file."""
        with self._file.open("ab", buffering=0) as file:
            if not self._mended:
                file.truncate(_whole_bytes(self._file))
                self._mended = True
            size = file.seek(0, os.SEEK_END)
            if size == 0 or size + len(data) <= self._most_bytes:
                self._put(file.fileno(), data if size else first or data, size)
                return
        self._file.replace(self._older)
        with self._file.open("ab", buffering=0) as file:
            self._put(file.fileno(), first or data, 0)

    @staticmethod
    def _put(file: int, data: bytes, size: int) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(file, data[written:])
        except OSError:
            os.ftruncate(file, size)
            raise


def _bytes(record: Record) -> bytes:
    return f"{line(record)}\n".encode()


def _whole_bytes(file: Path) -> int:
    """Of the lines that have an end."""
    with file.open("rb") as opened:
        end = opened.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK_BYTES)
            opened.seek(start)
            found = opened.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0


def _backwards(file: Path) -> Iterator[bytes]:
    """The lines that have an end, the last one first."""
    if not file.exists():
        return
    with file.open("rb") as opened:
        end, rest = _whole_bytes(file), b""
        while end:
            start = max(0, end - BLOCK_BYTES)
            opened.seek(start)
            rest, *lines = (opened.read(end - start) + rest).split(b"\n")
            yield from (text for text in reversed(lines) if text)
            end = start
        if rest:
            yield rest
