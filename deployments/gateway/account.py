"""What the gateway keeps of one request: for its line of the log, its metrics, its ledger and its trace."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.trace import Span

from cluster.family import Slo
from cluster.ledger import Marks, Spent, ledger, server_timing
from cluster.request import Chat, Served, Usage
from deployments.gateway.booking import Booking
from deployments.gateway.choices import Choices
from deployments.gateway.rescue import Course
from deployments.stream import Outcome


@dataclass(slots=True, kw_only=True)
class Account:
    """Times on the gateway's clock. `span`: None where the request is not traced."""

    arrived_s: float
    span: Span | None
    key: str = "none"
    tier: str = "none"  # the one asked
    slo: Slo | None = None  # of the tier asked; None before it is known
    chat: Chat | None = None
    code: str = "internal_error"
    kept: bool | None = None  # whether the promises held; None where nobody can say
    asked_s: float = 0.0  # the desk
    first_s: float = 0.0
    last_s: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds; empty where the desk was never asked
    served: Served | None = None
    rescues: int = 0
    usage: Usage | None = None
    steps_s: tuple[float, ...] = ()
    booking: Booking | None = None

    def close(self, course: Course | Choices, outcome: Outcome | None, ended_s: float) -> None:
        """Once. `outcome`: None where there is no answer: what was spent on replicas is then lost."""
        place, end = course.place, outcome if outcome is not None and outcome.error is None else None
        marks = Marks(
            arrived_s=self.arrived_s,
            asked_s=self.asked_s,
            sent_s=ended_s if course.sent_s is None else course.sent_s,
            last_sent_s=ended_s if place is None or end is None else place.sent_s,
            first_s=self.first_s if course.streamed else None,
            ended_s=ended_s,
        )
        spent = Spent() if end is None else Spent(wait_s=end.wait_s, first_s=end.first_s, total_s=end.total_s)
        self.stages = ledger(marks, spent)
        self.served = place.served if place else None
        self.rescues = course.rescues
        if end is not None:
            self.usage, self.steps_s = end.usage, end.steps_s

    def fields(self) -> dict[str, Any]:
        """For the log."""
        fields: dict[str, Any] = {"key": self.key, "tier": self.tier, "code": self.code}
        if self.served is not None:
            fields |= {"served_by": self.served.replica, "rescues": self.rescues}
        if self.usage is not None:
            fields |= {"prompt_tokens": self.usage.prompt_tokens, "completion_tokens": self.usage.completion_tokens}
        if self.stages:
            fields["ledger_ms"] = {stage: round(seconds * 1e3, 1) for stage, seconds in self.stages.items()}
        if self.span is not None:
            fields["trace_id"] = f"{self.span.get_span_context().trace_id:032x}"
        return fields

    def timing(self) -> bytes:
        """Value of the header Server-Timing."""
        return server_timing(self.stages).encode()

    def timing_so_far(self, course: Course | Choices) -> bytes:
        """As `timing`, of the stages that are over when a stream begins."""
        until = {"gateway": self.asked_s - self.arrived_s}
        if course.place is not None and course.sent_s is not None:
            until |= {"queue": course.sent_s - self.asked_s, "lost": course.place.sent_s - course.sent_s}
        return server_timing(until).encode()
