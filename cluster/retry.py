"""How often requests whose replica was lost may go on elsewhere: per request, and for all requests of a tier.

A request that takes replicas down must not take all of them: it goes on MOST_RESCUES times at most. Of a tier, as many
may go on at once as it has under way (LEAST_AT_ONCE at least), so the loss of any number of replicas costs no answer;
after that one more for each 1/EARNED requests that it finishes, so a tier that only fails is not asked ever more.
"""

from dataclasses import dataclass

MOST_RESCUES = 3
LEAST_AT_ONCE = 16
EARNED = 0.2


@dataclass(frozen=True, slots=True)
class Budget:
    """`spent`: rescues that finished requests have not yet earned back."""

    spent: float = 0.0

    def finished(self) -> "Budget":
        return Budget(max(0.0, self.spent - EARNED))

    def rescued(self, ongoing: int) -> "Budget | None":
        """With one more, None where it is spent. `ongoing`: requests of the tier, those being rescued included."""
        return Budget(self.spent + 1) if self.spent + 1 <= max(LEAST_AT_ONCE, ongoing) else None
