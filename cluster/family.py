"""The family file: one YAML file says what is served, on what, at which promise and price. One `load()`.

Every model here is closed (`extra="forbid"`): a misspelt key fails at once, with file, path, value and what is allowed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError, model_validator

from cluster.access import Sharing
from cluster.checkpoint import GIB, Shape, faults, shape
from cluster.engines import Closed
from cluster.errors import CheckpointError, ConfigurationError
from cluster.moderation import Moderation
from cluster.plans import LimitStore, Plan, ServiceClasses, unmet
from cluster.request import Effort
from cluster.strict_yaml import mapping
from cluster.tier import ColdStart, Name, Price, Replicas, Slo, Specialist, StepCost, Tier
from cluster.video import Video, VideoCost, VideoPrice, VideoSlo, taken_by

__all__ = [
    "BUNDLED",
    "Accounts",
    "Auto",
    "Cell",
    "ColdStart",
    "Control",
    "Family",
    "Gateway",
    "LimitStore",
    "Plan",
    "Price",
    "Replicas",
    "Slo",
    "Specialist",
    "StepCost",
    "Tier",
    "Tracing",
    "Video",
    "VideoCost",
    "VideoPrice",
    "VideoSlo",
    "load",
    "located",
    "parse",
]

BUNDLED = Path(__file__).parent / "families"
# A cell's name becomes the value of a node label, which Ray and Kubernetes hold to 63 characters; room for "-<index>".
CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=57)]
Phrase = Annotated[str, Field(pattern=r"^\S.+\S$", max_length=256)]


class Cell(Closed):
    """A node or NVLink domain, `count` of them alike. On accelerator cpu a "GPU" is a slot for one rank's process.

    Where the memory of one GPU is given, a tier that cannot fit into it is refused.
    """

    name: CellName
    count: int = Field(default=1, ge=1, le=100_000)
    gpus: PositiveInt
    gpu_memory_gib: PositiveFloat | None = None

    @property
    def instances(self) -> tuple[str, ...]:
        """The names of the single cells: the name itself, or name-0, name-1, ... where there are several."""
        return (self.name,) if self.count == 1 else tuple(f"{self.name}-{index}" for index in range(self.count))


class Gateway(Closed):
    """`tokens` pushed: replicas push frames over one link per gateway; streamed: items of the handle's stream.

    A replica with more than `coalesce_above_streams` open streams sends what gathers in `coalesce_ms` as one write.
    `database` and `files`, as those of video, keep what /v1/files, responses, conversations and batches keep.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: PositiveInt = 1
    max_body_bytes: PositiveInt = 1_048_576
    max_file_bytes: PositiveInt = 512 * 1024 * 1024
    files: Annotated[str, Field(pattern=r"^[a-z0-9]+://.+")] | None = None
    database: Annotated[str, Field(pattern=r"^postgres(ql)?://[^:@]+(@.+)?$")] | None = None
    tokens: Literal["pushed", "streamed"] = "pushed"
    coalesce_ms: NonNegativeFloat = 20.0
    coalesce_above_streams: int = Field(default=8, ge=0)
    moderation: Moderation | None = None


class Tracing(Closed):
    """Spans go to `otlp_url`, a collector's OTLP over HTTP. A caller's `traceparent` decides before `sample_ratio`."""

    otlp_url: Annotated[str, Field(pattern=r"^https?://[^/]+/.+")]
    sample_ratio: float = Field(default=0.01, ge=0, le=1)


class Control(Closed):
    """The control loop. Without `prometheus_url` it scrapes the replicas itself.

    Every decision is a line of `decisions.jsonl` in the state folder; beyond `record_mib` the file is moved to
    `decisions.1.jsonl`, whose older lines are lost.
    """

    prometheus_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    record_mib: PositiveFloat = 64.0


class Accounts(Closed):
    """Where keys, the log of who changed them, and usage are kept.

    `database`: a PostgreSQL URL without a password, which comes from the file that PGPASSFILE names, for gateways on
    several machines; SQLite in the state folder where there is none. `prefix_cache`: who may use the cached prefixes of
    whom: no key those of another, those of its project, or those of all.
    """

    database: Annotated[str, Field(pattern=r"^postgres(ql)?://[^:@]+(@.+)?$")] | None = None
    prefix_cache: Sharing = "key"


class Auto(Closed):
    """Names that ask for no tier: a hint to a specialist names the tier, otherwise the default.

    Prompts of `long_prompt_tokens` and more lift the choice to `long` at least, tools to `tools`. No tier reasons apart
    from its answer, so more `reasoning_effort` is a better tier: that of the highest of `efforts` up to the one asked.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    default: Name
    long: Name
    long_prompt_tokens: PositiveInt
    tools: Name | None = None
    hints: dict[Specialist, Name] = Field(default={})
    efforts: dict[Effort, Name] = Field(default={})
    price: Price | None = None

    def named(self) -> Iterator[tuple[str, str]]:
        """Each tier that a rule names, after the rule's path."""
        yield "default", self.default
        yield "long", self.long
        if self.tools is not None:
            yield "tools", self.tools
        for specialist, tier in self.hints.items():
            yield f"hints.{specialist}", tier
        for effort, tier in self.efforts.items():
            yield f"efforts.{effort}", tier


