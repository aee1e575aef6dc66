"""The control loop as a Ray actor: gateways tell it of themselves, Serve's hook and gateways ask it what should be."""

import asyncio
import functools
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from secrets import token_hex
from typing import Any

import ray

from autoscaling.controller import Controller, Shown, Source, World
from autoscaling.controller import Observed as Told
from autoscaling.parameters import Parameters
from autoscaling.record import Record
from autoscaling.signals import spec_of
from autoscaling.sources import Prometheus, Scrape
from autoscaling.story import Story, heard, still
from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.lending import Moves, Wish
from cluster.placement import VIDEO
from deployments.control import fleet
from deployments.control.gateways import Gateways
from deployments.control.held import HeldUse
from deployments.control.metrics import ControlMetrics
from deployments.control.record_file import RecordFile
from deployments.control.standing import keep, served
from deployments.control.words import Hello, Picture, Standing
from deployments.ranks import node_address
from deployments.stores.usage import usage_of
from deployments.video.pool import Pool

AGAIN_S = (
    15.0  # before a tier whose replicas could not start is tried again; whoever deploys sees meanwhile that it failed
)
VERSION = version("moray")  # read from files: once
log = logging.getLogger("moray.control")


class Control:
    """One per cluster: its name keeps a second one away, the lock of its record a stray one.

    Raises ConfigurationError where another loop writes the record.
    """

    async def __init__(self, family: Family) -> None:  # type: ignore[misc]  # Ray awaits it
        self._folder = Path(family.state_folder)
        self._record = RecordFile(self._folder, family.control.record_mib)
        self._session = ray.get_runtime_context().get_session_name()
        kept = served(self._folder, self._session, family)
        self._family, self._version = kept.family, kept.version
        self._adopting = asyncio.Lock()
        self._gateways = Gateways(asyncio.get_running_loop().time)
        self._metrics = ControlMetrics(node_address())
        # One thread: where Ray's tables hang, later questions are given up and do not pile up.
        self._threads = ThreadPoolExecutor(max_workers=1)
        self._source = self._looking(self._family)
        self._pool = await _pool(self._family)
        self._failed_s: dict[str, float] = {}  # since when Serve has given a tier up, or when it was last told to go on
        self._seen: tuple[float, fleet.Observed] | None = None  # and when, on the loop's clock
        self._story = Story()
        self._let_go: Mapping[str, int] = {}  # tiers that Serve is to try anew, with what it has
        last = self._record.last() if kept.again else None
        self._controller = Controller(self._world(), spec_of(self._family), _initial(self._family), last, Parameters())
        self._held = HeldUse(token_hex(6), lambda: usage_of(family))
        self._loop = asyncio.create_task(self._controller.run(self._show))
        self._loop.add_done_callback(_ended)

    def _show(self, shown: Shown) -> None:
        self._metrics.show(shown)
        self._held.hear(shown.gpu_s, self._family.gpu_usd_per_hour, time.time())

    def _looking(self, family: Family) -> Source:
        url = family.control.prometheus_url
        return Prometheus(url) if url else Scrape(self._gateways.addresses, time.time)

    def _world(self) -> World:
        return World(
            source=self._source,
            observe=self._observe,
            jobs=self._gateways.jobs,
            pool=self._pool,
            wish=functools.partial(_wish, self._family),
            record=self._keep,
            clock=time.time,
        )

    def _keep(self, record: Record) -> None:
        self._story = heard(self._story, record)
        self._record.write(record)

    async def _observe(self) -> fleet.Observed:
        seen = await asyncio.get_running_loop().run_in_executor(self._threads, fleet.observe, self._family)
        now_s = asyncio.get_running_loop().time()
        self._seen = now_s, seen
        holding = [(each.owner, each.node) for each in seen.holdings]
        lent = still(self._story.lent, holding, (group.tier for group in seen.awaiting))
        self._story = replace(self._story, lent=lent)
        self._failed_s = {key: self._failed_s.get(key, now_s) for key in seen.given_up}
        due = {key for key, at_s in self._failed_s.items() if now_s - at_s >= AGAIN_S} - self._let_go.keys()
        self._let_go = {key: seen.given_up[key] for key in due}
        for key in self._let_go:
            self._failed_s[key] = now_s
            log.warning("tier %s: its replicas could not start, the log of Serve says why; they are tried again", key)
        return seen

    async def announce(self, hello: Hello) -> Standing:
        """What a gateway says about once a second."""
        self._gateways.hear(hello)
        return Standing(
            version=self._version,
            family=self._family,
            workers=() if self._pool is None else self._pool.workers(),
            metrics_address=self._metrics.address,
            targets=dict(self._controller.targets),
            picture=self._picture(),
            pages=self._gateways.addresses(),
            moray=VERSION,
        )

    def _picture(self) -> Picture | None:
        if self._seen is None:
            return None
        at_s, seen = self._seen
        return Picture(
            age_s=asyncio.get_running_loop().time() - at_s,
            gpus=seen.fleet.gpus,
            rooms=seen.rooms,
            holdings=seen.holdings,
            awaiting=seen.awaiting,
            leaving=() if self._pool is None else tuple(one.worker_id for one in self._pool.held() if one.leaving),
            counts=dict(self._controller.shown.counts),
            story=self._story,
        )

    async def wake(self, tier: str) -> None:
        """A request waits for a tier that sleeps."""
        self._controller.wake(tier)

    async def targets(self) -> dict[str, int]:
        """By tier and video; never empty.

        Of a tier that Serve has given up, what it has, now and then: another target makes Serve try again.
        """
        return {key: min(target, self._let_go.get(key, target)) for key, target in self._controller.targets.items()}

    async def adopt(self, family: Family) -> int:
        """Serve a changed family; returns its version. Raises ConfigurationError, OSError where it cannot be kept."""
        if Path(family.state_folder) != self._folder:
            raise ConfigurationError(
                f"state_folder: {family.state_folder!r} was {str(self._folder)!r}; it stays while a family is served; "
                "change it back, or stop first"
            )
        async with self._adopting:
            if family != self._family:
                keep(self._folder, self._session, self._version + 1, family)
                before, self._family, self._version = self._family, family, self._version + 1
                if family.control != before.control:
                    await self._source.close()
                    self._source = self._looking(family)
                self._pool = await _followed(self._pool, family)
                self._controller.world = self._world()
                self._controller.adopt(spec_of(family), _initial(family))
                self._controller.wake()
            return self._version


