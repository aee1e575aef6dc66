"""The vectors of one request on a replica: its inputs go through the engine as prompts do, and no token comes.

A few at a time, so that the prompts of others come between them. Together they are no more than one context.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from cluster.errors import ContextTooLong, InvalidRequest
from cluster.request import Chat, Embeds, Generation, Piece, Prompt, Sampling, Usage
from deployments.engines.engine import Emit, Engine
from deployments.gateway.embeddings_wire import embeddings
from deployments.stream import Outcome

AT_ONCE = 4


class Vectors:
    """Of one request. `watch`: goes around what receives the engine's pieces. `key`: its own at the engine."""

    def __init__(self, engine: Engine, watch: Callable[[Emit], Emit], key: str) -> None:
        self._engine, self._watch, self._key = engine, watch, key
        self._open: set[asyncio.Future[Piece]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)

    def fail(self, error: Exception) -> None:
        """The engine does not answer any more."""
        for future in self._open:
            if not future.done():
                future.set_exception(error)

    async def all(self, chat: Chat, embeds: Embeds) -> Outcome:
        """Raises MorayError. Who is cancelled leaves nothing at the engine."""
        began_s = asyncio.get_running_loop().time()
        if embeds.dimensions is not None and embeds.dimensions > self._engine.embeds:
            raise InvalidRequest(
                f"dimensions: given {embeds.dimensions}; 1 to {self._engine.embeds} are allowed; lower it",
                param="dimensions",
            )
        prompts = await self._prompts(embeds.inputs)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(chat, index, prompt)) for index, prompt in enumerate(prompts)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        pieces = [task.result() for task in tasks]
        usage = Usage(prompt_tokens=sum(map(len, prompts)), completion_tokens=0)
        took_s = asyncio.get_running_loop().time() - began_s
        return Outcome(
            body=embeddings(chat, embeds, [piece.vector for piece in pieces], usage),
            usage=usage,
            first_s=took_s,
            total_s=took_s,
            wait_s=min(took_s, pieces[0].queued_s or 0.0),
        )

    async def _prompts(self, inputs: Sequence[Prompt]) -> list[tuple[int, ...]]:
        prompts: list[tuple[int, ...]] = []
        for index, one in enumerate(inputs):
            with _named(index):
                prompts.append(self._engine.encode_text(one) if isinstance(one, str) else one)
            await asyncio.sleep(0)  # streams go on meanwhile
        tokens, most = sum(map(len, prompts)), self._engine.context_tokens - 1
        if tokens > most:
            raise ContextTooLong(
                f"input: {len(prompts)} inputs of {tokens} tokens together; {most} are allowed in one request; send "
                "fewer, or shorter ones",
                param="input",
            )
        return prompts

    async def _one(self, chat: Chat, index: int, prompt: tuple[int, ...]) -> Piece:
        generation = Generation(
            request_id=f"{self._key}/{index}",
            prompt=prompt,
            sampling=Sampling(temperature=0, max_tokens=1),
            domain=chat.domain,
            priority=chat.priority,
            cache_salt=chat.cache_salt,
            embeds=True,
        )
        async with self._turns:
            future: asyncio.Future[Piece] = asyncio.get_running_loop().create_future()
            self._open.add(future)
            try:
                with _named(index):
                    self._engine.submit(generation, self._watch(lambda piece: _told(future, piece)))
                return await future
            finally:
                self._open.discard(future)
                self._engine.cancel(generation.request_id)


def _told(future: asyncio.Future[Piece], piece: Piece) -> None:
    if future.done():
        return
    if piece.error is not None:
        future.set_exception(piece.error)
    else:
        future.set_result(piece)


@contextlib.contextmanager
def _named(index: int) -> Iterator[None]:
    """What the engine finds wrong with its prompt is told of the input."""
    try:
        yield
    except InvalidRequest as error:
        where = f"input[{index}]"
        error.message, error.param = f"{where}: {error.message.partition(': ')[2]}", where
        raise