class Family(Closed):
    """`personas`: phrases of system messages by which a request's domain is told, as cluster.domains says."""

    name: Name
    accelerator: Literal["cpu", "cuda"]
    gpu_budget_gpus: PositiveInt
    gpu_usd_per_hour: NonNegativeFloat = 0.0
    state_folder: str = ".moray"
    gateway: Gateway = Gateway()
    control: Control = Control()
    tracing: Tracing | None = None
    logs: Literal["text", "json"] = "text"
    cells: tuple[Cell, ...] = Field(min_length=1)
    tiers: dict[Name, Tier] = Field(min_length=1)
    video: Video | None = None
    plans: dict[Name, Plan] = Field(default={})
    service_classes: ServiceClasses = ServiceClasses()
    limits: LimitStore = LimitStore()
    accounts: Accounts = Accounts()
    auto: Auto | None = None
    personas: dict[Specialist, tuple[Phrase, ...]] = Field(default={})

    @model_validator(mode="after")
    def distinct_cells(self) -> Self:
        seen: set[str] = set()
        for name in (name for cell in self.cells for name in cell.instances):
            if name in seen:
                raise ValueError(f"two cells are called {name!r}; give each kind of cell its own name")
            seen.add(name)
        return self

    @model_validator(mode="after")
    def coherent(self) -> Self:
        seen: dict[str, str] = {}
        for owner, names in self._names():
            for name in names:
                if name in seen:
                    raise ValueError(f"the name {name!r} is claimed by both {seen[name]} and {owner}; keep one")
                seen[name] = owner
        for key in ("video", "gateway"):
            if key in self.tiers:
                raise ValueError(f"a tier is called {key!r}, as another part of every family is; give it another name")
        if self.video and self.video.beside and self.video.beside not in self.tiers:
            raise ValueError(f"video.beside is {self.video.beside!r}; tiers are {', '.join(self.tiers)}")
        if self.video and self.gateway.replicas > 1 and not (self.video.database and self.video.files):
            raise ValueError(
                f"gateway.replicas is {self.gateway.replicas}; 1 is allowed while the jobs and files of videos are in "
                "the state folder of one machine; set it to 1, or name video.database and video.files"
            )
        return self

    @model_validator(mode="after")
    def shared_objects(self) -> Self:
        gateway, machines = self.gateway, sum(cell.count for cell in self.cells)
        if gateway.replicas > 1 and machines > 1 and not (gateway.database and gateway.files):
            raise ValueError(
                f"gateway.replicas is {gateway.replicas} on {machines} cells; 1 is allowed while files, responses, "
                "conversations and batches are in the state folder of one machine; set it to 1, or name "
                "gateway.database and gateway.files"
            )
        return self

    @model_validator(mode="after")
    def known_tiers(self) -> Self:
        named = [(f"plans.{key}.tiers", tier) for key, plan in self.plans.items() for tier in plan.tiers]
        if self.auto:
            named += [(f"auto.{rule}", tier) for rule, tier in self.auto.named()]
        for path, tier in named:
            if tier not in self.tiers:
                raise ValueError(f"{path} names {tier!r}; tiers are {', '.join(self.tiers)}; name one of them")
        return self

    @model_validator(mode="after")
    def sound_limits(self) -> Self:
        contexts = {key: tier.context_tokens for key, tier in self.tiers.items()}
        for key, plan in self.plans.items():
            if fault := unmet(plan, contexts, self.video.seconds if self.video else ()):
                raise ValueError(f"plans.{key}.{fault}")
        machines = sum(cell.count for cell in self.cells)
        limited = [key for key, plan in self.plans.items() if plan.limits]
        if limited and self.gateway.replicas > 1 and machines > 1 and self.limits.kind == "sqlite":
            raise ValueError(
                f"gateway.replicas is {self.gateway.replicas} on {machines} cells; 1 is allowed while the limits of "
                f"plan {limited[0]!r} are counted in the state folder of one machine; set it to 1, or name limits.store"
            )
        return self

    @model_validator(mode="after")
    def deferrable_by_name_alone(self) -> Self:
        named = [(f"plans.{key}.floor", plan.floor) for key, plan in self.plans.items() if plan.floor]
        if self.auto:
            named += [(f"auto.{rule}", tier) for rule, tier in self.auto.named()]
        for path, key in named:
            if self.tiers[key].deferrable:
                raise ValueError(
                    f"{path} names {key!r}, which is deferrable and serves only who names it; name another tier"
                )
        return self

    @model_validator(mode="after")
    def effective_auto(self) -> Self:
        auto = self.auto
        if auto is None:
            return self
        for specialist, key in auto.hints.items():
            if specialist not in self.tiers[key].specialists:
                raise ValueError(
                    f"auto.hints.{specialist} names {key!r}, which has no such specialist; name a tier that has it"
                )
        efforts = ((f"efforts.{effort}", key) for effort, key in auto.efforts.items())
        for rule, key in (("long", auto.long), ("tools", auto.tools or auto.default), *efforts):
            if self.tiers[key].quality < self.tiers[auto.default].quality:
                raise ValueError(
                    f"auto.{rule} names {key!r}, which is below auto.default {auto.default!r} in quality and would "
                    "never be chosen; name a tier at or above the default"
                )
        return self

    def _names(self) -> list[tuple[str, tuple[str, ...]]]:
        owners = [(f"tiers.{key}", tier.names) for key, tier in self.tiers.items()]
        parts = (("video", self.video), ("auto", self.auto))
        return owners + [(key, part.names) for key, part in parts if part]

    def tier_of(self, model: str) -> str | None:
        """The tier that answers to a model name, None where no tier does."""
        return next((key for key, tier in self.tiers.items() if model in tier.names), None)

    def gpu_bytes(self, tier: Tier) -> int | None:
        """The least memory of a GPU that its group may be given: cells are chosen by their number of GPUs alone."""
        whole = [cell for cell in self.cells if cell.gpus >= tier.ranks] or self.cells
        stated = [cell.gpu_memory_gib for cell in whole if cell.gpu_memory_gib is not None]
        return int(min(stated) * GIB) if stated else None


