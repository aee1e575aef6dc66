"""A Ray cluster of one machine, private to this process: own folder, own ports, nothing left behind.

Serve's fast ingress (HAProxy) and throughput mode are chosen by Ray's environment variables, which must stand before
the first import of ray and are inherited by every process of the cluster. Two such clusters on one machine would share
HAProxy's folder and replica ports unless told otherwise, so all of them are drawn anew for each start.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.placement import CELL_LABEL, CPU_RESOURCE

# Ray's own switches that hold wherever the family is served.
SWITCHES = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # it would hold 1,000 lines back, and lose them with their process
    # The fullest node that has room, not the emptiest: or small replicas leave no node to a large group.
    "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
    "RAY_SERVE_NODE_COMPACTION_DELAY_S": "1000000000",  # nobody is moved afterwards
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # one that hangs would hold its GPUs for another minute
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # one thread per rank; more of them fight over two cores
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}
OBJECT_STORE_BYTES = 128 * 1024 * 1024  # tokens never travel through the object store
NODE_STORE_BYTES = 80 * 1024 * 1024  # of a simulated node: little more than Ray's least
HEAD_CPUS = 2
STOP_S = 10.0
NODES_STOP_S = 2.0
EXTRAS = ("vllm", "deepspeed")  # engines whose package, of the same name, is installed on demand
PIPELINE = "WanPipeline"
PORT_RANGE = (10_000, 32_000)
REPLICA_PORTS = 60  # of each kind; a released one rests for minutes before it is used again
LONGEST_PARENT = 17  # HAProxy takes socket paths of 97 bytes, of which our folder, Serve's and the name need 80


def check_port(host: str, port: int) -> None:
    """Raises ConfigurationError where somebody already listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"gateway: {host}:{port}: {error.strerror}; a free port is needed; stop the other program or use --port"
            ) from error


def check_engines(family: Family) -> None:
    """Raises ConfigurationError where an engine's package is not installed. A replica would tell it in its log only."""
    faults = [
        f"{family.name}: tiers.{key}.engine: {tier.engine}; the package {tier.engine} is not installed here; "
        f"pip install 'moray[{tier.engine}]', or choose another engine"
        for key, tier in family.tiers.items()
        if tier.engine in EXTRAS and importlib.util.find_spec(tier.engine) is None
    ]
    if faults:
        raise ConfigurationError("\n".join(faults))


def check_checkpoints(family: Family) -> None:
    """Raises ConfigurationError where a folder is missing, or a video checkpoint is of another kind: a tier that sleeps
    would tell its first caller only. What a language checkpoint says of itself was judged when the family was loaded.
    """
    found = [
        (f"tiers.{key}", _missing(Path(tier.checkpoint)))
        for key, tier in family.tiers.items()
        if tier.engine != "simulated"
    ]
    if family.video is not None and family.video.engine != "simulated":
        folder = Path(family.video.checkpoint)
        found.append(("video", _missing(folder) or _no_pipeline(folder)))
    faults = [f"{family.name}: {path}.checkpoint: {fault}" for path, fault in found if fault]
    if faults:
        raise ConfigurationError("\n".join(faults))


def _missing(folder: Path) -> str:
    """The fault; empty where there is none."""
    mend = "mend the path, or fetch or train it first"
    return "" if folder.is_dir() else f"{folder}: no such directory; the folder of a checkpoint is needed; {mend}"


def _no_pipeline(folder: Path) -> str:
    """What is wrong with a video checkpoint at first sight; empty where nothing is."""
    index = folder / "model_index.json"
    try:
        given = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        return f"{index}: {error}; a JSON object is needed; fetch the checkpoint again"
    if given != PIPELINE:
        return f"{index}: _class_name is {given!r}; {PIPELINE!r} is allowed; give another checkpoint"
    return ""


def free_ports(count: int) -> list[int]:
    """A run of ports that are free now on all addresses.

    Below the range from which the kernel serves outgoing connections: one of those could take a port between its being
    drawn and its being used.
    """
    while True:
        first = secrets.choice(range(*PORT_RANGE, count))
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return list(range(first, first + count))


def switches(logs: Literal["text", "json"]) -> dict[str, str]:
    """SWITCHES, and Ray's own for logs that are JSON."""
    return SWITCHES | ({"RAY_LOGGING_CONFIG_ENCODING": "JSON"} if logs == "json" else {})


