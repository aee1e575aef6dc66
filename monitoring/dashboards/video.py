"""Videos: what waits, what is denoised, and the GPUs that are lent and taken back."""

from monitoring.dashboards.panels import RANGE, RATE, Board, Panel, Query, Row, by, per_s, quantiles

VIDEO = Board(
    uid="moray-video",
    title="Moray: video",
    says="Videos: what waits, what is denoised, and the GPUs that are lent and taken back.",
    rows=(
        Row(
            title="Jobs",
            panels=(
                Panel(
                    title="Jobs",
                    says="Jobs in the store, by status. Queued ones that only grow: more is asked than GPUs are lent.",
                    unit="short",
                    queries=(by("status", "max by (status) (moray_video_jobs)"),),
                ),
                Panel(
                    title="Jobs that ended",
                    says="By outcome, per hour.",
                    unit="short",
                    kind="stacked",
                    queries=(by("code", f"3600 * {per_s('moray_video_jobs_finished_total', 'code')}"),),
                ),
                Panel(
                    title="Preemptions",
                    says="Jobs that went back to the queue over the time shown because their GPU was called back.",
                    unit="short",
                    kind="number",
                    queries=(Query(expr=f"sum(increase(moray_video_preemptions_total[{RANGE}]))", legend="preempted"),),
                ),
            ),
        ),
        Row(
            title="Denoising",
            panels=(
                Panel(
                    title="Steps",
                    says="Denoising steps of all replicas.",
                    unit="ops",
                    queries=(Query(expr=f"sum(rate(moray_video_steps_total[{RATE}]))", legend="steps/s"),),
                ),
                Panel(
                    title="Step time",
                    says="Of one denoising step of a batch.",
                    unit="s",
                    queries=quantiles("moray_video_step_seconds"),
                ),
            ),
        ),
        Row(
            title="Lending",
            panels=(
                Panel(
                    title="GPUs of video",
                    says="GPUs that video replicas hold, against all of the budget. Videos run on what tiers leave.",
                    unit="short",
                    queries=(
                        Query(expr='max(moray_gpus_held{tier="video"})', legend="video"),
                        Query(expr="max(moray_gpus)", legend="budget"),
                    ),
                ),
                Panel(
                    title="Replicas of video",
                    says="Those that exist by state, those that should, and those wanted without the budget.",
                    unit="short",
                    queries=(
                        by("state", 'max by (state) (moray_replicas{tier="video"})'),
                        Query(expr='max(moray_target_replicas{tier="video"})', legend="target"),
                        Query(expr='max(moray_wanted_replicas{tier="video"})', legend="wanted"),
                    ),
                ),
                Panel(
                    title="GPU-seconds",
                    says="Held by video replicas per second: the GPUs that it kept on the mean.",
                    unit="short",
                    queries=(
                        Query(expr=f'max(rate(moray_gpu_seconds_total{{tier="video"}}[{RATE}]))', legend="video"),
                    ),
                ),
            ),
        ),
    ),
)
