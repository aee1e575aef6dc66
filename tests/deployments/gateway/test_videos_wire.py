import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from openai.types import Video as SdkVideo
from openai.types import VideoDeleteResponse
from starlette.requests import Request

from cluster.errors import EngineFailed, InvalidRequest, MorayError, NotFound, RequestError
from cluster.family import Video
from deployments.gateway import videos_wire as wire
from deployments.video.jobs import VideoJob, VideoRequest, queued

VIDEO = Video.model_validate(
    {
        "names": ["sora-2", "sora-2-pro"], "checkpoint": "x", "sizes": ["720x1280", "1280x720", "64x64"],
        "seconds": [4, 1, 2], "fps": 8, "steps": 12, "guidance": 4.0, "replicas": {"min": 0, "max": 1, "initial": 0},
        "slo": {"deadline_s": 60}, "price": {"usd_per_second": 0.1},
        "cost": {"base_s": 0.1, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"},
    }
)  # fmt: skip


def parsed(**body: Any) -> VideoRequest:
    return wire.parse_json(json.dumps({"prompt": "a red ball"} | body).encode(), VIDEO, seed=99)


def job(number: int = 1) -> VideoJob:
    return queued(parsed(), f"video_{number:024x}", "key_a", 1000)


def test_what_is_not_given_comes_from_the_family() -> None:
    assert parsed() == VideoRequest(
        model="sora-2", prompt="a red ball", negative_prompt="", seconds=4, size="720x1280", fps=8, steps=12,
        guidance=4.0, seed=99,
    )  # fmt: skip


def test_null_means_absent() -> None:
    names = [name for name in wire.VideoBody.model_fields if name != "prompt"] + [wire.REFERENCE]
    assert parsed(**dict.fromkeys(names)) == parsed()


def test_what_is_given_is_taken() -> None:
    asked = parsed(
        model="sora-2-pro", seconds="2", size="64x64", negative_prompt="dark", seed=0, num_inference_steps=200,
        guidance_scale=0,
    )  # fmt: skip
    assert (asked.model, asked.seconds, asked.size, asked.negative_prompt) == ("sora-2-pro", 2, "64x64", "dark")
    assert (asked.seed, asked.steps, asked.guidance) == (0, 200, 0.0)


@pytest.mark.parametrize("seconds", [2, "2"])
def test_seconds_come_as_a_string_or_a_number(seconds: object) -> None:
    assert parsed(seconds=seconds).seconds == 2


def test_form_fields_mean_what_json_means() -> None:
    fields = {"prompt": "a red ball", "seconds": "1", "seed": "5", "num_inference_steps": "3", "guidance_scale": "1.5"}
    asked = wire.parse_form(fields.items(), VIDEO, seed=99)
    assert asked == parsed(seconds=1, seed=5, num_inference_steps=3, guidance_scale=1.5)


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ({"prompt": ""}, "invalid_value", "prompt: this value; string should have at least 1 char"),
        ({"prompt": "x" * 32_001}, "invalid_value", "at most 32000 characters"),
        ({"prompt": None}, "invalid_value", "prompt: this value"),
        ({"seconds": "3"}, "invalid_value", "seconds: given 3; allowed are 4, 1, 2; choose one"),
        ({"seconds": "soon"}, "invalid_value", "seconds: given 'soon'"),
        ({"seconds": True}, "invalid_value", "seconds: given True; a number is allowed"),
        ({"size": "65x64"}, "invalid_value", "size: given '65x64'; allowed are 720x1280, 1280x720, 64x64; choose one"),
        ({"seed": -1}, "invalid_value", "seed: given -1; input should be greater than or equal to 0"),
        ({"seed": 2**63}, "invalid_value", "seed: given 9223372036854775808"),
        ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps: given 0"),
        ({"num_inference_steps": 201}, "invalid_value", "less than or equal to 200"),
        ({"guidance_scale": 50.1}, "invalid_value", "less than or equal to 50"),
        ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale: given nan"),
        ({"fps": 30}, "unknown_parameter", "fps: not a parameter here"),
        ({"input_reference": {"image_url": "data:,"}}, "unsupported_parameter", "input_reference: not served here"),
        ({"model": "gpt-5.2-pro"}, "model_not_found", "given 'gpt-5.2-pro'; served are sora-2, sora-2-pro"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body: dict[str, Any], code: str, told: str) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(**body)
    assert told in caught.value.message
    assert (caught.value.code, caught.value.param) == (code, next(iter(body)))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 60_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_json(body, VIDEO, seed=1)
    assert caught.value.code == "invalid_json"


def test_a_prompt_is_required() -> None:
    with pytest.raises(InvalidRequest, match="prompt: not given") as caught:
        wire.parse_json(b"{}", VIDEO, seed=1)
    assert caught.value.code == "missing_parameter"


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="seed: given twice"):
        wire.parse_json(b'{"prompt": "x", "seed": 1, "seed": 2}', VIDEO, seed=1)
    with pytest.raises(InvalidRequest, match="seed: given twice"):
        wire.parse_form([("prompt", "x"), ("seed", "1"), ("seed", "2")], VIDEO, seed=1)


