"""For all tests."""

import resource
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Laws hold however long a busy machine takes for an example: no test may fail by the clock. Nor by chance: a commit
# meets the same examples each time. `--hypothesis-profile searching` draws others.
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("untimed", settings.get_profile("searching"), derandomize=True)
settings.load_profile("untimed")

# Of the shell, beside other programs: real clocks, processes, sockets, databases. What is pure gets no second run.
LIVE = ("deployments/", "integration/", "vllm_engine/")


def pytest_configure() -> None:
    """Gateways that are crashed by tests leave files open, in all more than some shells allow a process."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def share(nodeid: str) -> str:
    """Of the tests, that goes to one process: a file, or all that have live servers, of which each shares a few."""
    file = nodeid.partition("::")[0]
    if file.startswith("tests/integration/test_laptop"):
        return "laptop"
    return "live" if file.startswith("tests/integration/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test of what runs live a second run; its first failure is listed as RERUN, never hidden.

    Live servers come first and last: two processes seldom have one at the same time, and both have work to the end.
    """
    items.sort(key=lambda item: {"live": 0, "laptop": 2}.get(share(item.nodeid), 1))
    for item in items:
        place = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        if place.startswith(LIVE) or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where processes share the tests, a `share` is one's alone. (pytest 9.2 does not see the groups of xdist 3.8.)"""
    from xdist.scheduler import LoadScopeScheduling  # missing beside vLLM

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return share(nodeid)

    return ByFile(config, log)
