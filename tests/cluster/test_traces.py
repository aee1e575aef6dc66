"""Traces as given, and what each fault of a file is told. Public files are checked where they are there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import ConfigurationError
from cluster.traces import parse_azure, parse_mooncake
from cluster.workload import Workload
from deployments.trace_files import lines

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
HEADER = "t_s,input_tokens,output_tokens"
TOKENS = "a whole number from 1 to 10,000,000 is allowed; correct or drop the line"
RECORD = {"timestamp": 1500, "input_length": 1000, "output_length": 3, "hash_ids": [4, 5]}


def public(name: str) -> list[str]:
    if not (TRACES / name).is_file():
        pytest.skip(f"{TRACES / name} is not there")
    return lines(TRACES / name)


def dispersion(workload: Workload, bin_s: float) -> float:
    counts = np.bincount((workload.arrival_s // bin_s).astype(int))[:-1]  # the last interval is not whole
    return float(counts.var() / counts.mean())


def test_azures_columns_are_read_in_any_order_with_others_beside() -> None:
    work = parse_azure(["output_tokens,id, t_s ,input_tokens\r\n", "7,a, 0.5,11\n", "8,b,0.5,12\n", "\n"], "x.csv")
    assert work.arrival_s.tolist() == [0.5, 0.5]
    assert (work.prompt_tokens.tolist(), work.output_tokens.tolist()) == ([11, 12], [7, 8])
    assert (work.models, work.tenants, work.blocks) == (("any",), ("default",), None)
    assert work.model.tolist() == work.tenant.tolist() == [0, 0]


def test_azures_published_times_count_from_the_first() -> None:
    work = parse_azure(
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:17:03.9799600,4808,10",
            "2023-11-16 18:17:04.9799600,1,1",
            "2023-11-16 19:17:04.979960+00:00,1,1",
        ],
        "x.csv",
        model="pro",
        tenant="acme",
    )
    assert work.arrival_s.tolist() == [0.0, 1.0, 3601.0]
    assert (work.models, work.tenants) == (("pro",), ("acme",))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "x.csv: empty; a trace with at least one request is needed; give a full file"),
        (["", " \n"], "x.csv: empty;"),
        (
            ["a,b"],
            "x.csv:1: header: 'a,b'; t_s,input_tokens,output_tokens or TIMESTAMP,ContextTokens,GeneratedTokens is",
        ),
        ([HEADER], "x.csv:2: nothing after the header; at least one row is needed; give a full file"),
        ([HEADER, "0,1,1", "1,1"], "x.csv:3: 2 fields; the 3 of the header are allowed; correct or drop the line"),
        ([HEADER, "0,1,1,1"], "x.csv:2: 4 fields; the 3 of"),
        ([HEADER, "0,1,1", "", "1,1,1"], "x.csv:3: 1 fields; the 3 of"),
        ([HEADER, "0,1,1", "1,,1"], f"x.csv:3: input_tokens: ''; {TOKENS}"),
        ([HEADER, "0,1,1", "1,ten,1"], f"x.csv:3: input_tokens: 'ten'; {TOKENS}"),
        ([HEADER, "0,1,1", "1,1,1.5"], f"x.csv:3: output_tokens: '1.5'; {TOKENS}"),
        ([HEADER, "0,1,0"], f"x.csv:2: output_tokens: '0'; {TOKENS}"),
        ([HEADER, "0,-3,1"], f"x.csv:2: input_tokens: '-3'; {TOKENS}"),
        ([HEADER, "0,10000001,1"], f"x.csv:2: input_tokens: '10000001'; {TOKENS}"),
        (
            [HEADER, "0,1,1", "nan,1,1"],
            "x.csv:3: t_s: 'nan'; a number of seconds from 0 to ten years is allowed; correct",
        ),
        ([HEADER, "inf,1,1"], "x.csv:2: t_s: 'inf'; a number"),
        ([HEADER, "-0.1,1,1"], "x.csv:2: t_s: '-0.1'; a number"),
        ([HEADER, "315576001,1,1"], "x.csv:2: t_s: '315576001'; a number"),
        (
            [HEADER, "5,1,1", "6,1,1", "4,1,1"],
            "x.csv:4: t_s: '4'; a time not before that of the line above is allowed; sort the file by time",
        ),
        ([HEADER, "0,1," + "9" * 99], f"x.csv:2: output_tokens: '{'9' * 56}...; {TOKENS}"),
    ],
)
def test_a_fault_in_azures_file_is_told_by_line_and_field(rows: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_azure(rows, "x.csv")
    assert told.value.message.startswith(message)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (["soon"], "x.csv:2: TIMESTAMP: 'soon'; an ISO 8601 time is allowed; correct or drop the line"),
        (["2023-01-01", "2033-02-01"], "x.csv:3: TIMESTAMP: '2033-02-01'; a time within ten years of the first is"),
        (["2023-01-02", "2023-01-01"], "x.csv:3: TIMESTAMP: '2023-01-01'; a time not before that of the line above is"),
    ],
)
def test_a_fault_in_a_published_time_is_told(times: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_azure(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{time},1,1" for time in times)], "x.csv")
    assert told.value.message.startswith(message)


def test_mooncakes_prompts_come_with_their_blocks() -> None:
    full_blocks_only = {"timestamp": 2500.5, "input_length": 1100.0, "output_length": 1, "hash_ids": [4, 2**80]}
    work = parse_mooncake([json.dumps(RECORD), json.dumps(full_blocks_only), ""], "x.jsonl", model="pro", tenant="acme")
    assert work.arrival_s.tolist() == [1.5, 2.5005]
    assert (work.prompt_tokens.tolist(), work.output_tokens.tolist()) == ([1000, 1100], [3, 1])
    assert (work.blocks, work.block_tokens) == (((4, 5), (4, 2**80)), 512)
    assert (work.models, work.tenants) == (("pro",), ("acme",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestamp": -1}, "timestamp: -1; a number of milliseconds from 0 to ten years is allowed; correct or drop"),
        ({"timestamp": 1000}, "timestamp: 1000; a time not before that of the line above is allowed; sort the file"),
        ({"timestamp": float("nan")}, "timestamp: nan; a number of milli"),
        ({"timestamp": "1500"}, "timestamp: '1500'; a number of milli"),
        ({"timestamp": None}, "timestamp: None; a number of milli"),
        ({"input_length": True}, f"input_length: True; {TOKENS}"),
        ({"input_length": 0}, f"input_length: 0; {TOKENS}"),
        ({"output_length": 10**400}, f"output_length: 1{'0' * 56}...; {TOKENS}"),
        ({"hash_ids": 3}, "hash_ids: 3; a list of whole numbers is allowed; correct or drop the line"),
        ({"hash_ids": [1, 2.0]}, "hash_ids: [1, 2.0]; a list of whole"),
        ({"hash_ids": []}, "hash_ids: 0 for 1000 tokens; 1 to 2 are allowed, one per 512 tokens; correct or drop the"),
        ({"hash_ids": [1, 2, 3]}, "hash_ids: 3 for 1000 tokens; 1 to 2 are allowed"),
    ],
)
def test_a_fault_in_mooncakes_file_is_told_by_line_and_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_mooncake([json.dumps(RECORD), json.dumps(RECORD | change)], "x.jsonl")
    assert told.value.message.startswith(f"x.jsonl:2: {message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{",
            "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1); one",
        ),
        ("[" * 100_000, "not JSON: maximum recursion depth exceeded"),
        ("", "not JSON: Expecting value"),
        ("[]", "timestamp, input_length, output_length, hash_ids: missing; an object with timestamp, input_length,"),
        ('{"timestamp": 1, "output_length": 1, "hash_ids": []}', "input_length: missing; an object with"),
    ],
)
def test_a_line_that_is_no_record_is_told(line: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_mooncake([json.dumps(RECORD), line, json.dumps(RECORD)], "x.jsonl")
    assert told.value.message.startswith(f"x.jsonl:2: {message}")


def test_an_empty_mooncake_file_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"x.jsonl: empty; a trace with at least one request is needed; give"):
        parse_mooncake([], "x.jsonl")


def test_azures_public_trace_has_its_known_figures() -> None:
    work = parse_azure(public("azure2023_code.csv.gz"), "azure")
    assert len(work) == 8819
    assert work.prompt_tokens.mean() == pytest.approx(2048, abs=1)
    assert work.output_tokens.mean() == pytest.approx(28, abs=0.5)
    assert [round(dispersion(work, bin_s), 1) for bin_s in (1, 10, 60)] == [13.2, 71.6, 164.0]


def test_mooncakes_public_trace_has_its_known_figures() -> None:
    work = parse_mooncake(public("mooncake_synth.jsonl.gz"), "mooncake")
    assert len(work) == 3993
    assert work.prompt_tokens.mean() == pytest.approx(15_325, abs=1)
    assert work.output_tokens.mean() == pytest.approx(149, abs=0.5)
    assert work.blocks
    blocks = [block for row in work.blocks for block in row]
    assert 1 - len(set(blocks)) / len(blocks) == pytest.approx(0.64, abs=0.01)  # hits of an infinite prefix cache
