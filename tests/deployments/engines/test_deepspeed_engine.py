"""DeepSpeed's ZeRO-Inference behind the seam, on the CPU: weights come to each layer, batches run to their end."""

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch_checkpoint import save_checkpoint

from cluster.engines import Offload
from cluster.errors import CheckpointError, ContextTooLong, EngineFailed, InvalidRequest, Overloaded
from cluster.family import Tier, load
from cluster.request import Generation, Message, Piece, Sampling
from deployments.engines.build import build
from deployments.engines.deepspeed_engine.engine import DeepSpeedEngine, fitting
from deployments.engines.engine import Engine
from deployments.engines.torch_engine.streams import Stream
from deployments.ranks import ExpertGroup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is missing; mend: pip install '.[deepspeed]'"),
    pytest.mark.filterwarnings("ignore:.*all_gather_into_tensor:FutureWarning"),  # DeepSpeed's own call of torch
]
MINI = load("laptop").tiers["mini"]
AT_ONCE = Offload(gather_s=0)
GREEDY = Sampling(temperature=0, max_tokens=12)
QUESTIONS = ("What is 2+2?", "Write a poem about the sea.", "Hello", "How do I secure a login form? " * 6)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, no end token."""
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=None)


def tier(**changes: Any) -> Tier:
    return MINI.model_copy(update={"engine": "deepspeed", "offload": AT_ONCE, **changes})


def small(folder: Path, **changes: Any) -> Tier:
    return tier(checkpoint=str(folder), context_tokens=256, kv_tokens=1024, **changes)


@asynccontextmanager
async def started(tier: Tier) -> AsyncIterator[Engine]:
    engine = build(tier, "cpu", ExpertGroup({}))
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


@dataclass
class Receiver:
    """Collects the pieces of one stream."""

    pieces: list[Piece] = field(default_factory=list)
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, piece: Piece) -> None:
        assert not self.ended.is_set(), "nothing may follow the last piece"
        self.pieces.append(piece)
        self.began.set()
        if piece.last:
            self.ended.set()

    @property
    def ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.ids]

    async def last(self) -> Piece:
        await asyncio.wait_for(self.ended.wait(), 60)
        return self.pieces[-1]


def ask(engine: Engine, key: str, prompt: tuple[int, ...], sampling: Sampling = GREEDY, **more: Any) -> Receiver:
    receiver = Receiver()
    engine.submit(Generation(request_id=key, prompt=prompt, sampling=sampling, **more), receiver)
    return receiver


def prompt(tokens: int, first: int = 0) -> tuple[int, ...]:
    return tuple((7 * i + first) % 300 + 3 for i in range(tokens))


async def failed(engine: Engine) -> None:
    """Raises what the engine's check does, once it does."""
    while True:
        engine.check()
        await asyncio.sleep(0.01)


async def answers(tier: Tier, samplings: tuple[Sampling, ...]) -> list[list[Piece]]:
    """All questions under all settings at once: pieces of each."""
    async with started(tier) as engine:
        prompts = [engine.encode([Message(role="user", content=text)]) for text in QUESTIONS]
        asked = [ask(engine, f"{i} {j}", p, s) for i, p in enumerate(prompts) for j, s in enumerate(samplings)]
        for receiver in asked:
            await receiver.last()
        return [receiver.pieces for receiver in asked]


