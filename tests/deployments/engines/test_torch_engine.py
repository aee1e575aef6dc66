"""The engine as its callers see it: streams, limits, cancellation, failure."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from torch_checkpoint import save_checkpoint

from cluster.errors import CheckpointError, ContextTooLong, EngineFailed, InvalidRequest, Overloaded
from cluster.request import Generation, Piece, Sampling
from deployments.engines.torch_engine.chat import ChatTokenizer
from deployments.engines.torch_engine.engine import TorchEngine
from deployments.engines.torch_engine.spec import EngineSpec

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny"), eos_token_id=None)


@pytest.fixture
def spec(folder: Path) -> EngineSpec:
    return EngineSpec(
        checkpoint=str(folder),
        context_tokens=256,
        kv_tokens=1024,
        max_running=8,
        max_waiting=4,
        prefill_chunk_tokens=16,
    )


@pytest.fixture
async def engine(spec: EngineSpec) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(spec)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
async def elsewhere(spec: EngineSpec) -> AsyncIterator[TorchEngine]:
    engine = TorchEngine(spec)
    await engine.start()
    yield engine
    await engine.stop()


@dataclass
class Receiver:
    """Collects the pieces of one stream."""

    pieces: list[Piece] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, piece: Piece) -> None:
        assert not self.ended.is_set(), "nothing may follow the last piece"
        self.pieces.append(piece)
        if piece.last:
            self.ended.set()

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    async def last(self) -> Piece:
        await asyncio.wait_for(self.ended.wait(), 30)
        return self.pieces[-1]


def prompt(tokens: int, first: int = 0) -> tuple[int, ...]:
    return tuple((7 * i + first) % 300 + 3 for i in range(tokens))


def ask(
    engine: TorchEngine,
    key: str,
    tokens: tuple[int, ...] = prompt(20),
    sampling: Sampling = GREEDY,
    given: tuple[int, ...] = (),
) -> Receiver:
    receiver = Receiver()
    engine.submit(Generation(request_id=key, prompt=tokens, sampling=sampling, given=given), receiver)
    return receiver


async def answer(engine: TorchEngine, key: str, tokens: tuple[int, ...], sampling: Sampling) -> str:
    receiver = ask(engine, key, tokens, sampling)
    last = await receiver.last()
    assert last.error is None
    return receiver.text


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def test_a_stream_ends_at_max_tokens_with_its_usage(engine: TorchEngine) -> None:
    receiver = ask(engine, "a")
    last = await receiver.last()
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (20, 12)
    assert sum(piece.tokens for piece in receiver.pieces) == 12
    assert engine.report().running == 0
    assert engine.report().kv_used_tokens == 0


async def test_a_bias_demands_a_token_or_forbids_it(engine: TorchEngine) -> None:
    demanded = ask(engine, "demanded", sampling=Sampling(seed=1, max_tokens=8, logit_bias=((40, 100.0),)))
    free = ask(engine, "free")
    await demanded.last()
    await free.last()
    assert [piece.ids for piece in demanded.pieces] == [(40,)] * 8
    usual = {token for piece in free.pieces for token in piece.ids}
    forbidding = replace(GREEDY, logit_bias=tuple((token, -100.0) for token in sorted(usual)))
    forbidden = ask(engine, "forbidden", sampling=forbidding)
    await forbidden.last()
    assert usual.isdisjoint(token for piece in forbidden.pieces for token in piece.ids)


async def test_the_bias_of_who_had_the_place_before_is_gone(engine: TorchEngine) -> None:
    before = await answer(engine, "before", prompt(20), GREEDY)
    await answer(engine, "biased", prompt(20), replace(GREEDY, logit_bias=((40, 100.0),)))
    assert await answer(engine, "after", prompt(20), GREEDY) == before


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(temperature=0.9, top_p=0.8, seed=5, max_tokens=12),
        Sampling(temperature=0.9, seed=5, max_tokens=12, logit_bias=((40, 5.0), (41, -5.0))),
    ],
)
async def test_neighbours_never_change_a_stream(engine: TorchEngine, sampling: Sampling) -> None:
    alone = await answer(engine, "alone", prompt(50), sampling)
    others = [
        ask(engine, f"o{i}", prompt(5 + 9 * i, i), Sampling(seed=i, max_tokens=20, logit_bias=((i, i),)))
        for i in range(7)
    ]
    assert await answer(engine, "crowded", prompt(50), sampling) == alone
    for other in others:
        await other.last()


async def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: TorchEngine) -> None:
    texts = [
        await answer(engine, f"{i}", prompt(9), Sampling(seed=seed, max_tokens=30)) for i, seed in enumerate([1, 1, 2])
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_a_stop_string_ends_the_stream_and_is_not_emitted(engine: TorchEngine) -> None:
    whole = await answer(engine, "whole", prompt(20), Sampling(temperature=0, max_tokens=40))
    stop = whole[10:14]
    receiver = ask(engine, "stopped", prompt(20), Sampling(temperature=0, max_tokens=40, stop=(stop,)))
    assert (await receiver.last()).finish_reason == "stop"
    assert receiver.text == whole[: whole.index(stop)]


async def test_an_end_token_ends_the_stream_and_is_no_text(
    spec: EngineSpec, engine: TorchEngine, tmp_path: Path
) -> None:
    free = ask(engine, "free", sampling=replace(GREEDY, top_logprobs=1))
    await free.last()
    chosen = [piece.logprobs[0].token_bytes for piece in free.pieces]
    at = next(i for i in range(1, 12) if chosen[i] and chosen[i] not in chosen[:i])
    end = ChatTokenizer(Path(spec.checkpoint), spec.context_tokens).bytes_of.index(chosen[at])
    ended = TorchEngine(replace(spec, checkpoint=str(save_checkpoint(tmp_path, eos_token_id=end))))
    await ended.start()
    receiver = ask(ended, "ended")
    last = await receiver.last()
    await ended.stop()
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == at + 1
    assert receiver.text == b"".join(chosen[:at]).decode("utf-8", "replace")


async def test_log_probabilities_name_the_chosen_token_and_the_best(engine: TorchEngine) -> None:
    receiver = ask(engine, "a", sampling=replace(GREEDY, top_logprobs=3))
    await receiver.last()
    for piece in receiver.pieces:
        (chosen,) = piece.logprobs
        assert len(chosen.top) == 3
        assert chosen.top[0] == (chosen.token, chosen.token_bytes, chosen.logprob), "greedy chooses the best"
        assert 0 > chosen.logprob >= chosen.top[1][2] >= chosen.top[2][2]


async def test_streams_with_and_without_log_probabilities_share_a_batch(engine: TorchEngine) -> None:
    asked = [None, 0, 4]
    receivers = [ask(engine, f"{top}", sampling=replace(GREEDY, top_logprobs=top)) for top in asked]
    for receiver, top in zip(receivers, asked, strict=True):
        await receiver.last()
        assert {len(piece.logprobs[0].top) if piece.logprobs else None for piece in receiver.pieces} == {top}
    assert len({receiver.text for receiver in receivers}) == 1


async def test_a_frequency_penalty_forbids_repetition(engine: TorchEngine) -> None:
    sampling = Sampling(temperature=0, max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0, top_logprobs=0)
    counts: dict[bytes, int] = {}
    for penalised in (sampling, replace(sampling, frequency_penalty=0.0, presence_penalty=0.0)):
        receiver = ask(engine, "a", sampling=penalised)
        await receiver.last()
        tokens = [piece.logprobs[0].token_bytes for piece in receiver.pieces]
        counts[b"free" if not penalised.frequency_penalty else b"penalised"] = len(set(tokens))
    assert counts[b"penalised"] > counts[b"free"]


@pytest.mark.parametrize(
    "sampling",
    [
        replace(GREEDY, top_logprobs=2),
        Sampling(temperature=0.9, top_p=0.8, seed=5, max_tokens=12),
        Sampling(temperature=0, max_tokens=12, frequency_penalty=2.0, presence_penalty=2.0),
        Sampling(temperature=1.1, seed=6, max_tokens=12, frequency_penalty=0.5, top_logprobs=0),
        Sampling(temperature=1.1, seed=6, max_tokens=12, frequency_penalty=0.5, logit_bias=((40, 9.0), (41, 9.0))),
    ],
)
@pytest.mark.parametrize("stops", [False, True])
async def test_an_answer_cut_anywhere_goes_on_elsewhere_as_if_it_had_not_been(
    engine: TorchEngine, elsewhere: TorchEngine, sampling: Sampling, stops: bool
) -> None:
    if stops:  # two strings: one is begun and not ended, one ends the answer across tokens
        text = await answer(engine, "free", prompt(20), sampling)
        sampling = replace(sampling, stop=(text[2:5] + "no", text[6:9]))
    whole = ask(engine, "whole", sampling=sampling)
    last = await whole.last()
    # Two by two, so that places are used again.
    for cuts in zip(*[iter(range(1, len(whole.pieces) + 1))] * 2, strict=False):
        begun = [whole.pieces[:cut] for cut in cuts]
        given = [tuple(id for piece in pieces for id in piece.ids) for pieces in begun]
        rest = [ask(elsewhere, f"{len(ids)}", sampling=sampling, given=ids) for ids in given]
        for pieces, receiver in zip(begun, rest, strict=True):
            end = await receiver.last()
            assert (end.finish_reason, end.usage) == (last.finish_reason, last.usage)
            assert "".join(piece.text for piece in pieces) + receiver.text == whole.text
            assert [piece.ids for piece in (*pieces, *receiver.pieces) if piece.ids] == [p.ids for p in whole.pieces]
            same_logprobs([*pieces, *receiver.pieces], whole.pieces)
            assert receiver.pieces[0].queued_s is not None or pieces[-1].last


def same_logprobs(got: list[Piece], expected: list[Piece]) -> None:
    """Up to what a sum in another order changes."""
    one, other = ([logprob for piece in pieces for logprob in piece.logprobs] for pieces in (got, expected))
    assert [(a.token_bytes, [best[1] for best in a.top]) for a in one] == [
        (b.token_bytes, [best[1] for best in b.top]) for b in other
    ]
    assert [a.logprob for a in one] == pytest.approx([b.logprob for b in other], abs=1e-4)


async def test_the_first_piece_says_how_long_it_queued(engine: TorchEngine) -> None:
    receiver = ask(engine, "a")
    await receiver.last()
    assert receiver.pieces[0].queued_s is not None
    assert receiver.pieces[0].queued_s >= 0
    assert {piece.queued_s for piece in receiver.pieces[1:]} == {None}


@pytest.mark.parametrize(
    ("tokens", "sampling", "error", "message"),
    [
        ((), GREEDY, InvalidRequest, "prompt: no tokens"),
        ((3, 320), GREEDY, InvalidRequest, r"prompt: token 320; 0\.\.319 are allowed"),
        (prompt(256), replace(GREEDY, max_tokens=None), ContextTooLong, "256 prompt tokens and 1 to generate; 256"),
        (prompt(250), replace(GREEDY, max_tokens=7), ContextTooLong, "250 prompt tokens and 7 to generate; 256"),
        (prompt(3), replace(GREEDY, max_tokens=0), InvalidRequest, "max_tokens: 0; at least 1"),
        (prompt(3), replace(GREEDY, top_logprobs=21), InvalidRequest, r"top_logprobs: 21; 0\.\.20 are allowed"),
        (
            prompt(3),
            replace(GREEDY, logit_bias=((1, 1.0), (320, 1.0))),
            InvalidRequest,
            r"logit_bias: token 320; 0\.\.319 are allowed",
        ),
        (prompt(3), replace(GREEDY, stop=("",)), InvalidRequest, "stop: an empty string"),
    ],
)
async def test_what_can_never_run_is_refused(
    engine: TorchEngine, tokens: tuple[int, ...], sampling: Sampling, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(engine, "a", tokens, sampling)
    assert engine.report().waiting == 0


async def test_what_the_cache_can_never_hold_is_refused(spec: EngineSpec) -> None:
    engine = TorchEngine(replace(spec, kv_tokens=64))
    await engine.start()
    with pytest.raises(ContextTooLong, match="KV cache: 60 prompt tokens and 6 to generate; it holds 64"):
        ask(engine, "a", prompt(60), replace(GREEDY, max_tokens=6))
    assert await answer(engine, "b", prompt(60), replace(GREEDY, max_tokens=5))
    await engine.stop()


async def test_a_cache_of_one_context_holds_a_full_one_whatever_the_size_of_a_block(spec: EngineSpec) -> None:
    engine = TorchEngine(replace(spec, context_tokens=250, kv_tokens=250))
    await engine.start()
    last = await ask(engine, "a", prompt(200), Sampling(temperature=0)).last()
    assert last.usage is not None
    assert last.usage.completion_tokens == 50
    await engine.stop()


async def test_no_max_tokens_means_what_is_left_of_the_context(engine: TorchEngine) -> None:
    last = await ask(engine, "a", prompt(200), Sampling(temperature=0)).last()
    assert last.usage is not None
    assert last.usage.completion_tokens == 56


async def test_a_full_queue_says_when_to_come_back(engine: TorchEngine) -> None:
    receivers: list[Receiver] = []

    def flood() -> None:
        for index in range(100):
            receivers.append(ask(engine, f"{index}", prompt(200), replace(GREEDY, max_tokens=50)))

    with pytest.raises(Overloaded, match="requests run or wait; at most 8 and 4 are allowed") as refused:
        flood()
    assert 1 <= refused.value.retry_after_s <= 60
    for receiver in receivers:
        assert (await receiver.last()).finish_reason == "length"


async def test_a_running_request_id_is_refused(engine: TorchEngine) -> None:
    receiver = ask(engine, "twice")
    with pytest.raises(InvalidRequest, match="request_id: 'twice' is running"):
        ask(engine, "twice")
    await receiver.last()
    await ask(engine, "twice").last()


async def test_a_cancelled_stream_frees_its_place_and_emits_no_more(engine: TorchEngine) -> None:
    receiver = ask(engine, "a", sampling=Sampling(temperature=0))
    await eventually(lambda: len(receiver.pieces) > 2)
    engine.cancel("a")
    engine.cancel("unknown")
    seen = len(receiver.pieces)
    assert engine.report().kv_used_tokens == 0
    again = ask(engine, "a")  # the same id serves anew at once
    await again.last()
    assert len(receiver.pieces) == seen
    assert sum(piece.tokens for piece in again.pieces) == 12


async def test_a_receiver_that_fails_loses_its_own_stream_alone(engine: TorchEngine) -> None:
    def fail(piece: Piece) -> None:
        raise RuntimeError("gone")

    engine.submit(Generation(request_id="bad", prompt=prompt(8), sampling=Sampling(temperature=0)), fail)
    assert await answer(engine, "good", prompt(8), GREEDY)
    await eventually(lambda: engine.report().running == 0)


async def test_a_fresh_engine_has_routed_nothing(engine: TorchEngine) -> None:
    report = engine.report()
    assert report.experts is not None
    assert not report.experts.tokens.any()
    assert report.steps == 0


async def test_the_report_counts_what_was_routed(engine: TorchEngine) -> None:
    before = engine.report()
    await ask(engine, "a").last()
    after = engine.report()
    computed = 20 + 12 - 1  # the last token is never fed back
    assert before.experts is not None
    assert after.experts is not None
    routed = (after.experts.tokens - before.experts.tokens).sum(axis=(0, 2, 3))
    assert routed.tolist() == [computed * 2] * 2  # two experts per token, two layers that have experts
    assert after.experts.slots == (tuple(range(8)),) * 2
    assert after.steps == before.steps + 2 + 11  # 20 prompt tokens in chunks of 16
    assert after.step_ms > 0
    assert after.prefill_us_per_token > 0
    assert after.kv_capacity_tokens == 1024


async def test_a_stopped_engine_ends_its_streams_and_accepts_no_more(spec: EngineSpec) -> None:
    engine = TorchEngine(spec)
    await engine.start()
    receiver = ask(engine, "a", sampling=Sampling(temperature=0))
    await engine.stop()
    assert isinstance((await receiver.last()).error, EngineFailed)
    with pytest.raises(EngineFailed, match="it was stopped"):
        ask(engine, "b")


async def test_a_step_that_fails_ends_every_stream_and_is_reported(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine.check()
    receivers = [ask(engine, f"{i}", sampling=Sampling(temperature=0)) for i in range(3)]
    monkeypatch.setattr("deployments.engines.torch_engine.model.Model.forward", lambda *_: 1 / 0)
    for receiver in receivers:
        assert isinstance((await receiver.last()).error, EngineFailed)
        assert "division" not in str(receiver.pieces[-1].error), "raw texts are for the log"
    assert "division by zero" in caplog.text
    with pytest.raises(EngineFailed, match="engine: it failed; its replica is being replaced; send the request again"):
        engine.check()


async def test_a_checkpoint_that_cannot_be_served_fails_the_start(spec: EngineSpec) -> None:
    with pytest.raises(CheckpointError, match="/nowhere: no such directory"):
        await TorchEngine(replace(spec, checkpoint="/nowhere")).start()


async def test_a_start_that_was_given_up_does_not_keep_the_engine_from_stopping(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()
    monkeypatch.setattr(TorchEngine, "_load", lambda _: loading.wait(60))
    engine = TorchEngine(spec)
    starting = asyncio.ensure_future(engine.start())
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait((starting,))
    await engine.stop()
    assert not loading.is_set()
    loading.set()


async def test_an_idle_engine_sleeps(engine: TorchEngine) -> None:
    await ask(engine, "a").last()
    steps = engine.report().steps
    for _ in range(1000):
        await asyncio.sleep(0)
    assert engine.report().steps == steps
