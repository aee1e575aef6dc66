import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shell import chat
from virtual_time import run

from cluster.errors import ContextTooLong, EngineFailed
from cluster.request import Piece, TokenLogprob, Tool, Usage
from deployments.stream import BEAT, BEAT_S, Answer, Outcome, Sweeper

USAGE = Usage(prompt_tokens=3, completion_tokens=5)
END = Piece(tokens=1, text="end", finish_reason="stop", usage=USAGE)
INTERVAL_S = 0.02


class Reader:
    """What an answer wrote, with the time of each write."""

    def __init__(self, sweeper: Sweeper | None = None, **asked: Any) -> None:
        self.writes: list[tuple[float, bytes, bool]] = []
        self.ids: list[list[int]] = []
        self.answer = Answer(replace(chat(), **asked), "", sweeper or Sweeper(INTERVAL_S), self._write)

    def _write(self, data: bytes, ids: Sequence[int], last: bool) -> None:
        assert data or last
        self.ids.append(list(ids))
        self.writes.append((asyncio.get_running_loop().time(), data, last))

    def times_ms(self) -> list[float]:
        return [round(at_s * 1e3, 6) for at_s, _, _ in self.writes]

    def events(self) -> list[Any]:
        lines = b"".join(data for _, data, _ in self.writes).decode().split("\n\n")
        assert lines.pop() == ""
        lines = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    def text(self) -> str:
        deltas = (choice["delta"] for event in self.events() for choice in event["choices"])
        return "".join(delta.get("content") or "" for delta in deltas)


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token=token, token_bytes=token.encode(), logprob=-0.5)


async def emit(answer: Answer, *pieces: Piece, every_s: float = 0.01) -> None:
    for piece in pieces:
        answer.emit(piece)
        await asyncio.sleep(every_s)


texts = st.text(st.characters(codec="utf-8"), max_size=5)
plain = st.builds(lambda text: Piece(tokens=1, text=text), texts)
scored = st.builds(lambda text: Piece(tokens=1, text=text, logprobs=(logprob(text),)), texts)


@given(
    pieces=st.lists(plain | scored, max_size=12),
    end=texts,
    every_s=st.sampled_from([0, 0.01, 0.1]),
    few=st.integers(0, 1),
)
def test_the_events_hold_every_text_and_every_log_probability_in_order(
    pieces: list[Piece], end: str, every_s: float, few: int
) -> None:
    last_piece = replace(END, text=end)

    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S, few)
        reader = Reader(sweeper)
        with sweeper.open():
            await emit(reader.answer, *pieces, last_piece, every_s=every_s)
        assert reader.text() == "".join(piece.text for piece in (*pieces, last_piece))
        scores = [choice["logprobs"] for event in reader.events() for choice in event["choices"]]
        tokens = [one["token"] for score in scores if score for one in score["content"]]
        assert tokens == [one.token for piece in pieces for one in piece.logprobs]
        assert [last for _, _, last in reader.writes] == [False] * (len(reader.writes) - 1) + [True]
        assert sum(choice["delta"].get("role") == "assistant" for e in reader.events() for choice in e["choices"]) == 1

    run(scenario())


def test_first_and_last_bytes_leave_at_once_and_one_write_per_interval_between_them() -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S)
        reader = Reader(sweeper)
        pieces = [Piece(tokens=1, text="x") for _ in range(9)]
        with sweeper.open():
            await emit(reader.answer, *pieces, END, every_s=0.007)
            await asyncio.sleep(1.0)
        # The first of 9 pieces at 0; 7, 14, 21 leave with the sweep of 7 + 20; 28, 35, 42 with that of 28 + 20; the end
        # at 63 takes 49 and 56 along.
        assert reader.times_ms() == [0, 27, 48, 63]
        contents = [event["choices"][0]["delta"].get("content") for event in reader.events()]
        assert contents == ["", "x", "xxx", "xxx", "xxend", None]

    run(scenario())


