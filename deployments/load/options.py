"""What `moray load` is asked: the command line as frozen values."""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.errors import ConfigurationError
from deployments.load import keys as keyring
from deployments.simulate_options import Work, trace, writable

if TYPE_CHECKING:
    from deployments.load.scenario import Scenario

SYNTHETIC_S = 60.0  # of made-up requests, where nothing says how long


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
    """`work.model` is empty: what no trace names, `shares` share out. `promises`: by model, of all others by "".

    `keys`, `tenants`: secrets and shares by tenant. `names`: the server's, by those of the work. `commands`: by action.
    """

    url: str
    keys: dict[str, str]
    tenants: dict[str, float]
    work: Work
    synthetic: Synthetic | None
    scenario: "Scenario | None"
    commands: dict[str, str]
    speed: float
    warm_up_s: float
    shares: dict[str, float]
    names: dict[str, str]
    body: dict[str, Any]
    promises: dict[str, Promise]
    videos_per_hour: float
    video_wait_s: float
    silence_s: float
    as_json: bool
    records: Path | None
    html: Path | None


def options(arguments: argparse.Namespace) -> Options:
    """Raises ConfigurationError."""
    from deployments.load.actions import commands  # with numpy, which other commands need not wait for
    from deployments.load.scenario import read

    scenario = read(arguments.scenario) if arguments.scenario is not None else None
    synthetic = _synthetic(arguments.synthetic) if arguments.synthetic is not None else None
    _one_source(arguments)
    keys = keyring.keys(arguments.key)
    shares = _shares(arguments.tenants, "--tenants") or (scenario.tenants if scenario else {})
    warm_up_s = arguments.warm_up_s
    if warm_up_s is None:
        warm_up_s = scenario.warm_up_s / arguments.speed if scenario else 0.0
    return Options(
        url=_url(arguments.url),
        keys=keys,
        tenants=keyring.tenants(keys, shares),
        work=Work(
            traces=tuple(trace(given) for given in arguments.trace),
            model="",
            scale=arguments.scale,
            start_s=arguments.start_s,
            duration_s=_duration_s(arguments, synthetic),
            seed=arguments.seed if arguments.seed is not None else scenario.seed if scenario is not None else 0,
        ),
        synthetic=synthetic,
        scenario=scenario,
        commands=commands(arguments.on, scenario.actions if scenario else ()),
        speed=arguments.speed,
        warm_up_s=warm_up_s,
        shares=_shares(arguments.models, "--models"),
        names=_names(arguments.map),
        body=_body(arguments.body),
        promises=dict(_promise(given) for given in arguments.slo),
        videos_per_hour=arguments.video,
        video_wait_s=arguments.video_wait_s,
        silence_s=arguments.silence_s,
        as_json=arguments.json,
        records=writable(arguments.records, "--records", ".jsonl"),
        html=writable(arguments.html, "--html", ".html"),
    )


def _one_source(arguments: argparse.Namespace) -> None:
    given = [name for name in ("trace", "synthetic", "scenario") if getattr(arguments, name)]
    if len(given) > 1 or not (given or arguments.video):
        named = " and ".join(f"--{name}" for name in given) or "nothing"
        raise ConfigurationError(
            f"--trace: {named} given; one of --trace, --synthetic and --scenario is allowed; name a trace like "
            "azure:FILE, or --synthetic RPS"
        )
    if arguments.scenario is not None and (arguments.video or arguments.start_s):
        raise ConfigurationError(
            "--scenario: given with --video or --start-s; the file says what is sent when; drop them or edit the file"
        )


def _names(given: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, given.split(",")):
        name, _, model = part.partition("=")
        if not name or not model or name in found:
            raise ConfigurationError(
                f"--map: {part!r}; NAME=MODEL, each name once, is allowed; write for example turbo=my-model"
            )
        found[name] = model
    return found


def _body(given: str) -> dict[str, Any]:
    try:
        found = json.loads(given)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.keys() & {"model", "messages", "stream", "stream_options", "max_tokens"}:
        raise ConfigurationError(
            f"--body: {given[:60]!r}; a JSON object without model, messages, stream, stream_options and max_tokens is "
            "allowed; mend it"
        )
    return found


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
    if given is None and arguments.scenario is None and (synthetic or not arguments.trace):
        return SYNTHETIC_S
    return given


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


def _shares(given: str, where: str) -> dict[str, float]:
    """Names with their shares, which sum to 1. Names without one share alike."""
    shares: dict[str, float] = {}
    for part in filter(None, given.split(",")):
        name, _, share = part.partition("=")
        value = _positive(share or "1")
        if not name or value is None or name in shares:
            raise ConfigurationError(
                f"{where}: {part!r}; NAME=SHARE with a share above 0, each name once, is allowed; write for example "
                "one=0.6,other=0.4"
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