def parse(text: str, where: str) -> Family:
    """The family in a YAML text. Raises ConfigurationError with every fault, each as `where: path: given; mend`."""
    raw = mapping(text, where, "laptop.yaml")
    try:
        return Family.model_validate(raw)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_fault(where, fault) for fault in error.errors())) from error


def _fault(where: str, fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "(top)"
    given = fault["input"]
    shown = "" if isinstance(given, dict) else f" {given!r};"
    return f"{where}: {path}:{shown} {fault['msg'].removeprefix('Value error, ')}"


def located(path: str | Path) -> Path:
    """The file that is meant: a bare name is a family that ships."""
    file = Path(path)
    return BUNDLED / f"{path}.yaml" if len(file.parts) == 1 and not file.suffix else file


def load(path: str | Path, *, serving: bool = True) -> Family:
    """The family in a file. A bare name (`laptop`, `h200`) is one that ships. Checkpoints become absolute paths.

    Raises ConfigurationError where the file is missing or wrong, or asks for what a checkpoint that is here cannot do.
    Without `serving` no checkpoint is read: a damaged one must not keep anybody from revoking a key.
    """
    file = located(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.yaml")))
        raise ConfigurationError(f"{file}: {error}; give a family file, or one that ships: {shipped}") from error
    family = _anchored(parse(text, str(file)), file.resolve().parent)
    found = [
        f"{file}: tiers.{key}.{fault}" for key, tier in family.tiers.items() for fault in _unfit(family, tier, serving)
    ]
    found += [f"{file}: video.{fault}" for fault in (_unshared(family.video) if serving else ())]
    if found:
        raise ConfigurationError("\n".join(found))
    return family


def _unshared(video: Video | None) -> tuple[str, ...]:
    """Ranks for a pipeline that is here and has no steps to share. One that cannot be read is its replica's to tell."""
    if video is None or video.engine == "simulated" or video.acceleration.context_parallel == 1:
        return ()
    try:
        index = json.loads((Path(video.checkpoint) / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ()
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str) or taken_by(name, per_token=False) is not None:
        return ()
    ranks = video.acceleration.context_parallel
    return (f"acceleration.context_parallel: {ranks}; {name} has no adapter, whose steps ranks share; set it to 1",)


def _unfit(family: Family, tier: Tier, serving: bool) -> tuple[str, ...]:
    try:
        seen = _seen(Path(tier.checkpoint)) if serving and tier.engine != "simulated" else None
    except CheckpointError as error:
        return (f"checkpoint: {error.message}",)
    return faults(tier, seen, accelerator=family.accelerator, gpu_bytes=family.gpu_bytes(tier))


def _seen(folder: Path) -> Shape | None:
    """A checkpoint that is not here may be where the tier will run: None. Raises CheckpointError for one that is."""
    if not folder.is_dir():
        return None
    config = folder / "config.json"
    try:
        return shape(json.loads(config.read_text(encoding="utf-8")), str(config))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{config}: {error}; a JSON object is needed; fetch the checkpoint again") from error


def _anchored(family: Family, folder: Path) -> Family:
    """A relative checkpoint is meant relative to the family file, wherever the process starts."""
    tiers = {
        key: tier.model_copy(update={"checkpoint": str((folder / tier.checkpoint).resolve())})
        for key, tier in family.tiers.items()
    }
    video = family.video
    if video:
        video = video.model_copy(update={"checkpoint": str((folder / video.checkpoint).resolve())})
    return family.model_copy(update={"tiers": tiers, "video": video})
