import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clip import Span
from cluster.errors import EngineFailed
from deployments.video.jobs import VideoJob, VideoRequest, queued, video_id
from deployments.video.spec import Edit, Inputs, RenderSpec

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


def test_its_replica_is_told_all_that_was_asked() -> None:
    asked = replace(
        ASKED,
        task="edit",
        parent_id="video_0",
        edit=Edit(span=Span(start_s=0.5, end_s=1.0), mode="fast"),
        inputs=Inputs(mask="mask.png"),
        style="noir",
        style_phrase="black and white, hard light",
        frames=17,
        out_size="192x128",
        out_fps=24,
        strength=0.5,
    )
    assert queued(asked, "video_1", "key_1", 100).asked == asked
    assert queued(asked, "video_1", "key_1", 100).spec() == RenderSpec(
        job_id="video_1", prompt="p, black and white, hard light", width=96, height=64, frames=17, fps=8, steps=12,
        guidance=5.0, seed=3, task="edit", parent="video_0", edit=asked.edit, inputs=asked.inputs, strength=0.5,
        out_width=192, out_height=128, out_fps=24,
    )  # fmt: skip


def test_what_is_delivered_is_what_is_rendered_unless_more_is_asked() -> None:
    assert (ASKED.delivered_size, ASKED.delivered_fps) == ("96x64", 8)
    more = replace(ASKED, out_size="192x128", out_fps=24)
    assert (more.delivered_size, more.delivered_fps) == ("192x128", 24)


def test_stages_follow_the_replica_and_an_interruption_goes_back_to_the_queue() -> None:
    assert [job().stage, job().begun().stage, job().begun().stepped(3, 12).stage] == [
        "queued",
        "rendering",
        "rendering",
    ]
    encoding = job().begun().stepped(11, 12).staged("encoding")
    assert (encoding.stage, encoding.progress, encoding.finished) == ("encoding", 99, False)
    assert [encoding.requeued().stage, encoding.preempted().stage] == ["queued", "queued"]


def test_the_files_of_a_finished_job_expire_or_stay() -> None:
    assert job().completed(160, signed=True, expires_s=40).expires_at_s == 200
    assert job().completed(160).expires_at_s is None


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
