"""The numbers of the scaling policy, each with its unit in its name. Read by demand, budget and policy."""

from dataclasses import dataclass

POSITIVE = (
    *("tick_s", "short_s", "settle_s", "learn_s", "learnt_s", "backlog_least_s", "fall_every_s"),
    *("attain_s", "lengths_s", "prompt_prior_tokens", "output_prior_tokens", "prior_requests", "stay_s"),
)
NOT_NEGATIVE = ("z_min", "z_rise_per_min", "z_fall_per_min", "doubt_requests", "doubt_share", "trend_most_s", "start_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """One set for all tiers, traces and cold starts.

    `settle_s`: a load is the work of at least so much time, though less was seen. `trend_most_s`: as far ahead as a
    trend is followed. `learn_s`: between two lessons from past forecasts, which fade with `learnt_s`. `doubt_share`:
    of the load; a forecast is taken to err by so much until lessons have shown by how much. `start_s`: what is there at
    first is kept for so long, and for calm_s at least. `miss_target`: share of broken promises that is meant; above
    it z rises by up to `z_rise_per_min`, without any it falls by `z_fall_per_min`, as if `doubt_requests` more had
    been kept. `attain_s`, `lengths_s`: time constants of that share and of the mean lengths. `*_prior_tokens`: mean
    lengths until requests have shown theirs, with the weight of `prior_requests`. `stay_s`: how long a replica is
    expected to stay, to spread its cold start over. `protect`: a video whose deadline needs the GPU counts so many
    times. `deadline_margin`: videos are planned as if they took so many times as long. The flags are the ideas, to
    be taken out one by one.
    """

    tick_s: float = 2.0
    rho: float = 1.0
    z: float = 2.0
    z_min: float = 0.5
    z_max: float = 4.0
    z_rise_per_min: float = 1.0
    z_fall_per_min: float = 0.05
    miss_target: float = 0.01
    doubt_requests: float = 100.0
    attain_s: float = 30.0
    short_s: float = 30.0
    long_s: float = 90.0
    settle_s: float = 10.0
    trend_most_s: float = 300.0
    learn_s: float = 10.0
    learnt_s: float = 1800.0
    doubt_share: float = 0.15
    start_s: float = 600.0
    backlog_least_s: float = 5.0
    calm_s: float = 60.0
    fall_share: float = 0.1
    fall_every_s: float = 30.0
    lengths_s: float = 900.0
    prompt_prior_tokens: float = 1000.0
    output_prior_tokens: float = 200.0
    prior_requests: float = 50.0
    stay_s: float = 120.0
    protect: float = 3.0
    deadline_margin: float = 1.1
    trend: bool = True
    backlog: bool = True
    margin: bool = True
    lending: bool = True

    def __post_init__(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; numbers above 0 are allowed; raise it")
        for name in NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name):g}; numbers from 0 are allowed; raise it")
        rules = (
            (0 < self.rho <= 1, f"rho is {self.rho:g}; 0 < rho <= 1 is allowed"),
            (0 < self.miss_target < 1, f"miss_target is {self.miss_target:g}; 0 < miss_target < 1 is allowed"),
            (0 <= self.fall_share < 1, f"fall_share is {self.fall_share:g}; 0 <= fall_share < 1 is allowed"),
            (self.z_min <= self.z <= self.z_max, f"z is {self.z:g}; {self.z_min:g} to {self.z_max:g} is allowed"),
            (self.short_s < self.long_s, f"long_s is {self.long_s:g}; more than short_s {self.short_s:g} is allowed"),
            (self.fall_every_s <= self.calm_s, f"calm_s is {self.calm_s:g}; fall_every_s or more is allowed"),
            (self.protect >= 1, f"protect is {self.protect:g}; 1 or more is allowed"),
            (self.deadline_margin >= 1, f"deadline_margin is {self.deadline_margin:g}; 1 or more is allowed"),
        )
        for holds, fault in rules:
            if not holds:
                raise ValueError(f"{fault}; change it")
