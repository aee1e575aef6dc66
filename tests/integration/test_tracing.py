"""Where a request's time went: told in its header, in metrics, in spans at a collector, and in logs."""

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import Family, Stage
from integration.otlp import Collector, attributes
from integration.server import Server, eventually
from integration.talk import ASK, RESTART_S, Stream, serves, whole

from cluster.ledger import STAGES

pytestmark = pytest.mark.slow
SOON_S = 10.0
LEDGER = {"moray-ledger": "yes"}
CALLER = "b7ad6b7169203331"
TOKENS = 20
PROMPT = "what-nobody-may-read"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def server(stage: Stage, small_family: Family, collector: Collector) -> Server:
    def traced(folder: Path, port: int) -> dict[str, Any]:
        tracing = {"otlp_url": collector.url, "sample_ratio": 0}
        return small_family(folder, port) | {"tracing": tracing, "logs": "json"}

    return stage.serve("traced", traced)


def asked(server: Server, model: str, headers: dict[str, str] | None = None, *, stream: bool = False) -> Any:
    body = {"model": model, "messages": ASK, "max_tokens": TOKENS, "stream": stream}
    return server.http().post("/v1/chat/completions", json=body, headers=headers).raise_for_status()


def stages_ms(timing: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"([a-z]+);dur=([0-9.]+)", timing)}


def told_ms(body: str) -> dict[str, float]:
    """The comment behind the last event of a stream."""
    assert body.rstrip().splitlines()[-1].startswith(": server-timing "), body[-300:]
    assert "data: [DONE]" in body
    return stages_ms(body.rstrip().splitlines()[-1])


def parent(trace: str, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{CALLER}-{sampled:02x}"}


def traced(server: Server, collector: Collector, trace: str, model: str) -> list[Any]:
    asked(server, model, parent(trace), stream=True)
    # The request's own span ends last.
    eventually(lambda: any(span.parent_span_id.hex() == CALLER for span in collector.trace(trace)), SOON_S, "spans")
    return collector.trace(trace)


def logged(server: Server) -> list[str]:
    """The lines of all logs of Serve's components and ours."""
    files = server.scratch.glob("moray-*/ray/session_2*/logs/serve/*.log")
    return [text for file in files for text in file.read_text(encoding="utf-8").splitlines()]


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(text) for text in logged(server) if text.startswith("{")]


def test_a_whole_answer_carries_its_ledger_where_it_is_asked_for(server: Server) -> None:
    stages = stages_ms(asked(server, "turbo", LEDGER).headers["server-timing"])
    assert list(stages) == list(STAGES)
    assert stages["prefill"] > 0
    assert stages["decode"] > 0
    assert stages["lost"] == 0
    assert "server-timing" not in asked(server, "turbo").headers


def test_a_stream_tells_its_ledger_behind_its_last_event(server: Server) -> None:
    answer = asked(server, "mini", LEDGER, stream=True)
    assert list(stages_ms(answer.headers["server-timing"])) == ["gateway", "queue", "lost"]
    stages = told_ms(answer.text)
    assert list(stages) == list(STAGES)
    assert stages["decode"] > 0
    assert asked(server, "mini", stream=True).text.endswith("data: [DONE]\n\n")


def test_the_openai_client_reads_past_the_ledger(server: Server) -> None:
    with server.client() as client:
        chunks = list(
            client.chat.completions.create(model="turbo", messages=ASK, max_tokens=5, stream=True, extra_headers=LEDGER)
        )
    assert chunks[-1].choices[0].finish_reason == "length"


def test_stages_are_counted_by_the_tier_that_served(server: Server) -> None:
    before = server.metric("moray_stage_seconds_count", tier="turbo", stage="decode")
    whole(server, "turbo", tokens=5)
    # At least: what a stream before this test took is counted after its last event was read.
    eventually(
        lambda: server.metric("moray_stage_seconds_count", tier="turbo", stage="decode") > before, SOON_S, "counted"
    )


