"""Where the family that is served comes from, to be read again when it was edited."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.family import Family


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`load`: the family in `file` with what the command line says. Raises ConfigurationError."""

    file: Path
    load: Callable[[], Family]
