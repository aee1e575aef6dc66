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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test of what runs live a second run; its first failure is listed as RERUN, never hidden."""
    for item in items:
        live = item.path.relative_to(item.config.rootpath / "tests").as_posix().startswith(LIVE)
        if live or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=1))
