import numpy as np
import pytest

from cluster.cost import video_step_s
from cluster.errors import ConfigurationError
from cluster.family import Video, load
from cluster.synthetic import Lengths, poisson, video_jobs

ONE = Lengths(median_tokens=1)


def video() -> Video:
    found = load("h200").video
    assert found
    return found


def test_arrivals_are_poisson() -> None:
    counts = [len(poisson(2.0, 50.0, ONE, ONE, seed)) for seed in range(400)]
    assert np.mean(counts) == pytest.approx(100, rel=0.02)
    assert np.var(counts) == pytest.approx(100, rel=0.25)
    arrival_s = poisson(100.0, 100.0, ONE, ONE, 0).arrival_s
    assert (np.diff(arrival_s) >= 0).all()
    assert 0 <= arrival_s[0] < arrival_s[-1] < 100
    assert np.diff(arrival_s).std() == pytest.approx(0.01, rel=0.05)  # of an exponential gap as large as its mean


def test_lengths_are_lognormal_or_fixed() -> None:
    drawn = poisson(1000.0, 20.0, Lengths(median_tokens=700, sigma=1.0), Lengths(median_tokens=64), 1, "pro")
    assert drawn.models == ("pro",)
    assert np.median(drawn.prompt_tokens) == pytest.approx(700, rel=0.05)
    assert np.log(drawn.prompt_tokens).std() == pytest.approx(1.0, rel=0.05)
    assert set(drawn.output_tokens.tolist()) == {64}


def test_no_length_leaves_its_bounds() -> None:
    tokens = poisson(100.0, 10.0, Lengths(median_tokens=1, sigma=10), ONE, 0).prompt_tokens
    assert tokens.min() == 1
    assert tokens.max() == 10_000_000


def test_the_same_seed_gives_the_same_requests() -> None:
    one, other, third = (poisson(5.0, 60.0, Lengths(median_tokens=9, sigma=1), ONE, seed) for seed in (7, 7, 8))
    assert np.array_equal(one.arrival_s, other.arrival_s)
    assert np.array_equal(one.prompt_tokens, other.prompt_tokens)
    assert not np.array_equal(one.arrival_s, third.arrival_s)


@pytest.mark.parametrize(
    ("rate_rps", "duration_s", "lengths", "message"),
    [
        (-1.0, 1.0, ONE, "rate_rps: -1; a finite number >= 0 is allowed; give one"),
        (1.0, float("nan"), ONE, "duration_s: nan; a finite"),
        (
            1.0,
            1.0,
            Lengths(median_tokens=0),
            "lengths: median 0 tokens, sigma 0; 1 to 10,000,000 and 0 to 10 are allowed",
        ),
        (1.0, 1.0, Lengths(median_tokens=5, sigma=-1), "sigma -1"),
    ],
)
def test_a_process_must_make_sense(rate_rps: float, duration_s: float, lengths: Lengths, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        poisson(rate_rps, duration_s, lengths, lengths, 0)


def test_a_video_job_costs_pays_and_is_due_as_the_family_says() -> None:
    jobs = video_jobs(video(), 600, 36_000, 2)
    assert len(jobs) == pytest.approx(6000, rel=0.05)
    assert set(jobs.steps.tolist()) == {video().steps}
    assert np.allclose(jobs.deadline_s - jobs.arrival_s, video().slo.deadline_s)
    price = video().price.usd_per_second
    expected = {
        (round(video_step_s(video(), size, seconds), 9), round(seconds * price, 9))
        for size in video().sizes
        for seconds in video().seconds
    }
    assert {
        (round(step_s, 9), round(usd, 9))
        for step_s, usd in zip(jobs.step_s.tolist(), jobs.value_usd.tolist(), strict=True)
    } == expected


def test_no_jobs_are_no_error() -> None:
    assert len(video_jobs(video(), 0, 3600, 0)) == 0
    with pytest.raises(ConfigurationError, match="jobs_per_hour: "):
        video_jobs(video(), -3600, 3600, 0)
