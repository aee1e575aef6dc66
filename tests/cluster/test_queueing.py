"""Where a job stands and when it ends: arithmetic in the margin, and laws that hold for any queue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cost import video_step_s
from cluster.family import load
from cluster.queueing import JobAhead, Outlook, left_s, outlooks, urgency


def job(name: str, left: float, *, due_s: float = 0.0, priority: int = 0, on: str | None = None) -> JobAhead:
    return JobAhead(job_id=name, left_s=left, due_s=due_s, priority=priority, replica=on)


def seen(position: int, begins_s: float, ends_s: float) -> Outlook:
    return Outlook(position=position, begins_s=begins_s, ends_s=ends_s)


def test_one_at_a_time_jobs_follow_each_other() -> None:
    assert outlooks([job("a", 10), job("b", 5)], ["w"], 1) == {"a": seen(1, 0, 10), "b": seen(2, 10, 15)}


def test_of_two_on_one_replica_the_shorter_ends_first() -> None:
    assert outlooks([job("a", 10), job("b", 5)], ["w"], 2) == {"a": seen(1, 0, 15), "b": seen(2, 0, 5)}


def test_of_two_on_one_replica_that_of_the_higher_priority_ends_first() -> None:
    assert outlooks([job("a", 10, priority=1), job("b", 5)], ["w"], 2) == {"a": seen(1, 0, 10), "b": seen(2, 0, 15)}


def test_a_job_that_runs_has_no_position_and_keeps_its_replica() -> None:
    found = outlooks([job("a", 10, on="v"), job("b", 5), job("c", 1)], ["v", "w"], 1)
    assert found == {"a": seen(0, 0, 10), "b": seen(1, 0, 5), "c": seen(2, 5, 6)}


def test_where_there_is_no_replica_all_wait_for_the_start_of_one() -> None:
    assert outlooks([job("a", 10, on="gone")], [], 4, start_s=20) == {"a": seen(1, 20, 30)}


def test_priority_goes_before_the_deadline_and_the_deadline_before_arrival() -> None:
    line = [job("late", 1, due_s=9), job("soon", 1, due_s=3), job("soon too", 1, due_s=3), job("dear", 1, priority=1)]
    found = outlooks(line, ["w"], 1)
    assert sorted(found, key=lambda name: found[name].position) == ["dear", "soon", "soon too", "late"]


def test_a_job_costs_its_steps_by_the_frames_that_it_has() -> None:
    video = load("h200").video
    assert video is not None
    assert left_s(video, "1280x720", 5 * video.fps, 10) == pytest.approx(10 * video_step_s(video, "1280x720", 5))
    assert left_s(video, "1280x720", 5 * video.fps, 0) == 0


SECONDS = st.floats(0.01, 1000)
JOBS = st.lists(
    st.builds(
        lambda left, due_s, priority, on: (left, due_s, priority, on),
        SECONDS,
        st.integers(0, 5),
        st.integers(-1, 1),
        st.sampled_from([None, None, "w0", "w1"]),
    ),
    min_size=1,
    max_size=12,
).map(lambda given: [job(str(n), left, due_s=d, priority=p, on=on) for n, (left, d, p, on) in enumerate(given)])
REPLICAS = st.integers(0, 3).map(lambda count: [f"w{n}" for n in range(count)])


@given(JOBS, REPLICAS, st.integers(1, 4), SECONDS)
def test_every_job_is_told_and_ends_no_sooner_than_it_could_alone(
    jobs: list[JobAhead], replicas: list[str], concurrent: int, start_s: float
) -> None:
    found = outlooks(jobs, replicas, concurrent, start_s)
    assert found.keys() == {each.job_id for each in jobs}
    for each in jobs:
        told = found[each.job_id]
        assert told.begins_s >= (0 if replicas else start_s)
        assert told.ends_s >= told.begins_s + each.left_s * (1 - 1e-6)


@given(JOBS, REPLICAS, st.integers(1, 4))
def test_who_waits_stands_in_one_line_and_begins_in_its_order(
    jobs: list[JobAhead], replicas: list[str], concurrent: int
) -> None:
    found = outlooks(jobs, replicas, concurrent)
    line = sorted((told for told in found.values() if told.position), key=lambda told: told.position)
    assert [told.position for told in line] == list(range(1, len(line) + 1))
    assert [told.begins_s for told in line] == sorted(told.begins_s for told in line)
    waiting = [each for each in jobs if found[each.job_id].position]
    ordered = sorted(waiting, key=lambda each: urgency(each.priority, each.due_s))
    assert [found[each.job_id].position for each in ordered] == list(range(1, len(line) + 1))


@given(JOBS, st.integers(1, 4))
def test_one_replica_is_never_idle_before_all_is_done(jobs: list[JobAhead], concurrent: int) -> None:
    found = outlooks(jobs, ["w0"], concurrent)
    assert max(told.ends_s for told in found.values()) == pytest.approx(sum(each.left_s for each in jobs))


@given(JOBS, REPLICAS, st.integers(1, 4), SECONDS)
def test_a_less_urgent_job_delays_no_start(
    jobs: list[JobAhead], replicas: list[str], concurrent: int, left: float
) -> None:
    before = outlooks(jobs, replicas, concurrent)
    after = outlooks([*jobs, job("new", left, due_s=99, priority=-9)], replicas, concurrent)
    for each in jobs:
        assert after[each.job_id].begins_s == pytest.approx(before[each.job_id].begins_s)
