"""Whose rows experts compute: counted by domain, which is told from the experts that a prompt chose where none says."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from cluster.family import Specialist
from deployments.engines.torch_engine.checkpoint import ModelConfig
from deployments.engines.torch_engine.kv import IntArray, on

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


class Tally:
    """Rows that one rank sent to each slot, by domain.

    A prompt that names no domain counts under its place. At its end its experts say the domain, and its rows go there:
    all but those that were taken before, which are unknown for good.
    """

    def __init__(
        self, slots: Sequence[tuple[int, ...]], config: ModelConfig, places: int, device: torch.device
    ) -> None:
        """slots [moe layers, slots]: the expert in each."""
        self._experts = torch.tensor(slots, dtype=torch.int64, device=device)
        width = len(slots[0]) if slots else 0
        self._rows = torch.zeros(len(slots), len(DOMAINS) + places, width, dtype=torch.int64, device=device)
        self._starts = torch.arange(len(slots), device=device)[:, None] * self._rows[:1].numel()
        self._under = np.zeros(places, np.int64)  # the second index of the rows of each place
        self._top_k = config.top_k
        owned = config.domains if slots else None
        self._ballot = ballot(owned, config.experts).to(device) if owned else None
        self._votes: dict[int, Tensor] = {}  # [domains] of the prompts that are not at their end, from rows taken

    def open(self, place: int, domain: str) -> None:
        """Another sequence has the place. `domain`: under what its rows count; "" is measured."""
        if self._votes.pop(place, None) is not None:
            self._count_under(place, 0)  # the one before was cancelled in its prompt
        self._under[place] = number(domain)
        if self._ballot is not None and not self._under[place]:
            self._under[place] = len(DOMAINS) + place
            self._votes[place] = torch.zeros(len(DOMAINS), device=self._rows.device)

    def add(self, places: IntArray, routed: Sequence[Tensor]) -> None:
        """places [T]: the sequence of each row of a step; routed: of each layer, the slots [T * top_k] of its rows."""
        if not routed:
            return
        under = on(self._rows.device, (self._under[places] * self._rows.shape[2]).repeat(self._top_k))
        at = (torch.stack(tuple(routed)) + under + self._starts).view(-1)
        self._rows.view(-1).scatter_add_(0, at, torch.ones_like(at))

    def close(self, place: int) -> None:
        """Its prompt was added as a whole."""
        if (votes := self._votes.pop(place, None)) is not None:
            self._count_under(place, int((votes + self._voted(place)).argmax()))

    def taken(self) -> Tensor:
        """[moe layers, domains, slots] since it was asked last, on the CPU. To be asked before experts move."""
        for place, votes in self._votes.items():
            votes += self._voted(place)
        self._rows[:, 0] += self._rows[:, len(DOMAINS) :].sum(1)
        rows = self._rows[:, : len(DOMAINS)].to("cpu", copy=True)
        self._rows.zero_()
        return rows

    def move(self, layer: int, slots: tuple[int, ...]) -> None:
        """The expert in each slot of the layer is another from now on."""
        self._experts[layer] = torch.tensor(slots)

    def _voted(self, place: int) -> Tensor:
        assert self._ballot is not None
        rows = self._rows[:, len(DOMAINS) + place, :, None]
        return (rows * self._ballot[self._experts]).sum((0, 1))

    def _count_under(self, place: int, domain: int) -> None:
        self._rows[:, domain] += self._rows[:, len(DOMAINS) + place]
        self._rows[:, len(DOMAINS) + place] = 0
        self._under[place] = domain
