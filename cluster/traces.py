"""Public traces as workloads: Azure's CSV and Mooncake's JSON lines. Nothing is dropped or clamped silently.

A row with 0 tokens is refused, as is any other fault: `file:line: field: given; allowed; mend`. The public files that
were looked at (Azure code 2023, Mooncake synthetic) hold none. Times are kept as given, except that ISO timestamps
become seconds since the first row. Columns are converted as a whole; the line of a fault is looked for only then.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Never

import numpy as np

from cluster.errors import ConfigurationError
from cluster.workload import Floats, Ints, Workload

BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What a field may be; `said` in words, for the message."""

    low: float
    high: float
    said: str
    whole: bool = False


TOKENS = Range(low=1, high=10_000_000, whole=True, said="a whole number from 1 to 10,000,000")
TIME_S = Range(low=0, high=10 * 365.25 * 86_400, said="a number of seconds from 0 to ten years")
TIME_MS = Range(low=0, high=TIME_S.high * 1000, said="a number of milliseconds from 0 to ten years")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The columns of a file as it gave them, and where they came from. Row 0 is line `first_line`."""

    where: str
    first_line: int
    columns: Mapping[str, Sequence[Any]]

    def floats(self, field: str, kinds: set[type], allowed: Range) -> Floats:
        """The column as numbers within the range; `kinds`: what the format writes a number as."""
        given = self.columns[field]
        try:
            values = np.array(list(map(float, given)), dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            self.fault(field, next(row for row, value in enumerate(given) if not _number(value)), allowed.said)
        if not set(map(type, given)) <= kinds:
            self.fault(field, next(row for row, value in enumerate(given) if type(value) not in kinds), allowed.said)
        good = (values >= allowed.low) & (values <= allowed.high)
        if allowed.whole:
            good &= values == np.floor(values)
        if not good.all():
            self.fault(field, int(np.argmin(good)), allowed.said)
        return values

    def ordered(self, field: str, values: Floats) -> Floats:
        falls = np.flatnonzero(np.diff(values) < 0)
        if falls.size:
            self.fault(field, int(falls[0]) + 1, "a time not before that of the line above", "sort the file by time")
        return values

    def fault(self, field: str, row: int, allowed: str, mend: str = "correct or drop the line") -> Never:
        given = f"{self.columns[field][row]!r}"
        shown = given if len(given) <= 60 else f"{given[:57]}..."
        raise ConfigurationError(
            f"{self.where}:{self.first_line + row}: {field}: {shown}; {allowed} is allowed; {mend}"
        )


def csv_table(lines: Iterable[str], where: str, wanted: Sequence[Sequence[str]]) -> Table:
    """A CSV file with a header that holds all of one of the sets of `wanted` columns; others are ignored."""
    rows = _rows(lines, where)
    header = [name.strip() for name in rows[0].split(",")]
    if not any(set(names) <= set(header) for names in wanted):
        allowed = " or ".join(",".join(names) for names in wanted)
        raise ConfigurationError(f"{where}:1: header: {rows[0].strip()[:80]!r}; {allowed} is allowed; name the columns")
    if len(rows) == 1:
        raise ConfigurationError(f"{where}:2: nothing after the header; at least one row is needed; give a full file")
    body, width = rows[1:], len(header)
    fields = [row.count(",") + 1 for row in body]
    if set(fields) != {width}:
        row = next(row for row, count in enumerate(fields) if count != width)
        raise ConfigurationError(
            f"{where}:{row + 2}: {fields[row]} fields; the {width} of the header are allowed; correct or drop the line"
        )
    cells = ",".join(body).split(",")  # one flat list: a list per row would keep the garbage collector busy
    return Table(where=where, first_line=2, columns={name: cells[at::width] for at, name in enumerate(header)})


def parse_azure(lines: Iterable[str], where: str, *, model: str = "any", tenant: str = "default") -> Workload:
    """CSV with t_s,input_tokens,output_tokens, or as published with TIMESTAMP,ContextTokens,GeneratedTokens."""
    plain, published = ("t_s", "input_tokens", "output_tokens"), ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    table = csv_table(lines, where, (plain, published))
    if set(plain) <= set(table.columns):
        time, prompt, output = plain
        arrival_s = table.floats(time, {str}, TIME_S)
    else:
        time, prompt, output = published
        arrival_s = _since_first_s(table, time)
    return _workload(table, table.ordered(time, arrival_s), (prompt, output), {str}, (model, tenant))


def parse_mooncake(lines: Iterable[str], where: str, *, model: str = "any", tenant: str = "default") -> Workload:
    """JSON lines with timestamp (ms), input_length, output_length, hash_ids: one per block of 512 prompt tokens.

    The last, partly filled block may have a hash or none.
    """
    table = _json_table(lines, where, ("timestamp", "input_length", "output_length", "hash_ids"))
    numbers: set[type] = {int, float}
    arrival_s = table.ordered("timestamp", table.floats("timestamp", numbers, TIME_MS)) / 1000
    workload = _workload(table, arrival_s, ("input_length", "output_length"), numbers, (model, tenant))
    return _with_blocks(workload, table)


def _with_blocks(workload: Workload, table: Table) -> Workload:
    given = table.columns["hash_ids"]
    if set(map(type, given)) != {list} or not set(map(type, chain.from_iterable(given))) <= {int}:
        row = next(row for row, ids in enumerate(given) if type(ids) is not list or not set(map(type, ids)) <= {int})
        table.fault("hash_ids", row, "a list of whole numbers")
    count = np.array(list(map(len, given)), dtype=np.int64)
    full = workload.prompt_tokens // BLOCK_TOKENS
    begun = -(-workload.prompt_tokens // BLOCK_TOKENS)
    bad = np.flatnonzero((count < full) | (count > begun))
    if bad.size:
        row = int(bad[0])
        raise ConfigurationError(
            f"{table.where}:{table.first_line + row}: hash_ids: {count[row]} for {workload.prompt_tokens[row]} tokens; "
            f"{full[row]} to {begun[row]} are allowed, one per {BLOCK_TOKENS} tokens; correct or drop the line"
        )
    return replace(workload, blocks=tuple(map(tuple, given)), block_tokens=BLOCK_TOKENS)


def _workload(
    table: Table, arrival_s: Floats, lengths: tuple[str, str], kinds: set[type], names: tuple[str, str]
) -> Workload:
    prompt, output = (table.floats(field, kinds, TOKENS).astype(np.int64) for field in lengths)
    none: Ints = np.zeros(len(arrival_s), dtype=np.int64)
    model, tenant = names
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        model=none,
        tenant=none,
        models=(model,),
        tenants=(tenant,),
    )


def _rows(lines: Iterable[str], where: str) -> list[str]:
    """Blank lines at the end are no rows; elsewhere they are a fault like any other."""
    rows = list(lines)
    while rows and not rows[-1].strip():
        rows.pop()
    if not rows:
        raise ConfigurationError(f"{where}: empty; a trace with at least one request is needed; give a full file")
    return rows


def _json_table(lines: Iterable[str], where: str, fields: Sequence[str]) -> Table:
    columns: dict[str, list[Any]] = {field: [] for field in fields}
    for number, line in enumerate(_rows(lines, where), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{where}:{number}: not JSON: {error}; one object per line is allowed; correct or drop the line"
            ) from error
        if type(record) is not dict or not record.keys() >= columns.keys():
            lacking = ", ".join(field for field in fields if type(record) is not dict or field not in record)
            raise ConfigurationError(
                f"{where}:{number}: {lacking}: missing; an object with {', '.join(fields)} is allowed; add it"
            )
        for field, column in columns.items():
            column.append(record[field])
    return Table(where=where, first_line=1, columns=columns)


def _since_first_s(table: Table, field: str) -> Floats:
    moments = [_parsed(text) for text in table.columns[field]]
    if None in moments:
        table.fault(field, moments.index(None), "an ISO 8601 time")
    found = [moment for moment in moments if moment is not None]
    since = np.array([(moment - found[0]).total_seconds() for moment in found])
    if since.max() > TIME_S.high:
        table.fault(field, int(np.argmax(since > TIME_S.high)), "a time within ten years of the first")
    return since


def _parsed(text: str) -> datetime | None:
    """A time without zone counts as UTC; fractions beyond a microsecond are cut."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True
