"""GET /metrics: this gateway's own metrics and those of every replica it sees, one page.

Replicas of a tier export the same series, so each of theirs gets the label `replica`. Where Prometheus scrapes every
pod itself, it should ask for /metrics?only=gateway.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

import httpx
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cluster.request import Usage
from deployments import seen
from deployments.link import LinkCounts
from deployments.observe import Meters
from deployments.video.jobs import Status
from monitoring.metrics import GATEWAY, LINK, VIDEO

SCRAPE_TIMEOUT_S = 2.0


class GatewayMetrics(Collector):
    """What the gateway counts, and the page that shows it.

    Registered ahead of the metrics that others of this process count, so that each page shows those as they are now.
    """

    def __init__(self, link: LinkCounts, video_jobs: Callable[[], Mapping[str, int]] | None = None) -> None:
        self._link = link
        self._video_jobs = video_jobs
        self._taken: Counter[tuple[str, ...]] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._meters = Meters(self._registry, (*GATEWAY, *LINK, *VIDEO))
        self._client = httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S)
        self._jobs: Mapping[str, int] = {}
        self._making: asyncio.Task[bytes] | None = None

    def request(self, tier: str, code: str, seconds: float) -> None:
        self._meters.counter("moray_requests_total").labels(tier=tier, code=code).inc()
        self._meters.histogram("moray_request_seconds").labels(tier=tier).observe(seconds)

    def refused(self, tier: str, code: str) -> None:
        self._meters.counter("moray_rejections_total").labels(tier=tier, code=code).inc()

    def answered(self, tier: str, usage: Usage, ttft_s: float, decode_s: float) -> None:
        """decode_s: from the first token to the last."""
        self._meters.histogram("moray_ttft_seconds").labels(tier=tier).observe(ttft_s)
        if usage.completion_tokens > 1:
            tpot_s = decode_s / (usage.completion_tokens - 1)
            self._meters.histogram("moray_tpot_seconds").labels(tier=tier).observe(tpot_s)
        self._meters.counter("moray_prompt_tokens_total").labels(tier=tier).inc(usage.prompt_tokens)
        self._meters.counter("moray_completion_tokens_total").labels(tier=tier).inc(usage.completion_tokens)

    def streams(self, tier: str, change: int) -> None:
        self._meters.gauge("moray_streams").labels(tier=tier).inc(change)

    def video_step(self, seconds: float) -> None:
        self._meters.counter("moray_video_steps_total").inc()
        self._meters.histogram("moray_video_step_seconds").observe(seconds)

    def video_finished(self, code: str) -> None:
        self._meters.counter("moray_video_jobs_finished_total").labels(code=code).inc()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for tier, replicas in seen.everywhere().items():
            self._meters.gauge("moray_replicas_running").labels(tier=tier).set(len(replicas))
        for (tier, method), count in seen.routing_decisions.items():
            self._raise("moray_routing_decisions_total", count, tier=tier, method=method)
        for tier, count in seen.routing_errors.items():
            self._raise("moray_routing_errors_total", count, tier=tier)
        for status, count in (dict.fromkeys(get_args(Status), 0) | dict(self._jobs)).items():
            self._meters.gauge("moray_video_jobs").labels(status=status).set(count)
        self._meters.gauge("moray_links").set(self._link.links)
        self._raise("moray_link_frames_total", self._link.frames)
        self._raise("moray_link_bytes_total", self._link.bytes)
        self._raise("moray_link_failures_total", self._link.failures)
        return iter(())

    def _raise(self, name: str, count: int, **labels: str) -> None:
        """A counter that somebody else counts, up to `count`."""
        key = (name, *labels.values())
        counter = self._meters.counter(name)
        (counter.labels(**labels) if labels else counter).inc(count - self._taken[key])
        self._taken[key] = count

    async def page(self, only_gateway: bool) -> bytes:
        if self._video_jobs is not None:
            self._jobs = await asyncio.to_thread(self._video_jobs)
        if only_gateway:
            return generate_latest(self._registry)
        if self._making is None or self._making.done():  # it is dear: those who ask meanwhile get the same page
            self._making = asyncio.create_task(self._everything())
        return await asyncio.shield(self._making)

    async def _everything(self) -> bytes:
        replicas = [replica for each in seen.everywhere().values() for replica in each]
        texts = await asyncio.gather(*(self._fetch(replica.metrics_address) for replica in replicas))
        everything = CollectorRegistry(auto_describe=False)
        everything.register(Merged(self._registry, {r.replica_id: t for r, t in zip(replicas, texts, strict=True)}))
        return generate_latest(everything)

    async def _fetch(self, address: str) -> str:
        """One replica's page; nothing where it just died: the others are still worth seeing."""
        try:
            return (await self._client.get(f"http://{address}/metrics")).raise_for_status().text
        except httpx.HTTPError:
            return ""


class Merged(Collector):
    """One family per name, however many pages it came from."""

    def __init__(self, own: CollectorRegistry, pages: dict[str, str]) -> None:
        self._own = own
        self._pages = pages

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        families = {family.name: family for family in self._own.collect()}
        for replica_id, text in self._pages.items():
            for family in text_string_to_metric_families(text):
                samples = [s._replace(labels=s.labels | {"replica": replica_id}) for s in family.samples]
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples.extend(samples)
        return iter(families.values())
