"""Random histories of what gateways say of limits, on clocks that jump."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import strategies as st

from cluster.limits import Account, Currency, Limit, Reservation, renew, reserve, settle

START_S = 1_795_262_400.0  # noon of 21 November 2026, UTC
AMOUNTS = st.integers(0, 120).map(float)
CLOCKS = {
    "minute": st.floats(START_S, START_S + 300),
    "day": st.floats(START_S, START_S + 4 * 86_400),
    "month": st.floats(START_S - 80 * 86_400, START_S),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a gateway says at a time: `amounts` to reserve, or as it was used."""

    what: Literal["reserve", "settle", "renew"]
    id: str
    amounts: dict[Currency, float] = field(default_factory=dict)
    at_s: float

    @property
    def asked(self) -> Reservation:
        return Reservation(id=self.id, amounts=self.amounts)

    def done(self, account: Account, limits: Sequence[Limit]) -> Account:
        match self.what:
            case "reserve":
                return reserve(account, limits, self.asked, self.at_s)[0]
            case "settle":
                return settle(account, self.id, self.amounts, self.at_s)[0]
        return renew(account, [self.id], 60, self.at_s)[0]


def events(clock: st.SearchStrategy[float], amounts: st.SearchStrategy[float]) -> st.SearchStrategy[list[Event]]:
    return st.lists(
        st.builds(
            Event,
            what=st.sampled_from(["reserve", "reserve", "settle", "renew"]),
            id=st.sampled_from("abcdef"),
            amounts=st.fixed_dictionaries({"tokens": amounts, "usd": amounts, "concurrent": st.just(1.0)}),
            at_s=clock,
        ),
        min_size=1,
        max_size=25,
    )
