"""`moray simulate`: a workload replayed on the twin under one policy, or under several beside each other.

With it comes the replay of recorded decisions.
"""

import argparse
import contextlib
import json
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from autoscaling.report import Report
from autoscaling.signals import Decision, Scaler, Seen
from autoscaling.twin import Scenario, Watch, rehearse
from cluster.errors import ConfigurationError
from cluster.family import Family
from cluster.workload import Jobs, Workload
from deployments.contenders import Contender
from deployments.report_table import SIMULATED, Rehearsal, as_dict, tables
from deployments.simulate_cluster import initial, lifted, of_tiers, require_room, started_in
from deployments.simulate_options import Options, options
from deployments.simulate_policies import Past, check, router, scaler
from deployments.simulate_work import jobs, span_s, workload
from deployments.trace_files import lines

PLAIN_WIDTH = 120  # of a report that no terminal shows
TITLE_WIDTH = 120  # in characters
QUIET_S = 1.0  # a run that is shorter shows no progress
ENDLESS_GPUS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """What is the same for all contenders."""

    asked: Options
    family: Family
    gpus: int | None
    requests: Workload
    jobs: Jobs | None
    initial: Mapping[str, int]


def simulate(family: Family, arguments: argparse.Namespace, console: Console) -> int:
    """Raises ConfigurationError before anything runs. A file is written whole or not at all."""
    asked = options(arguments, family)
    for contender in asked.contenders:
        check(contender)
    stage = _stage(asked, family)
    rehearsals = [_rehearsed(stage, contender) for contender in asked.contenders]
    if asked.plot is not None:
        from deployments.report_plot import draw

        with _whole(asked.plot) as file:
            draw(rehearsals, _title(stage, rehearsals), file)
    if asked.as_json:
        found = [as_dict(one) for one in rehearsals]
        _say({"policies": found} if arguments.compare else found[0])
    else:
        wide = console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
        wide.print(tables(rehearsals))
    return 0


def replay(arguments: argparse.Namespace, console: Console) -> int:
    """Take the decisions of a log again. Exit code 1 where one comes out otherwise. Raises ConfigurationError."""
    from autoscaling.record import differing

    file: Path = arguments.replay
    if arguments.trace:
        raise ConfigurationError("--replay: given with --trace; a log alone is allowed; leave one of them out")
    recorded = lines(file)
    try:
        differ = differing(recorded)
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error.message}") from error
    if arguments.json:
        _say({"decisions": len(recorded), "differ_in_lines": differ})
    else:
        found = f"differ in lines {', '.join(map(str, differ[:10]))}" if differ else "all come out the same"
        console.print(f"{file}: {len(recorded)} decisions: {found}", soft_wrap=True)
    return 1 if differ else 0


def _say(found: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(found, indent=2, allow_nan=False) + "\n")


def _stage(asked: Options, family: Family) -> Stage:
    gpus = family.gpu_budget_gpus if asked.gpus == "family" else asked.gpus
    requests = workload(asked)
    if asked.gpus != "family":
        family = lifted(of_tiers(family, requests), gpus or ENDLESS_GPUS)
    if gpus is not None:
        require_room(family, gpus)
    if asked.cold_start_s is not None:
        family = started_in(family, asked.cold_start_s)
    videos = jobs(asked, family, requests)
    first = initial(family, gpus, asked.initial, requests, videos)
    return Stage(asked=asked, family=family, gpus=gpus, requests=requests, jobs=videos, initial=first)


def _rehearsed(stage: Stage, contender: Contender) -> Rehearsal:
    own = contender.router == "moray"
    scenario = Scenario(
        family=stage.family,
        gpus=stage.gpus,
        initial=stage.initial,
        seed=stage.asked.seed,
        admission=own,
        chunking="slack" if own else "fixed",
    )
    send = router(contender.router)
    end_s = span_s(stage.asked, stage.requests)

    def run(policy: Scaler, *watches: Watch) -> Report:
        with _progress(contender.name, end_s) as shown:
            return rehearse(scenario, stage.requests, stage.jobs, policy, send, _all((shown, *watches)))

    past = Past(
        family=stage.family,
        requests=stage.requests,
        span_s=end_s,
        initial=stage.initial,
        attained=lambda policy: run(policy).figures.attainment,
    )
    policy, found = scaler(contender, past)
    with _log(stage.asked.log, policy) as watches:
        begun_s = time.perf_counter()
        report = run(policy, *watches)
        wall_s = time.perf_counter() - begun_s
    conditions = _conditions(stage, contender) | ({"hindsight": found} if found else {})
    return Rehearsal(name=contender.name, conditions=conditions, report=report, wall_s=wall_s)