async def _pool(family: Family) -> Pool | None:
    """With the video replicas that are there, of the loop before this one."""
    if family.video is None:
        return None
    pool = Pool(family)
    await pool.adopt()
    return pool


async def _followed(pool: Pool | None, family: Family) -> Pool | None:
    """The video replicas of a changed family."""
    if pool is None:
        return await _pool(family)
    if family.video is None:
        await pool.apply(Moves(vacate=tuple(worker.worker_id for worker in pool.held()), reason="no video any more"))
        return None
    pool.follow(family)
    return pool


def _initial(family: Family) -> Mapping[str, int]:
    parts: dict[str, Any] = dict(family.tiers) if family.video is None else {**family.tiers, VIDEO: family.video}
    return {name: part.replicas.initial for name, part in parts.items()}


def _wish(family: Family, target: int, observed: Told) -> Wish:
    """Video replicas may be anywhere; they like the nodes of the tier that the family file puts them beside."""
    video = family.video
    assert video is not None
    cells = tuple(dict.fromkeys(room.cell for room in observed.rooms))
    beside = observed.nodes_of.get(video.beside or "", ())
    return Wish(target=target, gpus=video.gpus, cells=cells, beside=beside)


def _ended(loop: asyncio.Task[None]) -> None:
    """Ray starts an actor again whose process has died."""
    if not loop.cancelled():
        log.critical("control: the loop has ended; it starts again", exc_info=loop.exception())
        os._exit(1)
