"""Chats with images, sound, clips and documents, from the official client, through the gateway in this process."""

import asyncio
import threading
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inputs import audio_part, data_url, file_part, image_part, mp4, pdf, picture, text_part, video_part, wav
from openai import APIStatusError, NotFoundError, RateLimitError
from sdk import Replies, Served, served
from shell import Replica

from cluster.family import Family
from cluster.inputs import HZ, MOST_SENT
from cluster.request import Message
from deployments.gateway import inputs as gateway_inputs
from deployments.gateway.inputs import MOST_AT_ONCE, MOST_OF_ONE
from deployments.inputs.look import Found, Look
from deployments.video import apart

ALL = ("image", "audio", "video")
ROOM = {"max_body_bytes": 8 << 20}


@pytest.fixture
def replies() -> Replies:
    return Replies("seen")


@pytest.fixture
async def here(tmp_path: Path, replies: Replies) -> AsyncIterator[Served]:
    """mini takes text alone, turbo all."""
    async with served(tmp_path, replies, gateway=ROOM) as here:
        here.gateway._follow(family_of(here.gateway._family, turbo={"inputs": ALL, "quality": 2}))
        yield here


def family_of(family: Family, **tiers: dict[str, Any]) -> Family:
    told = family.model_dump()
    for key, changed in tiers.items():
        told["tiers"][key] |= changed
    auto = {"names": ["auto"], "default": "mini", "long": "mini", "long_prompt_tokens": 9999}
    return Family.model_validate(told | {"auto": auto})


async def ask(here: Served, *parts: Any, model: str = "turbo", **more: Any) -> Any:
    said: Any = [{"role": "user", "content": list(parts)}]
    return await here.client.chat.completions.create(model=model, messages=said, **more)


async def refused(here: Served, *parts: Any, model: str = "turbo") -> dict[str, Any]:
    with pytest.raises(APIStatusError) as caught:
        await ask(here, *parts, model=model)
    assert caught.value.status_code == 400, caught.value
    body: Any = caught.value.body
    assert body["message"].count("; ") >= 2, "where: given; allowed; mend"
    return dict(body)


def said(replies: Replies) -> Message:
    return replies.asked[-1].messages[0]


async def test_an_image_reaches_the_tier_upright_and_in_its_place(here: Served, replies: Replies) -> None:
    exif = {0x0112: 6}  # lies on its side
    turned = picture((60, 40), form="JPEG", exif=_exif(exif))
    await ask(here, text_part("What is "), image_part(turned), text_part("?"))
    message = said(replies)
    (media,) = message.media
    assert (media.kind, media.width, media.height) == ("image", 40, 60)
    assert message.content == "What is \n\n?"
    assert message.content[media.at :] == "\n?"
    assert replies.asked[-1].sent == ()


def _exif(tags: dict[int, int]) -> Any:
    from PIL import Image

    exif = Image.Exif()
    exif.update(tags)
    return exif


async def test_a_tier_of_text_refuses_an_image_unread_and_names_those_that_take_it(here: Served) -> None:
    for part, kind in ((image_part(b"no image"), "image"), (audio_part(), "audio"), (video_part(), "video")):
        error = await refused(here, text_part("Look:"), part, model="mini")
        assert error["param"] == f"messages[0].content[1].{part['type']}." + ("data" if kind == "audio" else "url")
        assert error["code"] == "unsupported_parameter"
        assert f"tiers that take {kind} are turbo, not mini; name one of turbo, or leave it out" in error["message"]


async def test_a_name_that_leaves_the_choice_goes_to_a_tier_that_takes_it(here: Served, replies: Replies) -> None:
    answer = await ask(here, image_part(), model="auto")
    assert answer.usage.model_extra["moray"]["tier"] == "turbo"
    await ask(here, text_part("hello"), model="auto")
    served = replies.asked[-1].served
    assert served is not None
    assert served.tier == "mini"


async def test_sound_is_one_channel_at_one_rate_for_every_format(here: Served, replies: Replies) -> None:
    from inputs import mp3

    for part in (audio_part(wav(1.5)), audio_part(mp3(1.5), "mp3")):
        await ask(here, part)
        (media,) = said(replies).media
        assert media.kind == "audio"
        assert len(media.sound) / 2 / HZ == pytest.approx(1.5, abs=0.06)


async def test_a_clip_is_sampled_evenly_and_its_sound_goes_with_it(here: Served, replies: Replies) -> None:
    await ask(here, video_part(mp4(3.0)))
    (media,) = said(replies).media
    assert (media.kind, len(media.pictures), media.width, media.height) == ("video", 6, 96, 64)
    assert media.seconds == pytest.approx(3.0, abs=0.2)
    assert media.sound
    await ask(here, video_part(mp4(1.0, sound=False)))
    assert said(replies).media[0].sound == b""


async def test_a_tier_of_text_gets_the_text_of_a_document_page_by_page(here: Served, replies: Replies) -> None:
    await ask(here, text_part("Sum up:"), file_part(pdf("The eel", "The sea"), "eels.pdf"), model="mini")
    assert said(replies) == Message(
        role="user",
        content="Sum up:\n[eels.pdf, page 1 of 2]\nThe eel\n[eels.pdf, page 2 of 2]\nThe sea",
    )


