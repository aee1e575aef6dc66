"""For all tests."""

import pytest
from hypothesis import HealthCheck, settings

# Laws hold however long a busy machine takes for an example: no test may fail by the clock.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Of whole clusters, beside other programs: real clocks and real processes.
LIVE = ("integration/", "vllm_engine/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test of a live cluster a second run, on a new one; the first failure is listed as RERUN, never hidden."""
    for item in items:
        if item.path.relative_to(item.config.rootpath / "tests").as_posix().startswith(LIVE):
            item.add_marker(pytest.mark.flaky(reruns=1))
