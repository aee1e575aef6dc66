"""What a running gateway tells of itself, its replicas and the control loop, against the family file.

It is looked at twice. What passes by itself, such as a replica that Serve is about to start, must be there both times;
what is counted, such as a fault of signals, must have grown in between.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster.family import Family, Replicas
from cluster.finding import Finding, nearest
from cluster.placement import VIDEO

SILENT_S = 15.0  # the control loop ticks every 2 s
OLD_S = 5.0  # of the six seconds after which a signal counts no more
MORE = "the log of the control loop says more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Of a tier, or of video. `running`: replicas that the gateway may send to; 0 for video, which has no such ones.

    The control loop tells `target`, the three states and `gpus_held`; `target` is None where it does not.
    """

    running: int = 0
    target: int | None = None
    ready: int = 0
    starting: int = 0
    draining: int = 0
    gpus_held: int = 0
    held_requests: int = 0
    breakers_open: int = 0

    @property
    def existing(self) -> int:
        return self.ready + self.starting

    @property
    def missing(self) -> int:
        """Replicas that should exist and do not even start."""
        return max(0, (self.target or 0) - self.existing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look. `parts`: tiers and video. `ticked_s`: ago, None where the control loop does not answer.

    `faults`: of signals, by (part, fault); `errors`: of ticks, by the part of the tick; both counted since the loop
    started. `gpus`: what the family may hold, as far as the cluster has it. `version`: of Moray, the gateway's, None
    where it tells none; `loop_version` the control loop's. `heard_s`, `pictured_s`: how old the loop's last word to the
    gateway is, and its picture of the cluster. `signals_s`: how old the oldest signal is that each tier rests on.
    """

    family: str
    tiers: tuple[str, ...]
    parts: Mapping[str, Seen]
    ticked_s: float | None
    gpus: int | None = None
    queued_jobs: int = 0
    faults: Mapping[tuple[str, str], float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    version: str | None = None
    loop_version: str | None = None
    heard_s: float | None = None
    pictured_s: float | None = None
    signals_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Two looks at one, some control ticks apart. `client`: the version of Moray of who looks."""

    url: str
    client: str
    earlier: Look
    later: Look


def of_gateway(family: Family, gateway: Gateway) -> Iterator[Finding]:
    """Of another family nothing else is told: every figure would differ."""
    now = gateway.later
    if now.family != family.name:
        yield Finding(
            where=gateway.url,
            found=f"serves the family {now.family!r}",
            expected=repr(family.name),
            mend="mend --url, or name the family file with --family",
        )
        return
    yield from _versions(gateway)
    yield from _tiers(family, gateway)
    yield from _control(gateway)
    if now.ticked_s is not None:
        yield from _gpus(family, now)
        if gateway.earlier.ticked_s is not None:
            yield from _counted(gateway.earlier, now)
    for key, tier in family.tiers.items():
        if key in now.tiers:
            yield from _tier(key, tier.replicas, gateway)
    if family.video is not None:
        yield from _video(family.video.replicas, gateway)


def _versions(gateway: Gateway) -> Iterator[Finding]:
    """What one version says another may not understand."""
    now = gateway.later
    if now.version != gateway.client:
        yield Finding(
            where=gateway.url,
            found=f"runs Moray {now.version}" if now.version else "does not tell its version of Moray",
            expected=f"{gateway.client}, as this command",
            mend="install the gateway's version here, or serve the family again with this one",
        )
    if now.version and now.loop_version and now.loop_version != now.version:
        yield Finding(
            where="control loop",
            found=f"runs Moray {now.loop_version}",
            expected=f"{now.version}, as the gateway",
            mend="end its process: Ray starts it again with what is installed",
        )


def _tiers(family: Family, gateway: Gateway) -> Iterator[Finding]:
    again = "run `moray up` again with this family file, or name the one that is served"
    for key in family.tiers:
        if key not in gateway.later.tiers:
            yield Finding(where=f"tiers.{key}", found="not served", expected="served", mend=again)
    for key in gateway.later.tiers:
        if key not in family.tiers:
            meant = nearest(key, family.tiers)
            known = ", ".join(family.tiers) + (f" (is {meant} meant?)" if meant else "")
            yield Finding(where=f"tiers.{key}", found="served, not in the family file", expected=known, mend=again)


def _control(gateway: Gateway) -> Iterator[Finding]:
    ticked_s = gateway.later.ticked_s
    if ticked_s is None and gateway.earlier.ticked_s is None:
        yield Finding(
            where="control loop",
            found="does not answer",
            expected="its metrics on the gateway's /metrics",
            mend="wait some seconds if it has just started; else see its log: Ray starts it again when it dies",
        )
    elif ticked_s is not None and ticked_s > SILENT_S:
        yield Finding(
            where="control loop",
            found=f"has not ticked for {ticked_s:.0f} s",
            expected=f"at most {SILENT_S:.0f} s",
            mend="see its log; targets stay as they are until it ticks; end its process and Ray starts it again",
        )
    elif ticked_s is not None:
        yield from _ages(gateway)


def _ages(gateway: Gateway) -> Iterator[Finding]:
    """Of a loop that ticks: what it says, sees and rests on."""
    now, before = gateway.later, gateway.earlier
    if now.heard_s is not None and now.heard_s > SILENT_S:
        yield Finding(
            where=gateway.url,
            found=f"has not heard of the control loop for {now.heard_s:.0f} s",
            expected=f"at most {SILENT_S:.0f} s",
            mend="see the log of the gateway: it asks each second, and goes on as it was told last",
        )
    elif now.pictured_s is not None and now.pictured_s > SILENT_S:
        yield Finding(
            where="control loop",
            found=f"its picture of the cluster is {now.pictured_s:.0f} s old",
            expected=f"at most {SILENT_S:.0f} s",
            mend=f"Serve or Ray's head answers late: look at the load of the head; {MORE}",
        )
    for part, age_s in now.signals_s.items():
        if min(age_s, before.signals_s.get(part, 0.0)) > OLD_S:
            yield Finding(
                where=f"{part}: signals",
                found=f"{age_s:.0f} s old",
                expected=f"at most {OLD_S:.0f} s",
                mend="have control.prometheus_url scrape more often, or leave it out; else see the load of the nodes",
            )


def _counted(before: Look, now: Look) -> Iterator[Finding]:
    for part, count in now.errors.items():
        grown = count - before.errors.get(part, 0)
        if grown > 0:
            yield Finding(
                where=f"control loop: {part}",
                found=f"failed {grown:.0f} times while looked at",
                expected="no failures",
                mend=MORE,
            )
    faulty = {key for key, count in now.faults.items() if count > before.faults.get(key, 0)}
    for part, fault in sorted(faulty):
        yield Finding(
            where=f"{part}: signals",
            found=fault,
            expected="fresh, complete and coherent",
            mend=f"{_cure(fault)}; {MORE}",
        )


def _cure(fault: str) -> str:
    if fault == "skewed":
        return "set the clocks of the machines by NTP"
    if fault == "contradictory":
        return "look for a second family or a stray replica that is scraped with this one"
    return "look whether the replicas, or control.prometheus_url of the family file, can be reached"


def _gpus(family: Family, now: Look) -> Iterator[Finding]:
    budget = family.gpu_budget_gpus
    holders = {part: seen.gpus_held for part, seen in now.parts.items() if seen.gpus_held}
    held = sum(holders.values())
    if held > budget:
        by = ", ".join(f"{part} {gpus}" for part, gpus in holders.items())
        yield Finding(
            where="gpu_budget_gpus",
            found=f"{held} GPUs are held ({by})",
            expected=f"at most {budget}",
            mend="wait while replicas drain; else look for video replicas or groups that do not end",
        )
    if now.gpus is not None and now.gpus < budget:
        yield Finding(
            where="gpu_budget_gpus",
            found=f"the cluster has {now.gpus} GPUs for the family",
            expected=str(budget),
            mend="bring the lost nodes back, or lower gpu_budget_gpus and cells in the family file",
        )


def _tier(key: str, replicas: Replicas, gateway: Gateway) -> Iterator[Finding]:
    where, seen, before = f"tiers.{key}", _part(gateway.later, key), _part(gateway.earlier, key)
    yield from _count(where, replicas, seen, before)
    if seen.breakers_open:
        yield Finding(
            where=where,
            found=f"{seen.breakers_open} replicas get no requests since they failed",
            expected="0",
            mend="see their logs; they are tried again by themselves",
        )
    if seen.held_requests and before.held_requests and not (seen.running or seen.starting or before.running):
        yield Finding(
            where=where,
            found=f"{seen.held_requests} requests wait and no replica runs or starts",
            expected="one that starts",
            mend="see the log of the control loop; `moray plan` says whether it has a place",
        )


def _count(where: str, replicas: Replicas, seen: Seen, before: Seen) -> Iterator[Finding]:
    """One finding at most: too many, or some that cannot start, or too few."""
    ready = seen.running if seen.target is None else seen.ready
    states = f"{ready} ready" if seen.target is None else f"{ready} ready, {seen.starting} starting"
    if max(ready, seen.existing) > replicas.max:
        expected, mend = f"at most {replicas.max}", "wait while they drain; else see the log of the control loop"
    elif min(seen.missing, before.missing):
        states += f", target {seen.target}: no more start"
        expected = f"{seen.target}"
        mend = "they cannot start; the log of Serve says why: a checkpoint, memory, or no room in a cell"
    elif ready < replicas.min:
        expected = f"at least {replicas.min}"
        mend = "wait until they have started" if seen.starting else "see the log of the control loop and of Serve"
    else:
        return
    yield Finding(where=where, found=states, expected=f"{expected} replicas", mend=mend)


def _video(replicas: Replicas, gateway: Gateway) -> Iterator[Finding]:
    """Its replicas may be fewer than their target: their GPUs are lent to groups that wait."""
    now, before = gateway.later, gateway.earlier
    seen, earlier = _part(now, VIDEO), _part(before, VIDEO)
    if seen.target is None:
        return
    if seen.existing > replicas.max or seen.existing < replicas.min:
        allowed = f"{replicas.min} to {replicas.max} replicas"
        mend = "see the log of the control loop; GPUs of video may be lent to groups that wait"
        yield Finding(where=VIDEO, found=f"{seen.existing} replicas", expected=allowed, mend=mend)
    elif min(now.queued_jobs, before.queued_jobs) and not (seen.existing or earlier.existing):
        yield Finding(
            where=VIDEO,
            found=f"{now.queued_jobs} jobs wait and no replica runs or starts",
            expected="one that starts",
            mend="wait while its GPUs are lent to groups; `moray plan` says whether it has a place of its own",
        )


def _part(look: Look, key: str) -> Seen:
    return look.parts.get(key, Seen())
