import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cost import step_ms
from cluster.errors import ConfigurationError
from cluster.family import BUNDLED, Family, Price, load, parse

LAPTOP = (BUNDLED / "laptop.yaml").read_text(encoding="utf-8")
shipped = pytest.mark.parametrize("name", sorted(file.stem for file in BUNDLED.glob("*.yaml")))


def changed(path: str, value: Any) -> str:
    """The laptop's file with one value replaced; None removes it."""
    raw = yaml.safe_load(LAPTOP)
    *parents, last = path.split(".")
    place = raw
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(raw, sort_keys=False)


def fault(path: str, value: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(changed(path, value), "mine.yaml")
    return caught.value.message


@shipped
def test_a_family_that_ships_loads_and_survives_its_own_dump(name: str) -> None:
    family = load(name)
    assert family.name == name
    assert Family.model_validate_json(family.model_dump_json()) == family


@shipped
def test_the_tiers_that_ship_are_the_four_with_falling_prices_and_tightening_promises(name: str) -> None:
    family = load(name)
    tiers = [family.tiers[key] for key in ("ultra", "pro", "turbo", "mini")]
    assert len(family.tiers) == 4
    for dear, cheap in itertools.pairwise(tiers):
        assert dear.price.output_usd_per_mtok > cheap.price.output_usd_per_mtok
        assert dear.slo.ttft_s > cheap.slo.ttft_s
        assert dear.slo.tpot_ms > cheap.slo.tpot_ms
        assert set(dear.specialists) > set(cheap.specialists)


@pytest.mark.parametrize("key", ["ultra", "pro", "turbo", "mini"])
def test_a_full_batch_of_the_h200_family_keeps_its_promise_at_a_thousand_tokens_of_context_each(key: str) -> None:
    tier = load("h200").tiers[key]
    assert step_ms(tier.cost, tier.max_running, 1000 * tier.max_running) <= tier.slo.tpot_ms


@pytest.mark.parametrize(
    ("changes", "tools", "structured"),
    [
        ({}, True, True),
        ({"engine": "vllm"}, False, True),
        ({"engine": "vllm", "vllm": {"tool_parser": "hermes"}}, True, True),
        ({"engine": "simulated", "vllm": {"tool_parser": "hermes"}}, False, False),
        ({"engine": "deepspeed", "offload": {}}, False, False),
    ],
)
def test_what_a_tier_serves_follows_from_its_engine(changes: dict[str, Any], tools: bool, structured: bool) -> None:
    mini = yaml.safe_load(LAPTOP)["tiers"]["mini"]
    tier = parse(changed("tiers.mini", mini | changes), "mine.yaml").tiers["mini"]
    assert (tier.tools, tier.structured) == (tools, structured)
    assert (tier.takes_up, tier.embeds) == (tier.engine == "torch",) * 2


@pytest.mark.parametrize(("parser", "forced"), [("hermes", True), ("glm45", False)])
def test_vllm_can_be_made_to_call_tools_where_its_parser_is_one_that_was_tried(parser: str, forced: bool) -> None:
    mini = yaml.safe_load(LAPTOP)["tiers"]["mini"] | {"engine": "vllm", "vllm": {"tool_parser": parser}}
    tier = parse(changed("tiers.mini", mini), "mine.yaml").tiers["mini"]
    assert (tier.tools, tier.forced_tools) == (True, forced)


def test_a_model_name_finds_its_tier() -> None:
    family = load("laptop")
    assert family.tier_of("gpt-5.2-pro") == "pro"
    assert family.tier_of("gpt-2") is None


@shipped
def test_the_plans_that_ship_are_six_and_the_highest_of_each_kind_reach_ultra_first(name: str) -> None:
    plans = load(name).plans
    assert list(plans) == ["developer", "professional", "enterprise", "plus", "pro", "team"]
    ultra = {key for key, plan in plans.items() if "ultra" in plan.tiers}
    assert ultra == {"enterprise", "pro"}
    assert min(plans[key].priority for key in ultra) > max(plans[key].priority for key in plans.keys() - ultra)


@shipped
def test_the_plain_name_is_listed_and_no_tiers_own(name: str) -> None:
    family = load(name)
    assert family.auto is not None
    assert family.auto.names == ("gpt-5.2",)
    assert family.tier_of("gpt-5.2") is None
    assert family.auto.price == Price(input_usd_per_mtok=20, output_usd_per_mtok=60)


def test_a_family_may_do_without_plans_and_automatic_choice() -> None:
    raw = yaml.safe_load(LAPTOP)
    del raw["plans"], raw["auto"]
    family = parse(yaml.safe_dump(raw), "mine.yaml")
    assert (family.plans, family.auto) == ({}, None)


def test_automatic_choice_may_do_without_a_rule_for_tools() -> None:
    auto = parse(changed("auto.tools", None), "mine.yaml").auto
    assert auto is not None
    assert auto.tools is None


def test_checkpoints_are_meant_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(changed("tiers.mini.checkpoint", "weights/mini"), encoding="utf-8")
    assert load(file).tiers["mini"].checkpoint == str(tmp_path / "weights/mini")
    file.write_text(changed("video", None), encoding="utf-8")
    assert load(str(file)).video is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gpu_budget", 8, "mine.yaml: gpu_budget: 8; Extra inputs are not permitted"),
        ("tiers.mini.ranks", 0, "mine.yaml: tiers.mini.ranks: 0; Input should be greater than 0"),
        (
            "tiers.mini.engine",
            "magic",
            "tiers.mini.engine: 'magic'; Input should be 'torch', 'simulated', 'vllm' or 'deepspeed'",
        ),
        ("tiers.mini.slo.ttft_s", float("inf"), "tiers.mini.slo.ttft_s: inf; Input should be a finite number"),
        ("tiers.mini.cost.a_ms", float("nan"), "tiers.mini.cost.a_ms: nan; Input should be a finite number"),
        ("name", None, "mine.yaml: name: Field required"),
        ("tiers.mini.kv_tokens", 100, "mine.yaml: tiers.mini: kv_tokens 100 must hold one full context of 2048 tokens"),
        ("tiers.mini.replicas", {"min": 2, "max": 3, "initial": 1}, "min 2 <= initial 1 <= max 3 must hold"),
        ("tiers.mini.cold_start", {"p50_s": 9, "p99_s": 5}, "p99_s 5 is below p50_s 9; give p50_s <= p99_s"),
        ("tiers.mini.cost.top_k", 2, "top_k 2 experts of 1 cannot be chosen; give top_k <= experts"),
        ("tiers.mini.names", ["gpt-5.2-pro"], "'gpt-5.2-pro' is claimed by both tiers.pro and tiers.mini; keep one"),
        ("video.names", ["gpt-5.2-pro"], "'gpt-5.2-pro' is claimed by both tiers.pro and video; keep one"),
        ("video.engine", "magic", "mine.yaml: video.engine: 'magic'; Input should be 'diffusers'"),
        ("video.price", None, "mine.yaml: video.price: Field required"),
        (
            "gateway.replicas",
            2,
            "gateway.replicas is 2; 1 is allowed while the jobs and files of videos are in the state folder",
        ),
        ("video.beside", "nano", "mine.yaml: (top): video.beside is 'nano'; tiers are ultra, pro, turbo, mini"),
        (
            "tiers.video",
            yaml.safe_load(LAPTOP)["tiers"]["mini"] | {"names": ["x"]},
            "a tier is called 'video', as another",
        ),
        ("auto.names", ["gpt-5.2-pro"], "'gpt-5.2-pro' is claimed by both tiers.pro and auto; keep one"),
        ("auto.names", ["sora-2"], "'sora-2' is claimed by both video and auto; keep one"),
        ("auto.default", "nano", "auto.default names 'nano'; tiers are ultra, pro, turbo, mini; name one of them"),
        ("auto.hints.math", "nano", "auto.hints.math names 'nano'; tiers are ultra, pro, turbo, mini; name one"),
        ("auto.hints.creative_writing", "pro", "auto.hints.creative_writing names 'pro', which has no such specialist"),
        ("auto.long", "mini", "auto.long names 'mini', which is below auto.default 'turbo' in quality"),
        ("auto.efforts.high", "mini", "auto.efforts.high names 'mini', which is below auto.default 'turbo' in quality"),
        ("auto.efforts.low", "pro", "auto.efforts.low"),
        ("auto.tools", "mini", "auto.tools names 'mini', which is below auto.default 'turbo' in quality"),
        ("plans.plus.tiers", ["turbo", "nano"], "plans.plus.tiers names 'nano'; tiers are ultra, pro, turbo, mini;"),
        ("plans.plus.tiers", [], "plans.plus.tiers: []; Tuple should have at least 1 item"),
        ("plans.plus.floor", "mini", "plans.plus: floor is 'mini'; tiers of the plan are turbo; name one of them"),
        ("plans.plus.share", 0, "plans.plus.share: 0; Input should be greater than 0"),
        ("plans.plus.priority", -1, "plans.plus.priority: -1; Input should be greater than or equal to 0"),
        (
            "plans.plus.spill",
            "sideways",
            "plans.plus.spill: 'sideways'; Input should be 'none', 'up', 'down' or 'both'",
        ),
        ("cells.0.name", "ends-with-", "cells.0.name: 'ends-with-'; String should match pattern"),
        ("cells", [{"name": "a", "gpus": 1}] * 2, "two cells are called 'a'; give each kind of cell its own name"),
        (
            "cells",
            [{"name": "a", "gpus": 1, "count": 2}, {"name": "a-1", "gpus": 1}],
            "two cells are called 'a-1'; give each kind of cell its own name",
        ),
    ],
)
def test_a_fault_is_told_with_file_path_value_and_what_is_allowed(path: str, value: Any, message: str) -> None:
    assert message in fault(path, value)


