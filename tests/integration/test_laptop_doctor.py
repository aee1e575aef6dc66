"""`moray doctor` beside a real `moray up`: nothing wrong while all runs; a control loop that hangs is named."""

import signal
import subprocess

import pytest
from integration.server import Server, eventually

pytestmark = pytest.mark.slow

SETTLED_S = 60.0  # what tests before this one left behind is over


def healthy(server: Server) -> subprocess.CompletedProcess[str] | None:
    asked = server.moray("doctor")
    return asked if asked.returncode == 0 else None


def test_the_doctor_finds_nothing_and_then_a_control_loop_that_hangs(laptop: Server) -> None:
    well = eventually(lambda: healthy(laptop), SETTLED_S, "nothing is wrong")
    assert well is not None
    assert well.stdout == "laptop: nothing wrong at the gateway\n"
    (control,) = laptop.control()
    control.send_signal(signal.SIGSTOP)
    try:
        ill = laptop.moray("doctor")
    finally:
        control.send_signal(signal.SIGCONT)
    assert ill.returncode == 1, ill.stdout
    assert [line.split(":")[0] for line in ill.stdout.splitlines()] == ["control loop"]
    assert ill.stderr == ""
    eventually(lambda: laptop.metric("moray_control_tick_timestamp_seconds"), SETTLED_S, "the loop answers again")