async def test_a_scan_becomes_pictures_where_the_tier_takes_them_and_is_refused_elsewhere(
    here: Served, replies: Replies
) -> None:
    scan = picture((100, 50), form="PDF")
    await ask(here, file_part(scan))
    message = said(replies)
    (media,) = message.media
    assert (media.kind, media.width, media.height) == ("image", 200, 100)
    assert message.content[: media.at] == "[paper.pdf, page 1 of 1]\n"
    error = await refused(here, file_part(scan), model="mini")
    assert error["param"] == "messages[0].content[0].file.file_data"
    assert "has no text" in error["message"]
    assert "turbo" in error["message"]


async def test_a_page_without_text_among_others_is_marked(here: Served, replies: Replies) -> None:
    await ask(here, file_part(pdf("One", "")), model="mini")
    assert said(replies).content.endswith("page 2 of 2]\n(no text)")
    await ask(here, file_part(pdf("One", "")))
    assert len(said(replies).media) == 1


async def test_a_file_of_the_key_is_read_and_that_of_another_is_not_found(here: Served, replies: Replies) -> None:
    sent = await here.client.files.create(file=("a.pdf", pdf("Kept")), purpose="user_data")
    part: Any = {"type": "file", "file": {"file_id": sent.id}}
    await ask(here, part, model="mini")
    assert "Kept" in said(replies).content
    other: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(NotFoundError) as caught:
        await here.other("b").chat.completions.create(model="mini", messages=other)
    body: Any = caught.value.body
    assert body["param"] == "messages[0].content[0].file.file_id"


async def test_a_file_of_text_is_text(here: Served, replies: Replies) -> None:
    part = {"type": "file", "file": {"file_data": b64encode("é = 1".encode()).decode(), "filename": "n\x00\n.md"}}
    await ask(here, part, model="mini")
    assert said(replies).content == "[n.md]\né = 1"


