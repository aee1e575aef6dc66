"""What `moray load` is asked: the command line as frozen values. Light imports only, as every command builds it."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ConfigurationError
from deployments.simulate_options import Work, above, trace, work_arguments, writable

SYNTHETIC_S = 60.0  # of made-up requests, where nothing says how long
EPILOG = """\
traces: azure:FILE, mooncake:FILE, servegen:PREFIX, as of `moray simulate`. Each request is sent at its time, whatever
became of the others, and never again. Latencies count from that time; those from the true send stand beside them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """Time to the first token and mean time per later token of one request."""

    ttft_s: float
    tpot_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """Poisson arrivals of requests that are all alike."""

    rate_rps: float
    prompt_tokens: int = 500
    output_tokens: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`work.model` is empty: what no trace names, `shares` share out. `promises`: by model, of all others by ""."""

    url: str
    key: str
    work: Work
    synthetic: Synthetic | None
    speed: float
    shares: dict[str, float]
    promises: dict[str, Promise]
    videos_per_hour: float
    silence_s: float
    as_json: bool
    records: Path | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    server = parser.add_argument_group("the server")
    server.add_argument("--url", default="http://127.0.0.1:8000", help="without /v1; default: %(default)s")
    server.add_argument("--key", default="", help="an API key")
    work = parser.add_argument_group("the work")
    work_arguments(work)
    work.add_argument(
        "--synthetic",
        metavar="RPS[:PROMPT:OUTPUT]",
        help="instead of a trace: Poisson arrivals of so many tokens each; default: 500 and 100",
    )
    work.add_argument("--speed", type=above(0.0), default=1.0, help="times as fast as the trace")
    work.add_argument(
        "--minutes", type=above(0.0), help="send for so long; instead of --duration-s, which the trace tells"
    )
    work.add_argument(
        "--models",
        metavar="NAME[=SHARE],...",
        default="",
        help="what requests ask for where their trace does not say; default: the first model that the server lists",
    )
    shown = parser.add_argument_group("the report")
    shown.add_argument(
        "--slo",
        metavar="[MODEL=]TTFT_S:TPOT_MS",
        action="append",
        default=[],
        help="the promises to judge by; may be repeated; default: what the server says of its models",
    )
    shown.add_argument(
        "--silence-s", type=above(0.0), default=120.0, help="give a request up after so long without a byte"
    )
    shown.add_argument("--json", action="store_true", help="one JSON object")
    shown.add_argument("--records", metavar="FILE.jsonl", type=Path, help="each request as one JSON line")


def options(arguments: argparse.Namespace) -> Options:
    """Raises ConfigurationError."""
    synthetic = _synthetic(arguments.synthetic) if arguments.synthetic is not None else None
    if (synthetic is None) != bool(arguments.trace) and not (synthetic is None and arguments.video):
        raise ConfigurationError(
            f"--trace: {len(arguments.trace)} given {'with' if synthetic else 'without'} --synthetic; one of both is "
            "allowed; name a trace like azure:FILE, or --synthetic RPS"
        )
    return Options(
        url=_url(arguments.url),
        key=arguments.key,
        work=Work(
            traces=tuple(trace(given) for given in arguments.trace),
            model="",
            scale=arguments.scale,
            start_s=arguments.start_s,
            duration_s=_duration_s(arguments, synthetic),
            seed=arguments.seed,
        ),
        synthetic=synthetic,
        speed=arguments.speed,
        shares=_shares(arguments.models),
        promises=dict(_promise(given) for given in arguments.slo),
        videos_per_hour=arguments.video,
        silence_s=arguments.silence_s,
        as_json=arguments.json,
        records=writable(arguments.records, "--records", ".jsonl"),
    )


def _url(given: str) -> str:
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigurationError(
            f"--url: {given!r}; http://HOST:PORT is allowed; write for example http://127.0.0.1:8000"
        )
    return given.rstrip("/").removesuffix("/v1")


def _duration_s(arguments: argparse.Namespace, synthetic: Synthetic | None) -> float | None:
    """In the trace's own time."""
    given: float | None = arguments.duration_s
    if arguments.minutes is not None:
        if given is not None:
            raise ConfigurationError(
                f"--minutes: {arguments.minutes:g} given with --duration-s; they say the same; leave one of them out"
            )
        return float(arguments.minutes * 60 * arguments.speed)
    return SYNTHETIC_S if given is None and (synthetic or not arguments.trace) else given


def _synthetic(given: str) -> Synthetic:
    rate, _, lengths = given.partition(":")
    try:
        prompt, output = (int(part) for part in lengths.split(":")) if lengths else (500, 100)
        made = Synthetic(rate_rps=float(rate), prompt_tokens=prompt, output_tokens=output)
    except ValueError:
        made = None
    if made is None or not (math.isfinite(made.rate_rps) and made.rate_rps > 0 and min(prompt, output) >= 1):
        raise ConfigurationError(
            f"--synthetic: {given!r}; a rate above 0, and both lengths in tokens or none, are allowed; write for "
            "example 5 or 5:500:100"
        )
    return made


def _shares(given: str) -> dict[str, float]:
    """Names with their shares, which sum to 1. Names without one share alike."""
    shares: dict[str, float] = {}
    for part in filter(None, given.split(",")):
        name, _, share = part.partition("=")
        value = _positive(share or "1")
        if not name or value is None or name in shares:
            raise ConfigurationError(
                f"--models: {part!r}; NAME=SHARE with a share above 0, each name once, is allowed; write for example "
                "gpt-5.2-turbo=0.6,gpt-5.2-mini=0.4"
            )
        shares[name] = value
    whole = sum(shares.values())
    return {name: share / whole for name, share in shares.items()}


def _promise(given: str) -> tuple[str, Promise]:
    model, _, promise = given.rpartition("=")
    ttft, _, tpot = promise.partition(":")
    ttft_s, tpot_ms = _positive(ttft), _positive(tpot)
    if ttft_s is None or tpot_ms is None:
        raise ConfigurationError(
            f"--slo: {given!r}; [MODEL=]TTFT_S:TPOT_MS with numbers above 0 is allowed; write for example 2:50"
        )
    return model, Promise(ttft_s=ttft_s, tpot_ms=tpot_ms)


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
