"""Which tier serves a request, and which others may when that one saturates. Every answer says why.

A name of a tier is that tier or an error. A plain name is chosen for: its rules give a wanted quality (a hint or the
default, lifted by long prompts, tools and effort), and the nearest tier takes it among those of the plan that hold the
prompt, under the price ceiling and not below the request's floor. So a longer prompt never gets a lower quality, unless
the better tier cannot hold it.

Others follow by distance in quality, the upper one first at equal distance: a better answer breaks no expectation, a
lesser one does. None is below the request's floor, nor below the plan's where it is below the first tier; an upper one
keeps the ceiling. Prompts need room for one token more than their own.

A deferrable tier keeps no promise that another could take over: it serves who names it, alone, and nobody else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from cluster.errors import ContextTooLong, InvalidRequest, NotFound, NotInPlan
from cluster.family import Auto, Family, Plan, Specialist, Tier
from cluster.inputs import Input
from cluster.loads import Choice
from cluster.request import Effort

SPILLED_PACE = 0.8  # of the pace asked for that a step of the other tier may take, chunks of prompts left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks. `floor`: the lowest tier that may serve it. The ceiling is on the output price of a tier.

    `tools`, `structured`, `forced`: only a tier whose engine can may serve it, asked by name or chosen. `forced` is the
    parameter that holds calls to a form. `effort` is for plain names: no tier reasons more or less than it does.
    `inputs`: what the tier must take beside text, each with the parameter of the first.
    """

    model: str
    prompt_tokens: int
    tools: bool = False
    structured: bool = False
    forced: str | None = None
    hint: Specialist | None = None
    effort: Effort | None = None
    ceiling_usd_per_mtok: float | None = None
    floor: str | None = None
    inputs: Mapping[Input, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Range:
    """The preferred tier, then the others in the order in which to spill. `auto`: the name left the choice to us."""

    tiers: tuple[str, ...]
    reason: str
    auto: bool


def tiers_for(wish: Wish, plan: Plan | None, family: Family) -> Range:
    """Raises NotFound, NotInPlan, ContextTooLong or InvalidRequest, each with its mend. No plan: every tier."""
    if wish.floor is not None and wish.floor not in family.tiers:
        known = ", ".join(family.tiers)
        raise InvalidRequest(f"floor: {wish.floor!r} is no tier; tiers are {known}; choose one of them", param="floor")
    first = family.tier_of(wish.model)
    if first is not None:
        _check(wish, first, plan, family)
        if family.tiers[first].deferrable:
            return Range((first,), "asked by name; deferrable: it answers in batches, at no pace", False)
        return Range((first, *_others(wish, first, plan, family)), "asked by name", False)
    auto = family.auto
    if auto is None or wish.model not in auto.names:
        names = [name for tier in family.tiers.values() for name in tier.names] + list(auto.names if auto else ())
        raise NotFound(
            f"model: {wish.model!r} is not served; served: {', '.join(names)}; choose one of them", param="model"
        )
    first, reason = _chosen(wish, auto, plan, family)
    others = [key for key in _others(wish, first, plan, family) if _affordable(wish, key, family)]
    return Range((first, *others), reason, True)


def keeps(best: Choice, left_s: float, tpot_ms: float) -> bool:
    """Whether the best replica of another tier keeps what the tier asked promised.

    `left_s`: until its first token is due. `tpot_ms`: its pace.
    """
    return best.feasible and best.ttft_s <= left_s and best.tpot_ms <= SPILLED_PACE * tpot_ms


def spill(tiers: Range, feasible: Sequence[bool]) -> tuple[int, str] | None:
    """The first other tier that keeps its promises, and why. None: the preferred one keeps them, or no other does."""
    if feasible[0]:
        return None
    first = tiers.tiers[0]
    for index, (tier, keeps) in enumerate(zip(tiers.tiers, feasible, strict=True)):
        if keeps:
            return index, f"{first} saturated: no replica keeps its promises; served by {tier}"
    return None


def _check(wish: Wish, asked: str, plan: Plan | None, family: Family) -> None:
    """A tier asked by name is never replaced silently: where it may not serve, the caller is told."""
    tiers = family.tiers
    if plan is not None and asked not in plan.tiers:
        raise NotInPlan(
            f"model: {wish.model!r} is tier {asked}; the plan allows {', '.join(plan.tiers)}; "
            "choose one of them, or another plan",
            param="model",
        )
    if wish.floor is not None and tiers[asked].quality < tiers[wish.floor].quality:
        raise InvalidRequest(
            f"floor: {wish.floor} is above tier {asked}, which {wish.model!r} asks; a floor at or below it is allowed; "
            "lower the floor, or ask a higher tier",
            param="floor",
        )
    if wish.effort is not None:
        raise _effortless(wish, f"tier {asked}", family)
    if not _able(wish, tiers[asked]):
        raise _unable(wish, (asked,), family)
    if not _holds(wish, asked, family):
        raise _too_long(wish, (asked,), family)


def _chosen(wish: Wish, auto: Auto, plan: Plan | None, family: Family) -> tuple[str, str]:
    """The tier nearest to what the rules want, and why."""
    wanted, reason = _wanted(wish, auto, family)
    keys = _chosen_among(plan, family)
    if not keys:
        raise NotInPlan(
            f"model: {wish.model!r} chooses no deferrable tier, and the plan allows no other; name one of its tiers",
            param="model",
        )
    above = [key for key in keys if _above_floor(wish, key, family)]
    if not above:
        raise NotInPlan(f"floor: {wish.floor}; the plan allows {', '.join(keys)}; lower the floor", param="floor")
    able = [key for key in above if _able(wish, family.tiers[key])]
    if not able:
        raise _unable(wish, above, family)
    holding = [key for key in able if _holds(wish, key, family)]
    if not holding:
        raise _too_long(wish, able, family)
    affordable = [key for key in holding if _affordable(wish, key, family)]
    if not affordable:
        least = min(family.tiers[key].price.output_usd_per_mtok for key in holding)
        raise InvalidRequest(
            f"ceiling_usd_per_mtok: {wish.ceiling_usd_per_mtok:g}; the cheapest tier for this request costs {least:g} "
            "per million output tokens; raise the ceiling",
            param="ceiling_usd_per_mtok",
        )
    first = _nearest(affordable, wanted, family)[0]
    return first, reason if first == wanted else f"{reason}: {wanted}; {first} is the nearest one allowed"


def _wanted(wish: Wish, auto: Auto, family: Family) -> tuple[str, str]:
    """The tier that the rules name, and the rule that decided. Effort, tools and length only ever lift the quality."""
    wanted, reason = auto.default, "default"
    if wish.hint is not None and wish.hint in auto.hints:
        wanted, reason = auto.hints[wish.hint], f"hint {wish.hint}"
    effort = _of_effort(wish, auto)
    if wish.effort is not None and effort is None:
        raise _effortless(wish, wish.model, family)
    rules = (
        (effort, f"effort {wish.effort}"),
        (auto.tools if wish.tools else None, "tools"),
        (auto.long if wish.prompt_tokens >= auto.long_prompt_tokens else None, "long prompt"),
    )
    for tier, why in rules:
        if tier is not None and family.tiers[tier].quality > family.tiers[wanted].quality:
            wanted, reason = tier, why
    return wanted, reason


def _of_effort(wish: Wish, auto: Auto) -> str | None:
    """The tier of the highest effort up to the one asked that the rules know."""
    rising = get_args(Effort)
    upto = rising[: rising.index(wish.effort) + 1] if wish.effort is not None else ()
    return next((auto.efforts[effort] for effort in reversed(upto) if effort in auto.efforts), None)


def _others(wish: Wish, first: str, plan: Plan | None, family: Family) -> list[str]:
    """Where the request may be spilled, in order."""
    quality = family.tiers[first].quality
    keys = _chosen_among(plan, family)
    others = []
    for key in keys:
        above = family.tiers[key].quality - quality
        if key == first or not _permitted(above, key, plan, family) or not _able(wish, family.tiers[key]):
            continue
        if above > 0 and not _affordable(wish, key, family):
            continue
        if _above_floor(wish, key, family) and _holds(wish, key, family):
            others.append(key)
    return _nearest(others, first, family)


def _chosen_among(plan: Plan | None, family: Family) -> list[str]:
    """The tiers that nobody has to name."""
    keys = tuple(family.tiers) if plan is None else plan.tiers
    return [key for key in keys if not family.tiers[key].deferrable]


def _permitted(above: int, key: str, plan: Plan | None, family: Family) -> bool:
    """Whether the plan lets a request be spilled to a tier that is so much above (or below) its first one."""
    if plan is None:
        return True
    if above >= 0:
        return plan.spill in ("up", "both")
    floor = 0 if plan.floor is None else family.tiers[plan.floor].quality
    return plan.spill in ("down", "both") and family.tiers[key].quality >= floor


def _nearest(keys: Sequence[str], first: str, family: Family) -> list[str]:
    """By distance in quality from a tier, upper ones first, then the cheaper."""
    tiers = family.tiers
    quality = tiers[first].quality

    def order(key: str) -> tuple[int, bool, bool, float]:
        above = tiers[key].quality - quality
        return abs(above), above < 0, key != first, tiers[key].price.output_usd_per_mtok

    return sorted(keys, key=order)


def _holds(wish: Wish, key: str, family: Family) -> bool:
    return wish.prompt_tokens < family.tiers[key].context_tokens


def _affordable(wish: Wish, key: str, family: Family) -> bool:
    ceiling = wish.ceiling_usd_per_mtok
    return ceiling is None or family.tiers[key].price.output_usd_per_mtok <= ceiling


def _above_floor(wish: Wish, key: str, family: Family) -> bool:
    return wish.floor is None or family.tiers[key].quality >= family.tiers[wish.floor].quality


def _able(wish: Wish, tier: Tier) -> bool:
    formal = (tier.structured or not wish.structured) and (tier.forced_tools or not wish.forced)
    return formal and (tier.tools or not wish.tools) and wish.inputs.keys() <= set(tier.inputs)


def _unable(wish: Wish, keys: Sequence[str], family: Family) -> InvalidRequest:
    tiers = [family.tiers[key] for key in keys]
    missing = next((kind for kind in wish.inputs if not any(kind in tier.inputs for tier in tiers)), None)
    if missing is not None or _only_together(wish, tiers):
        return _blind(wish, missing, keys, family)
    if wish.tools and not any(tier.tools for tier in tiers):
        param, what = "tools", "calls of tools"
    elif wish.forced and not any(tier.forced_tools for tier in tiers):
        param, what = wish.forced, "calls that are demanded, counted, strict, or beside a schema"
    else:
        param, what = "response_format", "answers held to a JSON schema"
    able = [key for key, tier in family.tiers.items() if _able(wish, tier)]
    mend = f"name one of {', '.join(able)}, or leave it out" if able else "leave it out"
    return InvalidRequest(
        f"{param}: given; tiers that serve {what} are {', '.join(able) or 'none'}, not {', '.join(keys)}; {mend}",
        param=param,
    )


def _only_together(wish: Wish, tiers: Sequence[Tier]) -> bool:
    return bool(wish.inputs) and not any(wish.inputs.keys() <= set(tier.inputs) for tier in tiers)


def _blind(wish: Wish, missing: Input | None, keys: Sequence[str], family: Family) -> InvalidRequest:
    """Of one kind that none of the tiers takes, or of all that no single one takes."""
    kinds = tuple(wish.inputs) if missing is None else (missing,)
    able = [key for key, tier in family.tiers.items() if set(kinds) <= set(tier.inputs) and not tier.deferrable]
    param = wish.inputs[kinds[0]]
    mend = f"name one of {', '.join(able)}, or leave it out" if able else "leave it out, or say it in words"
    return InvalidRequest(
        f"{param}: given; tiers that take {' and '.join(kinds)} are {', '.join(able) or 'none'}, not "
        f"{', '.join(keys)}; {mend}",
        param=param,
        code="unsupported_parameter",
    )


def _effortless(wish: Wish, where: str, family: Family) -> InvalidRequest:
    names = family.auto.names if family.auto and _of_effort(wish, family.auto) else ()
    mend = f"name {' or '.join(names)}, which takes a better tier for it, or leave it out" if names else "leave it out"
    return InvalidRequest(
        f"reasoning_effort: given {wish.effort!r}; {where} does not reason apart from its answer, none, minimal and "
        f"low are allowed; {mend}",
        param="reasoning_effort",
        code="unsupported_parameter",
    )


def _too_long(wish: Wish, keys: Sequence[str], family: Family) -> ContextTooLong:
    longest = max(family.tiers[key].context_tokens for key in keys)
    return ContextTooLong(
        f"messages: {wish.prompt_tokens} prompt tokens; {', '.join(keys)} can hold at most {longest - 1} and one token "
        "of answer; shorten the prompt, or name a tier with a longer context",
        param="messages",
    )
