"""The wire of videos: what bodies ask for, and what answers look like to the `openai` package."""

import asyncio
import io
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from openai.types import Video as SdkVideo
from openai.types import VideoDeleteResponse, VideoGetCharacterResponse
from starlette.datastructures import UploadFile
from starlette.requests import Request

from cluster.clip import Region, Span
from cluster.errors import BodyTooLarge, EngineFailed, InvalidRequest, NotFound, NotInPlan, RequestError
from cluster.family import Video
from cluster.video import taken_by
from deployments.gateway import video_form as form
from deployments.gateway import video_requests as asking
from deployments.gateway import videos_wire as wire
from deployments.video.jobs import Character, VideoJob, VideoRequest, queued
from deployments.video.spec import Edit, Inputs

VIDEO = Video.model_validate(
    {
        "names": ["sora-2", "sora-2-pro"], "checkpoint": "x", "sizes": ["720x1280", "1280x720", "64x64"],
        "seconds": [4, 1, 2], "fps": 8, "steps": 12, "guidance": 4.0, "replicas": {"min": 0, "max": 1, "initial": 0},
        "slo": {"deadline_s": 60}, "price": {"usd_per_second": 0.1}, "styles": {"noir": "in high contrast"},
        "output": {"fps": [24]},
        "cost": {"base_s": 0.1, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"},
    }
)  # fmt: skip
CALLER = asking.Caller(seed=99, priority=1, highest=2)
FILE = UploadFile(io.BytesIO(b"bytes"))


def asked(video: Video = VIDEO, **body: Any) -> asking.Asked:
    return asking.created({"prompt": "a red ball"} | body, video, CALLER)


def parsed(**body: Any) -> VideoRequest:
    return asked(**form.json_fields(json.dumps(body).encode())).request


def formed(*pairs: tuple[str, Any], video: Video = VIDEO) -> asking.Asked:
    return asking.created(form.nested([("prompt", "a red ball"), *pairs]), video, CALLER)


def job(number: int = 1, **given: Any) -> VideoJob:
    return replace(queued(parsed(), f"video_{number:024x}", "key_a", 1000), **given)


def parent(**given: Any) -> VideoJob:
    """Rendered at 64x64, delivered at 128x128."""
    return job(status="completed", size="64x64", out_size="128x128", **given)


def edited(served: Video = VIDEO, **body: Any) -> VideoRequest:
    clip = parent()
    fields = {"prompt": "a blue ball", "video": {"id": clip.id}} | body
    return asking.edited(wire.body_of(wire.EditBody, fields), served, CALLER, clip).request


def taking(pipeline: str, *, per_token: bool = False) -> Video:
    return VIDEO.model_copy(update={"takes": taken_by(pipeline, per_token)})


def refusal(call: Any, *given: Any, **named: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*given, **named)
    return caught.value


def test_what_is_not_given_comes_from_the_family_and_the_plan() -> None:
    assert parsed() == VideoRequest(
        model="sora-2", prompt="a red ball", negative_prompt="", seconds=4, size="720x1280", fps=8, steps=12,
        guidance=4.0, seed=99, priority=1,
    )  # fmt: skip


def test_null_means_absent() -> None:
    nothing: dict[str, Any] = dict.fromkeys(name for name in wire.VideoBody.model_fields if name != "prompt")
    assert asked(VIDEO, **nothing) == asked()


def test_what_is_given_is_taken() -> None:
    request = parsed(
        model="sora-2-pro", seconds="2", size="128x128", negative_prompt="dark", seed=0, num_inference_steps=200,
        guidance_scale=0, fps=24, style="noir", priority=2,
    )  # fmt: skip
    assert (request.model, request.seconds, request.size, request.out_size) == ("sora-2-pro", 2, "64x64", "128x128")
    assert (request.seed, request.steps, request.guidance, request.out_fps) == (0, 200, 0.0, 24)
    assert (request.negative_prompt, request.style_phrase, request.priority) == ("dark", "in high contrast", 2)


def test_a_style_is_added_to_what_is_rendered_and_not_to_what_is_shown() -> None:
    styled = queued(parsed(style="noir"), "video_1", "key_a", 1000)
    assert styled.spec().prompt == "a red ball, in high contrast"
    shown = wire.video_object(styled)
    assert (shown["prompt"], shown["moray"]["style"]) == ("a red ball", "noir")


@pytest.mark.parametrize("seconds", [2, "2"])
def test_seconds_come_as_a_string_or_a_number(seconds: object) -> None:
    assert parsed(seconds=seconds).seconds == 2


def test_form_fields_mean_what_json_means() -> None:
    fields = {"seconds": "1", "seed": "5", "num_inference_steps": "3", "guidance_scale": "1.5", "num_frames": "7"}
    assert formed(*fields.items()) == asked(seconds=1, seed=5, num_inference_steps=3, guidance_scale=1.5, num_frames=7)


@pytest.mark.parametrize(
    ("pairs", "body"),
    [
        ([("input_reference[image_url]", "data:,")], {"input_reference": {"image_url": "data:,"}}),
        ([("input_reference", '{"image_url": "data:,"}')], {"input_reference": {"image_url": "data:,"}}),
        ([("input_reference", "data:,")], {"input_reference": {"image_url": "data:,"}}),
        ([("input_reference[file_id]", "char_1")], {"input_reference": {"file_id": "char_1"}}),
        (
            [("image_references[][image_url]", "http://a"), ("image_references[][image_url]", "http://b")],
            {"image_references": [{"image_url": "http://a"}, {"image_url": "http://b"}]},
        ),
        ([("image_references", FILE), ("image_references", FILE)], {"image_references": [FILE, FILE]}),
        ([("characters", '[{"id": "char_1"}]')], {"characters": [{"id": "char_1"}]}),
        ([("characters[][id]", "char_1")], {"characters": [{"id": "char_1"}]}),
        ([("audio_reference", FILE)], {"audio_reference": FILE}),
        ([("video_reference[video_url]", "http://a")], {"video_reference": "http://a"}),
    ],
)
def test_references_come_in_every_form(pairs: list[tuple[str, Any]], body: dict[str, Any]) -> None:
    assert formed(*pairs) == asked(**body)


def test_a_video_that_is_sent_along_is_remixed_or_with_a_mask_edited() -> None:
    assert (asked().request.task, asked(video_reference=FILE).request.task) == ("create", "remix")
    assert asked(video_reference=FILE).request.strength == asking.STRENGTH
    masked = asked(video_reference=FILE, mask=FILE).request
    assert (masked.task, masked.edit, masked.strength) == ("edit", Edit(), 1.0)


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ({"prompt": ""}, "invalid_value", "prompt: this value; string should have at least 1 char"),
        ({"prompt": "x" * 32_001}, "invalid_value", "at most 32000 characters"),
        ({"prompt": None}, "invalid_value", "prompt: this value"),
        ({"seconds": "3"}, "invalid_value", "seconds: given 3; 4, 1, 2 are allowed; choose one"),
        ({"seconds": "soon"}, "invalid_value", "seconds: given 'soon'"),
        ({"seconds": True}, "invalid_value", "seconds: given True; a number is allowed"),
        ({"size": "65x64"}, "invalid_value", "size: given 65x64; 720x1280, 1280x720, 64x64, and larger ones"),
        ({"seed": -1}, "invalid_value", "seed: given -1; input should be greater than or equal to 0"),
        ({"seed": 2**63}, "invalid_value", "seed: given 9223372036854775808"),
        ({"num_inference_steps": 0}, "invalid_value", "num_inference_steps: given 0"),
        ({"num_inference_steps": 201}, "invalid_value", "less than or equal to 200"),
        ({"guidance_scale": 50.1}, "invalid_value", "less than or equal to 50"),
        ({"guidance_scale": float("nan")}, "invalid_value", "guidance_scale: given nan"),
        ({"fps": 30}, "invalid_value", "fps: given 30; 8, 24 are allowed"),
        ({"style": "pop"}, "invalid_value", "style: given 'pop'; there are noir; choose one, or none"),
        ({"priority": 3}, "not_in_plan", "priority: given 3; up to 2 is in this key's plan"),
        ({"strength": 0.5}, "invalid_value", "strength: given without video_reference"),
        ({"mask": "data:,"}, "invalid_value", "mask: given without video_reference"),
        ({"input_reference": 5}, "invalid_value", "a file, or an object with image_url or file_id, is allowed"),
        ({"input_reference": {"image_url": "a", "file_id": "b"}}, "invalid_value", "input_reference: this value"),
        ({"image_references": ["http://a"] * 9}, "invalid_value", "at most 8 items"),
        ({"sound": 1}, "unknown_parameter", "sound: not a parameter here"),
        ({"model": "gpt-5.2-pro"}, "model_not_found", "given 'gpt-5.2-pro'; served are sora-2, sora-2-pro"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(body: dict[str, Any], code: str, told: str) -> None:
    error = refusal(parsed, **body)
    assert told in error.message
    assert (error.code, (error.param or "").split("[")[0]) == (code, next(iter(body)))


@pytest.mark.parametrize(
    ("pipeline", "body", "param"),
    [
        ("WanPipeline", {"input_reference": FILE}, "input_reference"),
        ("WanPipeline", {"image_references": [FILE]}, "image_references"),
        ("LTXPipeline", {"characters": [{"id": "char_1"}]}, "image_references"),
        ("WanImageToVideoPipeline", {"input_reference": FILE, "video_reference": FILE}, "video"),
    ],
)
def test_an_input_that_the_model_does_not_take_is_refused(pipeline: str, body: dict[str, Any], param: str) -> None:
    error = refusal(asked, taking(pipeline), **body)
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert "this model" in error.message


def test_an_input_that_the_model_needs_is_asked_for() -> None:
    error = refusal(asked, taking("WanImageToVideoPipeline"))
    assert (error.code, error.param) == ("missing_parameter", "input_reference")


@pytest.mark.parametrize("pipeline", ["WanPipeline", "WanVACEPipeline", "LTXPipeline"])
def test_sound_is_taken_beside_any_model_and_told_to_be_muxed(pipeline: str) -> None:
    assert asked(taking(pipeline), audio_reference=FILE).references.audio is FILE
    heard = job(inputs=Inputs(audio="audio.wav"))
    assert (wire.video_object(heard)["moray"]["audio"], wire.video_object(job())["moray"]["audio"]) == ("muxed", None)


def test_a_remix_has_from_its_clip_what_is_not_given() -> None:
    clip = parent(style="noir", style_phrase="in high contrast", steps=7, seed=5, inputs=Inputs(first="first.png"))
    remix = asking.remixed({"prompt": "a blue ball", "strength": "0.5"}, VIDEO, CALLER, clip).request
    assert remix == replace(
        clip.asked, prompt="a blue ball", seed=99, priority=1, task="remix", parent_id=clip.id, strength=0.5,
        inputs=Inputs(),
    )  # fmt: skip


def test_an_edit_marks_time_and_a_rectangle_of_what_is_delivered() -> None:
    request = edited(
        time_range={"start_seconds": 1, "end_seconds": 2.5}, region={"x": 3, "y": 0, "width": 62, "height": 128}
    )
    # 128x128 from 64x64: 3 / 2 down, (3 + 62) / 2 up
    assert request.edit == Edit(span=Span(start_s=1.0, end_s=2.5), region=Region(x=1, y=0, width=32, height=64))
    assert (request.task, request.parent_id, request.delivered_size) == ("edit", parent().id, "128x128")
    shown = wire.video_object(replace(parent(), edit=request.edit))["moray"]["edit"]
    assert shown["region"] == {"x": 2, "y": 0, "width": 64, "height": 128}
    assert (shown["time_range"], shown["mode"]) == ({"start_seconds": 1.0, "end_seconds": 2.5}, "exact")


def test_an_open_end_is_that_of_the_clip() -> None:
    assert edited(time_range='{"start_seconds": 1}').edit == Edit(span=Span(start_s=1.0, end_s=4.0))


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"time_range": {"start_seconds": 1, "end_seconds": 4.1}}, "time_range", "1 to 4.1; a start before its end"),
        ({"time_range": {"start_seconds": 4}}, "time_range", "both from 0 to 4 s"),
        ({"region": {"x": 100, "y": 0, "width": 29, "height": 1}}, "region", "29x1 at 100,0; a rectangle within 128x"),
        ({"region": {"x": 0, "y": 0, "width": 0, "height": 1}}, "region.width", "greater than or equal to 1"),
        ({"region": "all"}, "region", "given 'all'"),
        ({"size": "64x64"}, "size", "given '64x64'; a clip keeps its own"),
        ({"edit_mode": "quick"}, "edit_mode", "'exact' or 'fast'"),
    ],
)
def test_a_mark_outside_its_clip_is_refused(body: dict[str, Any], param: str, told: str) -> None:
    error = refusal(edited, **body)
    assert (error.param, told in error.message) == (param, True), error.message


