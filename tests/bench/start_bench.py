"""From `moray up`, installed, to the first token of turbo; and the memory of the warm tiers, then of everything.

Memory is proportional set size over the server's process tree: pages that processes share count once.
"""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from openai import OpenAI

from cluster.family import BUNDLED, load
from deployments.local import free_ports

RUNS = 3
START_LIMIT_S = 180
AIM = {"first_token_s": 45, "memory_warm_gb": 3.5, "memory_everything_gb": 8.0}
LINE = re.compile(r"sk-moray-\S+")


def run() -> dict[str, Any]:
    runs = [once() for _ in range(RUNS)]
    figures = {name: round(statistics.median(each[name] for each in runs), 2) for name in runs[0]}
    spread = {name: [round(min(r[name] for r in runs), 2), round(max(r[name] for r in runs), 2)] for name in runs[0]}
    met = all(figures[name] <= limit for name, limit in AIM.items())
    return {"figures": figures, "spread": spread, "aim": AIM, "met": met, "runs": RUNS}


def once() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        port = free_ports(1)[0]
        family = Path(folder) / "family.yaml"
        family.write_text(_laptop(port, folder))
        begun_s = time.monotonic()
        command = [sys.executable, "-m", "deployments.cli", "--family", str(family), "up"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=_key(server), timeout=120)
            _first_token(client, "gpt-5.2-turbo")
            first_token_s = time.monotonic() - begun_s
            _first_token(client, "gpt-5.2-mini")
            warm = _memory_gb(server.pid)
            for model in ("gpt-5.2-pro", "gpt-5.2-ultra"):
                _first_token(client, model)
            _video(client)
            everything = _memory_gb(server.pid)
        finally:
            os.killpg(server.pid, signal.SIGINT)
            server.wait(60)
    return {"first_token_s": first_token_s, "memory_warm_gb": warm, "memory_everything_gb": everything}


def _laptop(port: int, folder: str) -> str:
    raw = yaml.safe_load((BUNDLED / "laptop.yaml").read_text())
    raw["gateway"]["port"] = port
    raw["state_folder"] = folder
    laptop = load("laptop")
    for key, tier in raw["tiers"].items():
        tier["checkpoint"] = laptop.tiers[key].checkpoint
    assert laptop.video is not None
    raw["video"]["checkpoint"] = laptop.video.checkpoint
    return yaml.safe_dump(raw)


def _key(server: "subprocess.Popen[str]") -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := LINE.search(line):
            return found.group(0)
    raise RuntimeError("the server ended before it was ready")


def _first_token(client: OpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": "What is a prime number?"}]
    with client.chat.completions.create(model=model, messages=messages, max_tokens=16, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)


def _video(client: OpenAI) -> None:
    video = client.videos.create_and_poll(prompt="a red ball", poll_interval_ms=200)
    assert video.status == "completed", video.error


def _memory_gb(pid: int) -> float:
    root = psutil.Process(pid)
    return sum(each.memory_full_info().pss for each in (root, *root.children(recursive=True))) / 1e9
