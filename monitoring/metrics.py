"""The one metric catalogue, as data. Every part of the system exports from here, dashboards and alerts read from here.

Names are `moray_<what>_<unit>`, counters end in `_total`, times are in seconds (Prometheus' base unit). Every label is
one of LABELS, each with a bounded set of values: never a request, a key or a user.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

LABELS = {
    "tier": "the tiers of the family file, video, and none where no tier was reached",
    "code": "ok, client_gone, or the codes of the error tree",
    "method": "the routing methods: predicted, two_choices, none",
    "outcome": "of a promise: kept or missed; of a shot or a cut: ok or failed, or hindered where another try follows",
    "action": "what admission did: dispatch, hold, postpone, spill, refuse",
    "state": "of a replica: ready, starting or draining; of a storyboard: in_progress, joining, completed, incomplete, "
    "failed",
    "cause": "the causes of scaling decisions: rise, fall, hold, blind, budget",
    "fault": "what is wrong with signals: unreachable, stale, missing, contradictory, skewed",
    "stage": "the stages of a request's ledger: gateway, queue, lost, router, wait, prefill, decode, stream; or of a "
    "video job: queued, rendering, decoding, encoding, signing, storing",
    "part": "the parts of a control tick: look, step, apply, lend, record",
    "status": "the states of a video job: queued, in_progress, completed, failed",
    "intended": "whether the family file says so: yes or no",
    "layer": "the mixture-of-experts layers of the tier's checkpoint",
    "expert": "the routed experts of a layer",
    "rank": "the ranks of an expert group",
    "domain": "the specialists of the family, general, and unknown",
    "verdict": "of moderation: allow, flag, refuse, unchecked; away where nobody could say and nothing may pass",
    "limit": "the limits of plans: requests_per_minute, tokens_per_minute, gpu_seconds_per_minute, concurrent, "
    "video_seconds_per_day, budget_usd_per_month",
}

# Around the promises of the tiers (0.5 to 4 s, 15 to 80 ms), fine enough that a p99 near one can be read.
TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0, 60.0)
TPOT_S = (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.035, 0.05, 0.065, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 10.0, 30.0, 120.0)
REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
STEP_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=name, kind="counter", help=help, labels=labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name=name, kind="gauge", help=help, labels=labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name=name, kind="histogram", help=help, labels=labels, buckets=buckets)


# What the gateway sees.
GATEWAY = (
    _counter("moray_requests_total", "Requests answered, by outcome.", "tier", "code"),
    _counter("moray_rejections_total", "Requests refused before any work, by the error code given.", "tier", "code"),
    _histogram("moray_request_seconds", "From the request's arrival to its last byte.", REQUEST_S, "tier"),
    _histogram("moray_ttft_seconds", "From the request's arrival to its first token.", TTFT_S, "tier"),
    _histogram("moray_tpot_seconds", "Mean time per output token after the first, per request.", TPOT_S, "tier"),
    _histogram(
        "moray_stage_seconds",
        "Of answered requests, the time in each stage of the ledger, by the tier that served.",
        WAIT_S,
        *("tier", "stage"),
    ),
    _counter("moray_prompt_tokens_total", "Prompt tokens of answered requests.", "tier"),
    _counter("moray_completion_tokens_total", "Output tokens of answered requests.", "tier"),
    _counter("moray_usage_events_total", "Events written into the ledger of usage, by the tier that served.", "tier"),
    _counter("moray_billed_prompt_tokens_total", "Prompt tokens in the ledger of usage.", "tier"),
    _counter("moray_billed_completion_tokens_total", "Output tokens in the ledger of usage.", "tier"),
    _gauge("moray_usage_pending", "Events of usage that are not on disk yet."),
    _counter("moray_usage_failures_total", "Times that the ledger of usage could not be written or shipped."),
    _counter("moray_usage_refused_total", "Events of usage that found no room and are in the log alone."),
    _counter("moray_limit_refusals_total", "Requests refused by a limit of their plan, by the limit.", "limit"),
    _counter("moray_limit_failures_total", "Times that the store of limits did not answer."),
    _counter("moray_limit_lost_total", "Reservations whose lease was over before they were settled."),
    _counter("moray_moderations_total", "Requests whose text was judged, by what came of it.", "verdict"),
    _gauge("moray_streams", "Responses being streamed now.", "tier"),
    _counter("moray_routing_decisions_total", "Choices of a replica, by method.", "tier", "method"),
    _counter("moray_routing_errors_total", "Calls whose replicas were left in Serve's own order.", "tier"),
    _gauge("moray_replicas_running", "Replicas that this gateway may send to.", "tier"),
    _counter("moray_arrivals_total", "Answers that were asked of the tier, refused and held ones included.", "tier"),
    _counter("moray_arrived_prompt_tokens_total", "Prompt tokens of arrivals, estimated.", "tier"),
    _counter("moray_admissions_total", "Decisions of admission, by the tier asked.", "tier", "action"),
    _counter("moray_spilled_total", "Requests that asked for the tier and were served by another one.", "tier"),
    _counter(
        "moray_promises_total", "Ended requests, by whether the promises of the tier asked held.", "tier", "outcome"
    ),
    _counter(
        "moray_finished_total", "Answers that the tier completed, without what ran on what was left over.", "tier"
    ),
    _counter("moray_finished_output_tokens_total", "Output tokens of those.", "tier"),
    _counter(
        "moray_context_token_steps_total",
        "Over completed answers, output tokens times the context at the middle of the answer.",
        "tier",
    ),
    _histogram("moray_hold_seconds", "From the request's arrival until it was sent to a replica.", WAIT_S, "tier"),
    _gauge("moray_held_requests", "Requests that wait in this gateway for a replica.", "tier"),
    _gauge("moray_held_prompt_tokens", "Prompt tokens of held requests, estimated.", "tier"),
    _gauge("moray_ongoing_requests", "Requests of this gateway on replicas.", "tier"),
    _counter("moray_resumed_total", "Requests that went on elsewhere after their replica was lost.", "tier"),
    _counter("moray_retries_refused_total", "Requests that did not go on: the retry budget was spent.", "tier"),
    _gauge("moray_breakers_open", "Replicas that get no new requests since they failed.", "tier"),
    _histogram("moray_pause_seconds", "From the loss of a stream's replica to its next bytes.", WAIT_S, "tier"),
)

# The links that push tokens from replicas to this gateway.
LINK = (
    _gauge("moray_links", "Open token links."),
    _counter("moray_link_frames_total", "Frames received over token links."),
    _counter("moray_link_bytes_total", "Bytes received over token links, heads included."),
    _counter("moray_link_failures_total", "Streams that broke because their link was lost."),
)

# What an engine that places experts sees of them.
EXPERTS = (
    _counter(
        "moray_expert_tokens_total",
        "Token rows that a rank computed for a routed expert, by the request's domain.",
        *("tier", "layer", "expert", "rank", "domain"),
    ),
    _gauge(
        "moray_expert_window_tokens",
        "Token rows that a rank computed for a routed expert in the last window.",
        *("tier", "layer", "expert", "rank"),
    ),
    _gauge("moray_expert_copies", "Ranks that hold a routed expert.", "tier", "layer", "expert"),
    _gauge(
        "moray_expert_imbalance_ratio",
        "Most over mean token rows of the ranks for routed experts in the last window.",
        *("tier", "layer"),
    ),
    _counter("moray_expert_rebalances_total", "Times that experts moved between ranks.", "tier"),
    _counter("moray_expert_moves_total", "Copies of experts that a rank received in rebalances.", "tier"),
    _gauge("moray_expert_rebalance_stall_seconds", "What the last rebalance added to decoding.", "tier"),
)

# What a language replica sees.
REPLICA = (
    _histogram(
        "moray_queue_wait_seconds", "From submission to the engine until the first prefill step.", WAIT_S, "tier"
    ),
    _gauge("moray_running_requests", "Sequences in the batch.", "tier"),
    _gauge("moray_waiting_requests", "Requests accepted by the engine, not yet in the batch.", "tier"),
    _gauge("moray_waiting_prefill_tokens", "Prompt tokens of waiting requests.", "tier"),
    _gauge("moray_kv_used_tokens", "Tokens in the key-value cache.", "tier"),
    _gauge("moray_kv_capacity_tokens", "Tokens that the key-value cache can hold.", "tier"),
    _gauge("moray_step_seconds", "Engine step time, smoothed by the engine.", "tier"),
    _gauge("moray_prefill_seconds_per_token", "Prefill time per token, smoothed by the engine.", "tier"),
    _counter("moray_steps_total", "Engine steps.", "tier"),
    _gauge("moray_start_seconds", "From the replica's construction until it was ready.", "tier"),
    _counter("moray_cached_prompt_tokens_total", "Prompt tokens that a prefix cache spared.", "tier"),
    *EXPERTS,
)

VIDEO = (
    _gauge("moray_video_jobs", "Video jobs in the store, by status.", "status"),
    _counter("moray_video_jobs_finished_total", "Video jobs that reached an end, by outcome.", "code"),
    _counter("moray_video_steps_total", "Denoising steps done."),
    _histogram("moray_video_step_seconds", "Time of one denoising step of a batch.", STEP_S),
    _histogram(
        "moray_video_stage_seconds",
        "Time of video jobs in each stage, per attempt; queued is the wait before the first.",
        REQUEST_S,
        "stage",
    ),
    _gauge("moray_video_queue_age_seconds", "Age of the oldest video job that is queued; 0 where none is."),
    _gauge("moray_video_backlog_gpu_seconds", "GPU-seconds of denoising left in unfinished video jobs."),
    _counter("moray_video_preemptions_total", "Times that a job went back to the queue since its GPU was lent."),
    _counter("moray_video_broken_total", "Times that a job ended on a replica whose GPU or disk broke."),
    _counter("moray_video_hindered_total", "Times that a job had to wait since its files could not be written."),
    _counter("moray_video_resumed_total", "Times that a job went on from a saved step."),
    _counter("moray_video_lost_steps_total", "Denoising steps that were done and had to be done again."),
    _counter("moray_video_unsigned_total", "Videos finished without content credentials.", "intended"),
    _counter("moray_video_store_errors_total", "Times that the store of video jobs did not answer."),
    _gauge("moray_storyboards", "Storyboards in the store, by state.", "state"),
    _counter("moray_storyboard_shots_total", "Takes of storyboards' shots that ended, by outcome.", "outcome"),
    _counter("moray_storyboard_cuts_total", "Attempts to join a storyboard's shots, by outcome.", "outcome"),
)

# What the control loop sees and decides. `tier` is also video.
CONTROL = (
    _gauge("moray_target_replicas", "Replicas that should exist.", "tier"),
    _gauge("moray_wanted_replicas", "Replicas that would exist without the GPU budget.", "tier"),
    _gauge("moray_replicas", "Replicas that exist, by state.", "tier", "state"),
    _counter("moray_decisions_total", "Scaling decisions, by cause.", "tier", "cause"),
    _gauge("moray_gpus", "GPUs that the family may hold now."),
    _gauge("moray_gpus_held", "GPUs that replicas hold.", "tier"),
    _counter("moray_gpu_seconds_total", "GPU-seconds held, by replicas that start or drain too.", "tier"),
    _gauge("moray_control_tick_timestamp_seconds", "Unix time of the last control tick."),
    _histogram("moray_control_tick_seconds", "Duration of a control tick.", WAIT_S),
    _gauge("moray_signal_age_seconds", "Age of the oldest signal that the last decision rests on.", "tier"),
    _counter("moray_signal_faults_total", "Looks at a tier that could not be believed.", "tier", "fault"),
    _counter("moray_control_errors_total", "Parts of control ticks that failed.", "part"),
)

CATALOGUE = (*GATEWAY, *LINK, *REPLICA, *VIDEO, *CONTROL)
