"""The ranks of a replica: actors in the bundles of its one placement group. The replica is rank 0, in bundle 0."""

from typing import TYPE_CHECKING, Any, cast

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import EngineFailed
from deployments.local import free_ports

if TYPE_CHECKING:
    from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress


def node_address() -> str:
    """The address of this node that other nodes reach."""
    return cast(str, ray.util.get_node_ip_address())


class Rank:
    """One follower of an expert group, for as long as rank 0 lives."""

    def follow(self, spec: "EngineSpec", rank: int, address: "GroupAddress") -> None:
        from deployments.engines.torch_engine.parallel import follow

        follow(spec, rank, address)


def _why(life: Any) -> str:
    """How a follower ended, on one line."""
    try:
        ray.get(life)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}".splitlines()[0]
    except ray.exceptions.RayError as error:
        return type(error).__name__
    return "it was let go"


class ExpertGroup:
    """Rank 0's view of its followers. Ray ends them with the replica that started them."""

    def __init__(self, bundle: dict[str, float]) -> None:
        self._bundle = bundle
        self._actors: list[Any] = []
        self._lives: list[Any] = []

    def launch(self, spec: "EngineSpec") -> "GroupAddress | None":
        """Start ranks 1..N-1, which will look for rank 0 at the address returned. None where one rank is all."""
        if spec.ranks == 1:
            return None
        from deployments.engines.torch_engine.spec import GroupAddress

        address = GroupAddress(host=node_address(), port=free_ports(1)[0])
        group = ray.util.get_current_placement_group()
        resources = dict(self._bundle)
        for rank in range(1, spec.ranks):
            actor = (
                ray.remote(Rank)
                .options(
                    num_cpus=resources.get("CPU", 0),
                    num_gpus=resources.get("GPU", 0),
                    resources={k: v for k, v in resources.items() if k not in ("CPU", "GPU")},
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )
                .remote()
            )
            self._actors.append(actor)
            self._lives.append(actor.follow.remote(spec, rank, address))
        return address

    def check(self) -> None:
        """Raises EngineFailed once a follower has ended: the experts on it are gone."""
        ended, _ = ray.wait(self._lives, timeout=0) if self._lives else ([], [])
        if ended:
            first = self._lives.index(ended[0]) + 1
            raise EngineFailed(
                f"expert group: rank {first} ended: {_why(ended[0])}; all ranks are needed; the replica restarts"
            )

    def stop(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
