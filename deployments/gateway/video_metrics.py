"""What this gateway counts of video jobs and storyboards."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from deployments.observe import Meters
from deployments.video.spec import Stage

Cut = Literal["ok", "failed", "hindered"]
COUNTED = ("resumed", "lost_steps", "preemptions", "broken", "hindered", "store_errors")


class VideoMetrics:
    def __init__(self, meters: Meters) -> None:
        self._meters = meters

    def begin(self) -> None:
        """Series that alerts read begin at 0: one that does not exist yet could not be told from one that is lost."""
        for name in COUNTED:
            self._meters.counter(f"moray_video_{name}_total")
        for intended in ("yes", "no"):
            self._meters.counter("moray_video_unsigned_total").labels(intended=intended)
        self._meters.counter("moray_video_jobs_finished_total").labels(code="ok")
        for outcome in ("ok", "failed"):
            self._meters.counter("moray_storyboard_shots_total").labels(outcome=outcome)
        for outcome in get_args(Cut):
            self._meters.counter("moray_storyboard_cuts_total").labels(outcome=outcome)
        for stage in get_args(Stage):
            self._meters.histogram("moray_video_stage_seconds").labels(stage=stage)

    def queue(self, age_s: float, backlog_gpu_s: float) -> None:
        self._meters.gauge("moray_video_queue_age_seconds").set(age_s)
        self._meters.gauge("moray_video_backlog_gpu_seconds").set(backlog_gpu_s)

    @contextlib.contextmanager
    def stages(self, queued_s: float | None) -> Iterator[Callable[[str], None]]:
        """Times the stages of one attempt: call it with each as it begins. The first wait of a job is a stage, too."""
        stage, since_s = "", 0.0

        def entered(name: str) -> None:
            nonlocal stage, since_s
            now_s = time.monotonic()
            if stage:
                self._stage(stage, now_s - since_s)
            elif queued_s is not None:
                self._stage("queued", queued_s)
            stage, since_s = name, now_s

        try:
            yield entered
        finally:
            if stage:
                self._stage(stage, time.monotonic() - since_s)

    def _stage(self, stage: str, seconds: float) -> None:
        self._meters.histogram("moray_video_stage_seconds").labels(stage=stage).observe(seconds)

    def went_on(self, saved_steps: int, lost_steps: int) -> None:
        """An attempt after one that had done steps: what a saved state spared it, and what it did not."""
        self._count("resumed", 1 if saved_steps else 0)
        self._count("lost_steps", lost_steps)

    def step(self, seconds: float) -> None:
        self._count("steps")
        self._meters.histogram("moray_video_step_seconds").observe(seconds)

    def preempted(self) -> None:
        self._count("preemptions")

    def broke(self) -> None:
        self._count("broken")

    def hindered(self) -> None:
        self._count("hindered")

    def store_failed(self) -> None:
        self._count("store_errors")

    def ended(self, code: str, *, signed: bool, intended: bool) -> None:
        """`intended`: the family file says that files are not signed."""
        self._meters.counter("moray_video_jobs_finished_total").labels(code=code).inc()
        if code == "ok" and not signed:
            self._meters.counter("moray_video_unsigned_total").labels(intended="yes" if intended else "no").inc()

    def shot(self, outcome: str) -> None:
        """A take of a storyboard's shot ended."""
        self._meters.counter("moray_storyboard_shots_total").labels(outcome=outcome).inc()

    def cut(self, outcome: Cut) -> None:
        """hindered: another try follows."""
        self._meters.counter("moray_storyboard_cuts_total").labels(outcome=outcome).inc()

    def _count(self, name: str, by: int = 1) -> None:
        self._meters.counter(f"moray_video_{name}_total").inc(by)
