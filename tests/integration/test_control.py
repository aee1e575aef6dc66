"""The control loop's actor on a real Ray: one per cluster, and it comes back as it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import ray
from cluster.family import load
from deployments import local
from deployments.control.words import CONTROL, NAMESPACE, Hello

HELLO = Hello(gateway_id="g", metrics=(), replica_of={}, jobs=())
family = load("laptop").model_copy(update={"state_folder": sys.argv[1]})

with local.cluster(family):
    from integration.server import eventually
    from deployments.control.actor import Control
    from deployments.control.start import control

    def said(actor):
        try:
            return ray.get(actor.announce.remote(HELLO), timeout=20)
        except ray.exceptions.RayError:
            return None

    loop = control(family)
    first = eventually(lambda: said(loop), 60)
    assert control(family)._actor_id == loop._actor_id
    assert first.targets == ray.get(loop.targets.remote()) == {
        "ultra": 0, "pro": 0, "turbo": 1, "mini": 1, "video": 0}
    stray = ray.remote(Control).options(num_cpus=0.01).remote(family)
    try:
        ray.get(stray.targets.remote(), timeout=60)
    except ray.exceptions.RayError as error:
        assert "decisions.jsonl: another control loop writes it" in str(error), error
    else:
        raise AssertionError("two loops")
    changed = family.model_copy(update={"gpu_budget_gpus": 99})
    assert ray.get(loop.adopt.remote(changed)) == 2
    ray.kill(loop, no_restart=False)

    def restarted():
        found = said(ray.get_actor(CONTROL, namespace=NAMESPACE))
        return found if found and found.metrics_address != first.metrics_address else None

    again = eventually(restarted, 60, "the loop has started again")
    assert (again.version, again.family, again.targets) == (2, changed, first.targets)
    print("all is well")
"""


def test_one_loop_runs_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """In a process of its own: Ray's modes are chosen before it is imported."""
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | path,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert output.endswith("all is well\n"), output
