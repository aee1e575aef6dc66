"""Workloads from ServeGen's fits of real clients (github.com/alibaba/ServeGen). Sampled, never the requests themselves.

Known per client and 10-minute window: rate, and family and shape of the distribution of gaps (Gamma or Weibull); per
client: how prompt and output lengths are distributed. In a window n = rate * 600 gaps are drawn with that shape, scaled
to sum to 600 s and laid on a circle of 600 s from a uniform point: n arrivals, the stated rate exactly, and no border
of a window stands out. Each arrival then stays with probability `fraction`, which keeps the bursts. Lost are bursts
that cross windows, what ties clients together beyond their rates, and what ties an output length to its prompt's.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigurationError
from cluster.traces import TIME_S, TOKENS, Range, csv_table
from cluster.workload import MOST_COPIES, Floats, Ints, Workload

WINDOW_S = 600
HEAVIEST = 10
CLIENT = Range(low=0, high=2**31, whole=True, said="a whole number >= 0")
RATE = Range(low=0, high=1e6, said="a rate of 0 to 1,000,000 requests per second")
SHAPE = Range(low=0.006, high=1e6, said="a shape from 0.006 to 1,000,000")  # below, a Weibull gap overflows
KINDS = {"Gamma", "Weibull"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clients:
    """One entry per client and window, ordered by window, then client."""

    client: Ints
    window: Ints
    rate_rps: Floats
    shape: Floats
    weibull: NDArray[np.bool_]

    @property
    def span_s(self) -> float:
        """The end of the last window."""
        return float(WINDOW_S * (self.window[-1] + 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pdf:
    """Token counts and the cumulated probability up to and including each."""

    tokens: Ints
    cumulated: Floats

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return self.tokens[np.searchsorted(self.cumulated, rng.random(count), side="right")]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lengths:
    """Of one client. A prompt is the sum of its parts: text, image and so on, drawn independently."""

    weight: float
    prompt: tuple[Pdf, ...]
    output: Pdf


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    clients: Clients
    lengths: Mapping[int, Lengths]


def parse_clients(lines: Iterable[str], where: str) -> Clients:
    """CSV with client,ts,rate_rps,pattern,shape; ts is the window's start in seconds, pattern Gamma or Weibull."""
    table = csv_table(lines, where, (("client", "ts", "rate_rps", "pattern", "shape"),))
    client = table.floats("client", {str}, CLIENT).astype(np.int64)
    start_s = table.floats("ts", {str}, TIME_S)
    off = np.flatnonzero(start_s % WINDOW_S)
    if off.size:
        table.fault("ts", int(off[0]), f"a multiple of {WINDOW_S} s")
    window = (start_s // WINDOW_S).astype(np.int64)
    pattern = table.columns["pattern"]
    if not set(pattern) <= KINDS:
        table.fault("pattern", next(row for row, kind in enumerate(pattern) if kind not in KINDS), "Gamma or Weibull")
    rate_rps, shape = table.floats("rate_rps", {str}, RATE), table.floats("shape", {str}, SHAPE)
    order = np.lexsort((client, window))
    again = np.flatnonzero((np.diff(client[order]) == 0) & (np.diff(window[order]) == 0))
    if again.size:
        table.fault("client", int(order[again[0] + 1]), "one line per client and window")
    return Clients(
        client=client[order],
        window=window[order],
        rate_rps=rate_rps[order],
        shape=shape[order],
        weibull=(np.array(pattern) == "Weibull")[order],
    )


def parse_lengths(lines: Iterable[str], where: str) -> dict[int, Lengths]:
    """JSON: {client: {"w": mean rate, "pdf": {"input_tokens": {tokens: probability}, ..., "output_tokens": {...}}}}.

    Every field that ends in _tokens, the output apart, is a part of the prompt; other fields are not used.
    """
    try:
        given = json.loads("\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where}: not JSON: {error}; one object is allowed; fetch the file again") from error
    if not isinstance(given, dict) or not given:
        raise _fault(where, "(top)", given, "an object with at least one client")
    return {_client(where, name): _lengths(where, name, entry) for name, entry in given.items()}


def generate(
    fitted: Fitted, *, start_s: float, duration_s: float, fraction: float, seed: int, model: str = "any"
) -> Workload:
    """The requests of [start, start + duration), moved to begin at 0, at `fraction` of the rate.

    Every client and window has its own random stream, so neighbouring stretches fit together. A fraction above 1
    superposes independent draws, which smooths: dispersion averages instead of growing with the rate. A client without
    lengths takes those of the ten heaviest clients, one per request by weight. A drawn length of 0 counts as 1.
    """
    clients = fitted.clients
    if not (start_s >= 0 and duration_s > 0 and start_s + duration_s <= clients.span_s):
        raise ConfigurationError(
            f"stretch: {start_s:g} to {start_s + duration_s:g} s; 0 to {clients.span_s:g} s is allowed; "
            "give another start or duration"
        )
    if not 0 < fraction <= MOST_COPIES:
        raise ConfigurationError(
            f"fraction: {fraction:g}; more than 0, at most {MOST_COPIES:g} is allowed; give another fraction"
        )
    windows = range(int(start_s // WINDOW_S), -int(-(start_s + duration_s) // WINDOW_S))
    parts = [_window(fitted, window, fraction, seed) for window in windows]
    arrival_s = np.concatenate([part[0] for part in parts])
    first, last = np.searchsorted(arrival_s, (start_s, start_s + duration_s))
    none: Ints = np.zeros(last - first, dtype=np.int64)
    return Workload(
        arrival_s=arrival_s[first:last] - start_s,
        prompt_tokens=np.maximum(1, np.concatenate([part[1] for part in parts])[first:last]),
        output_tokens=np.maximum(1, np.concatenate([part[2] for part in parts])[first:last]),
        model=none,
        tenant=none,
        models=(model,),
    )


Columns = tuple[Floats, Ints, Ints]  # arrival_s, prompt_tokens, output_tokens


def _window(fitted: Fitted, window: int, fraction: float, seed: int) -> Columns:
    """All requests of one window, in order."""
    clients = fitted.clients
    heaviest = sorted(fitted.lengths.values(), key=lambda lengths: lengths.weight, reverse=True)[:HEAVIEST]
    first, last = np.searchsorted(clients.window, (window, window + 1))
    parts: list[Columns] = [(np.empty(0), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))]
    for row in range(first, last):
        client = int(clients.client[row])
        own = fitted.lengths.get(client)
        for copy, keep in _copies(fraction):
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(client, window, copy))))
            arrival_s = _arrivals(clients, row, rng)
            arrival_s = arrival_s[rng.random(len(arrival_s)) < keep]
            prompt, output = _drawn(rng, (own,) if own else tuple(heaviest), len(arrival_s))
            parts.append((arrival_s, prompt, output))
    arrival_s = window * WINDOW_S + np.concatenate([part[0] for part in parts])
    order = np.argsort(arrival_s, kind="stable")
    prompts, outputs = (np.concatenate([part[column] for part in parts])[order] for column in (1, 2))
    return arrival_s[order], prompts, outputs


