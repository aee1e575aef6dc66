"""The gateways that the control loop has heard of lately."""

from collections.abc import Callable, Mapping

from autoscaling.signals import JobSeen
from deployments.control.words import Hello

SILENT_S = 5.0  # they say hello each second


class Gateways:
    """`clock`: seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: dict[str, tuple[float, Hello]] = {}

    def hear(self, hello: Hello) -> None:
        self._heard.pop(hello.gateway_id, None)
        self._heard[hello.gateway_id] = self._clock(), hello

    def _lately(self) -> list[Hello]:
        """The latest last."""
        now_s = self._clock()
        self._heard = {name: heard for name, heard in self._heard.items() if now_s - heard[0] < SILENT_S}
        return [hello for _, hello in self._heard.values()]

    def addresses(self) -> Mapping[str, str | None]:
        """Of all expositions, with the replica behind each, None for a gateway's."""
        known: dict[str, str | None] = {}
        for hello in self._lately():
            known |= {address: hello.replica_of.get(address) for address in hello.metrics}
        return known

    def jobs(self) -> tuple[JobSeen, ...] | None:
        """Of the gateway that keeps them, the most urgent first. None where none says."""
        return next((hello.jobs for hello in reversed(self._lately()) if hello.jobs is not None), None)
