"""What `make test` does about Debian packages, on a machine that is made of stubs."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "system"
PROGRAMS = {
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
    "chromium": "chromium",
    "pg_ctlcluster": "postgresql",
    "redis-server": "redis-server",
    "nginx": "nginx-light",
}
PACKAGES = tuple(PROGRAMS.values())


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

    def installs(self, unknown: str = "nothing") -> None:
        """An apt-get whose packages bring their programs, but for the one that no archive knows."""
        programs = "".join(
            f'{package}) printf "#!{self.folder}/bash\\n" > {self.folder}/{program};'
            f" {shutil.which('chmod')} 755 {self.folder}/{program};; "
            for program, package in PROGRAMS.items()
        )
        self.has(
            "apt-get",
            f'case "$*" in *" {unknown}"*) exit 100;; *--no-download*) case "${{!#}}" in {programs}esac;; esac',
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_done_where_all_is_there(machine: Machine) -> None:
    for name in (*PROGRAMS, "apt-get"):
        machine.has(name)
    assert machine.run() == ""
    assert machine.calls.read_text() == ""


def test_root_installs_what_is_missing_after_it_was_fetched(machine: Machine) -> None:
    machine.installs()
    assert machine.run() == f"== installing Debian packages for tests: {' '.join(PACKAGES)}\n"
    fetch, *installed = machine.fetched
    assert fetch.endswith(f"install --yes --no-install-recommends --download-only {' '.join(PACKAGES)}")
    whole = "install --yes --no-install-recommends --no-download"
    assert [call.partition(whole)[2].strip() for call in installed] == list(PACKAGES)


def test_what_is_there_is_not_installed_again(machine: Machine) -> None:
    machine.installs()
    machine.has("promtool")
    machine.has("amtool")
    machine.has("pg_ctlcluster")
    machine.has("redis-server")
    machine.has("nginx")
    assert machine.run() == "== installing Debian packages for tests: chromium\n"
    assert all(call.endswith(" chromium") for call in machine.fetched)


def test_package_lists_are_brought_up_to_date_where_a_package_is_unknown(machine: Machine) -> None:
    machine.has("apt-get", f'case "$*" in *update) > {machine.folder}/lists;; *) [ -e {machine.folder}/lists ];; esac')
    machine.run()
    assert [call.endswith("update") for call in machine.fetched][:2] == [False, True]
    assert [call.rsplit(" ", 1)[1] for call in machine.fetched if "--no-download" in call] == list(PACKAGES)


def test_a_package_that_cannot_be_had_keeps_no_other_away(machine: Machine) -> None:
    machine.installs(unknown="chromium")
    shown = machine.run()
    assert "chromium is missing (it could not be installed): tests that need it are skipped" in shown
    assert "prometheus is missing" not in shown
    assert "prometheus-alertmanager is missing" not in shown


def test_a_machine_without_network_goes_on_and_says_what_is_skipped(machine: Machine) -> None:
    machine.has("apt-get", "exit 100")
    shown = machine.run()
    for package in PACKAGES:
        mend = f"tests that need it are skipped; mend: apt-get install {package}\n"
        assert f"== {package} is missing (it could not be fetched): {mend}" in shown


def test_a_package_that_does_not_install_is_named(machine: Machine) -> None:
    machine.has("apt-get", 'case "$*" in *--no-download*) exit 100;; esac')
    assert "prometheus is missing (it could not be installed)" in machine.run()


def test_who_may_not_install_is_told_which_packages_are_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.has("apt-get")
    machine.has("sudo", "exit 1")
    shown = machine.run()
    assert shown.count("only root may install it") == len(PACKAGES)
    assert machine.fetched == []


def test_sudo_is_used_where_it_asks_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=1000)
    machine.installs()
    machine.has("sudo", 'shift; "$@"')
    assert "missing" not in machine.run()
    assert len(machine.fetched) == 1 + len(PACKAGES)


def test_a_machine_without_apt_goes_on(machine: Machine) -> None:
    assert "there is no apt-get" in machine.run()
