"""GET /metrics: this gateway's own metrics, those of every replica it sees and of the control loop, one page.

Replicas of a tier export the same series, so each of theirs gets the label `replica`. Where Prometheus scrapes every
pod itself, it should ask for /metrics?only=gateway. The gateway's own are also on a port of their own, where the
control loop finds those of each gateway.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import get_args

import httpx
from prometheus_client import CollectorRegistry, Metric, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cluster.errors import Unavailable
from cluster.request import Usage
from deployments import seen
from deployments.gateway.desk import Desk
from deployments.gateway.video_metrics import VideoMetrics
from deployments.link import LinkCounts
from deployments.observe import Meters
from deployments.stores.storyboards import State
from deployments.stores.threads import in_thread
from deployments.stores.usage_journal import Journal
from deployments.video.jobs import Status
from monitoring.metrics import GATEWAY, LINK, VIDEO

SCRAPE_TIMEOUT_S = 2.0
PAGE_TIMEOUT_S = 0.7  # of one of the pages: a Prometheus that asks each second waits no longer for all


class GatewayMetrics(Collector):
    """What the gateway counts, and the page that shows it.

    Registered ahead of the metrics that others of this process count, so that each page shows those as they are now.
    """

    def __init__(
        self,
        link: LinkCounts,
        video_jobs: Callable[[], Mapping[str, int]] | None = None,
        desk: Desk | None = None,
        storyboards: Callable[[], Mapping[str, int]] | None = None,
    ) -> None:
        self.control_address = ""  # host:port of the control loop's page; empty where it is not known
        self._link = link
        self._video_jobs, self._storyboards = video_jobs, storyboards
        self._desk = desk
        self.journal: Journal | None = None
        self._tiers: tuple[str, ...] = ()
        self._taken: Counter[tuple[str, ...]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._meters = Meters(self._registry, (*GATEWAY, *LINK, *VIDEO))
        self.video = VideoMetrics(self._meters)
        self._client = httpx.AsyncClient(timeout=PAGE_TIMEOUT_S, trust_env=False)  # a proxy knows no replicas
        self._jobs: Mapping[str, int] = {}
        self._boards: Mapping[str, int] = {}
        self._making: asyncio.Task[bytes] | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None

    def follow(self, tiers: Iterable[str], limits: Iterable[str] = ()) -> None:
        """Series of the tiers and of the plans' limits begin at 0: one that does not exist yet could not be told from
        one that is lost."""
        self._tiers = tuple(tiers)
        for tier in self._tiers:
            for metric in GATEWAY:
                if metric.labels == ("tier",):
                    getattr(self._meters, metric.kind)(metric.name).labels(tier=tier)
            for outcome in ("kept", "missed"):
                self._meters.counter("moray_promises_total").labels(tier=tier, outcome=outcome)
        for limit in limits:
            self._meters.counter("moray_limit_refusals_total").labels(limit=limit)

    def serve(self, host: str) -> str:
        """host:port of an exposition of this gateway's own series, from now on. Call it on the gateway's loop."""
        self._home = (threading.get_ident(), asyncio.get_running_loop())
        server, _ = start_http_server(0, addr=host, registry=self._registry)
        return f"{host}:{server.server_port}"

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        counter = self._meters.counter(name)
        (counter.labels(**labels) if labels else counter).inc(by)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        self._meters.histogram(name).labels(**labels).observe(seconds)

    def request(self, tier: str, code: str, seconds: float) -> None:
        self.count("moray_requests_total", tier=tier, code=code)
        self.observe("moray_request_seconds", seconds, tier=tier)

    def answered(
        self,
        tier: str,
        usages: Sequence[Usage],
        ttft_s: float,
        tpot_s: float | None,
        stages: Mapping[str, float],
        *,
        spare: bool = False,
    ) -> None:
        """By the tier that served; `usages` of each answer to the request, `stages` of cluster.ledger.

        `tpot_s`: None for an answer of one token.
        Of what ran on what was left over (`spare`) the tokens alone are counted: it tells nothing of demand.
        """
        self.count("moray_prompt_tokens_total", sum(one.prompt_tokens for one in usages), tier=tier)
        self.count("moray_completion_tokens_total", sum(one.completion_tokens for one in usages), tier=tier)
        if spare:
            return
        for stage, seconds in stages.items():
            self.observe("moray_stage_seconds", seconds, tier=tier, stage=stage)
        self.observe("moray_ttft_seconds", ttft_s, tier=tier)
        if tpot_s is not None:
            self.observe("moray_tpot_seconds", tpot_s, tier=tier)
        # Vectors have no token; they end with the step of a first one.
        for prompt, completion in ((one.prompt_tokens, max(1, one.completion_tokens)) for one in usages):
            self.count("moray_finished_output_tokens_total", completion, tier=tier)
            self.count("moray_context_token_steps_total", completion * (prompt + completion // 2), tier=tier)
        self.count("moray_finished_total", len(usages), tier=tier)

    def streams(self, tier: str, change: int) -> None:
        self._meters.gauge("moray_streams").labels(tier=tier).inc(change)

    def own(self) -> Iterable[Metric]:
        """This gateway's own series as they are now."""
        return self._registry.collect()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        if self._home is None or self._home[0] == threading.get_ident():
            self._look()
        else:  # asked by a thread of the own port, while the loop changes what is looked at
            asyncio.run_coroutine_threadsafe(self._looked(), self._home[1]).result(SCRAPE_TIMEOUT_S)
        return iter(())

    async def _looked(self) -> None:
        await self._count_jobs()
        self._look()

    def _look(self) -> None:
        for tier, replicas in seen.everywhere().items():
            self._meters.gauge("moray_replicas_running").labels(tier=tier).set(len(replicas))
        for (tier, method), count in seen.routing_decisions.items():
            self._raise("moray_routing_decisions_total", count, tier=tier, method=method)
        for tier, count in seen.routing_errors.items():
            self._raise("moray_routing_errors_total", count, tier=tier)
        for status, count in (dict.fromkeys(get_args(Status), 0) | dict(self._jobs)).items():
            self._meters.gauge("moray_video_jobs").labels(status=status).set(count)
        for state, count in (dict.fromkeys(get_args(State), 0) | dict(self._boards)).items():
            self._meters.gauge("moray_storyboards").labels(state=state).set(count)
        self._meters.gauge("moray_links").set(self._link.links)
        self._raise("moray_link_frames_total", self._link.frames)
        self._raise("moray_link_bytes_total", self._link.bytes)
        self._raise("moray_link_failures_total", self._link.failures)
        if self._desk is not None:
            self._look_at(self._desk)
        if self.journal is not None:
            self._meters.gauge("moray_usage_pending").set(self.journal.pending)
            self._raise("moray_usage_failures_total", self.journal.failures)
            self._raise("moray_usage_refused_total", self.journal.refused)

    def _look_at(self, desk: Desk) -> None:
        held, ongoing, breakers = desk.held(), desk.ongoing(), desk.open_breakers()
        for tier in self._tiers:
            requests, tokens = held.get(tier, (0, 0))
            self._meters.gauge("moray_held_requests").labels(tier=tier).set(requests)
            self._meters.gauge("moray_held_prompt_tokens").labels(tier=tier).set(tokens)
            self._meters.gauge("moray_ongoing_requests").labels(tier=tier).set(ongoing.get(tier, 0))
            self._meters.gauge("moray_breakers_open").labels(tier=tier).set(breakers.get(tier, 0))
        for (tier, action), count in desk.admissions.items():
            self._raise("moray_admissions_total", count, tier=tier, action=action)

    def _raise(self, name: str, count: int, **labels: str) -> None:
        """A counter that somebody else counts, up to `count`."""
        key = (name, *labels.values())
        counter = self._meters.counter(name)
        (counter.labels(**labels) if labels else counter).inc(count - self._taken[key])
        self._taken[key] = count

    async def page(self, only_gateway: bool) -> bytes:
        await self._count_jobs()
        if only_gateway:
            return generate_latest(self._registry)
        if self._making is None or self._making.done():  # it is dear: those who ask meanwhile get the same page
            self._making = asyncio.create_task(self._everything())
        return await asyncio.shield(self._making)

    async def _count_jobs(self) -> None:
        if self._video_jobs is not None:
            with contextlib.suppress(Unavailable):  # the page says what it last heard, and that the store is away
                self._jobs = await in_thread(self._video_jobs)
        if self._storyboards is not None:
            with contextlib.suppress(Unavailable):
                self._boards = await in_thread(self._storyboards)

    async def _everything(self) -> bytes:
        pages = {r.replica_id: r.metrics_address for each in seen.everywhere().values() for r in each}
        pages |= {"": self.control_address} if self.control_address else {}
        families = await asyncio.gather(*map(self._fetch, pages.values()))
        everything = CollectorRegistry(auto_describe=False)
        everything.register(Merged(self._registry, dict(zip(pages, families, strict=True))))
        return generate_latest(everything)

    async def _fetch(self, address: str) -> list[Metric]:
        """One page; nothing where its process just died, or another one answers: the others are still worth seeing."""
        try:
            page = (await self._client.get(f"http://{address}/metrics")).raise_for_status().text
            return list(text_string_to_metric_families(page))
        except (httpx.HTTPError, ValueError):
            return []


class Merged(Collector):
    """One family per name, however many pages it came from. Pages are by replica, the one of "" gets no label."""

    def __init__(self, own: CollectorRegistry, pages: dict[str, list[Metric]]) -> None:
        self._own = own
        self._pages = pages

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._own.collect()}
        for replica_id, page in self._pages.items():
            for family in page:
                label = {"replica": replica_id} if replica_id else {}
                samples = [s._replace(labels=s.labels | label) for s in family.samples]
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples.extend(samples)
        return iter(families.values())
