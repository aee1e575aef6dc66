"""One tier: what its requests wait for, and what its engines do meanwhile."""

from monitoring.dashboards.panels import Board, Panel, Query, Row, by, per_s, quantiles, share

HERE = 'tier="$tier"'
USED = f"sum(moray_kv_used_tokens{{{HERE}}}) / sum(moray_kv_capacity_tokens{{{HERE}}})"


def _gauge(metric: str, legend: str) -> Query:
    return Query(expr=f"sum({metric}{{{HERE}}})", legend=legend)


def _count(metric: str, legend: str) -> Query:
    return Query(expr=per_s(metric, "tier", where=HERE), legend=legend)


TIER = Board(
    uid="moray-tier",
    title="Moray: tier",
    says="One tier: what its requests wait for, and what its engines do meanwhile.",
    variables=("tier",),
    rows=(
        Row(
            title="What clients see",
            panels=(
                Panel(
                    title="Time to first token",
                    says="From the request's arrival. The tier's promise is an edge of the buckets.",
                    unit="s",
                    queries=quantiles("moray_ttft_seconds", HERE),
                ),
                Panel(
                    title="Time per output token",
                    says="Mean after the first token, per request.",
                    unit="s",
                    queries=quantiles("moray_tpot_seconds", HERE),
                ),
                Panel(
                    title="Whole request",
                    says="From the request's arrival to its last byte.",
                    unit="s",
                    queries=quantiles("moray_request_seconds", HERE),
                ),
                Panel(
                    title="Answers",
                    says="Requests answered, by outcome.",
                    unit="reqps",
                    kind="stacked",
                    queries=(by("code", per_s("moray_requests_total", "code", where=HERE)),),
                ),
                Panel(
                    title="Streams and requests under way",
                    says="Responses being streamed, and requests on replicas.",
                    unit="short",
                    queries=(
                        _gauge("moray_streams", "streams"),
                        _gauge("moray_ongoing_requests", "on replicas"),
                    ),
                ),
                Panel(
                    title="Output tokens",
                    says="Tokens of answered requests.",
                    unit="short",
                    queries=(_count("moray_completion_tokens_total", "output tokens/s"),),
                ),
            ),
        ),
        Row(
            title="Where they wait",
            panels=(
                Panel(
                    title="Where the time goes",
                    says="Mean seconds of an answer by stage of the ledger; together they are its whole time.",
                    unit="s",
                    kind="stacked",
                    queries=(
                        by(
                            "stage",
                            share(
                                f"moray_stage_seconds_sum{{{HERE}}}", f"moray_stage_seconds_count{{{HERE}}}", "stage"
                            ),
                        ),
                    ),
                ),
                Panel(
                    title="Held in the gateway",
                    says="From the request's arrival until it was sent to a replica.",
                    unit="s",
                    queries=quantiles("moray_hold_seconds", HERE),
                ),
                Panel(
                    title="Queued in the engine",
                    says="From submission to the engine until the first prefill step.",
                    unit="s",
                    queries=quantiles("moray_queue_wait_seconds", HERE),
                ),
                Panel(
                    title="Waiting and running",
                    says="Held in gateways, accepted by engines, and in the batches.",
                    unit="short",
                    queries=(
                        _gauge("moray_held_requests", "held"),
                        _gauge("moray_waiting_requests", "waiting"),
                        _gauge("moray_running_requests", "running"),
                    ),
                ),
                Panel(
                    title="Waiting prompt tokens",
                    says="What must be computed before those that wait get a first token.",
                    unit="short",
                    queries=(
                        _gauge("moray_held_prompt_tokens", "held"),
                        _gauge("moray_waiting_prefill_tokens", "waiting"),
                    ),
                ),
            ),
        ),
        Row(
            title="Engines",
            panels=(
                Panel(
                    title="Key-value cache used",
                    says="Of what the caches of all replicas hold. Near 1 requests wait for room.",
                    unit="percentunit",
                    queries=(Query(expr=USED, legend="used"),),
                ),
                Panel(
                    title="Step time",
                    says="Of an engine step, smoothed by the engine: the fastest and the slowest replica.",
                    unit="s",
                    queries=(
                        Query(expr=f"max(moray_step_seconds{{{HERE}}})", legend="slowest"),
                        Query(expr=f"min(moray_step_seconds{{{HERE}}})", legend="fastest"),
                    ),
                ),
                Panel(
                    title="Prefill per token",
                    says="Prefill time per token, smoothed by the engine: the mean of replicas.",
                    unit="s",
                    queries=(Query(expr=f"avg(moray_prefill_seconds_per_token{{{HERE}}})", legend="prefill"),),
                ),
                Panel(
                    title="Steps",
                    says="Engine steps of all replicas.",
                    unit="ops",
                    queries=(_count("moray_steps_total", "steps/s"),),
                ),
                Panel(
                    title="Time to start",
                    says="From a replica's construction until it was ready. The control loop counts on it.",
                    unit="s",
                    queries=(Query(expr=f"max(moray_start_seconds{{{HERE}}})", legend="slowest"),),
                ),
                Panel(
                    title="Losses",
                    says="Answers that went on after their replica was lost, those that did not, and open breakers.",
                    unit="short",
                    queries=(
                        _count("moray_resumed_total", "resumed/s"),
                        _count("moray_retries_refused_total", "broken/s"),
                        _gauge("moray_breakers_open", "breakers open"),
                    ),
                ),
            ),
        ),
    ),
)