def test_all_faults_are_told_at_once() -> None:
    text = changed("tiers.mini.ranks", 0).replace("gpu_budget_gpus: 9", "gpu_budget_gpus: none")
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "mine.yaml")
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml: given NoneType; a mapping is allowed"),
        ("a: [", "mine.yaml: not YAML: "),
        ("- a\n", "mine.yaml: given list; a mapping is allowed"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "mine.yaml")
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: a\n", "mine.yaml: name: given again in line 2; a key is allowed once; drop one"),
        ("tiers:\n  turbo: {}\n  pro: {}\n  turbo: {}\n", "mine.yaml: tiers.turbo: given again in line 4;"),
        ("cells:\n- name: a\n  name: b\n", "mine.yaml: cells.0.name: given again in line 3;"),
        ("tiers: &a\n  cost: {64: 1, '64': 2}\nvideo: *a\n", "mine.yaml: tiers.cost.64: given again in line 2;"),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "mine.yaml")
    assert caught.value.message.startswith(message)


def test_a_node_that_contains_itself_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cells"):
        parse("cells: &a [*a]", "mine.yaml")


def test_several_gateways_may_serve_a_family_without_video() -> None:
    raw = yaml.safe_load(changed("video", None))
    raw["gateway"]["replicas"] = 2
    assert parse(yaml.safe_dump(raw), "mine.yaml").gateway.replicas == 2


