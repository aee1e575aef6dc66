"""Each deployment by itself; static; and the rules of Ray Serve with their arithmetic."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from peer_world import counts, lead, look, spec, tier
from pydantic import TypeAdapter

from autoscaling.peers import Memory, RayParameters, RayState, StaticParameters, ray, static
from autoscaling.peers_dynamo import DynamoParameters, dynamo
from autoscaling.peers_kpa import KNATIVE, KpaParameters, kpa
from autoscaling.signals import JobSeen, Seen, Spec, TierSeen, VideoSeen, VideoSpec

QUICK = RayParameters(look_back_s=5, metrics_interval_s=1, upscale_delay_s=0, downscale_delay_s=0)


def two() -> Spec:
    video = VideoSpec(gpus=1, min=0, max=4, cold_start_s=30)
    return Spec(tiers={"pro": tier(), "mini": tier(least=2)}, video=video)


def job() -> JobSeen:
    return JobSeen(left_gpu_s=100, deadline_s=1000, value_usd=1)


def test_static_keeps_what_is_given_within_bounds() -> None:
    seen = Seen(now_s=0, gpus=99, tiers={"pro": TierSeen(ready=3), "mini": TierSeen(ready=3)}, video=VideoSeen(ready=1))
    decision, memory = static(two(), StaticParameters(replicas={"pro": 50}))(seen, None)
    assert [target.replicas for target in decision.tiers.values()] == [20, 2]  # 50 clipped to 20; mini at its least
    assert decision.video is not None
    assert decision.video.replicas == 0
    assert (decision.tiers["pro"].cause, decision.tiers["mini"].cause) == ("rise", "fall")
    assert static(two(), StaticParameters(replicas=4))(seen, memory)[0].tiers["mini"].replicas == 4


def test_a_deployment_without_signals_keeps_its_last_target() -> None:
    scaler = ray(two(), QUICK)
    blind, memory = scaler(Seen(now_s=0, gpus=99, tiers={"pro": TierSeen(ready=3, starting=2)}), None)
    assert [(t.replicas, t.cause) for t in blind.tiers.values()] == [(1, "fall"), (2, "blind")]  # nothing asked: down
    assert blind.video is not None
    assert (blind.video.replicas, blind.video.cause) == (0, "blind")
    again, _ = scaler(Seen(now_s=1, gpus=99), memory)
    assert [(t.replicas, t.cause) for t in again.tiers.values()] == [(1, "blind"), (2, "blind")]


def test_a_deployment_without_a_policy_keeps_what_it_has() -> None:
    seen = Seen(now_s=0, gpus=99, tiers={"pro": TierSeen(ready=3), "mini": TierSeen(ready=4, starting=1, draining=9)})
    decision, _ = ray(two(), {"pro": QUICK})(seen, None)
    assert (decision.tiers["mini"].replicas, decision.tiers["mini"].cause) == (5, "hold")


def test_video_scales_by_its_jobs() -> None:
    seen = Seen(now_s=0, gpus=99, video=VideoSeen(ready=1, jobs=(job(),) * 3))
    decision, _ = ray(two(), {"video": QUICK})(seen, None)
    assert decision.video is not None
    assert decision.video.replicas == 2  # ceil(3 jobs / 2)


def test_a_family_without_video_gets_no_video_target() -> None:
    assert ray(spec(), QUICK)(look(0, ready=1), None)[0].video is None


def at(seconds: range, ready: int, ongoing: int) -> list[Seen]:
    return [look(now_s, ready=ready, ongoing_requests=ongoing) for now_s in seconds]


def test_ray_rises_after_its_delay_and_no_earlier() -> None:
    seen = counts(ray(spec(), RayParameters()), at(range(32), ready=1, ongoing=8))
    assert seen == [1] * 30 + [4] * 2  # wanted from 0 s on: ceil(8/2) = 4, after 30 s


def test_ray_counts_held_requests_too() -> None:
    looks = [look(0, ready=1, ongoing_requests=3, held_requests=3)]
    assert counts(ray(spec(), QUICK), looks) == [3]  # (3 + 3) / 2


def test_ray_falls_after_the_longer_delay() -> None:
    seen = counts(ray(spec(), RayParameters()), at(range(602), ready=6, ongoing=4))
    assert seen == [6] * 600 + [2] * 2  # 4/2


def test_ray_starts_its_delay_anew_when_the_target_suffices() -> None:
    p = RayParameters(look_back_s=1, metrics_interval_s=1, upscale_delay_s=3, target_ongoing_requests=1)
    loads = [1, 2, 2, 1, 2, 2, 2, 2, 2]
    seen = counts(ray(spec(), p), [look(now_s, ready=1, ongoing_requests=load) for now_s, load in enumerate(loads)])
    assert seen == [1, 1, 1, 1, 1, 1, 1, 2, 2]  # wanted since 4 s, after 1 s and 2 s were forgotten


def test_ray_learns_of_load_once_an_interval() -> None:
    p = RayParameters(look_back_s=10, metrics_interval_s=10, upscale_delay_s=0, target_ongoing_requests=1)
    loads = [1, 1, *[5] * 20]
    seen = counts(ray(spec(), p), [look(now_s, ready=1, ongoing_requests=load) for now_s, load in enumerate(loads)])
    # Sampled at 0, 2, 4, ... s; those up to 10 s are known at 10 s, without the one at 0 s: all of them 5.
    assert seen[:11] == [1] * 10 + [5]


def test_ray_wakes_from_nothing_at_once() -> None:
    looks = [look(0, ready=0), look(10, ready=0, held_requests=1), look(11, ready=0)]
    assert counts(ray(spec(least=0), RayParameters(look_back_s=10)), looks) == [0, 1, 1]


def test_ray_goes_to_zero_only_from_one_after_its_own_delay() -> None:
    p = RayParameters(look_back_s=1, metrics_interval_s=1, downscale_delay_s=2, downscale_to_zero_delay_s=5)
    looks = [look(now_s, ready=2 if now_s < 3 else 1) for now_s in range(10)]
    assert counts(ray(spec(least=0), p), looks) == [2, 2, 1, 1, 1, 1, 1, 1, 0, 0]  # 1 at 2 s; then 3 s + 5 s
    alike = RayParameters(look_back_s=1, metrics_interval_s=1, downscale_delay_s=2)
    assert counts(ray(spec(least=0), alike), looks) == [2, 2, 1, 1, 1, 0, 0, 0, 0, 0]  # without one of its own


def test_ray_multiplies_the_change_by_its_factor() -> None:
    half = RayParameters(look_back_s=1, metrics_interval_s=1, upscale_delay_s=0, upscaling_factor=0.5)
    assert counts(ray(spec(), half), [look(0, ready=2, ongoing_requests=16)]) == [5]  # 2 + 0.5*(16/2 - 2)
    tiny = RayParameters(look_back_s=1, metrics_interval_s=1, downscale_delay_s=0, downscaling_factor=0.1)
    assert counts(ray(spec(), tiny), [look(0, ready=4, ongoing_requests=4)]) == [3]  # ceil(4 - 0.1*2) = 4, one fewer


def test_memory_survives_json() -> None:
    scaler = ray(spec(), RayParameters())
    _, memory = scaler(look(0, ready=1, ongoing_requests=8), None)
    kind = TypeAdapter(Memory[RayState])
    assert kind.validate_json(kind.dump_json(memory)) == memory


POLICIES: dict[str, Any] = {
    "static": static(spec(2, 9), StaticParameters(replicas=99)),
    "ray": ray(spec(2, 9), QUICK),
    "kpa": kpa(spec(2, 9), KpaParameters(warm_up_s=0)),
    "knative": kpa(spec(2, 9), KNATIVE),
    "apa": kpa(spec(2, 9), KpaParameters(algorithm="apa", down_choice="max")),
    "dynamo": dynamo(spec(2, 9), DynamoParameters(interval_s=10, start_delay_s=0, load_based=True)),
}


@given(
    st.sampled_from(sorted(POLICIES)),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 500), st.integers(0, 100)), max_size=12),
)
def test_no_policy_leaves_the_bounds_and_the_same_looks_give_the_same_targets(
    name: str, course: list[tuple[int, int, int, int]]
) -> None:
    looks, arrived, finished = [], 0, 0
    for now_s, (ready, starting, ongoing, done) in enumerate(course):
        arrived, finished = arrived + ongoing, finished + done
        seen = TierSeen(
            ready=ready,
            starting=starting,
            ongoing_requests=ongoing,
            arrived_requests=arrived,
            arrived_prompt_tokens=arrived * 100,
            finished_requests=finished,
            finished_output_tokens=finished * 10,
            ttft_s_sum=finished * 0.1,
            tpot_s_sum=finished * 0.02,
            duration_s_sum=finished * 0.3,
            waiting_prefill_tokens=ongoing * 10,
        )
        looks.append(Seen(now_s=now_s * 10.0, gpus=1000, tiers={"pro": seen}))
    targets = lead(POLICIES[name], looks)
    assert all(2 <= target.replicas == target.wanted <= 9 for target in targets)
    assert targets == lead(POLICIES[name], looks)
