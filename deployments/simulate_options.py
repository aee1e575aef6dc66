"""What `moray simulate` is asked: the command line as frozen values, checked before anything is read or run."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from cluster.errors import ConfigurationError
from cluster.family import Family
from deployments.contenders import Contender, contender, contenders

Format = Literal["azure", "mooncake", "servegen"]

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """`model`: what its requests ask for, None where --tier says it."""

    format: Format
    path: str
    model: str | None = None

    def name(self, otherwise: str, *, short: bool = False) -> str:
        return f"{self.model or otherwise}={self.format}:{Path(self.path).name if short else self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What arrives. `model`: what requests ask where their trace does not say."""

    traces: tuple[Trace, ...]
    model: str
    scale: float
    start_s: float
    duration_s: float | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Work):
    """`gpus` None: as many as the policy asks for."""

    video_jobs_per_hour: float
    contenders: tuple[Contender, ...]
    cold_start_s: float | None
    gpus: int | Literal["family"] | None
    initial: int | None
    as_json: bool
    plot: Path | None
    log: Path | None


def options(arguments: argparse.Namespace, family: Family) -> Options:
    """Raises ConfigurationError where a name is unknown, a combination is impossible or a folder is not there."""
    if not arguments.trace and not arguments.video:
        raise ConfigurationError(
            "--trace: none given; azure:FILE, mooncake:FILE, servegen:PREFIX are allowed; name one, or --video jobs"
        )
    contenders = _contenders(arguments)
    if arguments.video and family.video is None:
        raise ConfigurationError(f"--video: {family.name} has no video model; leave --video out")
    if arguments.log and len(contenders) > 1:
        raise ConfigurationError("--log: given with --compare; one policy is allowed; log each policy in its own run")
    return Options(
        traces=tuple(_named(trace(given), family) for given in arguments.trace),
        model=_model(
            arguments.tier or ("pro" if "pro" in family.tiers else next(iter(family.tiers))), family, "--tier"
        ),
        video_jobs_per_hour=arguments.video,
        contenders=contenders,
        scale=arguments.scale,
        start_s=arguments.start_s,
        duration_s=arguments.duration_s,
        cold_start_s=arguments.cold_start_s,
        seed=arguments.seed,
        gpus=arguments.gpus,
        initial=arguments.initial,
        as_json=arguments.json,
        plot=writable(arguments.plot, "--plot", ".png"),
        log=writable(arguments.log, "--log", ".jsonl"),
    )


def trace(given: str) -> Trace:
    """[TIER=]FORMAT:PATH, its tier as given. Raises ConfigurationError."""
    head, colon, path = given.partition(":")
    model, equals, kind = head.rpartition("=")
    if not colon or not path or kind not in get_args(Format) or (equals and not model):
        raise ConfigurationError(
            f"--trace: {given!r}; [TIER=]FORMAT:PATH with a format of {', '.join(get_args(Format))} is allowed; "
            "write for example azure:requests.csv"
        )
    return Trace(format=cast(Format, kind), path=path, model=model or None)


def _named(trace: Trace, family: Family) -> Trace:
    return replace(trace, model=_model(trace.model, family, "--trace")) if trace.model else trace


def _model(name: str, family: Family, where: str) -> str:
    """What requests ask: a tier, a model name that the family serves, or its name for automatic tier choice."""
    automatic = family.auto.names if family.auto else ()
    if name == AUTO and automatic:
        return automatic[0]
    if name in family.tiers or name in automatic or family.tier_of(name) is not None:
        return name
    allowed = ", ".join((*family.tiers, *((AUTO,) if automatic else ())))
    raise ConfigurationError(f"{where}: {name!r}; {allowed} are allowed with family {family.name}; choose one")


def _contenders(arguments: argparse.Namespace) -> tuple[Contender, ...]:
    if arguments.compare is None:
        return (contender(arguments.policy, arguments.router, arguments.settings, "--set"),)
    if arguments.settings:
        raise ConfigurationError(
            "--set: given with --compare; settings stand behind their policy there; write for example moray/name=value"
        )
    return contenders(arguments.compare, arguments.router, "--compare")


def writable(file: Path | None, where: str, suffix: str) -> Path | None:
    """Checked before a run of minutes, not after it."""
    if file is None:
        return None
    if file.suffix != suffix:
        raise ConfigurationError(f"{where}: {file}; a file name that ends in {suffix} is allowed; change the name")
    if file.is_dir():
        raise ConfigurationError(f"{where}: {file} is a folder; a file is allowed; change the name")
    if not file.parent.is_dir():
        raise ConfigurationError(f"{where}: {file}; a file in a folder that exists is allowed; make {file.parent}")
    return file
