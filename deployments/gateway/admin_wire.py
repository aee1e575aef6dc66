"""What operators ask of keys, projects, acts, limits and usage, and how it is told."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import Field

from cluster.access import DEFAULT, KeyRecord
from cluster.errors import InvalidRequest
from cluster.limits import Standing
from cluster.usage import By, Sum
from deployments.gateway.body import Strict
from deployments.gateway.objects_wire import Listing
from deployments.gateway.usage_wire import GROUPS, WIDTH_S, Width
from deployments.stores.key_lists import KeysAsked, Project, State
from deployments.stores.key_rows import Act

Text = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]  # PostgreSQL knows no NUL
Texts = Annotated[tuple[Text, ...], Field(max_length=100, strict=False)]
Time = Annotated[int, Field(ge=0, le=2**40, strict=False)]
Group = Literal["organization_id", "project_id", "api_key_id", "model", "tier_asked", "tier_served"]


class KeysQuery(Listing):
    search: Text = ""
    organization_id: Text | None = None
    project_id: Text | None = None
    status: State | None = None

    def asked(self, now_s: float) -> KeysAsked:
        return KeysAsked(
            after=self.after,
            limit=self.limit,
            order=self.order,
            search=self.search,
            org=self.organization_id,
            project=self.project_id,
            state=self.status,
            now_s=now_s,
        )


class ProjectsQuery(Strict):
    """`after`: an id as listed."""

    search: Text = ""
    after: Annotated[str, Field(max_length=8192)] | None = None
    limit: Annotated[int, Field(ge=1, le=100, strict=False)] = 20

    def edge(self) -> tuple[str, str] | None:
        """Raises InvalidRequest."""
        if self.after is None:
            return None
        parts = tuple(map(unquote, self.after.split("/")))
        if len(parts) != 2 or "\0" in "".join(parts):
            raise InvalidRequest("after: no id of a project; one as listed is allowed; leave it out", param="after")
        return parts[0], parts[1]


class ActsQuery(Strict):
    """`before`: an id as listed. `act`: of these alone, commas between. `refused`: what did not come to be alone."""

    limit: Annotated[int, Field(ge=1, le=1000, strict=False)] = 100
    before: Annotated[str, Field(pattern=r"^act_[0-9]{1,18}$")] | None = None
    act: Annotated[str, Field(pattern=r"^[a-z.,]{1,256}$")] | None = None
    refused: Annotated[bool, Field(strict=False)] = False

    def edge(self) -> int | None:
        return None if self.before is None else int(self.before.removeprefix("act_"))

    def only(self) -> Sequence[str]:
        return tuple(filter(None, (self.act or "").split(",")))


class LimitsQuery(Strict):
    organization_id: Text = DEFAULT
    project_id: Text = DEFAULT


class UsageQuery(Strict):
    """Rows by `group_by`: of all the time, the dearest first; with a `bucket_width` of each bucket, by time."""

    start_time: Time
    end_time: Time | None = None
    bucket_width: Width | None = None
    group_by: Annotated[tuple[Group, ...], Field(max_length=6, strict=False)] = ()
    organization_ids: Texts = ()
    project_ids: Texts = ()
    api_key_ids: Texts = ()
    models: Texts = ()
    limit: Annotated[int, Field(ge=1, le=10_000, strict=False)] = 100
    page: Annotated[int, Field(ge=0, le=2**40, strict=False)] = 0

    @property
    def bucket_s(self) -> int:
        """Without one, longer than any time."""
        return WIDTH_S[self.bucket_width] if self.bucket_width else 2**50

    @property
    def by(self) -> tuple[By, ...]:
        return tuple(GROUPS[name] for name in self.group_by)

    @property
    def only(self) -> list[tuple[By, Sequence[str]]]:
        given: tuple[tuple[By, Sequence[str]], ...] = (
            ("org", self.organization_ids),
            ("project", self.project_ids),
            ("key_id", self.api_key_ids),
            ("model", self.models),
        )
        return [(by, values) for by, values in given if values]


def fields(items: Iterable[tuple[str, str]], lists: Iterable[str] = ()) -> dict[str, Any]:
    """A query as a model reads it. `lists`: what may be repeated, or carry brackets; of others the last counts."""
    given: dict[str, Any] = {}
    for name, value in items:
        plain = name.removesuffix("[]")
        given[plain] = (*given.get(plain, ()), value) if plain in lists else value
    return given


def key_object(record: KeyRecord) -> dict[str, Any]:
    return {
        "object": "organization.project.api_key",
        "id": record.id,
        "name": record.name,
        "organization_id": record.org,
        "project_id": record.project,
        "plan": record.plan,
        "scopes": list(record.scopes),
        "created_at": int(record.created_s),
        "expires_at": record.expires_s,
        "revoked_at": record.revoked_s,
    }


def project_object(project: Project) -> dict[str, Any]:
    return {
        "object": "organization.project",
        "id": f"{quote(project.org, safe='')}/{quote(project.project, safe='')}",
        "organization_id": project.org,
        "project_id": project.project,
        "keys": project.keys,
        "valid_keys": project.valid,
    }


def act_object(seq: int, act: Act) -> dict[str, Any]:
    told = asdict(act)
    return {"object": "act", "id": f"act_{seq}", "at": told.pop("at_s"), "from": told.pop("from_")} | told


def standing_object(plan: str | None, standings: Sequence[Standing]) -> dict[str, Any]:
    """`plan`: null for keys without one. `resets_in_s`: null where the ends of other requests free it."""
    limits = [
        {
            "limit": one.limit.name,
            "amount": one.limit.amount,
            "taken": one.limit.amount - one.remaining,
            "resets_in_s": None if one.limit.period == "held" else one.reset_s,
        }
        for one in standings
    ]
    return {"object": "plan.standing", "plan": plan, "limits": limits}


def figures(one: Sum) -> dict[str, Any]:
    """`requests`: chats and videos that ended."""
    return {
        "requests": one.events,
        "input_tokens": one.input_tokens,
        "input_cached_tokens": one.cached_tokens,
        "output_tokens": one.output_tokens,
        "video_seconds": one.video_s,
        "price_usd": one.price_usd,
        "gpu_seconds": one.gpu_s,
        "cost_usd": one.cost_usd,
        "margin_usd": one.price_usd - one.cost_usd,
    }


def usage_page(
    asked: UsageQuery, end_s: int, sums: Iterable[Sum], unused: Iterable[Sum], names: Mapping[str, str]
) -> dict[str, Any]:
    """`total`: of all rows. `unallocated`: GPU-seconds that were held in hours in which nobody used their tier, which

    are in nobody's cost. `names`: of keys.
    """
    rows = [_row(asked, one, names) for one in sums]
    if asked.bucket_width is None:
        rows.sort(key=_dearest)
    last = asked.page + asked.limit
    zero = figures(Sum(start_s=0, by=()))
    return {
        "object": "page",
        "start_time": asked.start_time,
        "end_time": end_s,
        "total": {name: sum((row[name] for row in rows), start) for name, start in zero.items()},
        "unallocated": [
            {"tier_served": one.by[0], "gpu_seconds": one.gpu_s, "cost_usd": one.cost_usd} for one in unused
        ],
        "data": rows[asked.page : last],
        "has_more": last < len(rows),
        "next_page": str(last) if last < len(rows) else None,
    }


def _row(asked: UsageQuery, one: Sum, names: Mapping[str, str]) -> dict[str, Any]:
    of: dict[str, Any] = dict(zip(asked.group_by, one.by, strict=True))
    if asked.bucket_width is not None:
        of = {"start_time": one.start_s} | of
    if "api_key_id" in of:
        of["api_key_name"] = names.get(of["api_key_id"])
    return of | figures(one)


def _dearest(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """The dearest first, and those alike always in one order, so that pages meet."""
    return -row["price_usd"], -row["requests"], *(str(row.get(name)) for name in GROUPS)
