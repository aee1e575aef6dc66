"""What an edited family file changes in the family that is served: whose replicas are replaced, and what is refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.errors import ConfigurationError
from cluster.family import Family, Tier

# What gateways, the control loop and Serve's bounds read; replicas need not be replaced for it.
NOT_OF_REPLICAS = {"names", "slo", "price", "patience_s", "quality", "specialists", "cold_start", "replicas"}
CHANGEABLE = ("tiers", "video", "plans", "auto", "personas", "control", "gpu_usd_per_hour", "gateway.moderation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`words`: each changed value as `path: before -> after`. `replaced`: tiers whose replicas are replaced one by one.

    `rerun`: these, and those of which Serve must know new bounds.
    """

    words: tuple[str, ...]
    replaced: tuple[str, ...]
    rerun: tuple[str, ...]


def of_replicas(tier: Tier) -> dict[str, Any]:
    """What a running replica of the tier was made from."""
    return tier.model_dump(mode="json", exclude=NOT_OF_REPLICAS)


def change(before: Family, after: Family) -> Change:
    """Raises ConfigurationError, naming everything that needs a restart."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    differences = list(_differences(old, new))
    fixed = [words for path, words in differences if not _changeable(path, before, after)]
    if fixed:
        allowed = f"while it is served {', '.join(CHANGEABLE)} may change, and no tier or video be added or removed"
        raise ConfigurationError("\n".join(f"{before.name}: {words}; {allowed}; restart for this" for words in fixed))
    replaced = [key for key, tier in after.tiers.items() if of_replicas(tier) != of_replicas(before.tiers[key])]
    bounds = [key for key, tier in after.tiers.items() if tier.replicas.max != before.tiers[key].replicas.max]
    return Change(
        words=tuple(words for _, words in differences),
        replaced=tuple(replaced),
        rerun=tuple(dict.fromkeys((*replaced, *bounds))),
    )


def _changeable(path: tuple[str, ...], before: Family, after: Family) -> bool:
    if path[0] == "tiers":
        return path[1] in before.tiers and path[1] in after.tiers
    if path[0] == "video":
        return before.video is not None and after.video is not None
    return path[0] in CHANGEABLE or ".".join(path[:2]) in CHANGEABLE


def _differences(old: Any, new: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(key), new.get(key), (*path, key))
        return
    yield path, f"{'.'.join(path)}: {_shown(old)} -> {_shown(new)}"


def _shown(value: Any) -> str:
    return "none" if value is None else "..." if isinstance(value, dict) else str(value)
