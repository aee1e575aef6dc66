"""Which gateways the loop knows, and what they point to."""

from autoscaling.signals import JobSeen
from deployments.control.gateways import SILENT_S, Gateways
from deployments.control.words import Hello

JOB = JobSeen(left_gpu_s=1.0, deadline_s=2.0, value_usd=3.0)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def hello(name: str, *replicas: str, jobs: tuple[JobSeen, ...] | None = None) -> Hello:
    addresses = {f"{replica}:1": replica for replica in replicas}
    return Hello(gateway_id=name, metrics=(f"{name}:1", *addresses), replica_of=addresses, jobs=jobs)


def test_expositions_of_all_gateways_are_known_with_their_replicas() -> None:
    gateways = Gateways(Clock())
    gateways.hear(hello("a", "x"))
    gateways.hear(hello("b", "x", "y"))
    assert gateways.addresses() == {"a:1": None, "x:1": "x", "b:1": None, "y:1": "y"}


def test_who_was_silent_for_long_is_forgotten() -> None:
    clock = Clock()
    gateways = Gateways(clock)
    gateways.hear(hello("a", "x", jobs=(JOB,)))
    clock.now_s = SILENT_S - 0.1
    gateways.hear(hello("b"))
    assert gateways.addresses().keys() == {"a:1", "x:1", "b:1"}
    clock.now_s = SILENT_S
    assert gateways.addresses() == {"b:1": None}
    assert gateways.jobs() is None


def test_jobs_are_those_of_the_gateway_that_keeps_them() -> None:
    gateways = Gateways(Clock())
    assert gateways.jobs() is None
    gateways.hear(hello("a", jobs=(JOB,)))
    gateways.hear(hello("b"))
    assert gateways.jobs() == (JOB,)
    gateways.hear(hello("a", jobs=()))
    assert gateways.jobs() == ()
