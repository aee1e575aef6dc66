"""One language tier of the family file: what serves it, at which promise, price and cost."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.engines import Closed, Engine, Experts, Offload, Vllm
from cluster.inputs import Input, InputTokens

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Specialist = Literal["math", "code_security", "scientific_reasoning", "creative_writing"]


OBJECTIVE = 0.99


class Slo(Closed):
    """What users are promised: time to first token, and mean time per output token after it.

    `objective`: the share of ended requests that is to keep both.
    """

    ttft_s: PositiveFloat
    tpot_ms: PositiveFloat
    objective: float = Field(default=OBJECTIVE, gt=0, lt=1)


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

    `inputs`: what its model takes beside text; of a PDF every tier takes the text. Engine simulated takes the settings
    of every other, since a rehearsal puts it in their place.
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
    inputs: tuple[Input, ...] = ()
    input_tokens: InputTokens = InputTokens()
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
        if self.engine != "simulated" and (self.engine == "deepspeed") != (self.offload is not None):
            raise ValueError(f"engine is {self.engine}, offload is {given}; deepspeed needs it, others take none")
        if self.offload and self.ranks > 1:
            raise ValueError(f"ranks is {self.ranks}; 1 is allowed with engine deepspeed; set it to 1")
        return self

    @model_validator(mode="after")
    def served_inputs(self) -> Self:
        if self.inputs and self.engine not in ("vllm", "simulated"):
            raise ValueError(
                f"inputs is {', '.join(self.inputs)}, engine is {self.engine}; vllm and simulated take inputs beside "
                "text; leave inputs out, or choose vllm"
            )
        return self

    @property
    def structured(self) -> bool:
        """Whether answers can be held to a JSON schema."""
        return self.engine in ("torch", "vllm")

    @property
    def takes_up(self) -> bool:
        """Whether an answer held to a grammar goes on here behind tokens that another replica generated."""
        return self.engine == "torch"

    @property
    def tools(self) -> bool:
        """Whether calls of tools are found in answers. vLLM needs the parser that fits the checkpoint's way of writing.

        The torch engine knows one way, that of Hermes models; calls written otherwise stay text.
        """
        parser = self.vllm.tool_parser if self.vllm else None
        return self.engine == "torch" or (self.engine == "vllm" and parser is not None)

    @property
    def embeds(self) -> bool:
        """Whether vectors of texts are made."""
        return self.engine == "torch"

    @property
    def forced_tools(self) -> bool:
        """Whether calls can be demanded, counted, and held to the parameters of their tools.

        On vLLM, those of Hermes models, as the parser of that name reads them.
        """
        parser = self.vllm.tool_parser if self.vllm else None
        return self.engine == "torch" or (self.engine == "vllm" and parser == "hermes")

    @property
    def deferrable(self) -> bool:
        """Built for throughput alone: answers those who name it, and nobody is sent there by a rule or by a spill.

        Of engine deepspeed, and of the simulated one in its place.
        """
        return self.offload is not None
