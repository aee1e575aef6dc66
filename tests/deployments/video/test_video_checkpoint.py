"""The checkpoint that ships is small, says what it was measured to do, and does it."""

import json
from pathlib import Path

import numpy as np
import pytest
from video_work import done, finished, frames, opened, parent, spec

from cluster.clip import Region, marked, pixels
from cluster.family import load
from deployments.demo import clips
from deployments.demo.score_video import FOLDER, PROPERTIES, asked, look, rendered, scores
from deployments.demo.video_words import tokenizer
from deployments.video import encode
from deployments.video.engine import VideoEngine
from deployments.video.spec import Edit

FAMILY = load("laptop").video
assert FAMILY is not None
STEPS, GUIDANCE = FAMILY.steps, FAMILY.guidance
STORED = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine() -> VideoEngine:
    shipped = VideoEngine(FOLDER, "float32", "cpu")
    shipped.load()
    return shipped


def test_it_is_the_familys_and_small() -> None:
    assert FAMILY is not None
    assert Path(FAMILY.checkpoint).resolve() == FOLDER.resolve()
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 8_000_000


def test_its_readme_states_the_scores_beside_it_taken_as_the_family_serves_it() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for found in STORED:
        width, height, count = found["layout"]
        shares = " | ".join(f"{100 * found[name]:.0f}" for name in (*PROPERTIES, "all"))
        assert f"| {width}x{height}, {count} frames | {found['prompts']} | {shares} |" in readme
        assert (found["steps"], found["guidance"]) == (STEPS, GUIDANCE)


def test_every_size_and_length_of_the_family_was_scored() -> None:
    assert FAMILY is not None
    layouts = {tuple(found["layout"]) for found in STORED}
    sizes = [tuple(map(int, size.split("x"))) for size in FAMILY.sizes]
    assert layouts == {(*size, seconds * FAMILY.fps) for size in sizes for seconds in FAMILY.seconds}


def test_it_shows_what_prompts_ask_for_that_it_was_not_trained_on(engine: VideoEngine) -> None:
    kinds = list(clips.kinds()[1][:8])
    videos = [rendered(engine, asked(kind, (64, 64, 8), STEPS, GUIDANCE, seed)) for seed, kind in enumerate(kinds)]
    found = scores(kinds, videos)
    assert all(found[name] >= 7 / 8 for name in PROPERTIES), found


def test_clips_made_together_are_those_made_alone(engine: VideoEngine, tmp_path: Path) -> None:
    wanted = [spec(job_id=f"video_{seed}", seed=seed, guidance=GUIDANCE) for seed in range(2)]
    alone = [frames(engine, done(engine, each, tmp_path)) for each in wanted]
    jobs = [opened(engine, each, tmp_path) for each in wanted]
    finished(engine, jobs)
    assert all(np.array_equal(frames(engine, job), one) for job, one in zip(jobs, alone, strict=True))


def test_an_edit_of_a_region_changes_the_colour_there_and_nothing_elsewhere(
    engine: VideoEngine, tmp_path: Path
) -> None:
    common = {"steps": STEPS, "guidance": GUIDANCE, "frames": 9}
    prompt = "a {} circle standing still on a black background"
    before = frames(engine, parent(engine, tmp_path, prompt=prompt.format("red"), **common))
    encode.write_master([before], 8, tmp_path / "master.mkv")
    mark = Edit(region=Region(x=16, y=16, width=32, height=32))
    wanted = spec(prompt=prompt.format("green"), task="edit", parent="video_0", edit=mark, **common)
    after = frames(engine, done(engine, wanted, tmp_path))
    grid = engine.family.grid(wanted)  # type: ignore[union-attr]
    may_change = pixels(grid, marked(grid, wanted.fps, None, mark.region))
    assert np.array_equal(after[~may_change], before[~may_change])
    assert (look(before).colour, look(after).colour) == ("red", "green")


def test_unknown_words_are_one_token_and_the_end_is_marked() -> None:
    words = tokenizer()
    assert words.convert_ids_to_tokens(words("A Red zyx").input_ids) == ["a", "red", "<unk>", "</s>"]
