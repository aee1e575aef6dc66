"""The video model of the family file."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

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
