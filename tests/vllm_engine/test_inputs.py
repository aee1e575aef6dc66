"""Images, sound and clips through vLLM's own engine on a CPU, with tiny random models that take them."""

import random
from collections.abc import AsyncIterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from vllm_engine.seeing import IMAGE_TOKENS, save_hearing, save_seeing
from vllm_engine.tiers import MINI, Receiver, answer, ask, tier

from cluster.errors import ConfigurationError, ContextTooLong
from cluster.inputs import HZ, Media
from cluster.request import Message, Sampling
from deployments.engines.vllm_engine.engine import VllmEngine
from deployments.inputs.pictures import of

if find_spec("vllm") is None:
    pytest.skip("vllm is not installed: make test-vllm", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),  # of vLLM's own imports
]
WANTED = Sampling(temperature=0, max_tokens=8, top_logprobs=0)
TEXT = "the home of the eel"


async def started(checkpoint: Any, *inputs: str, **more: Any) -> VllmEngine:
    engine = VllmEngine(tier(checkpoint=str(checkpoint), vllm={}, inputs=inputs, **more), "cpu")
    await engine.start()
    return engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    engine = await started(save_seeing(tmp_path_factory.mktemp("seeing")), "image", "video")
    yield engine
    await engine.stop()


def image(seed: int, at: int = 0) -> Media:
    noise = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return of(Image.fromarray(noise), 2048, at)


def sound(seed: int, seconds: float = 1.0) -> Media:
    drawn = random.Random(seed).randbytes(2 * int(seconds * HZ))
    return Media(kind="audio", at=0, where="", sound=drawn)


async def said(engine: VllmEngine, key: str, *media: Media, text: str = TEXT, **more: Any) -> Receiver:
    prompt = engine.encode([Message(role="user", content=text, media=media)])
    return await answer(engine, key, prompt, more.pop("sampling", WANTED), media=media, **more)


def logprobs(got: Receiver) -> list[float]:
    return [one.logprob for piece in got.pieces for one in piece.logprobs]


def prompt_tokens(got: Receiver) -> int:
    assert got.pieces[-1].usage is not None
    return got.pieces[-1].usage.prompt_tokens


async def test_an_image_changes_the_answer_and_what_the_prompt_counts(seeing: VllmEngine) -> None:
    bare = await said(seeing, "bare")
    one, again, other = [await said(seeing, f"{n}", image(seed)) for n, seed in enumerate((1, 1, 2))]
    assert prompt_tokens(one) == prompt_tokens(bare) + IMAGE_TOKENS
    assert logprobs(one) == pytest.approx(logprobs(again), abs=1e-4)
    assert one.ids == again.ids
    assert logprobs(one) != pytest.approx(logprobs(bare), abs=1e-2)
    assert logprobs(one) != pytest.approx(logprobs(other), abs=1e-2)


async def test_images_stand_where_the_message_has_them(seeing: VllmEngine) -> None:
    first, last = image(1), image(1, at=len(TEXT))
    before, behind = await said(seeing, "a", first), await said(seeing, "b", last)
    assert prompt_tokens(before) == prompt_tokens(behind)
    assert logprobs(before) != pytest.approx(logprobs(behind), abs=1e-2)
    pair = await said(seeing, "c", first, image(2, at=len(TEXT)))
    assert prompt_tokens(pair) == prompt_tokens(before) + IMAGE_TOKENS


async def test_a_clip_is_its_frames_behind_their_times(seeing: VllmEngine) -> None:
    frames = tuple(image(seed).pictures[0] for seed in range(3))
    clip = Media(kind="video", at=0, where="", pictures=frames, width=60, height=40)
    bare, moving = await said(seeing, "a"), await said(seeing, "b", clip)
    times = seeing.encode_text("[0.0 s]") + seeing.encode_text("[0.5 s]") + seeing.encode_text("[1.0 s]")
    assert prompt_tokens(moving) == prompt_tokens(bare) + 3 * IMAGE_TOKENS + len(times)


async def test_the_placeholder_in_a_callers_text_is_text(seeing: VllmEngine) -> None:
    injected = await said(seeing, "a", image(1), text="<image> and <image>")
    plain = seeing.encode([Message(role="user", content="<image> and <image>")])
    assert prompt_tokens(injected) == len(plain) + IMAGE_TOKENS


async def test_an_answer_goes_on_behind_given_tokens_with_its_image(seeing: VllmEngine) -> None:
    whole = await said(seeing, "a", image(1))
    rest = await said(seeing, "b", image(1), given=whole.ids[:3])
    assert rest.ids == whole.ids[3:]
    assert prompt_tokens(rest) == prompt_tokens(whole)


async def test_inputs_of_other_salts_share_no_cache(seeing: VllmEngine) -> None:
    """What is cached of one key's image is recomputed for another, with the same answer."""
    long = "the eel " * 40
    one = [await said(seeing, f"a{n}", image(7), text=long, cache_salt="a") for n in range(2)]
    other = await said(seeing, "b", image(7), text=long, cache_salt="b")
    cached = [got.pieces[-1].usage.cached_tokens for got in (*one, other) if got.pieces[-1].usage]
    assert cached[0] == cached[2] == 0
    assert cached[1] > 0
    assert one[1].ids == other.ids


async def test_a_prompt_that_inputs_make_too_long_is_refused_alone(seeing: VllmEngine) -> None:
    bare = seeing.encode([Message(role="user", content=TEXT)])
    room = seeing.context_tokens - len(bare) - IMAGE_TOKENS
    media = (image(1),)
    prompt = seeing.encode([Message(role="user", content=TEXT, media=media)])
    got = ask(seeing, "a", prompt, Sampling(max_tokens=room + 1), media=media)
    assert isinstance((await got.last()).error, ContextTooLong)
    seeing.check()
    assert (await said(seeing, "b", *media)).ids


async def test_sound_changes_the_answer_and_what_the_prompt_counts(tmp_path: Any) -> None:
    engine = await started(save_hearing(tmp_path), "audio")
    try:
        bare, one, again = await said(engine, "a"), await said(engine, "b", sound(1)), await said(engine, "c", sound(1))
        other = await said(engine, "d", sound(2))
        assert prompt_tokens(one) - prompt_tokens(bare) == pytest.approx(25 + 7, abs=8)
        assert logprobs(one) == pytest.approx(logprobs(again), abs=1e-4)
        assert logprobs(one) != pytest.approx(logprobs(other), abs=1e-3)
    finally:
        await engine.stop()


async def test_a_tier_that_says_more_than_its_model_takes_does_not_start() -> None:
    engine = VllmEngine(tier(checkpoint=MINI, vllm={}, inputs=("image",)), "cpu")
    with pytest.raises(ConfigurationError, match="takes text; those are allowed"):
        await engine.start()
    await engine.stop()
