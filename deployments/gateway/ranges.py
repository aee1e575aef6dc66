"""Which bytes of a file a request asks for (RFC 9110, sections 13.1.5 and 14). Pure."""

import re

from cluster.errors import InvalidRequest

_ONE = re.compile(r"bytes=\s*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))\s*")


class RangeNotSatisfiable(InvalidRequest):
    """Its response also says how many bytes there are."""

    status = 416
    code = "invalid_range"


def asked_bytes(wanted: str | None, if_range: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """[start, end), or None for all: no range, one of another unit or form, or one of an earlier file (`if_range`).

    Raises RangeNotSatisfiable for several ranges, and for one that lies behind the end or is empty.
    """
    if wanted is None or not wanted.startswith("bytes=") or (if_range is not None and if_range != etag):
        return None
    if "," in wanted:
        raise RangeNotSatisfiable("range: several ranges; one is allowed; ask for each by itself")
    found = _ONE.fullmatch(wanted)
    if found is None:
        return None
    first, last, suffix = found.groups()
    start = max(0, size - int(suffix)) if suffix else int(first)
    end = size if suffix or not last else min(size, int(last) + 1)
    if last and int(last) < int(first):
        return None  # no valid range: to be ignored
    if start >= end:
        raise RangeNotSatisfiable(f"range: given {wanted}; the file has {size} bytes; ask for bytes before its end")
    return start, end
