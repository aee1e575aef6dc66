"""The generator against its own statement: counts, shapes, lengths; and against the published rates where they lie."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigurationError
from cluster.servegen import WINDOW_S, Fitted, generate, parse_clients, parse_lengths
from cluster.workload import Workload, merge
from deployments.trace_files import fitted, lines

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
HEADER = "client,ts,rate_rps,cv,pattern,shape,scale"
PLAIN = {"input_tokens": {"100": 0.25, "300": 0.75}, "output_tokens": {"0": 0.1, "20": 0.9}}


def clients(*rows: str) -> list[str]:
    return [HEADER, *rows]


def lengths(**entries: Any) -> list[str]:
    return json.dumps({name[1:]: entry for name, entry in entries.items()}, indent=1).splitlines()


def fit(*rows: str, **entries: Any) -> Fitted:
    return Fitted(
        clients=parse_clients(clients(*rows), "c.csv"),
        lengths=parse_lengths(lengths(**(entries or {"c0": {"w": 1, "pdf": PLAIN}})), "l.json"),
    )


SMALL = fit("1,0,0.5,1,Gamma,0.2,1", "0,600,1.5,1,Weibull,0.4,1", "0,0,0.25,1,Weibull,0.5,1", "0,1800,0.1,1,Gamma,1,1")


def drawn(source: Fitted, start_s: float, duration_s: float, fraction: float = 1.0, seed: int = 0) -> Workload:
    return generate(source, start_s=start_s, duration_s=duration_s, fraction=fraction, seed=seed)


@cache
def public(name: str) -> Fitted:
    if not (TRACES / f"servegen_{name}_clients.csv.gz").is_file():
        pytest.skip(f"{TRACES} has no servegen_{name}")
    return fitted(TRACES / f"servegen_{name}")


def test_a_window_has_the_stated_number_of_requests() -> None:
    assert SMALL.clients.span_s == 2400
    counts = np.bincount((drawn(SMALL, 0, 2400).arrival_s // WINDOW_S).astype(int))
    assert counts.tolist() == [450, 900, 0, 60]


def test_a_count_with_a_fraction_is_rounded_by_chance() -> None:
    source = fit("0,0,0.0005,1,Gamma,1,1")  # 0.3 requests per window
    assert np.mean([len(drawn(source, 0, 600, seed=seed)) for seed in range(2000)]) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    ("pattern", "shape", "cv"), [("Gamma", 0.25, 2.0), ("Weibull", 0.5, 5**0.5), ("Gamma", 25, 0.2)]
)
def test_gaps_have_the_stated_shape(pattern: str, shape: float, cv: float) -> None:
    gaps = np.diff(drawn(fit(f"0,0,200,1,{pattern},{shape},1"), 0, 600).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_no_border_of_a_window_stands_out() -> None:
    source = fit(*(f"{client},{start},0.02,1,Gamma,0.02,1" for client in range(2000) for start in (0, 600)))
    counts = np.bincount((drawn(source, 0, 1200).arrival_s // 60).astype(int), minlength=20)
    assert counts.max() < 1.4 * counts.mean()  # one burst per client, anywhere


def test_gaps_too_short_for_a_number_are_no_time() -> None:
    source = fit("0,0,0.005,1,Gamma,0.006,1")
    for seed in range(50):
        assert len(drawn(source, 0, 600, seed=seed)) == 3


@settings(max_examples=30)
@given(st.integers(1, 2399), st.floats(0.1, 2.5), st.integers(0, 2**40))
def test_neighbouring_stretches_make_the_whole(cut_s: int, fraction: float, seed: int) -> None:
    whole = drawn(SMALL, 0, 2400, fraction, seed)
    first, second = drawn(SMALL, 0, cut_s, fraction, seed), drawn(SMALL, cut_s, 2400 - cut_s, fraction, seed)
    assert np.allclose(np.concatenate([first.arrival_s, second.arrival_s + cut_s]), whole.arrival_s)
    assert (np.diff(whole.arrival_s) >= 0).all()
    for name in ("prompt_tokens", "output_tokens", "model", "tenant"):
        parts = [getattr(first, name), getattr(second, name)]
        assert np.array_equal(np.concatenate(parts), getattr(whole, name))


def test_a_fraction_thins_and_above_one_superposes() -> None:
    assert [len(drawn(SMALL, 0, 2400, fraction)) for fraction in (1.0, 2.0)] == [1410, 2820]
    assert len(drawn(SMALL, 0, 2400, 0.3)) == pytest.approx(423, abs=60)
    assert len(drawn(SMALL, 0, 2400, 2.3)) == pytest.approx(3243, abs=60)
    assert set(drawn(SMALL, 0, 2400, 0.3).arrival_s) < set(drawn(SMALL, 0, 2400).arrival_s)


def test_lengths_follow_the_clients_distribution_and_nought_counts_as_one() -> None:
    work = drawn(fit("0,0,50,1,Gamma,1,1"), 0, 600)
    assert set(work.prompt_tokens.tolist()) == {100, 300}
    assert (work.prompt_tokens == 100).mean() == pytest.approx(0.25, abs=0.01)
    assert set(work.output_tokens.tolist()) == {1, 20}
    assert (work.output_tokens == 1).mean() == pytest.approx(0.1, abs=0.01)


def test_a_prompt_is_the_sum_of_its_parts() -> None:
    parts = {"text_tokens": {"5": 1}, "image_tokens": {"70": 1.0}, "image_count": {"2": 1.0}, "output_tokens": {"3": 1}}
    work = drawn(fit("0,0,1,1,Gamma,1,1", c0={"w": 1.0, "pdf": parts}), 0, 600)
    assert (set(work.prompt_tokens.tolist()), set(work.output_tokens.tolist())) == ({75}, {3})


def test_a_client_without_lengths_takes_those_of_the_ten_heaviest_by_weight() -> None:
    entries = {
        f"c{client}": {"w": client, "pdf": {"input_tokens": {str(client): 1}, "output_tokens": {str(client): 1}}}
        for client in range(1, 13)
    }
    work = drawn(fit("99,0,50,1,Gamma,1,1", **entries), 0, 600)
    assert set(work.prompt_tokens.tolist()) == set(range(3, 13))
    assert (work.prompt_tokens == work.output_tokens).all()
    assert (work.prompt_tokens == 12).mean() == pytest.approx(12 / 75, abs=0.01)


@pytest.mark.parametrize(
    ("start_s", "duration_s", "fraction", "message"),
    [
        (0, 2401, 1, "stretch: 0 to 2401 s; 0 to 2400 s is allowed; give another start or duration"),
        (-1, 5, 1, "stretch: -1 to 4 s"),
        (5, 0, 1, "stretch: 5 to 5 s"),
        (0, float("nan"), 1, "stretch: 0 to nan s"),
        (0, 600, 0, "fraction: 0; more than 0, at most 1000 is allowed; give another fraction"),
        (0, 600, float("inf"), "fraction: inf"),
    ],
)
def test_a_stretch_that_is_not_there_is_told(start_s: float, duration_s: float, fraction: float, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        drawn(SMALL, start_s, duration_s, fraction)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,0,1,1,Gamma,1,1", "client: 'x'; a whole number >= 0 is allowed; correct or drop the line"),
        ("1,-600,1,1,Gamma,1,1", "ts: '-600'; a number of seconds"),
        ("1,601,1,1,Gamma,1,1", "ts: '601'; a multiple of 600 s is allowed"),
        ("1,0,-1,1,Gamma,1,1", "rate_rps: '-1'; a rate of 0 to 1,000,000 requests per second is allowed"),
        ("1,0,1,1,Poisson,1,1", "pattern: 'Poisson'; Gamma or Weibull is allowed"),
        ("1,0,1,1,Gamma,0,1", "shape: '0'; a shape from 0.006 to 1,000,000 is allowed"),
        ("0,0,1,1,Gamma,1,1", "client: '0'; one line per client and window is allowed"),
    ],
)
def test_a_fault_among_the_clients_is_told_by_line_and_field(row: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_clients(clients("0,0,1,1,Gamma,1,1", row), "c.csv")
    assert told.value.message.startswith(f"c.csv:3: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: Expecting property name"),
        ("[]", "(top): []; an object with at least one client is allowed; correct the entry"),
        ("{}", "(top): {}; an object with at least one client"),
        ('{"a": 1}', "(top): 'a'; a client's whole number is allowed"),
        ('{"1": 1}', "1: 1; an object with w and pdf is allowed"),
        ('{"1": {"w": 1, "pdf": []}}', "1: {'w': 1, 'pdf': []}; an object with w and pdf is"),
        ('{"1": {"w": 0, "pdf": {}}}', "1.w: 0; a rate above 0 is allowed"),
        ('{"1": {"pdf": {}}}', "1.w: None; a rate above 0"),
        ('{"1": {"w": NaN, "pdf": {}}}', "1.w: nan; a rate above 0"),
        ('{"1": {"w": 1, "pdf": {"output_tokens": {}}}}', "1.pdf: ['output_tokens']; output_tokens and input_tokens,"),
        ('{"1": {"w": 1, "pdf": {"input_tokens": {}}}}', "1.pdf: ['input_tokens']; output_tokens and input_tokens,"),
        (
            '{"1": {"w": 1, "pdf": {"input_tokens": 5, "output_tokens": {}}}}',
            "1.pdf.input_tokens: 5; an object of token",
        ),
        (
            '{"1": {"w": 1, "pdf": {"input_tokens": {"1.5": 1}, "output_tokens": {}}}}',
            "1.pdf.input_tokens: '1.5'; a token",
        ),
        (
            '{"1": {"w": 1, "pdf": {"input_tokens": {"5": -1}, "output_tokens": {}}}}',
            "1.pdf.input_tokens.5: -1; a prob",
        ),
        (
            '{"1": {"w": 1, "pdf": {"input_tokens": {"5": 0.9}, "output_tokens": {}}}}',
            "1.pdf.input_tokens: 'a sum of 0.9'",
        ),
        (
            '{"1": {"w": 1, "pdf": {"input_tokens": {}, "output_tokens": {}}}}',
            "1.pdf.input_tokens: 'a sum of 0'; a sum of 1",
        ),
    ],
)
def test_a_fault_among_the_lengths_is_told_by_path(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as told:
        parse_lengths([text], "l.json")
    assert told.value.message.startswith(f"l.json: {message}")


@pytest.mark.parametrize(("name", "start_s", "hours"), [("m-large", 0, 1), ("deepseek-r1", 0, 24), ("mm-image", 0, 24)])
def test_the_published_rates_are_met_in_every_window(name: str, start_s: int, hours: int) -> None:
    work = drawn(public(name), start_s, hours * 3600)
    counts = np.bincount((work.arrival_s // WINDOW_S).astype(int), minlength=6 * hours)
    published = np.loadtxt(lines(TRACES / f"servegen_{name}_rate10min.csv.gz"), delimiter=",", skiprows=1)
    expected = published[: 6 * hours, 1] * WINDOW_S
    assert np.abs(counts / expected - 1).max() < 0.01


@pytest.mark.parametrize(
    ("name", "days", "every_s", "prompt_mean", "output_mean"),
    [("m-large", 7, 7200, 1023, 162), ("deepseek-r1", 1, WINDOW_S, 1377, 1503)],
)
def test_mean_lengths_are_those_published(
    name: str, days: int, every_s: int, prompt_mean: float, output_mean: float
) -> None:
    """Of m-large in ten minutes out of every two hours: a week is 127 million requests."""
    work = merge(*(drawn(public(name), start_s, WINDOW_S, 0.5) for start_s in range(0, days * 86_400, every_s)))
    assert work.prompt_tokens.mean() == pytest.approx(prompt_mean, rel=0.05)
    assert work.output_tokens.mean() == pytest.approx(output_mean, rel=0.05)
