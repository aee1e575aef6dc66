"""The class in which a request is served: how urgent, how patient, at which price. The API's `service_tier`.

flex        after every plan's requests, with more patience, refused first
default     as its plan says
priority    ahead of every request of another class, among themselves as their plans say; for plans above priority 0
"""

from cluster.family import Family, Plan
from cluster.request import ServiceClass

BELOW_PLANS = -1  # a priority


def served_in(asked: ServiceClass | None, plan: Plan | None, *, last: bool = False) -> ServiceClass | None:
    """None where the caller asked for none. A key without a plan may ask for any. `last`: of a batch, never urgent."""
    if asked == "priority" and (last or (plan is not None and plan.priority == 0)):
        return "default"
    return asked


def priority_of(served: ServiceClass | None, plan: Plan | None, family: Family) -> int:
    own = plan.priority if plan else 0
    match served:
        case "flex":
            return BELOW_PLANS
        case "priority":
            return own + 1 + max((each.priority for each in family.plans.values()), default=0)
    return own


def patience_of(served: ServiceClass | None, family: Family) -> float:
    """Times the patience of its tier."""
    return family.service_classes.flex.patience_factor if served == "flex" else 1.0


def price_factor(served: ServiceClass | None, family: Family) -> float:
    """Times the list price of tokens."""
    match served:
        case "flex":
            return family.service_classes.flex.price_factor
        case "priority":
            return family.service_classes.priority.price_factor
    return 1.0
