"""For all tests."""

import pytest
from hypothesis import HealthCheck, settings

# Laws hold however long a busy machine takes for an example: no test may fail by the clock. Nor by chance: a commit
# meets the same examples each time. `--hypothesis-profile searching` draws others.
settings.register_profile("searching", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("untimed", settings.get_profile("searching"), derandomize=True)
settings.load_profile("untimed")

# Of the shell, beside other programs: real clocks, processes, sockets, databases. What is pure gets no second run.
LIVE = ("deployments/", "integration/", "vllm_engine/")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test of what runs live a second run; its first failure is listed as RERUN, never hidden.

    Where two processes share the tests, one has all of `integration`: those wait most of their time, and share servers.
    """
    for item in items:
        place = item.path.relative_to(item.config.rootpath / "tests").as_posix()
        if place.startswith(LIVE) or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=1))
        item.add_marker(pytest.mark.xdist_group("live" if place.startswith("integration/") else place))