def environment(folder: Path, logs: Literal["text", "json"] = "text") -> dict[str, str]:
    """What Ray and its processes must find in their environment before ray is first imported."""
    names = (
        "RAY_SERVE_HAPROXY_METRICS_PORT",
        "RAY_SERVE_HAPROXY_STATS_PORT",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
        "DASHBOARD_METRIC_PORT",
        "AUTOSCALER_METRIC_PORT",
    )
    drawn = free_ports(len(names) + 2 * REPLICA_PORTS)
    ports = {name: str(drawn.pop()) for name in names}
    http, grpc = drawn[:REPLICA_PORTS], drawn[REPLICA_PORTS:]
    own = {
        "TMPDIR": str(folder),  # what a killed process leaves goes with the rest
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc[-1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_ENABLE_AUTO_CONNECT": "0",  # a late call during the stop must not start another cluster
        "PYTHONWARNINGS": "ignore::FutureWarning",
    }
    return switches(logs) | ports | own


def check_size(family: Family) -> None:
    """Raises ConfigurationError where the family wants more nodes than this machine can stand for."""
    nodes = sum(cell.count for cell in family.cells)
    if nodes > 1:
        raise ConfigurationError(
            f"{family.name}: cells: {nodes} nodes; one machine stands for one; lower the cells, deploy on a cluster, "
            f"or rehearse with simulated GPUs and engines by --nodes {nodes}"
        )


def rehearsed(family: Family, nodes: int) -> Family:
    """The family on so many simulated nodes, all of whose GPUs it may use, with simulated engines.

    Raises ConfigurationError where it has cells of several kinds: nobody says how many nodes of each.
    """
    if nodes < 1:
        raise ConfigurationError(f"--nodes: {nodes}; 1 and more are allowed; choose another")
    if len(family.cells) > 1:
        kinds = ", ".join(cell.name for cell in family.cells)
        raise ConfigurationError(f"--nodes: {family.name} has the cells {kinds}; one kind is allowed; leave one")
    cell = family.cells[0].model_copy(update={"count": nodes})
    changed: dict[str, Any] = {
        "cells": (cell,),
        "gpu_budget_gpus": nodes * cell.gpus,
        "tiers": {key: tier.model_copy(update={"engine": "simulated"}) for key, tier in family.tiers.items()},
    }
    if family.video is not None:
        changed["video"] = family.video.model_copy(update={"engine": "simulated"})
    return family.model_copy(update=changed)


@contextlib.contextmanager
def cluster(family: Family, nodes: int | None = None) -> Iterator[Path]:
    """Start Ray on this machine, and stop all of it. Yields the folder of its logs.

    It is one node with the family's one cell, or so many simulated nodes beside a head node without GPUs.
    """
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="moray-", dir=parent if len(parent) <= LONGEST_PARENT else "/tmp"))
    os.environ.update(environment(folder, family.logs))
    try:
        if nodes is None:
            _one(family, folder)
        else:
            _several(family, folder)
        yield folder
    finally:
        stop(folder, nodes)


def _reserves(family: Family, cell: str, gpus: int) -> dict[str, Any]:
    """What a node offers, in the words of both ray.init and Cluster.add_node."""
    on_gpus = family.accelerator == "cuda"
    return {
        "num_gpus": gpus if on_gpus else 0,
        "resources": None if on_gpus else {CPU_RESOURCE: gpus},
        "labels": {CELL_LABEL: cell},
    }


def _one(family: Family, folder: Path) -> None:
    import ray

    cell = family.cells[0]
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder / "ray"),
        # What Ray does not know of, nobody can take.
        **_reserves(family, cell.name, min(cell.gpus, family.gpu_budget_gpus)),
    )


def _several(family: Family, folder: Path) -> None:
    """One after the other: Ray starts nodes on the main thread only. They become alive side by side."""
    (folder / "ray").mkdir()
    os.environ["RAY_TMPDIR"] = str(folder)  # Cluster notes its address there, for every ray.init that looks
    import ray
    from ray.cluster_utils import Cluster

    shared = {"include_dashboard": False, "temp_dir": str(folder / "ray")}
    head = {"num_cpus": HEAD_CPUS, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    started = Cluster(initialize_head=True, head_node_args=shared | head)
    for cell in family.cells:
        for name in cell.instances:
            started.add_node(
                wait=False,
                num_cpus=max(cell.gpus, 1),
                object_store_memory=NODE_STORE_BYTES,
                **shared,
                **_reserves(family, name, cell.gpus),
            )
    ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
    started.wait_for_nodes()


def _names(process: psutil.Process, folder: Path) -> bool:
    """Whether its command line names our folder: an HAProxy whose parent died is nobody's child any more."""
    try:
        return any(str(folder) in part for part in process.cmdline())
    except psutil.Error:
        return False


def stop(folder: Path, nodes: int | None) -> None:
    """End Ray, then every process that it leaves: HAProxy outlives its actor, a simulated node its driver."""
    import ray

    ours = psutil.Process().children(recursive=True)
    ray.shutdown()
    ours += [each for each in psutil.process_iter() if each not in ours and _names(each, folder)]
    if nodes is not None:  # Ray ends only what ray.init has started
        for process in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
    _, alive = psutil.wait_procs(ours, timeout=STOP_S if nodes is None else NODES_STOP_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S)
    shutil.rmtree(folder, ignore_errors=True)