def test_a_fast_edit_is_refused_where_the_model_computes_all() -> None:
    assert edited(taking("WanPipeline", per_token=True), edit_mode="fast").edit == Edit(mode="fast")
    assert refusal(edited, taking("WanPipeline"), edit_mode="fast").param == "edit_mode"


def extended(clip: VideoJob, seconds: object) -> VideoRequest:
    body = wire.body_of(wire.ExtendBody, {"prompt": "on", "video": {"id": clip.id}, "seconds": seconds})
    return asking.extended(body, VIDEO, CALLER, clip).request


def test_an_extension_is_as_long_as_clip_and_addition() -> None:
    request = extended(parent(seconds=2), "1")
    assert (request.task, request.seconds, request.frames) == ("extend", 3, 24)
    short = extended(parent(seconds=2, frames=12), 1)
    assert (short.seconds, short.frames) == (3, 20)  # 12 + 8


def test_an_extension_beyond_what_the_model_makes_is_refused() -> None:
    assert "given 3, after a clip of 2 s; 1 to 2 are allowed" in refusal(extended, parent(seconds=2), 3).message
    assert "none is allowed" in refusal(extended, parent(), 1).message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 60_000, b'{"seed": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refusal(form.json_fields, body).code == "invalid_json"


def test_a_prompt_is_required() -> None:
    error = refusal(asking.created, {}, VIDEO, CALLER)
    assert (error.code, error.param) == ("missing_parameter", "prompt")


