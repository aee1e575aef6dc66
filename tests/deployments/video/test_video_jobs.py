import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import EngineFailed
from deployments.video.jobs import VideoJob, VideoRequest, queued, video_id

ASKED = VideoRequest(
    model="sora-2", prompt="p", negative_prompt="", seconds=2, size="96x64", fps=8, steps=12, guidance=5.0, seed=3
)


def job() -> VideoJob:
    return queued(ASKED, "video_1", "key_1", 100)


def test_a_job_holds_what_was_asked_and_waits() -> None:
    fresh = job()
    assert (fresh.status, fresh.progress, fresh.attempts, fresh.created_at_s) == ("queued", 0, 0, 100)
    spec = fresh.spec()
    assert (spec.width, spec.height, spec.frames, spec.steps, spec.seed) == (96, 64, 16, 12, 3)


def test_a_finished_job_is_at_100_percent() -> None:
    done = job().begun().stepped(12, 12).completed(160)
    assert (done.status, done.progress, done.completed_at_s) == ("completed", 100, 160)


def test_a_failed_job_keeps_the_reason_and_how_far_it_came() -> None:
    lost = job().begun().stepped(6, 12).failed(EngineFailed("why"))
    assert (lost.status, lost.progress, lost.error_code, lost.error_message) == ("failed", 50, "engine_failed", "why")
    assert lost.completed_at_s is None


def test_every_start_counts_and_keeps_what_is_done() -> None:
    again = job().begun().stepped(6, 12).requeued().begun()
    assert (again.attempts, again.progress) == (2, 50)


def test_a_preemption_does_not_count() -> None:
    lent = job().begun().stepped(6, 12).preempted()
    assert (lent.status, lent.attempts, lent.progress) == ("queued", 0, 50)
    assert lent.preempted().attempts == 0


@given(total=st.integers(1, 400), data=st.data())
def test_progress_never_falls_and_reaches_100_only_on_completion(total: int, data: st.DataObject) -> None:
    done = data.draw(st.integers(0, total))
    now, later = job().begun().stepped(done, total), job().begun().stepped(min(done + 1, total), total)
    assert 0 <= now.progress <= later.progress <= 99


def test_ids_come_from_the_source_given() -> None:
    assert video_id(lambda count: "ab" * count) == "video_" + "ab" * 12
    assert video_id(secrets.token_hex) != video_id(secrets.token_hex)


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        job().steps = 1  # type: ignore[misc]
