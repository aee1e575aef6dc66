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
                    title="Oldest in the queue",
                    says="Age of the oldest queued job.",
                    unit="s",
                    queries=(Query(expr="max(moray_video_queue_age_seconds)", legend="oldest"),),
                ),
                Panel(
                    title="Backlog",
                    says="GPU-seconds of denoising left in unfinished jobs, by the cost model.",
                    unit="s",
                    queries=(Query(expr="max(moray_video_backlog_gpu_seconds)", legend="GPU-seconds"),),
                ),
                Panel(
                    title="Unsigned",
                    says="Videos finished without content credentials over the time shown, by whether that is meant.",
                    unit="short",
                    kind="number",
                    queries=(by("intended", f"sum by (intended) (increase(moray_video_unsigned_total[{RANGE}]))"),),
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
            title="Stages and faults",
            panels=(
                Panel(
                    title="Time by stage",
                    says="Mean of the attempts that left the stage; queued is the wait before the first.",
                    unit="s",
                    queries=(
                        by(
                            "stage",
                            f"sum by (stage) (rate(moray_video_stage_seconds_sum[{RATE}]))"
                            f" / sum by (stage) (rate(moray_video_stage_seconds_count[{RATE}]))",
                        ),
                    ),
                ),
                Panel(
                    title="Resumed, lost and hindered",
                    says="Jobs that went on, steps done twice, jobs that waited for a disk or broke a replica.",
                    unit="short",
                    queries=(
                        Query(expr=f"sum(increase(moray_video_resumed_total[{RATE}]))", legend="jobs resumed"),
                        Query(expr=f"sum(increase(moray_video_lost_steps_total[{RATE}]))", legend="steps lost"),
                        Query(expr=f"sum(increase(moray_video_hindered_total[{RATE}]))", legend="jobs hindered"),
                        Query(expr=f"sum(increase(moray_video_broken_total[{RATE}]))", legend="replicas broken"),
                    ),
                ),
                Panel(
                    title="Store errors",
                    says="Times per second that the store of jobs did not answer.",
                    unit="ops",
                    queries=(Query(expr=f"sum(rate(moray_video_store_errors_total[{RATE}]))", legend="errors/s"),),
                ),
            ),
        ),
        Row(
            title="Storyboards",
            panels=(
                Panel(
                    title="Storyboards",
                    says="Those in the store, by state. Joining ones that stay: cuts cannot be signed, or written.",
                    unit="short",
                    queries=(by("state", "max by (state) (moray_storyboards)"),),
                ),
                Panel(
                    title="Shots",
                    says="Takes of shots that ended, by outcome, per hour.",
                    unit="short",
                    kind="stacked",
                    queries=(by("outcome", f"3600 * {per_s('moray_storyboard_shots_total', 'outcome')}"),),
                ),
                Panel(
                    title="Cuts",
                    says="Attempts to join a storyboard's shots, by outcome, per hour. Hindered ones are tried again.",
                    unit="short",
                    kind="stacked",
                    queries=(by("outcome", f"3600 * {per_s('moray_storyboard_cuts_total', 'outcome')}"),),
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
