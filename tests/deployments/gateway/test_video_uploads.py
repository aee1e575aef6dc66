"""What gateways are being sent: bounded together, whatever is declared, and free again whatever becomes of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from shell import VIDEO, Exchange, Handle, application, family
from starlette.requests import Request

from cluster.errors import Overloaded
from cluster.family import Video
from deployments.gateway.video_uploads import Uploads

FREE, MOST, TOGETHER = 10, 50, 120


def sent(chunks: list[int], declared: str | None) -> Request:
    waiting = list(chunks)

    async def receive() -> Any:
        body = bytes(waiting.pop(0)) if waiting else b""
        return {"type": "http.request", "body": body, "more_body": bool(waiting)}

    headers = [] if declared is None else [(b"content-length", declared.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


async def read(uploads: Uploads, request: Request) -> AsyncIterator[int]:
    """What of all requests is counted, after each chunk of this one."""
    with uploads.counted(request, free=FREE, most=MOST, together=TOGETHER) as counted:
        yield uploads._bytes
        async for _ in counted.stream():
            yield uploads._bytes


BODIES = st.tuples(
    st.lists(st.integers(0, 40), max_size=4), st.sampled_from([None, "0", "30", "60", "999999999999", "-1", "x"])
)


@given(bodies=st.lists(BODIES, max_size=8), turns=st.lists(st.integers(0, 7), max_size=60))
def test_uploads_that_overlap_never_count_more_than_all_may_and_nothing_once_they_are_over(
    bodies: list[tuple[list[int], str | None]], turns: list[int]
) -> None:
    async def overlap() -> None:
        uploads = Uploads()
        under_way = [read(uploads, sent(*body)) for body in bodies]
        for turn in turns:
            if turn < len(under_way):
                with contextlib.suppress(Overloaded, StopAsyncIteration):
                    assert 0 <= await anext(under_way[turn]) <= TOGETHER
        for each in under_way:
            await each.aclose()  # type: ignore[attr-defined]
        assert uploads._bytes == 0

    asyncio.run(overlap())


@given(chunks=st.lists(st.integers(0, 200), max_size=6), declared=st.sampled_from([None, "5", "1000"]))
def test_who_is_alone_is_never_refused(chunks: list[int], declared: str | None) -> None:
    async def alone() -> list[int]:
        return [counted async for counted in read(Uploads(), sent(chunks, declared))]

    whole = max(sum(chunks), int(declared or 0))
    assert asyncio.run(alone())[-1] == min(max(0, whole - FREE), MOST)


class Slow(Exchange):
    """Its body comes when the test says so."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.asked, self.comes = asyncio.Event(), asyncio.Event()
        super().__init__(*given, **named)

    async def _receive(self) -> Any:
        self.asked.set()
        await self.comes.wait()
        return await super()._receive()


async def test_a_gateway_that_is_being_sent_as_much_as_it_may_says_when_to_come_back(tmp_path: Path) -> None:
    spec = family(tmp_path, video=True, gateway={"tokens": "streamed", "max_body_bytes": 200})
    video = Video.model_validate(VIDEO | {"max_input_bytes": 1000, "max_uploading_bytes": 1500})
    spec = spec.model_copy(update={"video": video})
    gateway, app, key = await application(spec, {name: Handle(object()) for name in spec.tiers})
    named = {"authorization": f"Bearer {key}"}

    def post(*parts: bytes, **headers: str) -> Exchange:
        return Exchange(app, "/v1/videos", *parts, headers=named | {k.replace("_", "-"): v for k, v in headers.items()})

    small, large = b'{"prompt": "a ball"}', b'{"prompt": "a ball"}' + b" " * 900
    slow = Slow(app, "/v1/videos", large, headers=named | {"content-length": "1100"})
    await slow.asked.wait()
    refused = await post(large, content_length="920").finished()
    assert (refused.status, refused.json()["error"]["code"]) == (429, "overloaded")
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await post(large).finished()).status == 429, "nor does it help to say nothing of its length"
    assert (await post(small).finished()).status == 200
    slow.comes.set()
    assert (await slow.finished()).status == 200
    assert (await post(large, content_length="920").finished()).status == 200
    gateway._rendering.cancel()


def test_all_uploads_together_may_be_as_large_as_one() -> None:
    with pytest.raises(ValidationError, match="max_uploading_bytes is 9 and max_input_bytes 10"):
        Video.model_validate(VIDEO | {"max_input_bytes": 10, "max_uploading_bytes": 9})