def test_several_gateways_may_serve_video_from_a_database_and_files_that_they_share() -> None:
    raw = yaml.safe_load(changed("gateway.replicas", 2))
    raw["video"] |= {"database": "postgresql://moray@db/moray", "files": "s3://bucket/videos"}
    assert parse(yaml.safe_dump(raw), "mine.yaml").gateway.replicas == 2


@pytest.mark.parametrize("missing", ["database", "files"])
def test_gateways_on_several_machines_keep_files_and_objects_where_all_of_them_look(missing: str) -> None:
    raw = yaml.safe_load(changed("video", None))
    raw["cells"], raw["plans"] = [{"name": "node", "count": 2, "gpus": 8}], {}
    raw["gateway"] |= {"replicas": 2, "database": "postgresql://moray@db/moray", "files": "s3://bucket/files"}
    assert parse(yaml.safe_dump(raw), "mine.yaml").gateway.replicas == 2
    del raw["gateway"][missing]
    with pytest.raises(ConfigurationError, match="on 2 cells; 1 is allowed while files, responses, conversations and"):
        parse(yaml.safe_dump(raw), "mine.yaml")


def test_a_missing_file_names_the_families_that_ship() -> None:
    with pytest.raises(ConfigurationError, match="give a family file, or one that ships: h200, laptop"):
        load("desktop")


