"""Video workers as Ray keeps them: a named actor each, in a placement group of the same name, which outlive their loop.

Ray's calls block, so each is made in a thread.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.family import Video
from cluster.placement import bundles
from deployments.control.words import NAMESPACE, WORKER
from deployments.video.messages import Doing
from deployments.video.worker import VideoWorker

NODE_LABEL = "ray.io/node-id"  # Ray's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A worker of an earlier loop. `actor` None: its placement group is all that is left, or all that there is yet."""

    worker_id: str
    node_id: str
    group: Any
    actor: Any


class WorkerActors:
    async def found(self) -> tuple[Found, ...]:
        return await asyncio.to_thread(_found)

    async def reserve(
        self, worker_id: str, node_id: str, video: Video, accelerator: Literal["cpu", "cuda"]
    ) -> PlacementGroup:
        """The group may wait for its node; an actor started in it waits with it."""
        return await asyncio.to_thread(
            placement_group,
            bundles(video, accelerator),
            name=WORKER + worker_id,
            lifetime="detached",
            bundle_label_selector=[{NODE_LABEL: node_id}],
        )

    async def start(
        self, worker_id: str, group: PlacementGroup, video: Video, accelerator: Literal["cpu", "cuda"], state: str
    ) -> Any:
        """`state`: the folder of certificates, and of files where they are in no object store."""
        (bundle,) = bundles(video, accelerator)
        options = ray.remote(VideoWorker).options(
            name=WORKER + worker_id,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=bundle.pop("CPU", 0),
            num_gpus=bundle.pop("GPU", 0),
            resources=bundle,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        )
        return await asyncio.to_thread(options.remote, video, accelerator, state)

    async def watch(self, actor: Any) -> AsyncIterator[Doing | None]:
        """Raises RayError once the actor is dead."""
        async for news in actor.watch.options(num_returns="streaming").remote():
            yield await news

    async def remove(self, group: PlacementGroup, actor: Any) -> None:
        """Whatever they are at, or if they are gone already."""
        await asyncio.to_thread(_remove, group, actor)


def _found() -> tuple[Found, ...]:
    return tuple(
        Found(
            worker_id=row["name"].removeprefix(WORKER),
            node_id=row["bundles_to_node_id"].get(0) or "",
            group=PlacementGroup(ray.PlacementGroupID.from_hex(row["placement_group_id"])),
            actor=_actor(row["name"]),
        )
        for row in placement_group_table().values()
        if row["name"].startswith(WORKER) and row["state"] != "REMOVED"
    )


def _actor(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _remove(group: PlacementGroup, actor: Any) -> None:
    if actor is not None:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(actor)
    remove_placement_group(group)
