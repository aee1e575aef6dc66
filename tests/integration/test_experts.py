"""Experts that move while requests run: what an operator sees of it, and that nobody else notices.

Two tiers have one checkpoint, whose experts 0 to 2 were trained for math and 9 to 11 for creative writing: those of a
domain begin on one rank. In `moving` experts may move; `still` never moves any and tells the texts that are right.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.conftest import Stage
from integration.families import shipped
from integration.server import QUIET_S, Server, eventually
from integration.talk import RESTART_S, Stream, serves
from matplotlib.image import imread

from deployments.demo.corpus import PERSONAS, evaluation
from deployments.demo.task import Domain
from deployments.experts import as_dict, seen

pytestmark = pytest.mark.slow

WINDOW_S = 3.0
EVEN = 1.15  # most/mean of the ranks
ASLEEP_S = 60.0
SEEN_S = 120.0  # for what takes a few windows, on a busy machine
CLIENTS = 6
PROMPTS = 12
TOKENS = 120
MATH, WRITING = (0, 1, 2), (9, 10, 11)
CLEAR = ("replica_lost", "engine_failed", "start_timeout", "overloaded")


def placed(folder: Path, port: int) -> dict[str, Any]:
    raw = shipped(folder, port)
    tier = raw["tiers"]["ultra"] | {"max_running": 32, "replicas": {"min": 1, "max": 1, "initial": 1}}
    experts = {"redundant": 2, "rebalance": True, "window_s": WINDOW_S}
    naps = {"min": 0, "max": 1, "initial": 1, "idle_s": 3}
    raw["tiers"] = {
        "moving": tier | {"names": ["moving"], "experts": experts},
        "still": tier | {"names": ["still"], "experts": experts | {"rebalance": False}, "replicas": naps},
    }
    raw["personas"] = {domain: list(PERSONAS[domain]) for domain in ("math", "creative_writing")}
    return {key: value for key, value in raw.items() if key not in ("video", "plans", "auto")} | {"name": "placed"}


@pytest.fixture
def server(stage: Stage) -> Server:
    return stage.serve("placed", placed)


def prompts(domain: Domain) -> list[Any]:
    """Questions that the checkpoint can answer, below a persona that tells their domain."""
    samples = [sample for sample in evaluation(seed=1, per_task=4) if sample.task.domain == domain]
    persona = {"role": "system", "content": PERSONAS[domain][0]}
    return [[persona, {"role": "user", "content": sample.question}] for sample in samples[:: len(samples) // PROMPTS]]


class Crowd:
    """Clients that ask one question after the other, over and over, until they are told to stop."""

    def __init__(self, server: Server, asks: Sequence[Any]) -> None:
        self.answers: list[tuple[int, Stream]] = []  # which question, and what came
        self._server, self._asks, self._next = server, asks, count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            which = next(self._next) % len(self._asks)
            stream = told(self._server, "moving", self._asks, which)
            self.answers.append((which, stream))
            stream.join(QUIET_S)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(QUIET_S)


def told(server: Server, model: str, asks: Sequence[Any], which: int) -> Stream:
    return Stream(server, model, TOKENS, seed=which, prompt=asks[which])


@contextlib.contextmanager
def crowd(server: Server, asks: Sequence[Any]) -> Iterator[Crowd]:
    asking = Crowd(server, asks)
    try:
        yield asking
    finally:
        asking.stop()


@cache
def right(server: Server, domain: Domain) -> list[str]:
    """The texts of the tier whose experts never move."""
    asks = prompts(domain)
    return [stream.ended().text for stream in [told(server, "still", asks, which) for which in range(len(asks))]]


def assert_unnoticed(asking: Crowd, texts: Sequence[str]) -> None:
    assert len(asking.answers) >= len(texts), "not every question was asked"
    for which, stream in asking.answers:
        assert (stream.error, stream.text) == (None, texts[which])
        assert stream.finish_reason in ("stop", "length")


def view(server: Server) -> dict[str, Any]:
    """What `moray experts --json` tells of the replica, without a process for it."""
    page = httpx.get(f"{server.url}/metrics", timeout=QUIET_S).text
    return next((as_dict(group) for group in seen(page).groups if group.tier == "moving"), {"rebalances": 0})


def until_at_rest(server: Server, since: int) -> list[dict[str, Any]]:
    """Views until experts have moved more often than `since`, and then not for two windows."""
    views: list[dict[str, Any]] = []

    def at_rest() -> bool:
        now_s = time.monotonic()
        views.append(view(server) | {"at_s": now_s})
        moved = int(views[-1]["rebalances"])
        rested_s = now_s - min(float(each["at_s"]) for each in views if each["rebalances"] == moved)
        return moved > since and rested_s > 2 * WINDOW_S

    eventually(at_rest, SEEN_S, "experts have moved and rest")
    return views


def asked(server: Server, *words: str) -> str:
    """What `moray experts` prints."""
    ran = server.moray("experts", "--url", server.url, "--tier", "moving", *words)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def share(group: dict[str, Any], experts: Sequence[int]) -> float:
    """Of the last window's rows, in the layer where it is least."""
    return float(min(sum(layer["experts"][expert]["share"] or 0 for expert in experts) for layer in group["layers"]))


