"""A torch engine with its other ranks in processes of their own, and streams that collect what it emits."""

import asyncio
import multiprocessing
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.process import BaseProcess

from cluster.request import Generation, Piece, Sampling
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.parallel import follow
from deployments.engines.torch_engine.spec import EngineSpec, GroupAddress

Follow = Callable[[EngineSpec, int, GroupAddress], None]
SAMPLINGS = (
    Sampling(temperature=0, max_tokens=24),
    Sampling(temperature=0.9, top_p=0.9, seed=7, max_tokens=24),
    Sampling(temperature=0.7, seed=8, max_tokens=24, frequency_penalty=0.5, top_logprobs=3),
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def followers(spec: EngineSpec, address: GroupAddress, follow: Follow = follow) -> Iterator[list[BaseProcess]]:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=follow, args=(spec, rank, address)) for rank in range(1, spec.ranks)]
    for process in processes:
        process.start()
    try:
        yield list(processes)
        for process in processes:
            process.join(30)
        assert [process.is_alive() for process in processes] == [False] * len(processes)
    finally:
        for process in processes:
            process.kill()


@asynccontextmanager
async def running(
    spec: EngineSpec, follow: Follow = follow, now_s: Callable[[], float] = time.monotonic
) -> AsyncIterator[tuple[TorchEngine, list[BaseProcess]]]:
    address = GroupAddress(host="127.0.0.1", port=free_port()) if spec.ranks > 1 else None
    with followers(spec, address, follow) if address else _nobody() as processes:
        engine = TorchEngine(spec, address, now_s)
        await engine.start()
        try:
            yield engine, processes
        finally:
            await engine.stop()


@contextmanager
def _nobody() -> Iterator[list[BaseProcess]]:
    yield []


async def collected(engine: TorchEngine, generation: Generation) -> list[Piece]:
    """All that one stream emits."""
    got: list[Piece] = []
    ended = asyncio.Event()

    def emit(piece: Piece) -> None:
        got.append(piece)
        if piece.last:
            ended.set()

    engine.submit(generation, emit)
    await asyncio.wait_for(ended.wait(), 60)
    return got


async def pieces(
    engine: TorchEngine, key: str, sampling: Sampling, tokens: int = 40, given: tuple[int, ...] = ()
) -> list[Piece]:
    prompt = tuple((7 * i + tokens) % 300 + 3 for i in range(tokens))
    return await collected(engine, Generation(request_id=key, prompt=prompt, sampling=sampling, given=given))


async def nine(engine: TorchEngine) -> list[list[Piece]]:
    """Streams of different lengths and settings at once."""
    return await asyncio.gather(*(pieces(engine, f"{i}", SAMPLINGS[i % 3], 10 + 13 * i) for i in range(9)))


def ids(streams: list[list[Piece]]) -> list[tuple[int, ...]]:
    return [tuple(id for piece in stream for id in piece.ids) for stream in streams]