def _copies(fraction: float) -> Iterator[tuple[int, float]]:
    """Copies and the probability with which an arrival of each stays: whole ones, then the remainder."""
    whole = int(fraction)
    yield from ((copy, 1.0) for copy in range(whole))
    if fraction > whole:
        yield whole, fraction - whole


def _arrivals(clients: Clients, row: int, rng: np.random.Generator) -> Floats:
    """Of one client in one window, within [0, 600). An expected count with a fraction is rounded by chance."""
    count = int(clients.rate_rps[row] * WINDOW_S + rng.random())
    draw = rng.weibull if clients.weibull[row] else rng.standard_gamma
    gaps: Floats = draw(clients.shape[row], count)
    total = max(float(gaps.sum()), sys.float_info.min)  # gaps of a very small shape may all be 0
    return (rng.random() + np.cumsum(gaps) / total) % 1.0 * WINDOW_S


def _drawn(rng: np.random.Generator, choices: tuple[Lengths, ...], count: int) -> tuple[Ints, Ints]:
    """Prompt and output lengths, each request's from one of the choices, by weight."""
    weights = np.array([lengths.weight for lengths in choices])
    chosen = rng.choice(len(choices), count, p=weights / weights.sum())
    prompt: Ints = np.zeros(count, dtype=np.int64)
    output: Ints = np.zeros(count, dtype=np.int64)
    for index, lengths in enumerate(choices):
        mine = np.flatnonzero(chosen == index)
        prompt[mine] = sum(pdf.draw(rng, len(mine)) for pdf in lengths.prompt)
        output[mine] = lengths.output.draw(rng, len(mine))
    return prompt, output


def _client(where: str, name: str) -> int:
    if not (name.isascii() and name.isdigit()):
        raise _fault(where, "(top)", name, "a client's whole number")
    return int(name)


def _lengths(where: str, name: str, entry: Any) -> Lengths:
    if not isinstance(entry, dict) or not isinstance(entry.get("pdf"), dict):
        raise _fault(where, name, entry, "an object with w and pdf")
    weight, pdf = entry.get("w"), entry["pdf"]
    if not (isinstance(weight, int | float) and 0 < weight <= RATE.high):
        raise _fault(where, f"{name}.w", weight, "a rate above 0")
    prompt = [field for field in pdf if field.endswith("_tokens") and field != "output_tokens"]
    if not prompt or "output_tokens" not in pdf:
        raise _fault(where, f"{name}.pdf", list(pdf), "output_tokens and input_tokens, or parts of a prompt, ")
    return Lengths(
        weight=weight,
        prompt=tuple(_pdf(where, f"{name}.pdf.{field}", pdf[field]) for field in prompt),
        output=_pdf(where, f"{name}.pdf.output_tokens", pdf["output_tokens"]),
    )


def _pdf(where: str, path: str, given: Any) -> Pdf:
    """The published probabilities are rounded: their sum may be off by a hundredth, and is mended."""
    if not isinstance(given, dict):
        raise _fault(where, path, given, "an object of token counts and probabilities")
    for tokens, share in given.items():
        if not (tokens.isascii() and tokens.isdigit() and len(tokens) <= 8 and int(tokens) <= TOKENS.high):
            raise _fault(where, path, tokens, "a token count from 0 to 10,000,000")
        if not (type(share) in (int, float) and 0 <= share <= 1):
            raise _fault(where, f"{path}.{tokens}", share, "a probability from 0 to 1")
    cumulated = np.cumsum(list(given.values()), dtype=np.float64)
    total = float(cumulated[-1]) if given else 0.0
    if abs(total - 1) > 0.01:
        raise _fault(where, path, f"a sum of {total:g}", "a sum of 1, give or take 0.01,")
    return Pdf(tokens=np.array(list(map(int, given)), dtype=np.int64), cumulated=cumulated / total)


def _fault(where: str, path: str, given: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(f"{where}: {path}: {repr(given)[:60]}; {allowed} is allowed; correct the entry")
