import subprocess
import sys
from pathlib import Path

from deployments.video.scratch import scratch, sweep

HOLDS = """
import sys, threading
from pathlib import Path
from deployments.video.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "half.mp4").write_bytes(b"half")
    print(folder, flush=True)
    threading.Event().wait()
"""


def test_a_folder_is_there_as_long_as_it_is_used(tmp_path: Path) -> None:
    with scratch(tmp_path) as one, scratch(tmp_path) as other:
        assert one != other
        (one / "file").touch()
        sweep(tmp_path)
        assert (one / "file").exists()
        assert other.exists()
    assert list(tmp_path.iterdir()) == []


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
