"""What stands beside text in a prompt of vLLM: its placeholders, and the data of each.

A clip is told as its frames, each behind its time, and as its sound behind them where the tier takes sound: so any
model that takes several images takes clips. Data is named by its content and the request's cache salt, so that vLLM's
caches share it where prefixes are shared, and nowhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from io import BytesIO
from typing import Any

from cluster.errors import ConfigurationError
from cluster.family import Tier
from cluster.inputs import FRAMES_PER_S, HZ, Input, Media
from cluster.request import Generation, Message

_NEEDS: Mapping[Input, str] = {"image": "image", "audio": "audio", "video": "image"}  # of vLLM's modalities


class Beside:
    """Of one tier's model."""

    def __init__(self, tier: Tier, engine: Any) -> None:
        """Raises ConfigurationError where the model takes less than the tier says."""
        self._sound = "audio" in tier.inputs
        takes = _taken(engine)
        for kind in tier.inputs:
            if _NEEDS[kind] not in takes:
                raise ConfigurationError(
                    f"inputs: {kind}: the model of {tier.checkpoint} takes {' and '.join(('text', *takes))}; those "
                    "are allowed, and video where it takes image; leave it out, or give another checkpoint"
                )
        self._placeholder: Callable[[str, int], str] = _placeholders(engine) if tier.inputs else _nothing

    def reserved(self, tier: Tier) -> list[str]:
        """What no text of a caller may be."""
        return [self._placeholder(modality, 1) for modality in {_NEEDS[kind] for kind in tier.inputs}]

    def texts(self, messages: Sequence[Message]) -> list[str]:
        """In the place of each of the messages' media, in order."""
        counts = {"image": 0, "audio": 0}

        def next_of(modality: str) -> str:
            counts[modality] += 1
            return self._placeholder(modality, counts[modality])

        return [self._text(media, next_of) for message in messages for media in message.media]

    def _text(self, media: Media, next_of: Callable[[str], str]) -> str:
        if media.kind != "video":
            return next_of(media.kind)
        frames = [f"[{index / FRAMES_PER_S:.1f} s]{next_of('image')}" for index in range(len(media.pictures))]
        return "".join(frames) + (next_of("audio") if self._heard(media) else "")

    def _heard(self, media: Media) -> bool:
        return bool(media.sound) and (media.kind == "audio" or self._sound)

    def prompt(self, generation: Generation) -> dict[str, Any]:
        """As vLLM's renderer takes it. Decodes: a caller's thread waits."""
        pictures = [data for media in generation.media for data in media.pictures]
        sounds = [media.sound for media in generation.media if self._heard(media)]
        data: dict[str, list[Any]] = {}
        if pictures:
            data["image"] = [_picture(one) for one in pictures]
        if sounds:
            data["audio"] = [_samples(one) for one in sounds]
        named = {"image": pictures, "audio": sounds}
        return {
            "prompt_token_ids": [*generation.prompt, *generation.given],
            "multi_modal_data": data,
            "multi_modal_uuids": {kind: [_name(one, generation.cache_salt) for one in named[kind]] for kind in data},
        } | ({"cache_salt": generation.cache_salt} if generation.cache_salt else {})


def _taken(engine: Any) -> tuple[str, ...]:
    if not engine.model_config.is_multimodal_model:
        return ()
    return tuple(engine.renderer.get_mm_processor().info.get_supported_mm_limits())


def _placeholders(engine: Any) -> Any:
    from vllm.model_executor.model_loader import get_model_cls

    return get_model_cls(engine.model_config).get_placeholder_str


def _nothing(modality: str, number: int) -> str:
    raise AssertionError(modality)


def _picture(data: bytes) -> Any:
    from PIL import Image

    with Image.open(BytesIO(data)) as picture:
        return picture.convert("RGB")


def _samples(sound: bytes) -> tuple[Any, int]:
    import numpy as np

    return np.frombuffer(sound, "<i2").astype(np.float32) / 32_768, HZ


def _name(data: bytes, salt: str) -> str:
    return blake2b(data, digest_size=16, key=salt.encode()[:64]).hexdigest()
