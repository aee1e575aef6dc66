"""Seeds give equal answers by equal fingerprints: of weights, engine and versions."""

from pathlib import Path
from unittest.mock import patch

import pytest
from shell import TIER

from cluster.family import Tier
from deployments.engines import fingerprint as module
from deployments.engines.fingerprint import fingerprint


def checkpoint(folder: Path, weights: bytes = b"w" * 400) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def tier(folder: Path, engine: str = "torch") -> Tier:
    return Tier.model_construct(**(TIER | {"checkpoint": str(folder), "engine": engine, "dtype": "float32"}))


def test_copies_of_a_checkpoint_have_one_fingerprint(tmp_path: Path) -> None:
    first, copy = (fingerprint(tier(checkpoint(tmp_path / name)), "cpu") for name in "ab")
    assert first == copy
    assert first.startswith("fp_")


@pytest.mark.parametrize("whole_bytes", [1000, 10])
def test_other_weights_have_another_fingerprint_also_where_only_blocks_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", whole_bytes)
    before = fingerprint(tier(checkpoint(tmp_path / "a")), "cpu")
    assert fingerprint(tier(checkpoint(tmp_path / "b", b"w" * 399 + b"x")), "cpu") != before
    assert fingerprint(tier(checkpoint(tmp_path / "c", b"w" * 401)), "cpu") != before


def test_another_engine_device_or_version_has_another_fingerprint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    names = {fingerprint(tier(folder, engine), "cpu") for engine in ("torch", "vllm", "deepspeed", "simulated")}
    names.add(fingerprint(tier(folder), "cuda"))
    with patch.object(module, "version", return_value="99.0"):
        names.add(fingerprint(tier(folder), "cpu"))
    assert len(names) == 6


def test_a_checkpoint_that_is_not_there_is_no_fault_of_the_fingerprint(tmp_path: Path) -> None:
    assert fingerprint(tier(tmp_path / "nowhere"), "cpu")
