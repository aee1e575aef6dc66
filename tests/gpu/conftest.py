"""What needs a GPU. Without one every test here is skipped; each run notes its conditions and figures in a file."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Note = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--gpu-record", help="a JSON file for the figures of tests/gpu")
    group.addoption("--gpu-date", default="", help="the day of the run, as it is to stand there")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: never run")  # from here, so that it is told once, not for each test


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    return torch.device("cuda")


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config, gpu: torch.device) -> dict[str, Any]:
    """What the file of figures will hold."""
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "date": pytestconfig.getoption("--gpu-date", ""),
        "gpus": [{"name": card.name, "memory_gib": round(card.total_memory / 2**30, 1)} for card in cards],
        "capability": ".".join(str(part) for part in torch.cuda.get_device_capability(gpu)),
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "figures": [],
    }


@pytest.fixture
def note(pytestconfig: pytest.Config, record: dict[str, Any]) -> Note:
    """Adds figures, which nothing asserts. Written at once: a later test may end the process."""

    def add(name: str, **figures: Any) -> None:
        record["figures"].append({"name": name, **figures})
        file = pytestconfig.getoption("--gpu-record", None)
        if file:
            Path(file).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    return add


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return told.splitlines()[0].strip()
