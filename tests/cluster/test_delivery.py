from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.delivery import Delivery, Wish, delivery, sides
from cluster.errors import InvalidRequest
from cluster.video import Takes, Video, taken_by

VIDEO = Video.model_validate(
    {
        "names": ["sora-2"], "checkpoint": "x", "sizes": ["1280x720", "720x1280", "640x360", "1024x540"],
        "seconds": [4, 1, 120], "fps": 16, "steps": 12, "replicas": {"min": 0, "max": 1, "initial": 0},
        "output": {"fps": [24, 60, 120]}, "slo": {"deadline_s": 60}, "price": {"usd_per_second": 0.1},
        "cost": {"base_s": 0.1, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "a test"},
    }
)  # fmt: skip


def of(**wish: Any) -> Delivery:
    return delivery(VIDEO, Wish(**wish))


def test_without_a_wish_the_first_of_each_is_rendered_and_delivered_as_it_is() -> None:
    assert of() == Delivery(size="1280x720", seconds=4, frames=64, out_size=None, out_fps=None)


@pytest.mark.parametrize(
    ("size", "rendered"),
    [
        ("3840x2160", "1280x720"),  # 3 times
        ("1600x900", "1280x720"),  # 1.25 times
        ("960x540", "640x360"),  # 1.5 times; 1280x720 would have to be scaled down
        ("4096x2160", "1024x540"),  # 4 times, and as large as it gets
    ],
)
def test_a_larger_size_of_the_same_proportions_is_scaled_up_from_the_largest_listed(size: str, rendered: str) -> None:
    assert (of(size=size).size, of(size=size).out_size) == (rendered, size)


def test_width_and_height_are_a_size() -> None:
    assert of(width=1600, height=900) == of(size="1600x900") == of(width=1600, height=900, size="1600x900")


@pytest.mark.parametrize("fps", [24, 60, 120])
def test_a_listed_rate_is_delivered_and_the_models_own_is_no_change(fps: int) -> None:
    assert (of(fps=fps).out_fps, of(fps=16).out_fps) == (fps, None)


def test_frames_say_how_long_a_clip_is_and_a_second_begun_counts() -> None:
    assert (of(frames=17).frames, of(frames=17).seconds) == (17, 2)  # 16 a second
    assert (of(frames=1920).seconds, of(frames=17, seconds=2).seconds) == (120, 2)


@pytest.mark.parametrize(
    ("wish", "param", "told"),
    [
        ({"size": "1000x1000"}, "size", "given 1000x1000; 1280x720, 720x1280, 640x360, 1024x540, and larger ones"),
        ({"size": "5120x2880"}, "size", "with even sides up to 4096x2160, are allowed; choose one"),
        ({"size": "320x180"}, "size", "larger ones of exactly these proportions"),
        ({"size": "1296x729"}, "size", "even sides"),
        ({"size": "big"}, "size", "given big; WIDTHxHEIGHT, such as 1280x720, is allowed"),
        ({"size": "9" * 5000 + "x1"}, "size", "WIDTHxHEIGHT"),
        ({"width": 1280}, "height", "not given; width and height come together"),
        ({"width": 1280, "height": 720, "size": "640x360"}, "size", "1280x720, as width and height say"),
        ({"seconds": 5}, "seconds", "given 5; 4, 1, 120 are allowed; choose one"),
        ({"frames": 1921}, "num_frames", "given 1921; 1 to 1920, at 16 a second, are allowed"),
        ({"frames": 0}, "num_frames", "given 0"),
        ({"frames": 17, "seconds": 4}, "seconds", "2, as num_frames say, is allowed"),
        ({"fps": 30}, "fps", "given 30; 16, 24, 60, 120 are allowed"),
    ],
)
def test_what_cannot_be_delivered_is_refused_by_name(wish: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        of(**wish)
    assert told in caught.value.message
    assert (caught.value.param, len(caught.value.message) < 300) == (param, True)


WISHES = st.builds(
    Wish,
    seconds=st.none() | st.integers(),
    size=st.none() | st.text() | st.builds("{}x{}".format, st.integers(1, 5000), st.integers(1, 5000)),
    width=st.none() | st.integers(),
    height=st.none() | st.integers(),
    frames=st.none() | st.integers(),
    fps=st.none() | st.integers(),
)


@given(WISHES)
def test_any_wish_is_refused_or_delivered_from_what_is_listed_without_a_change_of_proportions(wish: Wish) -> None:
    try:
        found = delivery(VIDEO, wish)
    except InvalidRequest as error:
        assert error.param is not None  # noqa: PT017 - one of two good ends
        return
    assert found.size in VIDEO.sizes
    assert (found.seconds - 1) * VIDEO.fps < found.frames <= found.seconds * VIDEO.fps
    width, height = sides(found.size)
    out_width, out_height = sides(found.out_size or found.size)
    assert width * out_height == height * out_width
    assert out_width >= width


def test_what_a_pipeline_takes_is_known_by_its_class() -> None:
    ends, clip = ("input_reference", "last_frame_reference"), ("video_reference", "mask")
    assert taken_by("WanPipeline", False) == Takes(inputs=clip)
    assert taken_by("WanPipeline", True) == taken_by("WanImageToVideoPipeline", True)
    assert taken_by("WanPipeline", True) == Takes(inputs=(*ends, *clip), fast=True)
    assert taken_by("WanImageToVideoPipeline", False) == Takes(
        inputs=ends, needs=("input_reference",), tasks=("create",)
    )
    assert taken_by("WanVACEPipeline", False) == Takes(inputs=(*ends, "image_references", *clip))
    assert taken_by("LTXPipeline", False) == taken_by("LTXImageToVideoPipeline", False) == Takes(inputs=(*ends, *clip))
    assert taken_by("MochiPipeline", False) is None
