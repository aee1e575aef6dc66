from pathlib import Path

import pytest

from deployments.video.saved import SavedState


def test_what_was_written_is_read_until_it_is_removed(tmp_path: Path) -> None:
    saved = SavedState(tmp_path / "video.mp4")
    assert saved.read() is None
    saved.write(b"one")
    saved.write(b"two")
    assert SavedState(tmp_path / "video.mp4").read() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    saved.remove()
    saved.remove()
    assert saved.read() is None


def test_it_is_due_some_time_after_the_last_write_or_the_beginning(tmp_path: Path) -> None:
    now = [0.0]
    told: list[float] = []
    saved = SavedState(tmp_path / "video.mp4", every_s=10, clock=lambda: now[0], on_saved=lambda: told.append(now[0]))
    assert not saved.due
    now[0] = 10.0
    assert saved.due
    saved.write(b"")
    assert not saved.due
    assert told == [10.0]


def test_a_place_that_cannot_be_written_is_logged_and_not_tried_at_every_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [20.0]
    saved = SavedState(tmp_path / "deleted" / "video.mp4", every_s=10, clock=lambda: now[0])
    now[0] = 30.0
    saved.write(b"state")
    assert "not saved" in caplog.text
    assert not saved.due
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(OSError, match="directory"):  # nor can it be removed: somebody else's folder
        SavedState(tmp_path / "video.mp4").read()
