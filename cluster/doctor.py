"""What runs against what the family file says: every difference that an operator has to mend, as findings.

Looking is done elsewhere. What could not be seen is not judged here: whoever looked says so in `troubles`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.doctor_gateway import Gateway, of_gateway
from cluster.doctor_kubernetes import Kubernetes, of_kubernetes
from cluster.family import Family
from cluster.finding import Finding

__all__ = ["Finding", "Observed", "findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """None: not looked at, or not seen. `troubles`: what kept somebody from looking."""

    gateway: Gateway | None = None
    kubernetes: Kubernetes | None = None
    troubles: tuple[Finding, ...] = ()


def findings(family: Family, observed: Observed) -> tuple[Finding, ...]:
    """What is wrong; none where what was seen is what the family file says."""
    return tuple(_findings(family, observed))


def _findings(family: Family, observed: Observed) -> Iterator[Finding]:
    yield from observed.troubles
    if observed.gateway is not None:
        yield from of_gateway(family, observed.gateway)
    if observed.kubernetes is not None:
        yield from of_kubernetes(family, observed.kubernetes)
