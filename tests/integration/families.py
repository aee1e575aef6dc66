"""Family files of the tests: the one that ships, moved, and a small one that is quick to start and to break."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from cluster.family import BUNDLED, load

QUICK = {"a_ms": 5, "b_ms_per_seq": 0, "c_ms_per_ktok": 0, "prefill_us_per_token": {64: 1}, "source": "none: a test's"}

READY_SOON = {"cold_start": {"p50_s": 0.5, "p99_s": 1}}


def shipped(folder: Path, port: int) -> dict[str, Any]:
    """laptop.yaml, its checkpoints by absolute path; pro goes to sleep soon."""
    raw: dict[str, Any] = yaml.safe_load((BUNDLED / "laptop.yaml").read_text(encoding="utf-8"))
    family = load("laptop")
    for key, tier in family.tiers.items():
        raw["tiers"][key]["checkpoint"] = tier.checkpoint
    assert family.video is not None
    raw["video"]["checkpoint"] = family.video.checkpoint
    raw["tiers"]["pro"]["replicas"]["idle_s"] = 5
    return raw | _place(folder, port)


def small(folder: Path, port: int, checkpoint: Path) -> dict[str, Any]:
    """Tiers with real engines (random weights, no end token: as long as asked) and simulated ones."""
    tiers = {
        "pro": _tier("pro", checkpoint=str(checkpoint), engine="torch", ranks=2, kv_tokens=4096),
        "mini": _tier("mini", checkpoint=str(checkpoint), engine="torch", kv_tokens=4096),
        "turbo": _tier("turbo"),
        "narrow": _tier("narrow", max_running=1, max_waiting=1),
        "broken": _tier(
            "broken",
            checkpoint=str(shutil.copytree(checkpoint, folder / "broken")),
            engine="torch",
            start_timeout_s=8,
            replicas={"min": 0, "max": 1, "initial": 0, "idle_s": 2},
        ),
        "sleepy": _tier("sleepy", max_running=64, replicas={"min": 0, "max": 2, "initial": 0, "idle_s": 3}),
    }
    (folder / "broken" / "model.safetensors").write_bytes(b"")
    return {
        "name": "small",
        "accelerator": "cpu",
        "gpu_budget_gpus": 12,
        "cells": [{"name": "here", "gpus": 12}],
        "tiers": tiers,
    } | _place(folder, port)


def spread(folder: Path, port: int) -> dict[str, Any]:
    """Groups of 8, 4 and 1 and video beside them, for nodes of 8 simulated GPUs."""
    tiers = {
        "ultra": _tier("ultra", ranks=8, quality=3, replicas={"min": 0, "max": 2, "initial": 1}, **READY_SOON),
        "pro": _tier("pro", ranks=4, quality=2, replicas={"min": 1, "max": 2, "initial": 2}, **READY_SOON),
        "turbo": _tier("turbo", replicas={"min": 1, "max": 4, "initial": 2}, **READY_SOON),
    }
    return {
        "name": "spread",
        "accelerator": "cuda",
        "gpu_budget_gpus": 32,
        "cells": [{"name": "node", "count": 4, "gpus": 8}],
        "tiers": tiers,
        "video": {
            "names": ["sora-2"],
            "checkpoint": "none",
            "engine": "simulated",
            "sizes": ["64x64"],
            "seconds": [1],
            "fps": 8,
            "steps": 4,
            "slo": {"deadline_s": 60},
            "price": {"usd_per_second": 0.1},
            "replicas": {"min": 0, "max": 4, "initial": 2},
            "beside": "turbo",
            "cost": {"base_s": 0.1, "linear_s_per_mtok": 0, "quadratic_s_per_mtok2": 0, "source": "none: a test's"},
            **READY_SOON,
        },
    } | _place(folder, port)


def watched(folder: Path, port: int) -> dict[str, Any]:
    """One tier that is always awake, and two that sleep soon, whose one replica holds any crowd."""
    naps = {"min": 0, "max": 3, "initial": 0, "idle_s": 5}
    light = {"max_running": 256, "cost": QUICK | {"a_ms": 2}, "replicas": naps, **READY_SOON}
    return {
        "name": "watched",
        "accelerator": "cpu",
        "gpu_budget_gpus": 8,
        "cells": [{"name": "here", "gpus": 8}],
        "tiers": {"steady": _tier("steady"), "sleepy": _tier("sleepy", **light), "dozy": _tier("dozy", **light)},
    } | _place(folder, port)


def tenanted(folder: Path, port: int) -> dict[str, Any]:
    """Tiers that are soon full, a roomy one, and plans that may do unlike things there."""
    slow = QUICK | {"a_ms": 10}
    return {
        "name": "tenanted",
        "accelerator": "cpu",
        "gpu_budget_gpus": 4,
        "cells": [{"name": "here", "gpus": 4}],
        "tiers": {
            "brisk": _tier(
                "brisk", max_running=1, price={"input_usd_per_mtok": 10, "output_usd_per_mtok": 20}, cost=slow
            ),
            "narrow": _tier("narrow", max_running=1, cost=slow),
            "swift": _tier("swift", quality=2),
        },
        "plans": {
            "trial": {"tiers": ["swift"], "requests_per_minute": 3},
            "silver": {"tiers": ["brisk", "narrow"], "spill": "none"},
            "gold": {"tiers": ["brisk", "swift"], "priority": 1},
            "platinum": {"tiers": ["narrow"], "priority": 2, "spill": "none"},
        },
    } | _place(folder, port)


def written(folder: Path, raw: dict[str, Any]) -> Path:
    file = folder / "family.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return file


def _place(folder: Path, port: int) -> dict[str, Any]:
    return {"gateway": {"host": "127.0.0.1", "port": port}, "state_folder": str(folder / "state")}


def _tier(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "names": [name],
        "checkpoint": "none",
        "engine": "simulated",
        "context_tokens": 2048,
        "kv_tokens": 65536,
        "max_running": 8,
        "max_waiting": 256,
        "slo": {"ttft_s": 1, "tpot_ms": 50},
        "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
        "replicas": {"min": 1, "max": 1, "initial": 1},
        "cost": QUICK,
        **changes,
    }
