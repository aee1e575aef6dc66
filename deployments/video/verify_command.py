"""`moray video verify`: what the credentials of a file say, and whose watermark is in its frames."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import av
from rich.console import Console

from cluster.errors import ConfigurationError
from cluster.family import Family
from deployments.video import certificates
from deployments.video.credentials import Manifest, Verdict, verify
from deployments.video.encode import read
from deployments.video.watermark import KEY_FILE, Detected, Mark, key_of, payload_of


def verified(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Exit code 1 where credentials are missing or invalid. Raises ConfigurationError: no such file, no media."""
    state, file = Path(family.state_folder), arguments.file
    own = state / certificates.DEVELOPMENT / certificates.ANCHOR
    verdict = verify(file, arguments.anchors or (own if own.is_file() else None))
    mark = detected(file, family) if file.suffix.lower() not in (".webp", ".jpg", ".jpeg") else None
    if arguments.json:
        told = dataclasses.asdict(verdict) | {"watermark": mark and dataclasses.asdict(mark)}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        for line in _lines(file, verdict, mark):
            console.print(line, markup=False, soft_wrap=True)
    return 0 if verdict.state in ("Trusted", "Valid") else 1


def detected(file: Path, family: Family) -> Detected | None:
    """Also where it was scaled from a size of the family. None without a key. Raises ConfigurationError."""
    state = Path(family.state_folder)
    if not (state / KEY_FILE).is_file():
        return None
    sizes = [tuple(map(int, size.split("x"))) for size in (family.video.sizes if family.video else ())]
    try:
        return Mark(key_of(state)).detect(read(file), [(width, height) for width, height in sizes])
    except (av.FFmpegError, IndexError, ValueError) as error:  # it has no video, or frames of several sizes
        raise ConfigurationError(f"{file}: {error}; a video that can be decoded is allowed; give another") from error


def _lines(file: Path, verdict: Verdict, mark: Detected | None) -> Iterator[str]:
    said = ", ".join(verdict.faults)
    yield f"{file}: {verdict.state}" + (f" ({said})" if said else "")
    for manifest in verdict.manifests:
        yield from _told(manifest)
    yield f"  watermark: {_mark(verdict, mark)}"


def _told(manifest: Manifest) -> Iterator[str]:
    when = f" at {manifest.signed_at}" if manifest.signed_at else ", without a time stamp"
    yield f"  {manifest.title or manifest.label}: {', '.join(manifest.actions)}"
    yield f"    signed by {manifest.signer}{when}; made with {manifest.generator}"
    if manifest.own:
        yield "    " + ", ".join(f"{name} {value}" for name, value in manifest.own.items())
    for each in manifest.ingredients:
        without = "" if each.manifest else ", without credentials"
        yield f"    {each.relationship}: {each.title}{without}" + "".join(f", {fault}" for fault in each.faults)


def _mark(verdict: Verdict, mark: Detected | None) -> str:
    if mark is None:
        return "not looked for"
    if mark.payload is None:
        return f"none of this key; score {mark.score:.1f}, {mark.threshold:.1f} are needed"
    jobs = {payload_of(job): job for each in verdict.manifests if (job := str(each.own.get("job_id", "")))}
    told = _whose(mark.payload, jobs, f", score {mark.score:.1f}")
    return told + "".join(f"; {_whose(other, jobs)}" for other in mark.others)


def _whose(payload: int, jobs: Mapping[int, str], more: str = "") -> str:
    return f"{payload:05x}{more}, of {jobs.get(payload, 'no job named here')}"
