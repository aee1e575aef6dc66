"""The record of decisions: one writer, whole lines, and a loop that goes on without a disk."""

import contextlib
import json
import resource
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autoscaling.parameters import Parameters
from autoscaling.policy import Memory, step
from autoscaling.record import Lending, Scaling, Tick, differing, line
from autoscaling.signals import Seen, TierSeen, spec_of
from cluster.errors import ConfigurationError
from cluster.family import load
from cluster.lending import Moves, Room, Wish, lend
from deployments.cli import main
from deployments.control.record_file import EVERY, FILE, OLDER, RecordFile

SPEC = spec_of(load("laptop"))


def scaling(now_s: float = 0.0) -> Scaling:
    seen = Seen(now_s=now_s, gpus=8, tiers=dict.fromkeys(SPEC.tiers, TierSeen(ready=1)))
    decision, after = step(seen, None, SPEC, Parameters())
    return Scaling(seen=seen, memory=None, spec=SPEC, parameters=Parameters(), decision=decision, after=after)


def lending() -> Lending:
    room = Room(node="n", cell="c", gpus=1, free_gpus=1)
    wish = Wish(target=1, gpus=1, cells=("c",))
    return Lending(rooms=(room,), workers=(), awaiting=(), wish=wish, moves=lend((room,), (), (), wish))


