"""One OpenTelemetry span per traced request, a child span per stage of its ledger, an event per engine step.

The gateway makes them all when the request has ended: replicas report durations, so that clocks of two machines need
not agree, and nothing but the gateway needs a way to the collector. Attributes are the conventions of gen_ai where
they have one: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/.
"""

from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from cluster.family import Family
from cluster.ledger import STAGES
from cluster.request import Chat
from deployments.gateway.account import Account
from deployments.gateway.asgi import header

EXPORT_MS = 1000.0
PATIENCE_S = 2.0  # with a collector that hangs, and so with what is not sent yet when the gateway stops
ENGINE = ("wait", "prefill", "decode")


class Tracer:
    """Traces nothing where the family has no `tracing`. A collector that is away costs spans, never a request."""

    def __init__(self, family: Family) -> None:
        self._provider: TracerProvider | None = None
        if family.tracing is not None:
            names = {"service.name": "moray", "service.version": version("moray"), "moray.family": family.name}
            sampler = ParentBasedTraceIdRatio(family.tracing.sample_ratio)
            self._provider = TracerProvider(resource=Resource.create(names), sampler=sampler)
            exporter = OTLPSpanExporter(endpoint=family.tracing.otlp_url, timeout=PATIENCE_S)
            self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MS))
        self._parents = TraceContextTextMapPropagator()

    def begin(self, scope: Scope) -> Span | None:
        """None where the request is not traced. A caller's `traceparent` decides; without one the ratio does."""
        if self._provider is None:
            return None
        given = {"traceparent": header(scope, b"traceparent").decode("latin-1")}
        parent = self._parents.extract(given)
        span = self._provider.get_tracer("moray").start_span("chat", context=parent, kind=SpanKind.SERVER)
        return span if isinstance(span, Span) else None

    def end(self, account: Account, request_id: str, ended_s: float) -> None:
        span = account.span
        if span is None or span.start_time is None:
            return
        arrived_ns = span.start_time
        if account.chat is not None:
            span.update_name(f"chat {account.chat.model}")
            span.set_attributes(_asked(account.chat))
        span.set_attributes({"moray.request_id": request_id, "moray.tier": account.tier, "moray.code": account.code})
        span.set_attributes(_answered(account))
        if account.code not in ("ok", "client_gone"):
            span.set_status(StatusCode.ERROR, account.code)
            span.set_attribute("error.type", account.code)
        self._stages(span, account, arrived_ns)
        span.end(arrived_ns + round((ended_s - account.arrived_s) * 1e9))

    def _stages(self, parent: Span, account: Account, arrived_ns: int) -> None:
        assert self._provider is not None
        tracer, context, at_ns = self._provider.get_tracer("moray"), set_span_in_context(parent), arrived_ns
        accepted_ns = at_ns + round(1e9 * sum(s for stage, s in account.stages.items() if stage not in _BEHIND))
        for stage, seconds in account.stages.items():
            until_ns = at_ns + round(seconds * 1e9)
            if seconds > 0:
                span = tracer.start_span(stage, context=context, start_time=at_ns)
                span.set_attribute("moray.stage", STAGES[stage])
                if stage in ENGINE and account.served is not None:
                    span.set_attribute("moray.replica", account.served.replica)
                if stage == "decode":
                    for step_s in account.steps_s:
                        span.add_event("engine step", timestamp=accepted_ns + round(step_s * 1e9))
                span.end(until_ns)
            at_ns = until_ns


_BEHIND = frozenset((*ENGINE, "stream"))


def _asked(chat: Chat) -> dict[str, str | int | float]:
    sampling = chat.sampling
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "moray",
        "gen_ai.request.model": chat.model,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.stream": chat.stream,
        "gen_ai.response.id": chat.request_id,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _answered(account: Account) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    if account.served is not None:
        found |= {
            "moray.served_tier": account.served.tier,
            "moray.replica": account.served.replica,
            "moray.rescues": account.rescues,
        }
    if account.usage is not None:
        found |= {
            "gen_ai.usage.input_tokens": account.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": account.usage.completion_tokens,
        }
    return found