def loaded(folder: Path, **tier: Any) -> Family:
    """The laptop's family from another folder, its mini with other values."""
    raw = yaml.safe_load(LAPTOP)
    for each in raw["tiers"].values():
        each["checkpoint"] = str((BUNDLED / each["checkpoint"]).resolve())
    raw["tiers"]["mini"] |= tier
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load(file)


@pytest.mark.parametrize(
    ("tier", "message"),
    [
        ({"ranks": 3}, "ranks: 3; 4 routed experts and 0 redundant slots must split evenly over them; set experts"),
        ({"experts": {"redundant": 2}}, "experts.redundant: 2; 0 is allowed on one rank"),
        (
            {"engine": "vllm", "vllm": {"tensor_parallel": 2}},
            "vllm: tensor_parallel 2 x data_parallel 1; their product",
        ),
        ({"context_tokens": 4096}, "context_tokens: 4096; at most the checkpoint's 2048 are allowed; lower it"),
    ],
)
def test_what_a_checkpoint_that_is_here_cannot_do_is_refused_at_load(
    tmp_path: Path, tier: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, **tier)
    assert caught.value.message.startswith(f"{tmp_path / 'mine.yaml'}: tiers.mini.{message}")


def test_what_only_a_checkpoint_could_tell_is_not_refused_where_it_is_not_here(tmp_path: Path) -> None:
    assert loaded(tmp_path, checkpoint="elsewhere", ranks=3).tiers["mini"].ranks == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "No such file or directory: "),
        ("{", "Expecting property name"),
        ("[]", "the fields that transformers saves are needed"),
        ("{}", "KeyError('num_hidden_layers'); the fields that transformers saves are needed"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused_at_load(
    tmp_path: Path, config: str | None, message: str
) -> None:
    (tmp_path / "damaged").mkdir()
    if config is not None:
        (tmp_path / "damaged" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        loaded(tmp_path, checkpoint="damaged")
    assert caught.value.message.startswith(f"{tmp_path / 'mine.yaml'}: tiers.mini.checkpoint: ")
    assert message in caught.value.message


def test_who_does_not_serve_reads_no_checkpoint_but_the_settings_are_judged(tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    with pytest.raises(ConfigurationError):
        loaded(tmp_path, checkpoint="damaged")
    assert load(tmp_path / "mine.yaml", serving=False).tiers["mini"].checkpoint == str(tmp_path / "damaged")
    with pytest.raises(ConfigurationError):
        loaded(tmp_path, vllm={})
    with pytest.raises(ConfigurationError, match=r"tiers\.mini\.vllm: given with engine torch"):
        load(tmp_path / "mine.yaml", serving=False)


def test_the_memory_of_a_tier_is_the_least_of_the_cells_that_can_hold_its_group() -> None:
    small, large = {"gpus": 4, "gpu_memory_gib": 24}, {"gpus": 8, "gpu_memory_gib": 131}
    cells = [{"name": "small"} | small, {"name": "large"} | large, {"name": "untold", "gpus": 8}]
    family = parse(changed("cells", cells), "mine.yaml")
    for ranks, gib in ((1, 24), (4, 24), (8, 131), (9, 24)):
        assert family.gpu_bytes(family.tiers["mini"].model_copy(update={"ranks": ranks})) == gib * 2**30
    assert load("laptop").gpu_bytes(family.tiers["mini"]) is None