@contextlib.contextmanager
def opened(folder: Path, most_mib: float = 1.0) -> Iterator[RecordFile]:
    file = RecordFile(folder, most_mib)
    try:
        yield file
    finally:
        file.close()


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_last_is_found_again(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        assert file.last() is None
        for now_s in (1.0, 2.0):
            file.write(scaling(now_s))
        file.write(lending())
        assert file.last() == scaling(2.0)
    with opened(tmp_path) as file:
        assert file.last() == scaling(2.0)


def course(ticks: int, memory: Memory | None = None) -> list[Scaling]:
    """Decisions of one loop, each from the memory of the one before."""
    found = []
    for number in range(ticks):
        seen = Seen(now_s=2.0 * number, gpus=8, tiers=dict.fromkeys(SPEC.tiers, TierSeen(ready=1)))
        decision, after = step(seen, memory, SPEC, Parameters())
        before = memory
        found.append(
            Scaling(seen=seen, memory=before, spec=SPEC, parameters=Parameters(), decision=decision, after=after)
        )
        memory = after
    return found


def test_most_lines_of_one_loop_are_small_and_the_last_decision_is_found_whole(tmp_path: Path) -> None:
    decisions = course(2 * EVERY)
    with opened(tmp_path) as file:
        for number, each in enumerate(decisions):
            file.write(each)
            if number % 7 == 0:
                file.write(lending())
        assert file.last() == decisions[-1]
    kinds = Counter(json.loads(text)["kind"] for text in (tmp_path / FILE).read_text().splitlines())
    assert kinds["scaling"] == 2
    assert main(["simulate", "--replay", str(tmp_path / FILE)]) == 0


def test_a_changed_tick_is_found_by_the_replay(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        for each in course(4):
            file.write(each)
    changed = (tmp_path / FILE).read_text().splitlines()
    tick = json.loads(changed[2])
    tick["decision"]["tiers"]["mini"]["replicas"] += 1
    changed[2] = json.dumps(tick)
    assert differing(changed) == [3]


def test_a_tick_without_its_decision_says_where_to_begin() -> None:
    (first, second) = course(2)
    tick = Tick(seen=second.seen, decision=second.decision)
    assert differing([line(first), line(tick)]) == []
    with pytest.raises(ConfigurationError, match="line 1: a tick; one behind a scaling decision is allowed"):
        differing([line(tick)])


def test_ticks_behind_a_line_that_cannot_be_read_are_not_gone_on_from(tmp_path: Path) -> None:
    decisions = course(4)
    with opened(tmp_path) as file:
        for each in decisions:
            file.write(each)
    texts = (tmp_path / FILE).read_text().splitlines()
    (tmp_path / FILE).write_text("\n".join((texts[0], texts[1], "torn", texts[3])) + "\n")
    with opened(tmp_path) as file:
        assert file.last() == decisions[1]


def test_a_new_file_and_what_follows_a_failure_begin_with_a_whole_decision(tmp_path: Path) -> None:
    decisions = course(8)
    with opened(tmp_path) as file:
        for each in decisions[:3]:
            file.write(each)
        with full_disk((tmp_path / FILE).stat().st_size), pytest.raises(OSError, match="File too large"):
            file.write(decisions[3])
        for each in decisions[4:]:
            file.write(each)
    assert [json.loads(text)["kind"] for text in (tmp_path / FILE).read_text().splitlines()][:5] == [
        *("scaling", "tick", "tick", "scaling", "tick"),
    ]
    (tmp_path / "small").mkdir()
    with opened(tmp_path / "small", 0.02) as file:
        for each in decisions:
            file.write(each)
            first = (tmp_path / "small" / FILE).read_text().splitlines()[0]
            assert json.loads(first)["kind"] == "scaling"


def test_a_second_writer_is_refused_and_told_the_file(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ConfigurationError, match=rf"{tmp_path}/{FILE}: another control loop"):
        RecordFile(tmp_path, 1.0)
    with opened(tmp_path) as file:
        file.write(scaling())


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/file/{FILE}: "):
        RecordFile(tmp_path / "file", 1.0)


@pytest.mark.parametrize("torn", [b"{", b'{"kind": "scaling", "seen": \xff', line(scaling(9.0)).encode()])
def test_a_torn_last_line_is_skipped_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    with opened(tmp_path) as file:
        file.write(scaling(1.0))
    with (tmp_path / FILE).open("ab") as raw:
        raw.write(torn)
    with opened(tmp_path) as file:
        assert file.last() == scaling(1.0)
        file.write(scaling(2.0))
    assert [json.loads(each)["seen"]["now_s"] for each in (tmp_path / FILE).read_text().splitlines()] == [1.0, 2.0]


def test_lines_of_another_version_are_passed_over(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.write(scaling(1.0))
    with (tmp_path / FILE).open("a") as raw:
        raw.write('{"kind": "scaling", "from": "the future"}\n\n')
    with opened(tmp_path) as file:
        assert file.last() == scaling(1.0)


def test_a_large_file_becomes_the_older_one(tmp_path: Path) -> None:
    size = len(line(scaling(1.0))) + 1
    with opened(tmp_path, 2.5 * size / 2**20) as file:
        for now_s in range(1, 6):
            file.write(scaling(float(now_s)))
        counts = {name: len((tmp_path / name).read_text().splitlines()) for name in (FILE, OLDER)}
        assert counts == {FILE: 1, OLDER: 2}
        (tmp_path / FILE).unlink()
        assert file.last() == scaling(4.0)


def test_a_record_larger_than_the_file_may_be_is_kept_alone(tmp_path: Path) -> None:
    with opened(tmp_path, 1e-6) as file:
        for now_s in (1.0, 2.0):
            file.write(scaling(now_s))
        assert file.last() == scaling(2.0)


def test_the_last_line_is_found_behind_large_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.control.record_file.BLOCK_BYTES", 7)
    with opened(tmp_path) as file:
        file.write(scaling(3.0))
        file.write(lending())
    with (tmp_path / FILE).open("ab") as raw:
        raw.write(b"torn, and longer than a block")
    with opened(tmp_path) as file:
        assert file.last() == scaling(3.0)
        file.write(lending())
    assert all(not differing([text]) for text in (tmp_path / FILE).read_text().splitlines())


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.write(scaling(1.0))
        size = (tmp_path / FILE).stat().st_size
        with full_disk(size + 100):
            for now_s in (2.0, 3.0):
                with pytest.raises(OSError, match="File too large"):
                    file.write(scaling(now_s))
        assert (tmp_path / FILE).stat().st_size == size
        file.write(scaling(4.0))
        assert file.last() == scaling(4.0)


def test_simulate_replays_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path) as file:
        file.write(scaling(1.0))
        file.write(lending())
    assert main(["simulate", "--replay", str(tmp_path / FILE), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"decisions": 2, "differ_in_lines": []}
    changed = replace(lending(), moves=Moves())
    (tmp_path / FILE).write_text(line(changed) + "\n")
    assert main(["simulate", "--replay", str(tmp_path / FILE), "--json"]) == 1