@pytest.mark.parametrize(
    "pairs",
    [
        [("seed", "1"), ("seed", "2")],
        [("mask[image_url]", "a"), ("mask[image_url]", "b")],
        [("mask", "a"), ("mask[]", "b")],
    ],
)
def test_a_field_given_twice_is_refused(pairs: list[tuple[str, str]]) -> None:
    assert "given twice" in refusal(form.nested, pairs).message
    assert "given twice" in refusal(form.json_fields, b'{"seed": 1, "seed": 2}').message


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
BODIES = st.dictionaries(st.sampled_from([*wire.VideoBody.model_fields, *wire.EditBody.model_fields, "other"]), JSON)


@settings(max_examples=40)
@given(BODIES)
def test_any_body_gives_a_request_or_a_request_error(body: dict[str, Any]) -> None:
    try:
        request = asking.created(body, VIDEO, CALLER).request
    except RequestError as error:
        assert error.param is not None  # noqa: PT017 - one of two good ends
    else:
        assert request.size in VIDEO.sizes
        assert 0 < request.seconds <= max(VIDEO.seconds)


@settings(max_examples=40)
@given(BODIES)
def test_any_body_of_an_edit_marks_a_part_of_its_clip_or_is_refused(body: dict[str, Any]) -> None:
    try:
        edit = edited(**body).edit
    except RequestError as error:
        assert error.param is not None  # noqa: PT017 - one of two good ends
    else:
        assert edit is not None
        assert edit.span is None or 0 <= edit.span.start_s < edit.span.end_s <= 4
        assert edit.region is None or (edit.region.x + edit.region.width <= 64 and edit.region.width > 0)