@pytest.mark.parametrize("model", ["turbo", "mini"])
def test_a_callers_trace_goes_on_to_the_engines_steps(server: Server, collector: Collector, model: str) -> None:
    trace = {"turbo": "1", "mini": "2"}[model] * 32
    root, *stages = traced(server, collector, trace, model)
    assert (root.name, root.parent_span_id.hex()) == (f"chat {model}", CALLER)
    known = attributes(root)
    assert known["gen_ai.operation.name"] == "chat"
    assert known["moray.tier"] == model
    assert (known["gen_ai.request.model"], known["gen_ai.usage.output_tokens"]) == (model, TOKENS)
    assert {span.parent_span_id for span in stages} == {root.span_id}
    names = [span.name for span in stages]
    assert names == [stage for stage in STAGES if stage in names]
    assert {"gateway", "prefill", "decode"} <= set(names)
    ends = [span.end_time_unix_nano for span in stages]
    assert [span.start_time_unix_nano for span in stages] == [root.start_time_unix_nano, *ends[:-1]]
    decode = next(span for span in stages if span.name == "decode")
    assert attributes(decode)["moray.replica"] == known["moray.replica"]
    at = [event.time_unix_nano for event in decode.events]
    assert len(at) == TOKENS
    assert at == sorted(at)
    assert root.start_time_unix_nano < at[0]
    assert at[-1] <= root.end_time_unix_nano + 1_000_000
    assert collector.resources[-1]["moray.family"] == "small"


def test_a_refusal_is_a_span_with_its_code(server: Server, collector: Collector) -> None:
    trace = "3" * 32
    server.http().post("/v1/chat/completions", json={"model": "nobody", "messages": ASK}, headers=parent(trace))
    (root,) = eventually(lambda: collector.trace(trace), SOON_S, "a span")
    assert attributes(root)["error.type"] == "model_not_found"
    assert root.status.code == root.status.STATUS_CODE_ERROR


def test_nobody_is_traced_whose_caller_or_ratio_says_no(server: Server, collector: Collector) -> None:
    asked(server, "turbo", parent("4" * 32, sampled=False))
    asked(server, "turbo", {"traceparent": "garbage"})
    traced(server, collector, "5" * 32, "turbo")
    assert {span.trace_id.hex() for span in collector.spans} <= {digit * 32 for digit in "12356"}


def test_a_request_is_found_in_the_logs_of_gateway_and_replica(server: Server) -> None:
    asked(server, "mini", {"x-request-id": "look-for-me"})

    def told() -> dict[str, Any]:
        return {line["deployment"]: line for line in lines(server) if line.get("request_id") == "look-for-me"}

    eventually(lambda: set(told()) == {"moray_gateway", "moray-mini_mini"}, SOON_S, "a line of both")
    found = told()["moray_gateway"]
    assert found["code"] == "ok"
    assert found["completion_tokens"] == TOKENS
    assert list(found["ledger_ms"]) == list(STAGES)


def test_time_on_a_replica_that_was_lost_is_told(server: Server) -> None:
    stream = Stream(server, "turbo", tokens=1000).begun()
    body = {"model": "turbo", "messages": ASK, "max_tokens": 1000, "stream": True}
    with server.http().stream("POST", "/v1/chat/completions", json=body, headers=LEDGER) as answer:
        parts = answer.iter_text()
        text = next(parts)
        server.replicas("turbo")[0].kill()
        text += "".join(parts)
    assert told_ms(text)["lost"] > 0
    assert stream.ended().finish_reason == "length"
    eventually(lambda: serves(server, "turbo"), RESTART_S)


@pytest.mark.parametrize("body", [{"messages": PROMPT}, {"messages": [{"role": PROMPT}]}, {"messages": ASK, PROMPT: 1}])
def test_no_log_has_a_prompt_or_the_secret_of_a_key(server: Server, body: dict[str, Any]) -> None:
    said = {"model": "mini", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
    ids = {status: f"id-{secrets.token_hex(8)}" for status in (200, 400)}
    for each, (status, request_id) in zip((said, said | body), ids.items(), strict=True):
        answer = server.http().post("/v1/chat/completions", json=each, headers={"x-request-id": request_id})
        assert (answer.status_code, PROMPT in answer.text) == (status, status == 400)
    eventually(lambda: set(ids.values()) <= {line.get("request_id") for line in lines(server)}, SOON_S, "lines of both")
    assert [text for text in logged(server) if PROMPT in text or server.key in text] == []


def test_a_collector_that_hangs_costs_no_request_and_gets_the_spans_when_it_answers(
    server: Server, collector: Collector
) -> None:
    trace = "6" * 32
    with collector.hung() as waiting:
        asked(server, "turbo", parent(trace))
        assert waiting.wait(SOON_S)
        assert whole(server, "mini", tokens=3)
        assert collector.trace(trace) == []
    eventually(lambda: collector.trace(trace), SOON_S, "spans")
