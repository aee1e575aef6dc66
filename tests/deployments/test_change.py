from pathlib import Path
from typing import Any

import pytest
from shell import family

from cluster.errors import ConfigurationError
from cluster.family import Family
from deployments.change import change


def edited(before: Family, **changes: Any) -> Family:
    """With other values at these paths (`tiers__mini__ranks`)."""
    raw = before.model_dump(mode="json")
    for path, value in changes.items():
        *parts, last = path.split("__")
        inner = raw
        for part in parts:
            inner = inner[part]
        inner[last] = value
    return Family.model_validate(raw)


@pytest.fixture
def before(tmp_path: Path) -> Family:
    return family(tmp_path, video=True)


def test_nothing_changed_is_no_change(before: Family) -> None:
    made = change(before, edited(before))
    assert (made.words, made.replaced, made.rerun) == ((), (), ())


@pytest.mark.parametrize(
    "path",
    [
        "tiers__mini__max_running",
        "tiers__mini__ranks",
        "tiers__mini__prefill_chunk_tokens",
        "tiers__mini__cost__a_ms",
    ],
)
def test_only_the_replicas_of_the_changed_tier_are_replaced(before: Family, path: str) -> None:
    made = change(before, edited(before, **{path: 2}))
    assert made.replaced == made.rerun == ("mini",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tiers__mini__experts__redundant": 2}, "tiers.mini.experts.redundant: 0 -> 2"),
        ({"tiers__mini__experts__rebalance": False}, "tiers.mini.experts.rebalance: True -> False"),
        ({"tiers__mini__experts__window_s": 9}, "tiers.mini.experts.window_s: 60.0 -> 9.0"),
        ({"tiers__mini__vllm": {"gpu_memory_utilization": 0.5}}, "tiers.mini.vllm: none -> ..."),
        (
            {"tiers__mini__engine": "deepspeed", "tiers__mini__offload": {"to": "cpu"}},
            "tiers.mini.offload: none -> ...",
        ),
    ],
)
def test_settings_of_an_engine_replace_the_replicas_that_were_made_from_them(
    before: Family, changes: dict[str, Any], words: str
) -> None:
    made = change(before, edited(before, **changes))
    assert words in made.words
    assert made.replaced == made.rerun == ("mini",)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("personas", {"math": ["a careful mathematician"]}),
        ("tiers__mini__names", ["mini", "small"]),
        ("tiers__mini__slo__ttft_s", 9),
        ("tiers__mini__price__input_usd_per_mtok", 9),
        ("tiers__mini__patience_s", 9),
        ("tiers__mini__quality", 9),
        ("tiers__mini__cold_start__p50_s", 9),
        ("tiers__mini__replicas__idle_s", 9),
        ("video__max_waiting", 9),
        ("plans", {"all": {"tiers": ["mini"]}}),
        ("control__record_mib", 9),
        ("gateway__moderation", {"words": {"refuse": ["grenade"]}}),
    ],
)
def test_what_gateways_and_the_control_loop_read_replaces_no_replica(before: Family, path: str, value: Any) -> None:
    made = change(before, edited(before, **{path: value}))
    assert len(made.words) == 1
    assert made.words[0].startswith(path.replace("__", "."))
    assert (made.replaced, made.rerun) == ((), ())


def test_serve_is_told_of_a_new_bound_and_keeps_the_replicas(before: Family) -> None:
    made = change(before, edited(before, tiers__mini__replicas__max=3))
    assert (made.words, made.replaced, made.rerun) == (("tiers.mini.replicas.max: 2 -> 3",), (), ("mini",))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("accelerator", "cuda"),
        ("gpu_budget_gpus", 4),
        ("cells", [{"name": "there", "gpus": 8}]),
        ("state_folder", "elsewhere"),
        ("gateway__host", "0.0.0.0"),
        ("gateway__port", 9000),
        ("video", None),
    ],
)
def test_what_needs_a_restart_is_refused_and_named(before: Family, path: str, value: Any) -> None:
    named = path.replace("__", ".")
    with pytest.raises(ConfigurationError, match=f"^tested: {named}: .*; restart for this$"):
        change(before, edited(before, **{path: value}))


def test_no_tier_is_added_or_removed_and_every_fault_is_named(before: Family) -> None:
    raw = before.model_dump(mode="json")
    raw["tiers"]["new"] = raw["tiers"].pop("turbo") | {"names": ["new"]}
    with pytest.raises(ConfigurationError) as refused:
        change(before, Family.model_validate(raw))
    assert [line.split(": ")[1] for line in refused.value.message.splitlines()] == ["tiers.turbo", "tiers.new"]
