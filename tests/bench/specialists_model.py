"""The d term of cluster.cost for batches of several domains: which share of the routed experts such a batch touches."""

import numpy as np

from cluster.family import StepCost
from cluster.workload import Floats, Ints

DOMAINS = 4


def touched(cost: StepCost, sequences: Floats | Ints, concentration: float) -> Floats:
    """`sequences` [..., DOMAINS]: how many of each domain decode. The share of experts that they touch, [...].

    Each domain owns E/D of the E experts. Of a token's k picks the share `concentration` falls on its own domain's
    experts, the rest on all others, evenly. So a token picks an expert of its own domain with probability
    own = k*c/(E/D), any other with other = k*(1 - c)/(E - E/D). Where sequences pick independently of each other, an
    expert of domain g stays untouched with probability prod over d of (1 - p_dg)^B_d, however a token's own picks
    depend on each other (it never picks one twice). The expected share is the mean over experts:

        1 - 1/D * sum over g of (1 - own)^B_g * (1 - other)^(B - B_g)

    At c = 1/D both are k/E, and it is the 1 - (1 - k/E)^B of cluster.cost. Raises ValueError where the picks do not
    fit into the experts that they fall on.
    """
    own = cost.top_k * concentration * DOMAINS / cost.experts
    other = cost.top_k * (1 - concentration) * DOMAINS / (cost.experts * (DOMAINS - 1))
    if not (0 <= own <= 1 and 0 <= other <= 1):
        raise ValueError(f"concentration: {concentration:g}; {cost.top_k} picks of {cost.experts} experts do not fit")
    whole = sequences.sum(-1, keepdims=True)
    return np.asarray(1 - ((1 - own) ** sequences * (1 - other) ** (whole - sequences)).mean(-1))
