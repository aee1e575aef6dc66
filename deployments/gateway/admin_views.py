"""What operators look at: keys, projects, acts, what is taken of limits, what was used. It changes nothing."""

from collections.abc import Callable, Iterable
from typing import Any

from cluster.family import Family
from deployments.gateway.admin_wire import (
    ActsQuery,
    KeysQuery,
    LimitsQuery,
    ProjectsQuery,
    UsageQuery,
    act_object,
    fields,
    key_object,
    project_object,
    standing_object,
    usage_page,
)
from deployments.gateway.body import parsed
from deployments.gateway.objects_wire import listed
from deployments.gateway.quota import account_of
from deployments.stores.key_rows import KeyRows
from deployments.stores.limits import Limits
from deployments.stores.threads import in_thread
from deployments.stores.usage_rows import UsageRows

Query = Iterable[tuple[str, str]]
LISTS = ("group_by", "organization_ids", "project_ids", "api_key_ids", "models")


class AdminViews:
    """Each takes a query and raises InvalidRequest, Unavailable. `now_s`: Unix seconds."""

    def __init__(
        self, family: Callable[[], Family], keys: KeyRows, usage: UsageRows, limits: Limits, now_s: Callable[[], float]
    ) -> None:
        self._family, self._keys, self._usage, self._limits, self._now_s = family, keys, usage, limits, now_s

    async def keys(self, query: Query) -> Any:
        """`last_used_at`: when the key's last chat or video ended; null where none is known."""
        asked = parsed(KeysQuery, fields(query)).asked(self._now_s())
        records, more = await in_thread(self._keys.page, asked)
        used_s = await in_thread(self._usage.last_used, [record.id for record in records])
        return listed([key_object(record) | {"last_used_at": used_s.get(record.id)} for record in records], more)

    async def projects(self, query: Query) -> Any:
        asked = parsed(ProjectsQuery, fields(query))
        found, more = await in_thread(self._keys.projects, asked.search, asked.edge(), asked.limit)
        return listed(list(map(project_object, found)), more)

    async def acts(self, query: Query) -> Any:
        """The last ones before one, oldest first."""
        asked = parsed(ActsQuery, fields(query))
        acts = await in_thread(self._keys.acts_before, asked.edge(), asked.limit + 1, asked.only(), asked.refused)
        return listed([act_object(*act) for act in acts[-asked.limit :]], len(acts) > asked.limit)

    async def limits(self, query: Query) -> Any:
        """Of each plan that keys of a project have, how much of it is taken now, what is reserved with it."""
        asked = parsed(LimitsQuery, fields(query))
        org, project, plans = asked.organization_id, asked.project_id, self._family().plans
        told = []
        for name in await in_thread(self._keys.plans, org, project):
            limits = plans[name].limits if name in plans else ()
            standings = await self._limits.state(account_of(org, project, name or ""), limits) if limits else ()
            told.append(standing_object(name, standings))
        return {"object": "list", "data": told, "has_more": False}

    async def usage(self, query: Query) -> Any:
        asked = parsed(UsageQuery, fields(query, LISTS))
        end_s = int(self._now_s()) + 1 if asked.end_time is None else asked.end_time
        span = asked.start_time, max(asked.start_time, end_s), asked.bucket_s
        sums = await in_thread(self._usage.report, *span, asked.by, asked.only)
        unused = () if asked.only else await in_thread(self._usage.unused, *span)
        names: dict[str, str] = {}
        if "key_id" in asked.by:
            ids = dict.fromkeys(one.by[asked.by.index("key_id")] for one in sums)
            names = await in_thread(self._keys.names, tuple(ids))
        return usage_page(asked, end_s, sums, unused, names)
