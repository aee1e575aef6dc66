"""`control.json` in the state folder: which family is served, and how many times it has changed.

It outlives the control loop's process, not the Ray cluster: a new one serves the family that it is given. The version
grows over all of them.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.family import Family

FILE = "control.json"
log = logging.getLogger("moray.control")


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid")
    session: str
    version: int
    family: Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """`again`: the Ray cluster is the one of before, so what was decided in it still holds."""

    version: int
    family: Family
    again: bool


def served(folder: Path, session: str, given: Family) -> Served:
    """What a control loop that starts serves. Raises OSError."""
    kept = _read(folder / FILE)
    if kept is not None and kept.session == session:
        return Served(version=kept.version, family=kept.family, again=True)
    version = 1 if kept is None else kept.version + 1
    keep(folder, session, version, given)
    return Served(version=version, family=given, again=False)


def keep(folder: Path, session: str, version: int, family: Family) -> None:
    """Whole or not at all. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.new"
    draft.write_text(json.dumps({"session": session, "version": version, "family": family.model_dump(mode="json")}))
    draft.replace(folder / FILE)


def _read(file: Path) -> _Kept | None:
    """None where there is none that can be read, as after a change of its format."""
    try:
        return _Kept.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        log.warning("%s: %s; the family given is served", file, error)
        return None
