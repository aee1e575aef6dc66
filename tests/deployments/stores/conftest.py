from collections.abc import Iterator

import pytest
from postgres import Server, postgres


@pytest.fixture(scope="session")
def database() -> Iterator[Server]:
    """Stopped and started by who tests that; every test makes a schema of its own."""
    with postgres() as server:
        yield server
