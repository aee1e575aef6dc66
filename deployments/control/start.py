"""Find the control loop, or start it."""

from typing import Any

import ray

from cluster.family import Family
from deployments.control.words import CONTROL, NAMESPACE

CPUS = 0.01
ON_HEAD = {"node:__internal_head__": 0.001}  # beside Serve's controller: the one node that nothing works without


def control(family: Family) -> Any:
    """Ray's handle of the one loop. It outlives who started it, and is started again where its process dies.

    Whose `family` differs is heard only through `adopt`.
    """
    from deployments.control.actor import Control  # which knows the application, and that its gateway, which starts it

    options = {"num_cpus": CPUS, "resources": ON_HEAD, "lifetime": "detached", "max_restarts": -1}
    return ray.remote(Control).options(name=CONTROL, namespace=NAMESPACE, get_if_exists=True, **options).remote(family)