@given(st.lists(st.tuples(st.text() | st.sampled_from(["video[id]", "mask[]", "characters[][id]"]), st.text())))
def test_any_form_gives_fields_or_a_request_error(pairs: list[tuple[str, str]]) -> None:
    try:
        found = form.nested(pairs)
    except RequestError as error:
        assert error.param is not None  # noqa: PT017 - one of two good ends
    else:
        assert len(found) <= len(pairs)


def test_no_prompt_and_no_reference_appears_in_an_error() -> None:
    secret = "the secret plan"
    for body in (
        {"prompt": [secret]}, {"negative_prompt": [secret]}, {"prompt": secret * 4000}, {"input_reference": [secret]},
        {"image_references": [{"image_url": [secret]}]}, {"mask": {secret: secret}},
    ):  # fmt: skip
        error = refusal(parsed, **body)
        assert secret not in error.message
        assert error.__cause__ is None


def failed() -> VideoJob:
    return job().begun().failed(EngineFailed("video engine: out of memory"))


@pytest.mark.parametrize("state", [job(), job().begun().stepped(6, 12), job().begun().completed(2000), failed()])
def test_a_job_is_the_sdks_video(state: VideoJob) -> None:
    shown = wire.video_object(state)
    video = SdkVideo.model_validate(shown)
    assert shown.keys() == SdkVideo.model_fields.keys() | {"moray"}
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
        "import sys, deployments.gateway.video_edits, deployments.stores.jobs, deployments.video.engine;"
        "print([name for name in ('torch', 'diffusers', 'transformers', 'av', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_unknown_is_not_found_and_what_is_beyond_the_plan_forbidden() -> None:
    assert isinstance(refusal(parsed, model="sora-3"), NotFound)
    assert isinstance(refusal(parsed, priority=9), NotInPlan)