@pytest.mark.parametrize(
    ("part", "param", "why"),
    [
        (image_part(b"GIF89a"), "image_url.url", "no image that can be read"),
        (image_part(picture(form="GIF")), "image_url.url", "PNG, JPEG and WebP are allowed"),
        (image_part(picture((4000, 2))), "image_url.url", "at most 200 times as long as wide"),
        (image_part(b""), "image_url.url", "is empty"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}, "image_url.url", "not public"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "image_url.url", "data URLs are allowed"),
        (audio_part(b"RIFF"), "input_audio.data", "cannot be opened"),
        (audio_part(wav(), "mp3"), "input_audio.data", "WAV and MP3 are allowed"),
        ({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}, "input_audio.data", "no base64"),
        (video_part(wav()), "video_url.url", "MP4, MOV, WebM and Matroska"),
        (video_part(mp4(31, fps=2, sound=False)), "video_url.url", "at most 30 are allowed"),
        (file_part(b"%PDF-1.7 junk"), "file.file_data", "no PDF that can be read"),
        (file_part(pdf(*["x"] * 1001)), "file.file_data", "1 to 1000 are allowed"),
        (file_part(picture(), "a.png", "image/png"), "file.file_data", "PDF and text in UTF-8 are allowed"),
        ({"type": "file", "file": {"filename": "x"}}, "file", "neither of file_data and file_id"),
    ],
)
async def test_what_cannot_be_read_is_refused_with_its_place(here: Served, part: Any, param: str, why: str) -> None:
    error = await refused(here, text_part("this:"), part)
    assert error["param"] == f"messages[0].content[1].{param}"
    assert why in error["message"]


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([{"type": "text"}], "messages[0].content[0].text"),
        ([{"type": "image_url", "text": "a"}], "messages[0].content[0].image_url"),
        ([image_part() | {"text": "a"}], "messages[0].content[0].text"),
        ([{"type": "refusal", "refusal": "no"}], "messages[0].content[0].type"),
        ([image_part(detail="huge")], "messages[0].content[0].image_url.detail"),
        ([image_part()] * (MOST_SENT + 1), f"messages[0].content[{MOST_SENT}].image_url.url"),
    ],
)
async def test_a_part_has_what_its_type_names_and_there_are_few(here: Served, parts: Any, param: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        await ask(here, *parts)
    body: Any = caught.value.body
    assert (caught.value.status_code, body["param"]) == (400, param)


async def test_only_messages_of_users_have_more_than_text(here: Served) -> None:
    message: Any = [{"role": "system", "content": [image_part()]}]
    with pytest.raises(APIStatusError) as caught:
        await here.client.chat.completions.create(model="turbo", messages=message)
    body: Any = caught.value.body
    assert (body["param"], body["code"]) == ("messages[0].content[0].type", "unsupported_parameter")


async def test_what_all_inputs_have_together_is_bounded(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_inputs, "MOST_FETCHED_BYTES", len(picture()) + 1)
    error = await refused(here, image_part(), image_part())
    assert error["param"] == "messages[0].content[1].image_url.url"


async def test_the_text_of_all_files_together_is_bounded(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_inputs, "MOST_CHARS", 30)
    part = file_part(b"a" * 10, "a.txt", "text/plain")
    await ask(here, part, model="mini")
    error = await refused(here, part, part, model="mini")
    assert error["param"] == "messages[0].content[1].file.file_data"
    assert "characters of text" in error["message"]


async def test_what_is_read_for_a_client_that_has_left_keeps_its_turn_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, ends = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def reading(*_: object) -> Found:
        loop.call_soon_threadsafe(begun.set)
        ends.wait()
        return Found()

    monkeypatch.setattr(gateway_inputs, "_read_apart", reading)
    inputs = gateway_inputs.Inputs()
    try:
        for _ in range(MOST_AT_ONCE):
            left = asyncio.create_task(inputs._apart("seen", b"", Look(), "here"))
            await begun.wait()
            begun.clear()
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
        assert inputs._free.locked()
        ends.set()
        assert await inputs._apart("seen", b"", Look(), "here") == Found()
    finally:
        ends.set()


@pytest.mark.parametrize("bound", ["MOST_WAITING", "MOST_WAITING_OF_ONE"])
async def test_where_many_wait_to_be_read_the_next_comes_back_later(
    bound: str, here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_inputs, bound, 0)
    with pytest.raises(RateLimitError) as caught:
        await ask(here, image_part())
    assert caught.value.response.headers["retry-after"] == "5"


async def test_a_full_disk_is_not_the_callers_fault(here: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apart, "run", full)
    with pytest.raises(APIStatusError) as caught:
        await ask(here, image_part())
    assert caught.value.status_code == 503


async def test_several_chats_are_read_at_once(here: Served, replies: Replies) -> None:
    await asyncio.gather(*(ask(here, image_part(), file_part(pdf("a"))) for _ in range(6)))
    assert [len(chat.messages[0].media) for chat in replies.asked] == [1] * 6


async def test_what_is_fetched_at_the_same_time_for_chats_of_a_key_is_bounded(here: Served) -> None:
    fetching, most = 0, 0

    async def counted(owner: str, file_id: str, most_bytes: int) -> bytes:
        nonlocal fetching, most
        fetching += 1
        most = max(most, fetching)
        for _ in range(5):
            await asyncio.sleep(0)
        fetching -= 1
        return b"text"

    here.gateway._chat.inputs.file_of = counted
    part: Any = {"type": "file", "file": {"file_id": "file_a"}}
    await asyncio.gather(*(ask(here, part, model="mini") for _ in range(3 * MOST_OF_ONE)))
    assert most == MOST_OF_ONE


async def test_what_does_not_come_in_time_is_refused_however_many_parts_it_has(
    here: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> bytes:
        await asyncio.Event().wait()
        return b""

    here.gateway._chat.inputs.file_of = never
    monkeypatch.setattr(gateway_inputs, "FETCH_S", 0.0)
    error = await refused(here, {"type": "file", "file": {"file_id": "file_a"}}, model="mini")
    assert "does not come in time" in error["message"]
    assert error["param"] == "messages[0].content[0].file.file_id"


async def test_a_responses_inputs_are_those_of_a_chat(here: Served, replies: Replies) -> None:
    content: Any = [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": data_url(picture()), "detail": "low"},
        {"type": "input_file", "file_data": data_url(pdf("Read"), "application/pdf"), "filename": "r.pdf"},
    ]
    first = await here.client.responses.create(model="turbo", input=[{"role": "user", "content": content}])
    message = said(replies)
    assert [media.kind for media in message.media] == ["image"]
    assert message.content == "Look:\n\n[r.pdf, page 1 of 1]\nRead"
    await here.client.responses.create(model="turbo", input="And?", previous_response_id=first.id)
    assert replies.asked[-1].messages[0].media[0].pictures == message.media[0].pictures
    with pytest.raises(APIStatusError) as caught:
        await here.client.responses.create(model="mini", input=[{"role": "user", "content": content}])
    body: Any = caught.value.body
    assert body["param"] == "input[0].content[1].image_url"
    assert "turbo" in body["message"]


async def test_models_tell_what_they_take(here: Served) -> None:
    told = {model.id: model.model_extra or {} async for model in here.client.models.list()}
    assert told["mini"]["inputs"] == ["text"]
    assert told["turbo"]["inputs"] == ["text", *ALL]


async def test_a_simulated_replica_counts_what_the_gateway_guesses(tmp_path: Path) -> None:
    from shell import family

    replica = await Replica.started(family(tmp_path, inputs=ALL))
    async with served(tmp_path, replica, gateway=ROOM, inputs=ALL) as here:
        bare = await ask(here, text_part("What?"), max_tokens=3)
        seen = await ask(here, text_part("What?"), image_part(picture((84, 56))), max_tokens=3)
        assert seen.usage.prompt_tokens - bare.usage.prompt_tokens == 2 + 3 * 2
