"""The config of Serve as rendered: known keys alone, and deployed on a real Ray with simulated engines."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.families import QUICK, written
from integration.server import free_port
from k8s.manifests import FAMILY_OF, overlay, service_of
from k8s.serve_keys import unknown
from ray.serve.schema import ServeDeploySchema

from cluster.errors import ConfigurationError, PlacementError
from deployments.app import Build, build_gateway, build_tier

RUN_S = 240


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(service_of(overlay(name))["spec"]["serveConfigV2"])
    return found


@pytest.mark.parametrize("name", FAMILY_OF)
def test_serve_knows_every_key_of_the_rendered_config(name: str) -> None:
    given = config(name)
    assert unknown(given) == []
    names = [each.name for each in ServeDeploySchema.model_validate(given).applications]
    assert names == ["moray-ultra", "moray-pro", "moray-turbo", "moray-mini", "moray"]


MISSPELT: dict[str, Callable[[dict[str, Any]], object]] = {
    "proxy_locatoin": lambda given: given.update(proxy_locatoin="HeadOnly"),
    "http_options.prot": lambda given: given["http_options"].update(prot=8000),
    "applications.0.import_paht": lambda given: given["applications"][0].update(import_paht="x"),
    "applications.0.deployments.0.num_replica": lambda given: given["applications"][0].update(
        deployments=[{"name": "ultra", "num_replica": 1}]
    ),
    "applications.0.deployments.0.ray_actor_options.num_gpuz": lambda given: given["applications"][0].update(
        deployments=[{"name": "ultra", "ray_actor_options": {"num_gpuz": 1}}]
    ),
}


@pytest.mark.parametrize("path", MISSPELT)
def test_a_key_that_serve_would_drop_in_silence_is_named(path: str) -> None:
    given = config("h200")
    MISSPELT[path](given)
    assert unknown(given) == [path]


def raw(folder: Path) -> dict[str, Any]:
    """Two tiers on one cell, all simulated."""

    def tier(name: str, ranks: int) -> dict[str, Any]:
        return {
            "names": [name],
            "checkpoint": "none",
            "engine": "simulated",
            "ranks": ranks,
            "context_tokens": 2048,
            "kv_tokens": 65536,
            "slo": {"ttft_s": 1, "tpot_ms": 50},
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2},
            "replicas": {"min": 1, "max": 1, "initial": 1},
            "cost": QUICK,
        }

    return {
        "name": "tried",
        "accelerator": "cpu",
        "gpu_budget_gpus": 3,
        "cells": [{"name": "here", "gpus": 3}],
        "tiers": {"pro": tier("pro", 2), "mini": tier("mini", 1)},
        "gateway": {"port": free_port()},
        "state_folder": str(folder / "state"),
    }


def test_a_tier_that_the_file_does_not_have_is_named(tmp_path: Path) -> None:
    file = written(tmp_path, raw(tmp_path))
    with pytest.raises(ConfigurationError, match=r"tier 'ultra'; pro, mini are there"):
        build_tier(Build(family=str(file), tier="ultra"))
    with pytest.raises(ConfigurationError, match=r"[Nn]o such file"):
        build_gateway(Build(family=str(tmp_path / "none.yaml")))


def test_a_tier_is_refused_where_the_declared_cells_do_not_hold_the_family(tmp_path: Path) -> None:
    file = written(tmp_path, raw(tmp_path) | {"cells": [{"name": "here", "gpus": 1}]})
    with pytest.raises(PlacementError):
        build_tier(Build(family=str(file), tier="pro"))


@pytest.mark.slow
def test_serve_deploys_the_rendered_config_and_it_answers(tmp_path: Path) -> None:
    """In a process of its own: Ray reads its switches when it is first imported."""
    with contextlib.ExitStack() as stack:
        child = subprocess.Popen(
            [sys.executable, "-m", "k8s.deployed", str(written(tmp_path, raw(tmp_path)))],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        stack.callback(child.kill)
        told, _ = child.communicate(timeout=RUN_S)
    assert child.returncode == 0, told[-4000:]
    assert "pro answered 5 tokens, mini answered 5 tokens" in told
