"""What `make test` does about Debian packages, on a machine that is made of stubs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "system"


class Machine:
    """Its programs write down how they were called. `user`: the id of who calls them."""

    def __init__(self, folder: Path, user: int = 0) -> None:
        self.folder = folder
        self.calls = folder / "calls.txt"
        self.calls.touch()
        for real in ("bash", "timeout", "env"):
            (folder / real).symlink_to(shutil.which(real) or "")
        self.has("id", f"echo {user}")
        for stub in ("install", "rm", "systemctl"):
            self.has(stub)

    def has(self, name: str, does: str = "") -> None:
        program = self.folder / name
        program.write_text(f'#!{self.folder}/bash\necho "{name} $*" >> {self.calls}\n{does}\n')
        program.chmod(0o755)

    def run(self) -> str:
        environment = os.environ | {"PATH": str(self.folder)}
        ran = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True)
        return ran.stdout

    @property
    def fetched(self) -> list[str]:
        """What apt-get was to do."""
        return [call for call in self.calls.read_text().splitlines() if call.startswith("apt-get")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_where_all_is_there(machine: Machine) -> None:
    for name in ("prometheus", "promtool", "apt-get"):
        machine.has(name)
    assert machine.run() == ""
    assert machine.calls.read_text() == ""


def test_root_installs_what_is_missing_after_it_was_fetched(machine: Machine) -> None:
    machine.has("apt-get")
    assert "installing the Debian package prometheus" in machine.run()
    fetch, install = machine.fetched
    assert fetch.endswith("install --yes --no-install-recommends --download-only prometheus")
    assert install.endswith("install --yes --no-install-recommends --no-download prometheus")


def test_package_lists_are_brought_up_to_date_where_the_package_is_unknown(machine: Machine) -> None:
    machine.has("apt-get", f'case "$*" in *update) > {machine.folder}/lists;; *) [ -e {machine.folder}/lists ];; esac')
    assert "missing" not in machine.run()
    assert [call.endswith("update") for call in machine.fetched] == [False, True, False, False]


def test_a_machine_without_network_goes_on_and_says_what_is_skipped(machine: Machine) -> None:
    machine.has("apt-get", "exit 100")
    assert "prometheus is missing (it could not be fetched): tests that need it are skipped" in machine.run()


def test_who_may_not_install_is_told_which_package_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.has("apt-get")
    machine.has("sudo", "exit 1")
    assert "only root may install it" in machine.run()
    assert machine.fetched == []


def test_sudo_is_used_where_it_asks_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.has("apt-get")
    machine.has("sudo", 'shift; "$@"')
    assert "missing" not in machine.run()
    assert len(machine.fetched) == 2


def test_a_machine_without_apt_goes_on(machine: Machine) -> None:
    assert "there is no apt-get" in machine.run()
