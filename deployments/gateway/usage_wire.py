"""Usage as OpenAI's organisation API tells it: pages of buckets, each with results by what was asked for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cluster.errors import InvalidRequest
from cluster.usage import By, Sum

Width = Literal["1m", "1h", "1d"]
WIDTH_S: Mapping[str, int] = {"1m": 60, "1h": 3600, "1d": 86_400}
MOST_BUCKETS: Mapping[str, int] = {"1m": 1440, "1h": 168, "1d": 31}
USUAL_BUCKETS: Mapping[str, int] = {"1m": 60, "1h": 24, "1d": 7}
# What may be grouped and filtered by: the API's names, and ours beside them.
GROUPS: Mapping[str, By] = {
    "project_id": "project",
    "api_key_id": "key_id",
    "model": "model",
    "organization_id": "org",
    "tier_asked": "tier_asked",
    "tier_served": "tier_served",
}
FILTERS: Mapping[str, By] = {"project_ids": "project", "api_key_ids": "key_id", "models": "model"}
_TIME = {"type": "integer", "minimum": 0}
_NAMES = {"type": "array", "items": {"type": "string"}}
QUERY: Mapping[str, Mapping[str, Any]] = {
    "start_time": _TIME,
    "end_time": _TIME,
    "bucket_width": {"enum": list(WIDTH_S)},
    "limit": {"type": "integer", "minimum": 1, "maximum": max(MOST_BUCKETS.values())},
    "page": {"type": "string", "pattern": "^[0-9]{1,13}$"},
    "group_by": {"type": "array", "items": {"enum": list(GROUPS)}},
    **dict.fromkeys(FILTERS, _NAMES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Buckets of [`start_s`, `end_s`), in UTC. `page_end_s`: of these buckets; later ones are on the next page."""

    start_s: int
    end_s: int
    page_end_s: int
    bucket_s: int
    groups: tuple[str, ...]
    only: tuple[tuple[By, tuple[str, ...]], ...]

    @property
    def by(self) -> tuple[By, ...]:
        return tuple(GROUPS[name] for name in self.groups)


def parse_page(query: Iterable[tuple[str, str]], now_s: int) -> Page:
    """Lists are repeated or carry brackets, as clients send them. Raises InvalidRequest."""
    given: dict[str, list[str]] = {}
    for name, value in query:
        given.setdefault(name.removesuffix("[]"), []).append(value)
    for name in given:
        if name not in QUERY:
            raise InvalidRequest(
                f"{name[:64]}: not a parameter here; {', '.join(QUERY)} are allowed; leave it out",
                param=name[:64],
                code="unknown_parameter",
            )
    width = given.get("bucket_width", ["1d"])[-1]
    if width not in get_args(Width):
        raise _wrong("bucket_width", width, ", ".join(get_args(Width)))
    bucket_s = WIDTH_S[width]
    if "start_time" not in given:
        raise InvalidRequest("start_time: not given; Unix seconds are required; add it", param="start_time")
    start_s, end_s = _whole(given, "start_time", 0, 0), _whole(given, "end_time", now_s + 1, 0)
    limit = _whole(given, "limit", USUAL_BUCKETS[width], 1, MOST_BUCKETS[width])
    start_s = _whole(given, "page", start_s // bucket_s * bucket_s, 0) // bucket_s * bucket_s
    for name in given.get("group_by", ()):
        if name not in GROUPS:
            raise _wrong("group_by", name, ", ".join(GROUPS))
    return Page(
        start_s=start_s,
        end_s=end_s,
        page_end_s=min(max(end_s, start_s), start_s + limit * bucket_s),
        bucket_s=bucket_s,
        groups=tuple(dict.fromkeys(given.get("group_by", ()))),
        only=_only(given),
    )


def _only(given: Mapping[str, list[str]]) -> tuple[tuple[By, tuple[str, ...]], ...]:
    for name in FILTERS:
        if "\0" in "".join(given.get(name, ())):  # PostgreSQL cannot be asked for it
            raise _wrong(name, "\0", "text without NUL")
    return tuple((by, tuple(given[name])) for name, by in FILTERS.items() if name in given)


def completions(page: Page, sums: Iterable[Sum]) -> dict[str, Any]:
    """Tokens of chats; cached ones are among the input's."""
    return _page(page, sums, _completion)


def embeddings(page: Page, sums: Iterable[Sum]) -> dict[str, Any]:
    return _page(page, sums, _embedding)


def costs(page: Page, sums: Iterable[Sum]) -> dict[str, Any]:
    """What was charged, in dollars; beside it `moray`: what serving it cost, and the margin."""
    return _page(page, sums, _cost)


def _completion(page: Page, one: Sum) -> dict[str, Any]:
    return {
        "object": "organization.usage.completions.result",
        "input_tokens": one.input_tokens,
        "input_cached_tokens": one.cached_tokens,
        "output_tokens": one.output_tokens,
        "input_audio_tokens": 0,
        "output_audio_tokens": 0,
        "num_model_requests": one.events,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": None,
        "batch": None,
    } | dict(zip(page.groups, one.by, strict=True))


def _embedding(page: Page, one: Sum) -> dict[str, Any]:
    return {
        "object": "organization.usage.embeddings.result",
        "input_tokens": one.input_tokens,
        "num_model_requests": one.events,
        "project_id": None,
        "user_id": None,
        "api_key_id": None,
        "model": None,
    } | dict(zip(page.groups, one.by, strict=True))


def _cost(page: Page, one: Sum) -> dict[str, Any]:
    price_usd = one.price_nusd / 1e9
    return {
        "object": "organization.costs.result",
        "amount": {"value": price_usd, "currency": "usd"},
        "line_item": None,
        "project_id": None,
        "moray": {
            "gpu_seconds": one.gpu_s,
            "cost_usd": one.cost_usd,
            "margin_usd": price_usd - one.cost_usd,
            "video_seconds": one.video_s,
        },
    } | dict(zip(page.groups, one.by, strict=True))


def _page(page: Page, sums: Iterable[Sum], told: Any) -> dict[str, Any]:
    """Every bucket of the page, those in which nothing was used too."""
    found: dict[int, list[dict[str, Any]]] = {}
    for one in sums:
        found.setdefault(one.start_s, []).append(told(page, one))
    starts = range(page.start_s, page.page_end_s, page.bucket_s)
    more = page.page_end_s < page.end_s
    return {
        "object": "page",
        "data": [
            {
                "object": "bucket",
                "start_time": start_s,
                "end_time": min(start_s + page.bucket_s, page.end_s),
                "results": found.get(start_s, []),
            }
            for start_s in starts
        ],
        "has_more": more,
        "next_page": str(page.page_end_s) if more else None,
    }


def _whole(given: Mapping[str, list[str]], name: str, usual: int, least: int, most: int = 2**40) -> int:
    if name not in given:
        return usual
    value = given[name][-1]
    if not (value.isascii() and value.isdigit() and len(value) < 14 and least <= int(value) <= most):
        raise _wrong(name, value, f"a whole number, {least} to {most}")
    return int(value)


def _wrong(name: str, value: str, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: given {value[:64]!r}; {allowed} is allowed; change the value", param=name)
