import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deployments.video.scratch import scratch, sweep

HOLDS = """
import asyncio, sys, threading
from pathlib import Path
from deployments.video.scratch import scratch

async def hold():
    async with scratch(Path(sys.argv[1])) as folder:
        (folder / "half.mp4").write_bytes(b"half")
        print(folder, flush=True)
        threading.Event().wait()

asyncio.run(hold())
"""


async def test_a_folder_is_there_as_long_as_it_is_used(tmp_path: Path) -> None:
    async with scratch(tmp_path) as one, scratch(tmp_path) as other:
        assert one != other
        (one / "file").touch()
        sweep(tmp_path)
        assert (one / "file").exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_is_removed_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removing: list[threading.Thread] = []
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: removing.append(threading.current_thread()))
    async with scratch(tmp_path):
        pass
    assert removing
    assert threading.main_thread() not in removing


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "of somebody else").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().strip())
        sweep(tmp_path)
        assert folder.exists()
        holder.kill()
        holder.wait()
    sweep(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["of somebody else"]
