"""The video model of the family file."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.engines import Closed
from cluster.tier import ColdStart, Name, Replicas


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


class Provenance(Closed):
    """Content credentials (C2PA) and the watermark of every file. What leaves unsigned is counted.

    `certificate` and `key`: PEM files of the signer, its chain leaf first. Without them a development chain is made in
    the state folder, which public verifiers do not trust. `time_stamp_url`: an authority's, or signatures have no
    trusted time.
    """

    sign: bool = True
    certificate: str | None = None
    key: str | None = None
    time_stamp_url: Annotated[str, Field(pattern=r"^https?://")] | None = None
    watermark: bool = True

    @model_validator(mode="after")
    def both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key come together; give both, or neither")
        return self


class VideoOutput(Closed):
    """What may be asked for beyond `sizes`, `seconds` and `fps`: rendered as those say, then scaled and repeated up.

    `fps`: delivered ones beside the model's own.
    """

    max_width: int = Field(default=4096, ge=2, le=4096)
    max_height: int = Field(default=2160, ge=2, le=2160)
    fps: tuple[Annotated[int, Field(ge=1, le=120)], ...] = ()


Input = Literal["input_reference", "last_frame_reference", "image_references", "video_reference", "mask"]


class Takes(Closed):
    """What a model takes beside its prompt, by the names of the API, and what it can be asked for.

    `needs`: inputs without which there is no job. `fast`: edits that compute the marked part alone. Sound is for none
    of the pipelines here: it is only heard beside the result.
    """

    inputs: tuple[Input, ...] = ()
    needs: tuple[Input, ...] = ()
    tasks: tuple[Literal["create", "remix", "edit", "extend"], ...] = ("create", "remix", "edit", "extend")
    fast: bool = False


def taken_by(pipeline: str, per_token: bool) -> Takes | None:
    """What a diffusers pipeline of that class takes; None where only its code says. `per_token`: expand_timesteps."""
    ends: tuple[Input, ...] = ("input_reference", "last_frame_reference")
    clip: tuple[Input, ...] = ("video_reference", "mask")
    match pipeline:
        case "WanPipeline" | "WanImageToVideoPipeline" if per_token:
            return Takes(inputs=(*ends, *clip), fast=True)
        case "WanPipeline":
            return Takes(inputs=clip)
        case "WanImageToVideoPipeline":
            return Takes(inputs=ends, needs=("input_reference",), tasks=("create",))
        case "WanVACEPipeline":
            return Takes(inputs=(*ends, "image_references", *clip))
        case "LTXPipeline" | "LTXImageToVideoPipeline":
            return Takes(inputs=(*ends, *clip))
    return None


class Acceleration(Closed):
    """What trades memory, time and exactness of a diffusers pipeline. Never run on a GPU.

    `first_block_cache`: a step whose first block changed its input less than this share from the last full step takes
    the other blocks' work from there; such jobs share no forward. `precision` of the transformer's weights: fp8-storage
    computes in the dtype; int8 and fp8 need torchao. `refresh_steps`: every so many steps of a fast edit compute all
    tokens. `tiled_decode`: frames are decoded in overlapping tiles, with seams blended. `context_parallel`: so many
    ranks of a replica, a GPU each, share the tokens of a step; edits then compute all tokens, fast ones too.
    """

    first_block_cache: Annotated[float, Field(gt=0, lt=1)] | None = None
    precision: Literal["int8", "fp8", "fp8-storage"] | None = None
    refresh_steps: PositiveInt = 4
    tiled_decode: bool = False
    context_parallel: PositiveInt = 1

    @model_validator(mode="after")
    def cached_or_parallel(self) -> Self:
        if self.first_block_cache is not None and self.context_parallel > 1:
            raise ValueError(
                f"first_block_cache with context_parallel {self.context_parallel}: each rank would judge by its own "
                "tokens which blocks to leave out; keep one of them"
            )
        return self


class Video(Closed):
    """The video model. A job of `steps` denoising steps holds its GPU share until a step boundary.

    At most `max_waiting` jobs wait for a replica. A replica has up to `concurrent` jobs under way and steps those
    together that have one shape. `max_characters`: of a key. `max_uploading_bytes`: of all requests together that a
    gateway is being sent. `styles`: presets by name, each a phrase that is added to the prompt. `expires_s`: a finished
    job's files are deleted so long after its end. `files`: an object store's URL, such as s3://bucket/prefix; the state
    folder where there is none. `database`: a PostgreSQL URL without a password, which comes from the file that
    PGPASSFILE names; SQLite in the state folder where there is none. `takes`: None is what the checkpoint says, where
    it can be read; otherwise a replica judges each job.
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
    concurrent: PositiveInt = 4
    acceleration: Acceleration = Acceleration()
    output: VideoOutput = VideoOutput()
    styles: dict[Name, str] = Field(default={})
    max_input_bytes: PositiveInt = 64 * 1024 * 1024
    max_uploading_bytes: PositiveInt = 512 * 1024 * 1024
    max_characters: PositiveInt = 100
    expires_s: PositiveInt | None = None
    files: Annotated[str, Field(pattern=r"^[a-z0-9]+://.+")] | None = None
    database: Annotated[str, Field(pattern=r"^postgres(ql)?://[^:@]+(@.+)?$")] | None = None
    provenance: Provenance = Provenance()
    takes: Takes | None = None

    @model_validator(mode="after")
    def gpu_per_rank(self) -> Self:
        ranks = self.acceleration.context_parallel
        if ranks > 1 and ranks != self.gpus:
            raise ValueError(
                f"acceleration.context_parallel is {ranks} and gpus is {self.gpus}; each rank has a GPU of its "
                f"replica; set gpus to {ranks}"
            )
        return self

    @model_validator(mode="after")
    def any_input_fits(self) -> Self:
        if self.max_uploading_bytes < self.max_input_bytes:
            raise ValueError(
                f"max_uploading_bytes is {self.max_uploading_bytes} and max_input_bytes {self.max_input_bytes}; of all "
                "requests together at least what one may have is allowed; raise it"
            )
        return self
