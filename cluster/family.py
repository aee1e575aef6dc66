"""The family file: one YAML file says what is served, on what, at which promise and price. One `load()`.

Every model here is closed (`extra="forbid"`): a misspelt key fails at once, with file, path, value and what is allowed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from cluster.checkpoint import GIB, faults, shape
from cluster.engines import Closed, Engine, Experts, Offload, Vllm
from cluster.errors import CheckpointError, ConfigurationError
from cluster.strict_yaml import strict

BUNDLED = Path(__file__).parent / "families"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
# A cell's name becomes the value of a node label, which Ray and Kubernetes hold to 63 characters; room for "-<index>".
CellName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=57)]
Specialist = Literal["math", "code_security", "scientific_reasoning", "creative_writing"]
Phrase = Annotated[str, Field(pattern=r"^\S.+\S$", max_length=256)]


class Slo(Closed):
    """What users are promised: time to first token, and mean time per output token after it."""

    ttft_s: PositiveFloat
    tpot_ms: PositiveFloat


class Price(Closed):
    input_usd_per_mtok: NonNegativeFloat
    output_usd_per_mtok: NonNegativeFloat


class Replicas(Closed):
    """min 0 means that the tier may sleep: its first request starts a replica and waits for it."""

    min: int = Field(ge=0)
    max: PositiveInt
    initial: int = Field(ge=0)
    idle_s: PositiveFloat = 300.0

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if not self.min <= self.initial <= self.max:
            raise ValueError(f"min {self.min} <= initial {self.initial} <= max {self.max} must hold")
        return self


class StepCost(Closed):
    """step_ms = a + b*B + c*K + d*(1 - (1 - top_k/experts)^B), B sequences decoding, K thousand KV tokens held.

    The d term is the share of routed experts that B tokens touch. `prefill_us_per_token` maps prompt lengths in tokens
    to microseconds per token, interpolated in log(length). `source` says where the constants come from.
    """

    a_ms: NonNegativeFloat
    b_ms_per_seq: NonNegativeFloat
    c_ms_per_ktok: NonNegativeFloat
    d_ms: NonNegativeFloat = 0.0
    experts: PositiveInt = 1
    top_k: PositiveInt = 1
    prefill_us_per_token: dict[PositiveInt, PositiveFloat] = Field(min_length=1)
    source: str

    @model_validator(mode="after")
    def routable(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} experts of {self.experts} cannot be chosen; give top_k <= experts")
        return self


class ColdStart(Closed):
    """From the wish for a replica to its first request: median and 99th percentile of a lognormal distribution."""

    p50_s: PositiveFloat = 60.0
    p99_s: PositiveFloat = 120.0

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.p99_s < self.p50_s:
            raise ValueError(f"p99_s {self.p99_s:g} is below p50_s {self.p50_s:g}; give p50_s <= p99_s")
        return self


class Tier(Closed):
    """One language tier. An expert group has `ranks` ranks, one GPU (on a laptop: one process) each.

    `quality` orders the tiers of a family: a request may be served above the tier that it asked, or as far below as its
    floor allows. A request whose first token is predicted later than `patience_s` is refused at once.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    checkpoint: str
    engine: Engine
    ranks: PositiveInt = 1
    experts: Experts = Experts()
    vllm: Vllm | None = None
    offload: Offload | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    context_tokens: PositiveInt
    kv_tokens: PositiveInt
    max_running: PositiveInt = 64
    max_waiting: PositiveInt = 256
    prefill_chunk_tokens: PositiveInt = 256
    slo: Slo
    price: Price
    replicas: Replicas
    specialists: tuple[Specialist, ...] = ()
    start_timeout_s: PositiveFloat = 180.0
    cold_start: ColdStart = ColdStart()
    quality: PositiveInt = 1
    patience_s: PositiveFloat = 30.0
    cost: StepCost

    @model_validator(mode="after")
    def fits(self) -> Self:
        if self.kv_tokens < self.context_tokens:
            raise ValueError(f"kv_tokens {self.kv_tokens} must hold one full context of {self.context_tokens} tokens")
        return self

    @model_validator(mode="after")
    def offloaded(self) -> Self:
        given = "given" if self.offload else "left out"
        if (self.engine == "deepspeed") != (self.offload is not None):
            raise ValueError(f"engine is {self.engine}, offload is {given}; deepspeed needs it, others take none")
        if self.offload and self.ranks > 1:
            raise ValueError(f"ranks is {self.ranks}; 1 is allowed with engine deepspeed; set it to 1")
        return self

    @property
    def structured(self) -> bool:
        """Whether answers can be held to a JSON schema."""
        return self.engine == "vllm"

    @property
    def tools(self) -> bool:
        """Whether calls of tools are found in answers. vLLM needs the parser that fits the checkpoint's way of writing.

        The torch engine knows one way, that of Hermes models; calls written otherwise stay text.
        """
        return self.engine == "torch" or (self.vllm is not None and self.vllm.tool_parser is not None)

    @property
    def deferrable(self) -> bool:
        """Built for throughput alone: answers those who name it, and nobody is sent there by a rule or by a spill."""
        return self.engine == "deepspeed"


class VideoSlo(Closed):
    """What users are promised: from the acceptance of a job to its file, where it did not wait for others."""

    deadline_s: PositiveFloat


class VideoPrice(Closed):
    """Per second of video."""

    usd_per_second: NonNegativeFloat


class VideoCost(Closed):
    """step_s = base + linear*T + quadratic*T^2 of one denoising step on one replica, T million latent tokens.

    A token is a patch of 2 x 2 latents of 8 x 8 pixels, in each of (frames - 1)/4 + 1 latent frames.
    """

    base_s: NonNegativeFloat
    linear_s_per_mtok: NonNegativeFloat
    quadratic_s_per_mtok2: NonNegativeFloat
    source: str


