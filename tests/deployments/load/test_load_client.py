"""The open loop on virtual time, and what is read of a stream."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from deployments.load.answer import Answer, Reader
from deployments.load.client import Course, play
from deployments.load.options import Promise
from deployments.load.plan import Request
from deployments.load.report import kept, report


def request(number: int, at_s: float) -> Request:
    return Request(number=number, at_s=at_s, model="good", prompt_tokens=5, output_tokens=2)


def played(at_s: Sequence[float], takes_s: float) -> list[Answer]:
    async def ask(asked: Request, answer: Answer) -> None:
        await asyncio.sleep(takes_s)

    async def scenario() -> list[Answer]:
        course = Course()
        await play(
            (request(number, at) for number, at in enumerate(at_s)), ask, asyncio.get_running_loop().time, course
        )
        assert course.ended == len(at_s)
        return course.answers

    return run(scenario())


@given(st.lists(st.floats(0, 1000), max_size=20).map(sorted), st.floats(0, 1000))
def test_no_answer_however_slow_delays_the_next_request(at_s: list[float], takes_s: float) -> None:
    for answer, at in zip(played(at_s, takes_s), at_s, strict=True):
        assert answer.due_s == at
        assert abs(answer.sent_s - at) < 1e-6
        assert answer.ended_s is not None
        assert abs(answer.ended_s - at - takes_s) < 1e-6


STREAM = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n: waiting\n\n'
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choices":[{"delta":{"content":"b"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: set[int]) -> None:
    answer = Answer(model="good", due_s=0.0, sent_s=0.0)
    reader = Reader(answer)
    bounds = [0, *sorted(cuts), len(STREAM)]
    for begin, end in pairwise(bounds):
        reader.read(STREAM[begin:end], float(end))
    reader.end()
    first = STREAM.index(b'"content":"a') + len(b'"content":"a')
    assert answer.first_s == min(end for end in bounds if end >= first)
    assert (answer.failure, answer.prompt_tokens, answer.output_tokens) == (None, 5, 2)


def test_comments_do_not_shorten_a_pause() -> None:
    answer = Answer(model="good", due_s=0.0, sent_s=0.0)
    reader = Reader(answer)
    text = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    for data, now_s in ((text, 1.0), (b": waiting\n\n", 5.0), (text, 9.0)):
        reader.read(data, now_s)
    assert (answer.pause_s, answer.last_s) == (8.0, 9.0)


def answered(due_s: float, sent_s: float) -> Answer:
    return Answer(model="good", due_s=due_s, sent_s=sent_s, first_s=sent_s + 1, ended_s=sent_s + 2, status=200)


def test_latency_counts_from_the_time_that_was_due() -> None:
    late = answered(0.0, 5.0)
    assert late.ttft_s == 6.0
    assert not kept(late, Promise(ttft_s=2, tpot_ms=50))
    found = report([late], {}, 7.0)
    assert (found["all"]["ttft_s"]["p50"], found["all"]["ttft_from_send_s"]["p50"]) == (6.0, 1.0)
    assert found["all"]["attainment"] is None


def test_a_client_that_was_too_slow_says_so() -> None:
    in_time = [answered(float(at), at + 0.05) for at in range(99)]
    assert report([*in_time, answered(99.0, 99.2)], {}, 100.0)["warning"] is None
    told = report([*in_time, answered(99.0, 99.2), answered(100.0, 100.2)], {}, 100.0)
    assert "too slow: 2.0%" in told["warning"]
    assert told["send_late_s"]["share_over_100_ms"] > 0.01