@pytest.mark.parametrize("name", ["input_reference", "input_reference[image_url]", "input_reference[file_id]"])
def test_every_form_of_a_reference_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_form([("prompt", "x"), (name, object())], VIDEO, seed=1)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "input_reference")


@given(st.dictionaries(st.sampled_from([*wire.VideoBody.model_fields, "other"]), st.text() | st.integers() | st.none()))
def test_any_body_gives_a_request_or_a_request_error(body: dict[str, Any]) -> None:
    try:
        asked = wire.parse_json(json.dumps(body).encode(), VIDEO, seed=1)
    except RequestError as error:
        assert error.param is not None  # noqa: PT017 - one of two good ends
    else:
        assert asked.size in VIDEO.sizes
        assert asked.seconds in VIDEO.seconds


def test_no_prompt_appears_in_an_error() -> None:
    secret = "the secret plan"
    for body in ({"prompt": [secret]}, {"prompt": "x", "negative_prompt": [secret]}, {"prompt": secret * 4000}):
        with pytest.raises(InvalidRequest) as caught:
            wire.parse_json(json.dumps(body).encode(), VIDEO, seed=1)
        assert secret not in caught.value.message
        assert caught.value.__cause__ is None


def failed() -> VideoJob:
    return job().begun().failed(EngineFailed("video engine: out of memory"))


@pytest.mark.parametrize("state", [job(), job().begun().stepped(6, 12), job().begun().completed(2000), failed()])
def test_a_job_is_the_sdks_video(state: VideoJob) -> None:
    shown = wire.video_object(state)
    video = SdkVideo.model_validate(shown)
    assert shown.keys() == SdkVideo.model_fields.keys()
    assert (video.id, video.status, video.progress, video.seconds) == (state.id, state.status, state.progress, "4")
    assert (video.created_at, video.completed_at, video.expires_at) == (1000, state.completed_at_s, state.expires_at_s)


def test_a_failed_job_says_why() -> None:
    video = SdkVideo.model_validate(wire.video_object(failed()))
    assert video.error is not None
    assert (video.error.code, video.error.message) == ("engine_failed", "video engine: out of memory")


def test_a_deleted_job_is_the_sdks_answer() -> None:
    shown = wire.video_deleted("video_1")
    assert VideoDeleteResponse.model_validate(shown).model_dump() == shown
    assert shown["deleted"] is True


def test_an_empty_list_has_no_ids() -> None:
    assert wire.video_list((), False) == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": "0"}, "limit"), ({"limit": "101"}, "limit"), ({"order": "up"}, "order"), ({"b": ""}, "b")],
)
def test_a_wrong_listing_is_refused(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.parse_listing(query)
    assert caught.value.param == param


def sdk(answer: Any) -> OpenAI:
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=answer(request)))
    return OpenAI(api_key="sk-x", base_url="http://moray/v1", http_client=httpx2.Client(transport=transport))


def form_of(request: httpx2.Request) -> list[tuple[str, Any]]:
    """The fields as the gateway's framework reads them."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": request.read(), "more_body": False}

    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]

    async def fields() -> list[tuple[str, Any]]:
        async with Request({"type": "http", "headers": headers}, receive).form() as form:
            return form.multi_items()

    return asyncio.run(fields())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sdk_creates_a_video() -> None:
    seen: list[VideoRequest] = []

    def answer(request: httpx2.Request) -> dict[str, Any]:
        seen.append(wire.parse_form(form_of(request), VIDEO, seed=1))
        return wire.video_object(replace(job(), size=seen[0].size))

    video = sdk(answer).videos.create(
        prompt="a red ball", seconds="4", size="1280x720", extra_body={"seed": 5, "num_inference_steps": 3}
    )
    assert seen == [parsed(size="1280x720", seed=5, num_inference_steps=3)]
    assert (video.id, video.size, video.status) == (job().id, "1280x720", "queued")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "given",
    [{"input_reference": ("a.png", b"png", "image/png")}, {"extra_body": {"input_reference": {"image_url": "data:,"}}}],
)
def test_the_sdk_learns_that_references_are_not_served(given: Any) -> None:
    caught: list[MorayError] = []

    def answer(request: httpx2.Request) -> dict[str, Any]:
        with pytest.raises(InvalidRequest) as refusal:
            wire.parse_form(form_of(request), VIDEO, seed=1)
        caught.append(refusal.value)
        return wire.video_object(job())

    sdk(answer).videos.create(prompt="a red ball", **given)
    assert [error.code for error in caught] == ["unsupported_parameter"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_sdk_walks_all_pages() -> None:
    jobs = [job(number) for number in range(1, 6)]

    def answer(request: httpx2.Request) -> dict[str, Any]:
        asked = wire.parse_listing(dict(request.url.params))
        start = 0 if asked.after is None else [each.id for each in jobs].index(asked.after) + 1
        page = jobs[start : start + asked.limit]
        return wire.video_list(page, start + asked.limit < len(jobs))

    assert [video.id for video in sdk(answer).videos.list(limit=2, order="asc")] == [each.id for each in jobs]


def test_the_wire_needs_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys, deployments.gateway.videos_wire, deployments.stores.jobs, deployments.video.engine;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'av') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound) as caught:
        parsed(model="sora-3")
    assert caught.value.status == 404
