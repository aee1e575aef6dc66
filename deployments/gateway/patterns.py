"""How large a regular expression becomes once its counted repetitions are written out, as engines compile it."""

import re

_ATOM = re.compile(
    r"\\[pPu]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?P<open>,(?P<most>\d*))?\}|.", re.DOTALL
)


def expanded(pattern: str) -> int:
    """Characters and classes in it, as often as they are repeated by a count. `*`, `+` and `?` repeat without cost."""
    totals, last = [0], 0  # of each open group; the last atom of the innermost, which a count repeats
    for found in _ATOM.finditer(pattern):
        token = found[0]
        if token == "(":
            totals.append(0)
            last = 0
        elif token == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        elif found["least"] is not None:
            times = max(1, int(found["most"] or 0), int(found["least"]))
            totals[-1] += last * (times - 1)
            last *= times
        elif token not in "*+?|^$":
            last = 1
            totals[-1] += 1
    return sum(totals)