class Video(Closed):
    """The video model. A job of `steps` denoising steps holds its GPU share until a step boundary.

    At most `max_waiting` jobs wait for a replica.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    checkpoint: str
    engine: Literal["diffusers", "simulated"] = "diffusers"
    gpus: PositiveInt = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    sizes: tuple[Annotated[str, Field(pattern=r"^[1-9][0-9]*x[1-9][0-9]*$")], ...] = Field(min_length=1)
    seconds: tuple[PositiveInt, ...] = Field(min_length=1)
    fps: PositiveInt
    steps: PositiveInt
    guidance: NonNegativeFloat = 5.0
    max_waiting: PositiveInt = 32
    slo: VideoSlo
    price: VideoPrice
    replicas: Replicas
    beside: Name | None = None
    start_timeout_s: PositiveFloat = 180.0
    cold_start: ColdStart = ColdStart()
    cost: VideoCost


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
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    replicas: PositiveInt = 1
    max_body_bytes: PositiveInt = 1_048_576
    tokens: Literal["pushed", "streamed"] = "pushed"
    coalesce_ms: NonNegativeFloat = 20.0
    coalesce_above_streams: int = Field(default=8, ge=0)


class Control(Closed):
    """The control loop. Without `prometheus_url` it scrapes the replicas itself.

    Every decision is a line of `decisions.jsonl` in the state folder; beyond `record_mib` the file is moved to
    `decisions.1.jsonl`, whose older lines are lost.
    """

    prometheus_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    record_mib: PositiveFloat = 64.0


class Plan(Closed):
    """What a tenant's subscription may use. Higher `priority` goes first; `share` weighs the fair share of GPU-seconds.

    A request may be spilled to other tiers of the plan: `up`, as good or better; `down`, but never below `floor`.
    """

    tiers: tuple[Name, ...] = Field(min_length=1)
    priority: int = Field(default=0, ge=0)
    share: PositiveFloat = 1.0
    spill: Literal["none", "up", "down", "both"] = "both"
    floor: Name | None = None

    @model_validator(mode="after")
    def coherent(self) -> Self:
        if self.floor is not None and self.floor not in self.tiers:
            known = ", ".join(self.tiers)
            raise ValueError(f"floor is {self.floor!r}; tiers of the plan are {known}; name one of them")
        return self


class Auto(Closed):
    """Names that ask for no tier: a hint to a specialist names the tier, otherwise the default.

    Prompts of `long_prompt_tokens` and more lift the choice to `long` at least, tools to `tools`.
    """

    names: tuple[Name, ...] = Field(min_length=1)
    default: Name
    long: Name
    long_prompt_tokens: PositiveInt
    tools: Name | None = None
    hints: dict[Specialist, Name] = Field(default={})
    price: Price | None = None

    def named(self) -> Iterator[tuple[str, str]]:
        """Each tier that a rule names, after the rule's path."""
        yield "default", self.default
        yield "long", self.long
        if self.tools is not None:
            yield "tools", self.tools
        for specialist, tier in self.hints.items():
            yield f"hints.{specialist}", tier


class Family(Closed):
    """`personas`: phrases of system messages by which a request's domain is told, as cluster.domains says."""

    name: Name
    accelerator: Literal["cpu", "cuda"]
    gpu_budget_gpus: PositiveInt
    gpu_usd_per_hour: NonNegativeFloat = 0.0
    state_folder: str = ".moray"
    gateway: Gateway = Gateway()
    control: Control = Control()
    cells: tuple[Cell, ...] = Field(min_length=1)
    tiers: dict[Name, Tier] = Field(min_length=1)
    video: Video | None = None
    plans: dict[Name, Plan] = Field(default={})
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
        if self.video and self.gateway.replicas > 1:
            raise ValueError(
                f"gateway.replicas is {self.gateway.replicas}; 1 is allowed while video is served, since each gateway "
                "would resume all jobs after a restart; set it to 1 or leave video out"
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
        for rule, key in (("long", auto.long), ("tools", auto.tools or auto.default)):
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
    try:
        raw = strict(text, where)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: not YAML: {error}; mend the syntax") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{where}: given {type(raw).__name__}; a mapping is allowed; start from laptop.yaml")
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


def load(path: str | Path) -> Family:
    """The family in a file. A bare name (`laptop`, `h200`) is one that ships. Checkpoints become absolute paths.

    Raises ConfigurationError where the file is missing or wrong, or asks for what a checkpoint that is here cannot do.
    """
    file = located(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.yaml")))
        raise ConfigurationError(f"{file}: {error}; give a family file, or one that ships: {shipped}") from error
    family = _anchored(parse(text, str(file)), file.resolve().parent)
    found = [f"{file}: tiers.{key}.{fault}" for key, tier in family.tiers.items() for fault in _unfit(family, tier)]
    if found:
        raise ConfigurationError("\n".join(found))
    return family


def _unfit(family: Family, tier: Tier) -> tuple[str, ...]:
    """A checkpoint that is not here may be where the tier will run."""
    folder = Path(tier.checkpoint)
    seen = None
    if tier.engine != "simulated" and folder.is_dir():
        config = folder / "config.json"
        try:
            seen = shape(json.loads(config.read_text(encoding="utf-8")), str(config))
        except (OSError, ValueError) as error:
            return (f"checkpoint: {config}: {error}; a JSON object is needed; fetch the checkpoint again",)
        except CheckpointError as error:
            return (f"checkpoint: {error.message}",)
    return faults(tier, seen, accelerator=family.accelerator, gpu_bytes=family.gpu_bytes(tier))


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