def rows(group: dict[str, Any], domain: Domain) -> int:
    """Since start."""
    return int(sum(layer["domains"].get(domain, {"rows": 0})["rows"] for layer in group["layers"]))


def imbalance(group: dict[str, Any]) -> float:
    """Mean over the layers."""
    return float(sum(layer["imbalance"] or 1.0 for layer in group["layers"]) / len(group["layers"]))


def test_a_shift_of_the_traffic_moves_experts_until_ranks_are_even_and_no_stream_notices(server: Server) -> None:
    math, writing = prompts("math"), prompts("creative_writing")
    right_math, right_writing = right(server, "math"), right(server, "creative_writing")
    with crowd(server, math) as asking:
        until_at_rest(server, since=0)
        before = view(server)
    assert_unnoticed(asking, right_math)
    with crowd(server, writing) as asking:
        views = until_at_rest(server, since=before["rebalances"])
        after = view(server)
    assert_unnoticed(asking, right_writing)

    assert share(before, MATH) > 0.5 > share(before, WRITING)
    assert share(after, WRITING) > 0.5 > share(after, MATH)
    assert rows(after, "creative_writing") - rows(before, "creative_writing") > 1000
    assert rows(after, "math") - rows(before, "math") < rows(before, "math") / 2, "only what was under way then"
    assert imbalance(before) < EVEN
    assert max(map(imbalance, views)) > imbalance(after) + 0.1, "the shift was not seen to make ranks uneven"
    assert imbalance(after) < EVEN
    assert after["moves"] > before["moves"]
    assert after["stall_s"] > 0
    assert server.metric("moray_resumed_total", tier="moving") == 0


def test_an_operator_sees_where_experts_lie_in_words_and_in_a_picture(server: Server) -> None:
    math = prompts("math")
    for stream in [told(server, "moving", math, which) for which in range(len(math))]:
        stream.ended()
    eventually(lambda: rows(view(server), "math"), SEEN_S, "counted")
    file = server.scratch / "experts.png"
    shown = asked(server, "--plot", str(file))
    (told_of,) = json.loads(asked(server, "--json"))["replicas"]
    assert 0 < rows(told_of, "math") <= rows(view(server), "math")
    for words in ("moving, replica ", "2 ranks", "rows in the window: rank 0 ", "layer 1:", "math", "most/mean"):
        assert words in shown
    assert imread(file).shape[1] > 1000


def test_a_rank_that_dies_while_experts_move_costs_no_stream_its_text(server: Server) -> None:
    writing, math = prompts("creative_writing"), prompts("math")
    right_writing, right_math = right(server, "creative_writing"), right(server, "math")
    eventually(lambda: len(server.processes("ray::Rank.follow")) == 1, ASLEEP_S, "still sleeps")
    with crowd(server, writing) as asking:
        until_at_rest(server, since=-1)
    assert_unnoticed(asking, right_writing)
    before = view(server)["rebalances"]
    with crowd(server, math) as asking:
        eventually(lambda: view(server)["rebalances"] > before, SEEN_S, "experts move")
        (rank,) = server.processes("ray::Rank.follow")
        rank.kill()
        eventually(lambda: server.metric("moray_resumed_total", tier="moving") > 0, RESTART_S, "streams went on")
        eventually(lambda: serves(server, "moving"), RESTART_S, "the tier serves again")
    for which, stream in asking.answers:
        if stream.error is None:
            assert stream.text == right_math[which]
        else:
            assert stream.code in CLEAR
            assert right_math[which].startswith(stream.text)
