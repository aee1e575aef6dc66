"""Video jobs that outlive what renders them, what accepted them, and the whole server; and clients that ask twice."""

from typing import Any

import pytest
from integration.conftest import Stage
from integration.server import Server, eventually
from openai import APIConnectionError, BadRequestError, ConflictError, InternalServerError, OpenAI
from openai.types import Video

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

RENDERED_S = 120.0
STEPS = 200
LONG: Any = {"model": "sora-2", "seconds": 4, "size": "96x64", "extra_body": {"num_inference_steps": STEPS}}


@pytest.fixture
def client(laptop: Server) -> OpenAI:
    return laptop.client()


def under_way(client: OpenAI, prompt: str) -> Video:
    video = client.videos.create(prompt=prompt, **LONG)
    eventually(lambda: client.videos.retrieve(video.id).progress > 5, RENDERED_S, "under way")
    return video


def followed(client: OpenAI, video: Video) -> list[int]:
    """Its progress until it is there, as a client sees it; what does not answer is asked again."""
    progress: list[int] = []

    def completed() -> bool:
        try:
            seen = client.videos.retrieve(video.id)
        except (APIConnectionError, InternalServerError):  # while nobody listens
            return False
        assert seen.status != "failed", seen.error
        progress.append(seen.progress)
        return seen.status == "completed"

    eventually(completed, RENDERED_S, "rendered to its end")
    return progress


def test_a_killed_replica_costs_a_video_only_steps_that_were_not_saved(laptop: Server, client: OpenAI) -> None:
    before = {name: laptop.metric(f"moray_video_{name}_total") for name in ("resumed", "lost_steps", "steps")}
    video = under_way(client, "a white circle")
    (replica,) = eventually(laptop.workers, RENDERED_S, "its replica")
    replica.kill()
    followed(client, video)
    grown = {name: laptop.metric(f"moray_video_{name}_total") - value for name, value in before.items()}
    assert grown["resumed"] == 1
    assert grown["lost_steps"] <= STEPS / 10, "steps of a few milliseconds may end while one state is written"
    assert grown["steps"] <= STEPS + grown["lost_steps"]
    assert client.videos.download_content(video.id).read()


def test_a_killed_gateway_costs_a_video_only_time(laptop: Server, client: OpenAI) -> None:
    video = under_way(client, "a black circle")
    (gateway,) = laptop.gateways()
    gateway.kill()
    followed(client, video)


def test_two_clients_with_one_idempotency_key_share_one_video(laptop: Server, client: OpenAI) -> None:
    once = {"Idempotency-Key": "7f9c"}
    first, second = (
        each.videos.create(prompt="a red circle", model="sora-2", extra_headers=once)
        for each in (client, laptop.client())
    )
    assert first.id == second.id
    with pytest.raises(ConflictError) as refused:
        client.videos.create(prompt="a blue circle", model="sora-2", extra_headers=once)
    assert refused.value.code == "idempotency_key_reused"
    client.videos.delete(first.id)


def test_a_video_deleted_while_it_renders_leaves_no_file(laptop: Server, client: OpenAI) -> None:
    video = under_way(client, "a green circle")
    files = laptop.scratch / "state" / "videos"
    eventually(lambda: list(files.glob(f"{video.id}/*")), RENDERED_S, "a state is saved")
    client.videos.delete(video.id)
    eventually(lambda: not list(files.rglob(f"*{video.id}*")), RENDERED_S, "its files are gone")


def test_a_prompt_of_a_character_too_many_is_refused_and_leaves_no_job(client: OpenAI) -> None:
    before = client.videos.list(limit=1).data
    with pytest.raises(BadRequestError) as refused:
        client.videos.create(prompt="a" * 32_001, model="sora-2")
    assert refused.value.param == "prompt"
    assert client.videos.list(limit=1).data == before


def test_a_server_that_starts_again_goes_on_with_what_it_had_accepted(stage: Stage, client: OpenAI) -> None:
    running = under_way(client, "a yellow circle")
    waiting = client.videos.create(prompt="a red square", model="sora-2")
    again = stage.restart()
    client = again.client(client.api_key)
    followed(client, running)
    followed(client, waiting)
    assert again.metric("moray_video_resumed_total") >= 1