def _conditions(stage: Stage, contender: Contender) -> dict[str, Any]:
    asked, own = stage.asked, contender.router == "moray"
    return {
        "simulated": SIMULATED,
        "family": stage.family.name,
        "traces": [trace.name(asked.model) for trace in asked.traces],
        "start_s": asked.start_s,
        "duration_s": span_s(asked, stage.requests),
        "scale": asked.scale,
        "video_jobs_per_hour": asked.video_jobs_per_hour,
        "seed": asked.seed,
        "cold_start_p50_s": {name: tier.cold_start.p50_s for name, tier in stage.family.tiers.items()},
        "gpus": stage.gpus if stage.gpus is not None else "as many as are asked for",
        "replica_maxima": "of the family file" if asked.gpus == "family" else "what fits, not the family file's",
        "initial": stage.initial,
        "policy": contender.policy,
        "settings": contender.settings,
        "router": contender.router,
        "admission": "holds, spills and refuses as Moray does" if own else "none: sent wherever there is room",
        "prefill_chunks": "as the promised pace leaves room" if own else "fixed, of the family file",
    }


def _title(stage: Stage, rehearsals: Sequence[Rehearsal]) -> str:
    asked = stage.asked
    traces = " + ".join(trace.name(asked.model, short=True) for trace in asked.traces) or "no language requests"
    video = f", {asked.video_jobs_per_hour:g} videos/hour" if asked.video_jobs_per_hour else ""
    policies = f"policy {rehearsals[0].name}" if len(rehearsals) == 1 else f"{len(rehearsals)} policies"
    gpus = "as many GPUs as asked for" if stage.gpus is None else f"{stage.gpus} GPUs"
    return "\n".join(
        (
            f"{policies}, family {stage.family.name}, {gpus}, seed {asked.seed} ({SIMULATED})",
            *textwrap.wrap(f"{traces}; rate x {asked.scale:g}{video}", TITLE_WIDTH),
        )
    )


def _all(watches: Sequence[Watch]) -> Watch:
    def watch(seen: Seen, memory: Any, decision: Decision, after: Any) -> None:
        for each in watches:
            each(seen, memory, decision, after)

    return watch


@contextlib.contextmanager
def _progress(name: str, end_s: float) -> Iterator[Watch]:
    """A bar on a terminal, once the run has turned out to be long."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(f"rehearsing {name}", total=end_s)
    begun_s = time.perf_counter()
    with contextlib.ExitStack() as shown:

        def watch(seen: Seen, *_: Any) -> None:
            if bar.console.is_terminal and not bar.live.is_started and time.perf_counter() - begun_s > QUIET_S:
                shown.enter_context(bar)
            bar.update(task, completed=min(seen.now_s, end_s))

        yield watch


@contextlib.contextmanager
def _log(file: Path | None, policy: Scaler) -> Iterator[tuple[Watch, ...]]:
    """One line for every scaling decision."""
    if file is None:
        yield ()
        return
    from autoscaling.policy import Policy
    from autoscaling.record import Scaling, line

    if not isinstance(policy, Policy):
        raise ConfigurationError("--log: decisions of other policies are not recorded; --policy moray is allowed")
    with _whole(file) as log:

        def watch(seen: Seen, memory: Any, decision: Decision, after: Any) -> None:
            record = Scaling(
                seen=seen,
                memory=memory,
                spec=policy.spec,
                parameters=policy.parameters,
                decision=decision,
                after=after,
            )
            log.write(line(record).encode() + b"\n")

        yield (watch,)


@contextlib.contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """Written beside it, and in its place only when all went well."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as opened:
            yield opened
        part.replace(file)
    except OSError as error:
        raise ConfigurationError(
            f"{file}: {error.strerror}; a file that can be written is allowed; choose another"
        ) from error
    finally:
        part.unlink(missing_ok=True)
