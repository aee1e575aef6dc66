"""What an operator sees: the metrics of a family under load, and tiers that go to sleep and wake."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from integration.server import Server, eventually
from integration.talk import Stream, idle, running, whole

from cluster.family import load
from deployments.engines.torch_engine.checkpoint import read_config

pytestmark = pytest.mark.slow

ASLEEP_S = 60.0
COUNTED_S = 15.0


def test_the_metrics_of_a_tier_add_up_to_what_was_served(laptop: Server) -> None:
    names = ("moray_prompt_tokens_total", "moray_completion_tokens_total", "moray_ttft_seconds_count")
    before = [laptop.metric(name, tier="turbo") for name in names]
    with ThreadPoolExecutor(8) as pool:
        asks = [pool.submit(_usage, laptop, seed) for seed in range(16)]
    usages = [ask.result() for ask in asks]
    after = [laptop.metric(name, tier="turbo") for name in names]
    served = [sum(prompt for prompt, _ in usages), sum(output for _, output in usages), len(usages)]
    assert [now - then for now, then in zip(after, before, strict=True)] == served
    assert laptop.metric("moray_tpot_seconds_count", tier="turbo") > 0
    assert laptop.metric("moray_queue_wait_seconds_count", tier="turbo") >= 16
    assert laptop.metric("moray_steps_total", tier="turbo") > 0
    assert laptop.metric("moray_step_seconds", tier="turbo") > 0
    assert laptop.metric("moray_kv_capacity_tokens", tier="turbo") > 0
    assert idle(laptop, "turbo")


def test_the_ledger_adds_up_to_the_metrics_to_the_last_token(laptop: Server) -> None:
    def ledger() -> list[float]:
        told = laptop.moray("usage", "--by", "kind,code", "--json")
        assert told.returncode == 0, told.stderr
        rows = [row for row in json.loads(told.stdout) if row["kind"] == "chat"]
        return [sum(row[name] for row in rows) for name in ("input_tokens", "output_tokens")]

    def counted(words: str) -> list[float]:
        return [laptop.metric(f"moray_{words}{what}_tokens_total") for what in ("prompt", "completion")]

    def everything() -> tuple[list[float], ...]:
        return ledger(), counted("billed_"), counted("")

    assert idle(laptop, "turbo")
    before = everything()
    with ThreadPoolExecutor(8) as pool:
        usages = list(pool.map(lambda seed: _usage(laptop, seed), range(12)))
    Stream(laptop, "gpt-5.2-turbo", 20, seed=1).ended()
    told = sum(prompt for prompt, _ in usages), sum(output for _, output in usages)

    def grown() -> list[list[float]]:
        both = zip(everything(), before, strict=True)
        return [[now - then for now, then in zip(*each, strict=True)] for each in both]

    def agreed() -> list[float] | None:
        """An answer is counted a moment after its client has all of it."""
        ledger_, billed, answered = grown()
        print(ledger_, billed, answered)  # pytest shows the last ones where it fails
        return ledger_ if ledger_ == billed == answered else None

    all_tokens = eventually(agreed, ASLEEP_S, "ledger and metrics agree")
    assert all_tokens is not None
    assert all(all_of > some for all_of, some in zip(all_tokens, told, strict=True)), "the stream's are there, too"
    assert laptop.metric("moray_usage_pending") == laptop.metric("moray_usage_failures_total") == 0


def _usage(server: Server, seed: int) -> tuple[int, int]:
    with server.client() as client:
        usage = client.chat.completions.create(
            model="gpt-5.2-turbo", messages=[{"role": "user", "content": "Hello"}], max_tokens=40, seed=seed
        ).usage
    assert usage is not None
    return usage.prompt_tokens, usage.completion_tokens


def test_experts_are_counted_by_layer_expert_and_rank_on_both_ranks(laptop: Server) -> None:
    config = read_config(Path(load("laptop").tiers["ultra"].checkpoint))
    for seed in range(8):
        whole(laptop, "gpt-5.2-ultra", 40, seed=seed)
    name, tier = "moray_expert_tokens_total", "ultra"
    for rank in ("0", "1"):
        eventually(lambda rank=rank: laptop.metric(name, tier=tier, rank=rank) > 0, COUNTED_S, f"rank {rank} counted")  # type: ignore[misc]
    labels = {tuple(s.labels[key] for key in ("layer", "expert")) for s in laptop.samples(name, tier=tier)}
    assert len(labels) == config.moe_layers * config.experts
    by_layer = [laptop.metric(name, tier=tier, layer=str(layer)) for layer in range(config.moe_layers)]
    assert len(set(by_layer)) == 1, "every layer routes every token"
    assert by_layer[0] % config.top_k == 0


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_steps_of_videos_are_counted(laptop: Server) -> None:
    client = laptop.client()
    before = laptop.metric("moray_video_steps_total")
    video = client.videos.create(model="sora-2", prompt="a circle", extra_body={"num_inference_steps": 4})
    eventually(lambda: client.videos.retrieve(video.id).status == "completed", ASLEEP_S, "completed")
    assert laptop.metric("moray_video_steps_total") - before >= 4
    assert laptop.metric("moray_video_step_seconds_count") > 0
    assert laptop.metric("moray_video_jobs_finished_total", code="ok") >= 1


def test_an_idle_tier_goes_to_sleep_with_its_ranks_and_the_next_request_wakes_it(laptop: Server) -> None:
    whole(laptop, "gpt-5.2-pro", 4)
    awake = len(laptop.processes("ray::Rank.follow"))
    eventually(lambda: not laptop.replicas("pro"), ASLEEP_S, "asleep")
    eventually(lambda: len(laptop.processes("ray::Rank.follow")) == awake - 1, ASLEEP_S, "its rank is gone")
    eventually(lambda: running(laptop, "pro") is None, ASLEEP_S, "seen no more")
    stream = Stream(laptop, "gpt-5.2-pro", 40).ended()
    assert (stream.error, bool(stream.text)) == (None, True)
    assert len(laptop.replicas("pro")) == 1
