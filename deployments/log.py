"""One line of a log with fields: readable as text, and where the family's logs are JSON, each field a member."""

import json
import logging
import re
from typing import Any

_BARE = re.compile(r"[!#-<>-~]+")  # printable ASCII, but for the quote and =


def event(log: logging.Logger, level: int, what: str, /, **fields: Any) -> None:
    """`what key=value ...`. Field names are none of those that logging gives each record."""
    if log.isEnabledFor(level):
        words = (f"{key}={_value(value)}" for key, value in fields.items())
        log.log(level, "%s", " ".join((what, *words)), extra=fields, stacklevel=2)


def _value(value: Any) -> str:
    """A word as it is, anything else as JSON in ASCII: no client can write a field, a line or a control code."""
    text = str(value)
    return text if isinstance(value, int | float) or _BARE.fullmatch(text) else json.dumps(value)
