"""What is doubtful about a storyboard, and what its clips are asked for."""

import pytest

from cluster.storyboard import Character, Model, Shot, prompt_of, seconds_of, warnings

MODEL = Model(seconds=(1, 2, 4), references=False)
ANNA = Character(name="Anna", phrase="a woman in a red coat")
BEN = Character(name="Ben", phrase="a boy with a kite", reference="char_1")


def shot(prompt: str = "a road", **more: object) -> Shot:
    return Shot(**{"prompt": prompt, "seconds": 2, **more})  # type: ignore[arg-type]


def kinds(*shots: Shot, cast: tuple[Character, ...] = (), size: str = "64x64", model: Model = MODEL) -> list[str]:
    return [found.kind for found in warnings(shots, cast, model, rendered="64x64", delivered=size)]


def test_a_prompt_has_its_camera_and_how_those_look_who_are_in_it_but_nothing_that_is_said() -> None:
    asked = prompt_of(shot("Anna waits.", camera="slow pan left", dialogue="Hello"), (ANNA, BEN))
    assert asked == "Anna waits. camera: slow pan left. Anna: a woman in a red coat"


def test_who_is_listed_is_in_the_shot_and_a_name_within_another_word_is_not() -> None:
    assert "a boy with a kite" in prompt_of(shot("a field", characters=("Ben",)), (ANNA, BEN))
    assert prompt_of(shot("a bench, Annas all around"), (ANNA, BEN)) == "a bench, Annas all around"


@pytest.mark.parametrize(("asked", "made"), [(1, 1), (1.5, 2), (3, 4), (4, 4), (60, 4)])
def test_a_length_that_the_model_does_not_make_becomes_the_next_longer_one_and_is_told(asked: float, made: int) -> None:
    assert seconds_of(shot(seconds=asked), MODEL) == made
    assert kinds(shot(seconds=asked)) == ([] if asked == made else ["seconds"])


@pytest.mark.parametrize(
    "text",
    [
        "a ball moves left and moves right",
        "the camera pans left, pans right",
        "zooming in, then. zooms in and zooms out",
        "static camera, slow pan",
    ],
)
def test_opposite_motions_at_once_are_doubted(text: str) -> None:
    assert kinds(shot(text)) == ["motion"]
    assert kinds(shot(camera=text)) == ["motion"]


def test_the_longest_of_prompts_is_read_in_one_pass() -> None:
    assert kinds(shot("zoom in " * 20_000)) == []  # with a pass for each of them it takes minutes


@pytest.mark.parametrize(
    "text",
    [
        "a ball moves left and a car moves right",
        "zooms in, then zooms out",
        "a panda in a still frame",
        "pans left. The crowd moves right",
        "",
    ],
)
def test_motions_of_two_in_turn_or_of_one_way_are_not(text: str) -> None:
    assert kinds(shot("a road", camera=text)) == []


def test_more_characters_than_are_kept_apart_are_doubted() -> None:
    cast = tuple(Character(name=f"N{index}", phrase="a man") for index in range(4))
    assert kinds(shot(characters=("N0", "N1", "N2")), cast=cast) == []
    assert kinds(shot(characters=("N0", "N1", "N2", "N3")), cast=cast) == ["characters"]


def test_a_picture_that_the_model_does_not_take_is_told_where_it_would_matter() -> None:
    assert kinds(shot("Ben runs"), shot("a road"), cast=(BEN,)) == ["reference"]
    assert kinds(shot("Ben runs"), cast=(BEN,), model=Model(seconds=(2,), references=True)) == []


def test_what_is_said_is_not_spoken_and_may_be_too_much_for_its_time() -> None:
    assert kinds(shot(dialogue="one two three four five six seven eight")) == ["dialogue"]  # 8 words in 2 s
    assert kinds(shot(dialogue="one two three four five six seven eight nine")) == ["dialogue", "speech"]


def test_a_size_beyond_the_model_is_told_once_for_all_shots() -> None:
    assert kinds(shot(), shot(), size="128x128") == ["size"]