def test_all_streams_of_a_replica_are_swept_together() -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S)
        readers = [Reader(sweeper) for _ in range(3)]
        for reader in readers:
            reader.answer.emit(Piece(tokens=1, text="first"))
        with sweeper.open():
            for reader in readers:
                reader.answer.emit(Piece(tokens=1, text="second"))
                await asyncio.sleep(0.005)
            await asyncio.sleep(1.0)
        assert [reader.times_ms() for reader in readers] == [[0, 20]] * 3

    run(scenario())


def test_few_streams_send_each_token_at_once_and_many_gather() -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S, few=1)
        reader = Reader(sweeper)
        with sweeper.open():
            await emit(reader.answer, *[Piece(tokens=1, text="x")] * 3)
            assert reader.times_ms() == [0, 10, 20]
            with sweeper.open():
                await emit(reader.answer, *[Piece(tokens=1, text="x")] * 2, every_s=0.001)
                assert reader.times_ms() == [0, 10, 20]
            await emit(reader.answer, Piece(tokens=1, text="y"))
        assert reader.times_ms() == [0, 10, 20, 32]
        assert reader.text() == "xxxxxy"
        await asyncio.sleep(1.0)
        assert len(reader.writes) == 4

    run(scenario())


def test_pieces_without_text_write_nothing_until_there_is_some() -> None:
    async def scenario() -> None:
        reader = Reader()
        await emit(reader.answer, Piece(tokens=1), Piece(tokens=1), every_s=1.0)
        assert reader.writes == []
        await emit(reader.answer, Piece(tokens=1, text="at last"))
        assert reader.times_ms() == [2000]

    run(scenario())


def test_ids_leave_with_the_next_bytes_and_none_without() -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S)
        reader = Reader(sweeper)
        said = [Piece(tokens=1, ids=(id,), text=text) for id, text in enumerate(["", "a", "b", "", ""])]
        with sweeper.open():
            await emit(reader.answer, *said, every_s=0.005)
            await asyncio.sleep(1.0)
            assert reader.ids == [[0, 1], [2, 3, 4]]  # of text held back, too: it is held back where they go on
            await emit(reader.answer, Piece(tokens=1, ids=(5,)))
            reader.answer.fail(EngineFailed("gone"))
        assert reader.ids == [[0, 1], [2, 3, 4]]

    run(scenario())


def test_a_begun_stream_whose_tokens_show_no_text_says_that_it_lives_with_their_ids() -> None:
    async def scenario() -> None:
        reader = Reader()
        silent = [Piece(tokens=1, ids=(id,)) for id in range(1, 46)]
        await emit(reader.answer, Piece(tokens=1, ids=(0,), text="so"), *silent, every_s=0.1)
        beats = [(at_s, data) for at_s, data, _ in reader.writes[1:]]
        assert [at_s for at_s, _ in beats] == pytest.approx([BEAT_S, 2 * BEAT_S], abs=0.11)
        assert {data for _, data in beats} == {BEAT}
        assert [id for ids in reader.ids for id in ids] == list(range(len([id for ids in reader.ids for id in ids])))
        await emit(reader.answer, END)
        assert reader.text() == "soend"

    run(scenario())


def test_an_answer_that_may_call_tools_begins_with_its_first_token() -> None:
    async def scenario() -> None:
        reader = Reader(tools=(Tool(name="look_up"),))
        await emit(reader.answer, Piece(tokens=1, ids=(0,)), Piece(tokens=1, ids=(1,)), END)
        assert reader.times_ms() == [0, 20]
        assert reader.ids == [[0], [1]]
        deltas = [choice["delta"] for event in reader.events() for choice in event["choices"]]
        assert [delta.get("role") for delta in deltas] == ["assistant", None, None]

    run(scenario())


def test_the_last_bytes_have_the_last_ids() -> None:
    async def scenario() -> None:
        reader = Reader()
        await emit(
            reader.answer, Piece(tokens=1, ids=(4,), text="a"), Piece(tokens=1, ids=(5,)), replace(END, ids=(6,))
        )
        assert reader.ids == [[4], [5, 6]]

    run(scenario())