async def test_answers_of_a_checkpoint_that_ships_are_the_torch_engines() -> None:
    """Greedy and drawn, prompts of several lengths in one padded batch, read in chunks."""
    settings = (
        Sampling(temperature=0, max_tokens=40, top_logprobs=2),
        Sampling(temperature=0.8, top_p=0.9, seed=7, max_tokens=40, frequency_penalty=0.5, stop=("sea",)),
        Sampling(temperature=0, max_tokens=40, ignore_eos=True, logit_bias=((60, 3.0), (70, -100.0))),
    )
    ours = await answers(MINI, settings)
    offloaded = await answers(tier(prefill_chunk_tokens=64), settings)
    assert [[(p.ids, p.text, p.finish_reason) for p in stream] for stream in offloaded] == [
        [(p.ids, p.text, p.finish_reason) for p in stream] for stream in ours
    ]
    assert {sum(piece.tokens for piece in stream) for stream in offloaded[2::3]} == {40}
    for stream, other in zip(offloaded, ours, strict=True):
        assert stream[-1].usage == other[-1].usage
        logprobs = [[one.logprob for piece in pieces for one in piece.logprobs] for pieces in (stream, other)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


async def test_weights_lie_split_between_layers_and_tokens_come_one_by_one(endless: Path) -> None:
    async with started(small(endless)) as engine:
        assert isinstance(engine, DeepSpeedEngine)
        receiver = ask(engine, "a", prompt(9))
        assert (await receiver.last()).finish_reason == "length"
        assert [piece.tokens for piece in receiver.pieces] == [1] * 12
        assert receiver.pieces[0].queued_s is not None
        weights = list(engine._model._model.parameters())
        assert weights
        assert all(weight.numel() == 0 and weight.ds_tensor.device.type == "cpu" for weight in weights)


async def test_given_tokens_are_gone_on_behind(endless: Path) -> None:
    drawn = Sampling(temperature=1, seed=5, max_tokens=12, presence_penalty=1.0)
    async with started(small(endless)) as engine:
        whole = ask(engine, "whole", prompt(9), drawn)
        await whole.last()
        rest = ask(engine, "rest", prompt(9), drawn, given=tuple(whole.ids[:5]))
        last = await rest.last()
        assert rest.ids == whole.ids[5:]
        assert last.usage == whole.pieces[-1].usage


async def test_a_cancelled_stream_gets_nothing_more_and_the_others_of_its_batch_stay_as_they_were(
    endless: Path,
) -> None:
    async with started(small(endless)) as engine:
        alone = ask(engine, "alone", prompt(5), Sampling(temperature=0, max_tokens=60))
        await alone.last()
    async with started(small(endless, offload=Offload(gather_s=0.2))) as engine:
        gone = ask(engine, "gone", prompt(30), Sampling(temperature=0, max_tokens=200))
        stays = ask(engine, "stays", prompt(5), Sampling(temperature=0, max_tokens=60))
        await gone.began.wait()
        engine.cancel("gone")
        seen = len(gone.pieces)
        await stays.last()
        assert len(gone.pieces) == seen
        assert stays.ids == alone.ids
        report = engine.report()
        assert (report.running, report.waiting) == (0, 0)


async def test_all_may_leave_while_their_batch_gathers(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(small(endless)) as engine:
        assert isinstance(engine, DeepSpeedEngine)
        wake, left, loop = engine._wake, threading.Event(), asyncio.get_running_loop()
        wait_for = wake.wait_for

        def until_left(predicate: Callable[[], Any], timeout_s: float | None = None) -> Any:
            if timeout_s is None or left.is_set():
                return wait_for(predicate, timeout_s)
            loop.call_soon_threadsafe(engine.cancel, "a")
            while engine._waiting:
                wake.wait(0.01)
            left.set()
            return False

        monkeypatch.setattr(wake, "wait_for", until_left)
        ask(engine, "a", prompt(5))
        assert await asyncio.to_thread(left.wait, 60)
        assert (await ask(engine, "b", prompt(5)).last()).finish_reason == "length"


async def test_a_stream_cancelled_behind_its_last_step_takes_nothing_from_the_others(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread knows that it has ended, the loop does not yet."""
    async with started(small(endless, max_running=2, offload=Offload(gather_s=60))) as engine:
        assert isinstance(engine, DeepSpeedEngine)
        send = engine._delivery.send

        def late(pieces: Sequence[tuple[Stream, Piece]]) -> None:
            if any(stream.generation.request_id == "gone" and piece.last for stream, piece in pieces):
                asyncio.run_coroutine_threadsafe(cancelled(engine, "gone"), engine._delivery._loop).result(60)
            send(pieces)

        monkeypatch.setattr(engine._delivery, "send", late)
        gone, stays = ask(engine, "gone", prompt(5)), ask(engine, "stays", prompt(9))
        assert (await stays.last()).finish_reason == "length"
        assert len(stays.ids) == 12
        assert len(gone.ids) == 11


async def cancelled(engine: Engine, key: str) -> None:
    engine.cancel(key)


async def test_a_time_limit_holds_even_where_the_thread_stands_still(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.engines.deepspeed_engine.batch import Batch

    async with started(small(endless, max_running=1, offload=Offload(gather_s=0, limit_s=1))) as engine:
        halt, stands = threading.Event(), threading.Event()
        step = Batch.step

        def halted(batch: Batch) -> Any:
            stands.set()
            halt.wait(60)
            return step(batch)

        monkeypatch.setattr(Batch, "step", halted)
        running = ask(engine, "running", prompt(5))
        await asyncio.to_thread(stands.wait, 60)
        waiting = ask(engine, "waiting", prompt(5))
        too_long, no_place = (await running.last()).error, (await waiting.last()).error
        with pytest.raises(EngineFailed, match=r"engine: one step for more than 1 s; offload\.limit_s allows"):
            await asyncio.wait_for(failed(engine), 60)
        halt.set()
    assert isinstance(too_long, InvalidRequest)
    assert too_long.code == "time_limit_exceeded"
    assert str(too_long).startswith("engine: the answer had 0 tokens when 1 s were over; offload.limit_s allows")
    assert isinstance(no_place, Overloaded)
    assert str(no_place).startswith("engine: no place in a batch for 1 s; offload.limit_s allows no more; send")


async def test_a_start_that_stands_still_is_given_up(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deployments.engines.deepspeed_engine.zero import OffloadedModel

    halt = threading.Event()
    monkeypatch.setattr(OffloadedModel, "__init__", lambda *_: halt.wait(60))
    engine = build(small(endless, start_timeout_s=0.2), "cpu", ExpertGroup({}))
    with pytest.raises(EngineFailed, match=r"engine: it has not started in 0\.2 s; start_timeout_s allows no more"):
        await engine.start()
    with pytest.raises(EngineFailed):
        engine.check()
    halt.set()
    await engine.stop()


async def test_a_step_that_fails_ends_the_engine_and_tells_all_streams(
    endless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.engines.deepspeed_engine.batch import Batch

    def broken(_: Batch) -> Any:
        raise RuntimeError("device lost")

    monkeypatch.setattr(Batch, "step", broken)
    async with started(small(endless, max_running=1)) as engine:
        receivers = [ask(engine, key, prompt(5)) for key in "ab"]
        for receiver in receivers:
            assert isinstance((await receiver.last()).error, EngineFailed)
        with pytest.raises(EngineFailed):
            engine.check()
        with pytest.raises(EngineFailed):
            ask(engine, "c", prompt(5))


async def test_a_stopped_engine_leaves_no_thread_group_folder_or_variable(
    endless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    before = dict(os.environ)
    async with started(small(endless)) as engine:
        receiver = ask(engine, "cut off", prompt(5), Sampling(temperature=0, max_tokens=200))
        await receiver.began.wait()
    assert isinstance((await receiver.last()).error, EngineFailed)
    assert not list(tmp_path.iterdir())
    assert dict(os.environ) == before
    assert not dist.is_initialized()
    assert "deepspeed-engine" not in {thread.name for thread in threading.enumerate()}


async def test_what_could_never_run_is_refused(endless: Path) -> None:
    async with started(small(endless, max_running=1, max_waiting=1, offload=Offload(gather_s=30))) as engine:
        with pytest.raises(ContextTooLong):
            ask(engine, "a", prompt(256))
        with pytest.raises(InvalidRequest):
            ask(engine, "a", prompt(5), Sampling(max_tokens=0))
        ask(engine, "a", prompt(5))
        with pytest.raises(InvalidRequest, match="request_id: 'a' is running"):
            ask(engine, "a", prompt(5))
        ask(engine, "b", prompt(5))
        with pytest.raises(Overloaded, match="engine: 2 requests run or wait; at most 1 and 1 are allowed"):
            ask(engine, "c", prompt(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere.*no such|/nowhere/tokenizer.json"),
        (
            {"context_tokens": 4096, "kv_tokens": 4096},
            "context_tokens is 4096; at most the checkpoint's 2048 are allowed",
        ),
        ({"offload": Offload(to="nvme", folder="/tmp")}, "without its async_io op, cpu is allowed; install libaio-dev"),
    ],
)
async def test_what_deepspeed_cannot_serve_here_is_refused_at_the_start(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        async with started(tier(**changes)):
            pass
    assert not dist.is_initialized()


def test_weights_on_nvme_go_with_their_process_or_when_the_next_one_comes(tmp_path: Path) -> None:
    from deployments.engines.deepspeed_engine.nvme import PREFIX, own_folder

    killed, others = tmp_path / f"{PREFIX}killed", tmp_path / "others"
    killed.mkdir()
    (killed / "weights").write_bytes(b"0")
    others.mkdir()
    with own_folder(tmp_path) as first, own_folder(tmp_path) as second:
        assert {*tmp_path.iterdir()} == {first, second, others}
    assert {*tmp_path.iterdir()} == {others}


@pytest.mark.parametrize("fault", ["cut off", "a tensor missing"])
async def test_weights_that_are_not_all_there_are_refused(endless: Path, tmp_path: Path, fault: str) -> None:
    folder = shutil.copytree(endless, tmp_path / "broken")
    file = folder / "model.safetensors"
    if fault == "cut off":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        tensors = load_file(file)
        del tensors["model.layers.1.mlp.gate.weight"]
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{folder}: .*save it anew"):
        async with started(small(folder)):
            pass
    assert not dist.is_initialized()


def stream(key: str, tokens: int, most: int, priority: int = 0) -> Stream:
    generation = Generation(request_id=key, prompt=(1,) * tokens, sampling=GREEDY, priority=priority)
    return Stream(generation=generation, max_tokens=most, emit=lambda _: None, submitted_s=0)


@pytest.mark.parametrize(
    ("waiting", "chosen"),
    [
        ("a10+10 b10+10 c10+10", "a b c"),
        ("a10+10 b10+10 c10+10 d10+10 e10+10", "a b c d"),  # no more than four rows
        ("a10+40 b40+10", "a"),  # two rows of 40 + 40 are beyond 120
        ("a10+40 b50+50 c10+30", "a c"),  # who does not fit beside the first waits
        ("a10+10 b10+10!1", "b a"),
        ("a100+100", "a"),  # what the engine accepted goes, alone
    ],
)
def test_a_batch_is_as_large_as_the_cache_holds_by_priority_then_age(waiting: str, chosen: str) -> None:
    streams = []
    for word in waiting.split():
        lengths, _, priority = word[1:].partition("!")
        tokens, most = map(int, lengths.split("+"))
        streams.append(stream(word[0], tokens, most, int(priority or 0)))
    assert " ".join(s.generation.request_id for s in fitting(streams, rows=4, kv_tokens=120)) == chosen
