"""The files of a batch: its lines, read where they are, and the files that are made of their answers."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from deployments.gateway.api_files import ApiFiles, Named
from deployments.gateway.batch_lines import Fault, Line, lines_of, spent, unasked
from deployments.stores.objects import Object, Objects, Page
from deployments.stores.threads import in_thread

PAGE = 100


async def files_made(
    files: ApiFiles, objects: Objects, batch: Object, folder: Path, waiting: Sequence[Line], why: str
) -> tuple[dict[str, int], dict[str, Any], dict[str, str]]:
    """Counts, usage, and the ids of the file of answers and of that of errors, none where it would be empty.

    `waiting`: lines whose turn did not come, and `why`. Made again, the files are the same. Raises Unavailable.
    """
    usages: list[dict[str, Any]] = []
    counts, ids = {"total": 0, "completed": 0, "failed": 0}, {}
    with (folder / "output").open("w") as output, (folder / "error").open("w") as error:
        async for row in _answers(objects, batch):
            counts[row.label] += 1
            (output if row.label == "completed" else error).write(f"{row.document}\n")
            if row.label == "completed":
                usages.append(json.loads(row.document)["response"]["body"].get("usage") or {})
        for line in waiting:
            counts["failed"] += 1
            error.write(f"{unasked(answer_id(batch, line), line.custom_id, why)}\n")
    for kind in ("output", "error"):
        file = folder / kind
        if file.stat().st_size:
            expires_s = json.loads(batch.document)["output_expires_s"]
            name, file_id = f"{batch.id}_{kind}.jsonl", f"file-{batch.id.removeprefix('batch_')}-{kind}"
            await files.put(batch.owner, file, Named(name, "batch_output", expires_s, file_id))
            ids[f"{kind}_file_id"] = file_id
    return counts | {"total": counts["completed"] + counts["failed"]}, spent(usages), ids


async def _answers(objects: Objects, batch: Object) -> AsyncIterator[Object]:
    after, more = None, True
    while more:
        page = Page(parent=batch.id, after=after, limit=PAGE, order="asc")
        rows, more = await in_thread(objects.page, batch.owner, "line", page)
        for row in rows:
            yield row
            after = row.id


def answer_id(batch: Object, line: Line) -> str:
    return f"batch_req_{batch.id.removeprefix('batch_')}{line.number:05d}"


def line_id(batch: Object, line: Line) -> str:
    """Of the row that keeps its answer."""
    return f"{batch.id}.{line.number:05d}"


def text_of(file: Path, line: Line) -> bytes:
    with file.open("rb") as read:
        read.seek(line.start)
        return read.read(line.length)


def read(file: Path, endpoint: str, most_bytes: int) -> tuple[list[Line], list[Fault]]:
    with file.open("rb") as read:
        return lines_of(_bounded(read, most_bytes), endpoint, most_bytes)


def _bounded(read: Any, most_bytes: int) -> Iterator[bytes]:
    """A line that is too long comes in parts, the first of which is refused."""
    while text := read.readline(most_bytes + 1):
        yield text