@pytest.mark.parametrize("text", ["on", ""])
def test_an_answer_that_goes_on_has_no_role_again_and_begins_at_once(text: str) -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S)
        reader = Reader(sweeper, given=(1, 2))
        with sweeper.open():
            await emit(reader.answer, Piece(tokens=1, text=text), END)
        assert reader.times_ms() == ([0, 10] if text else [10])
        assert reader.text() == text + "end"
        assert not any("role" in choice["delta"] for event in reader.events() for choice in event["choices"])

    run(scenario())


def test_chunks_tell_the_usage_so_far_the_given_tokens_included() -> None:
    async def scenario() -> None:
        for before, told in (((), [0, 1, 3, 5, 5]), ((7, 8), [3, 5, 5, 5])):
            reader = Reader(Sweeper(0), given=before, include_usage=True, continuous_usage=True)
            reader.answer.prompt_tokens = 3
            await emit(reader.answer, Piece(tokens=1, text="a"), Piece(tokens=2, text="b"), replace(END, text=""))
            usages = [event["usage"] for event in reader.events()]
            assert [usage["completion_tokens"] for usage in usages] == told
            assert {usage["prompt_tokens"] for usage in usages} == {3}

    run(scenario())


def test_an_answer_without_text_still_begins_and_ends() -> None:
    async def scenario() -> None:
        reader = Reader()
        await emit(reader.answer, replace(END, text=""))
        assert len(reader.writes) == 1
        assert [event["choices"][0]["finish_reason"] for event in reader.events()] == [None, "stop"]

    run(scenario())


@pytest.mark.parametrize("error", [EngineFailed("engine: gone"), RuntimeError("out of memory")])
def test_an_error_after_some_text_still_sends_the_text_and_is_the_outcome(error: Exception) -> None:
    async def scenario() -> None:
        sweeper = Sweeper(INTERVAL_S)
        reader = Reader(sweeper)
        with sweeper.open():
            await emit(
                reader.answer, Piece(tokens=1, text="so "), Piece(tokens=1, text="far"), Piece(error=error), every_s=0
            )
        assert reader.text() == "so far"
        assert not any(last for _, _, last in reader.writes)
        outcome = await reader.answer.outcome
        assert isinstance(outcome.error, EngineFailed)
        assert str(error) in outcome.error.message

    run(scenario())


@pytest.mark.parametrize("tools", [(), (Tool(name="look_up"),)])
def test_an_error_of_ours_before_the_first_token_is_the_outcome_as_it_is(tools: tuple[Tool, ...]) -> None:
    async def scenario() -> None:
        reader = Reader(tools=tools)
        reader.answer.emit(Piece(error=ContextTooLong("too long")))
        assert isinstance((await reader.answer.outcome).error, ContextTooLong)
        assert reader.writes == []

    run(scenario())


def test_nothing_is_written_after_the_end() -> None:
    async def scenario() -> None:
        reader = Reader()
        await emit(reader.answer, Piece(tokens=1, text="a"), Piece(tokens=1, text="b"), END, every_s=0)
        ended = list(reader.writes)
        await emit(reader.answer, Piece(tokens=1, text="late"), END)
        reader.answer.fail(EngineFailed("late"))
        await asyncio.sleep(1.0)
        assert reader.writes == ended
        assert (await reader.answer.outcome).error is None

    run(scenario())


def test_the_outcome_tells_the_times_and_the_usage() -> None:
    async def scenario() -> None:
        reader = Reader()
        await asyncio.sleep(2.0)
        await emit(reader.answer, Piece(tokens=1, text="a"), Piece(tokens=1, text="b"), END, every_s=1.0)
        assert await reader.answer.outcome == Outcome(usage=USAGE, first_s=2.0, total_s=4.0)

    run(scenario())


def test_an_answer_that_is_not_streamed_comes_whole() -> None:
    async def scenario() -> None:
        answer = Answer(chat(stream=False), "simulated", Sweeper(INTERVAL_S), None)
        await emit(answer, Piece(tokens=1, text="a "), Piece(tokens=1, text="b "), END)
        outcome = await answer.outcome
        body = json.loads(outcome.body)
        assert body["choices"][0]["message"]["content"] == "a b end"
        assert body["model"] == "mini (simulated)"
        assert outcome.usage == USAGE

    run(scenario())
