"""The measure of the video model, held against clips whose content is known."""

import numpy as np
import pytest

from deployments.demo import clips
from deployments.demo.clips import Kind
from deployments.demo.score_video import NOTHING, look, scores
from deployments.video.engine import Frames


def filmed(kind: Kind, width: int = 64, height: int = 64, frames: int = 9, seed: int = 5) -> Frames:
    return clips.rendered(kind, clips.drawn(kind, width, height, np.random.default_rng(seed)), width, height, frames)


@pytest.mark.parametrize(
    ("width", "height", "frames", "share"), [(64, 64, 9, 1), (96, 64, 17, 8), (64, 96, 8, 8)], ids=str
)
def test_every_kind_of_clip_is_recognised(width: int, height: int, frames: int, share: int) -> None:
    every = [*clips.kinds()[0], *clips.kinds()[1]][::share]
    videos = [filmed(kind, width, height, frames, seed) for seed, kind in enumerate(every)]
    assert scores(every, videos) == dict.fromkeys(("colour", "shape", "motion", "background", "all"), 1.0)


def test_noise_of_a_video_codec_does_not_hide_what_is_shown() -> None:
    rng, every = np.random.default_rng(0), list(clips.kinds()[1])
    videos = [filmed(kind) + rng.normal(0, 6, (9, 64, 64, 3)) for kind in every]
    assert min(scores(every, [np.clip(video, 0, 255).astype(np.uint8) for video in videos]).values()) > 0.95


def test_a_clip_played_backwards_moves_the_other_way() -> None:
    kind = Kind(colour="red", shape="circle", motion="left", background="black")
    assert look(filmed(kind)).motion == "left"
    assert look(filmed(kind)[::-1]).motion == "right"


def test_an_empty_clip_shows_a_background_and_nothing_else() -> None:
    seen = look(np.full((9, 64, 64, 3), 128, np.uint8))
    assert (seen.background, seen.colour, seen.shape, seen.motion) == ("grey", NOTHING, NOTHING, NOTHING)


def test_noise_alone_shows_no_shape_and_no_motion() -> None:
    seen = look(np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8))
    assert (seen.shape, seen.motion) == (NOTHING, NOTHING)


def test_a_shape_that_jumps_to_and_fro_has_no_motion() -> None:
    left = filmed(Kind(colour="red", shape="circle", motion="left", background="black"))
    assert look(left[[0, 8, 1, 7, 8]]).motion == NOTHING


def test_held_out_kinds_are_not_trained_on_but_each_of_their_properties_is() -> None:
    trained, held_out = clips.kinds()
    assert len(held_out) == clips.HELD_OUT
    assert not set(trained) & set(held_out)
    for name in ("colour", "shape", "motion", "background"):
        assert {getattr(kind, name) for kind in held_out} <= {getattr(kind, name) for kind in trained}


def test_every_word_of_a_prompt_is_known() -> None:
    rng = np.random.default_rng(0)
    said = {word for kind in clips.kinds()[0] for word in (clips.phrased(kind, rng) + " " + kind.prompt).split()}
    assert said <= set(clips.words())
