"""Whose rows experts compute: the domains that are counted, and how one is told from the experts of a prompt."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from cluster.family import Specialist

DOMAINS: tuple[str, ...] = ("", "general", *get_args(Specialist))  # "" is unknown


def number(domain: str) -> int:
    """Its place in DOMAINS. One that is not among them is unknown."""
    return DOMAINS.index(domain) if domain in DOMAINS else 0


def ballot(owned: Mapping[str, Sequence[int]], experts: int) -> Tensor:
    """[experts, domains]: what one row sent to an expert says for a domain.

    A domain with more experts draws more rows by chance alone, so each weighs by how few its domain has.
    """
    votes = torch.zeros(experts, len(DOMAINS))
    for domain in (name for name in DOMAINS[1:] if owned.get(name)):
        votes[list(owned[domain]), number(domain)] = 1 / len(owned[domain])
    return votes