def test_a_version_names_its_parent_and_its_children_and_where_it_stands() -> None:
    outlook = wire.Outlook(queue_position=2, estimated_start_at=1010, estimated_completed_at=1020)
    shown = wire.video_object(job(task="edit", parent_id="video_1"), outlook=outlook, children=("video_3",))
    told = shown["moray"]
    assert (told["task"], told["parent"], told["children"]) == ("edit", "video_1", ["video_3"])
    assert (told["queue_position"], told["estimated_start_at"], told["estimated_completed_at"]) == (2, 1010, 1020)
    assert shown["remixed_from_video_id"] is None
    assert wire.video_object(job(task="remix", parent_id="video_1"))["remixed_from_video_id"] == "video_1"


def test_a_character_is_the_sdks_answer() -> None:
    ada = Character(id="char_1", owner="key_a", name="Ada", file="characters/char_1", created_at_s=1000)
    shown = wire.character_object(ada)
    assert VideoGetCharacterResponse.model_validate(shown).model_dump() == shown


def received(*parts: bytes, kind: str = "multipart/form-data; boundary=b", body: int = 100, files: int = 1000) -> Any:
    """The fields that the gateway reads of a request with such a body."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.request", "body": b"", "more_body": False}

    async def read() -> dict[str, Any]:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}
        async with form.fields(Request(scope, receive), max_body_bytes=body, max_input_bytes=files) as found:
            return {
                name: await value.read() if isinstance(value, UploadFile) else value for name, value in found.items()
            }

    return asyncio.run(read())


def part(name: str, content: bytes, *, file: bool = False) -> bytes:
    named = f'; filename="{name}"' if file else ""
    return f'--b\r\ncontent-disposition: form-data; name="{name}"{named}\r\n\r\n'.encode() + content + b"\r\n"


def test_a_file_of_a_form_may_be_larger_than_a_body() -> None:
    assert received(part("mask", b"x" * 900, file=True), part("prompt", b"p"), b"--b--\r\n") == {
        "mask": b"x" * 900,
        "prompt": "p",
    }


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([part("mask", b"x" * 2000, file=True)], "more than 1100 bytes"),
        ([part("prompt", b"x" * 200)], "fields of more than 100 bytes"),
        ([part("prompt", b"x" * 60), part("style", b"x" * 60)], "fields of more than 100 bytes"),
    ],
)
def test_a_form_that_is_too_large_is_refused_while_it_is_read(parts: list[bytes], told: str) -> None:
    with pytest.raises(BodyTooLarge, match=told):
        received(*parts, b"--b--\r\n")


@pytest.mark.parametrize(
    ("body", "boundary"), [(b"no form", "; boundary=b"), (b"x", ""), (b"--b\r\n\r\nx\r\n--b--", "; boundary=b")]
)
def test_what_is_no_form_is_refused(body: bytes, boundary: str) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data or JSON is allowed"):
        received(body, kind=f"multipart/form-data{boundary}")


@pytest.mark.parametrize(
    "fields",
    [
        {"input_reference": "[" + "[]," * 100_000},
        {"image_references": ["[" + "[]," * 20_000] * 9},
        {"image_references": "[" + "[]," * 100_000 + "[]]"},
    ],
)
def test_what_strings_have_as_json_is_bounded_as_a_body_is(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="too many of them outside strings"):
        wire.body_of(wire.VideoBody, {"prompt": "x", **fields})


@given(st.binary())
def test_any_bytes_of_a_form_are_read_or_refused(body: bytes) -> None:
    try:
        found = received(b"--b\r\n" + body)
    except RequestError:
        return
    assert isinstance(found, dict)
