"""Videos from the OpenAI client: made, watched, fetched, deleted; seen by nobody else."""

import io
import json
from typing import Any

import av
import numpy as np
import pytest
from integration.server import Server, eventually
from openai import BadRequestError, NotFoundError, OpenAI

from deployments.demo.score_video import Seen, look

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")]

RENDERED_S = 120.0
CONCURRENT = 4  # of a replica
LONG: Any = {"extra_body": {"num_inference_steps": 200}}  # tens of seconds: to be deleted on the way


@pytest.fixture
def client(laptop: Server) -> OpenAI:
    return laptop.client()


def test_a_video_is_rendered_with_growing_progress_and_shows_what_was_asked_for(client: OpenAI) -> None:
    asked: Any = {"size": "96x64", "seconds": 2, "extra_body": {"seed": 1}}
    video = client.videos.create(model="sora-2", prompt="a red circle moves right on a black background", **asked)
    assert (video.object, video.status, video.size, video.seconds) == ("video", "queued", "96x64", "2")
    progress = [0]

    def done() -> bool:
        seen = client.videos.retrieve(video.id)
        assert seen.status != "failed", seen.error
        progress.append(seen.progress)
        return seen.status == "completed"

    eventually(done, RENDERED_S, "completed")
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert len(set(progress)) > 3, "nothing between the start and the end was seen"
    with av.open(io.BytesIO(client.videos.download_content(video.id).read()), mode="r") as container:
        (stream,) = container.streams.video
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 8
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert len(frames) == 2 * 8
    assert look(np.stack(frames)) == Seen(colour="red", shape="circle", motion="right", background="black")
    assert client.videos.retrieve(video.id).completed_at is not None


def test_deleting_a_running_video_lets_the_next_one_run(client: OpenAI) -> None:
    long = [client.videos.create(model="sora-2", prompt="a blue square", **LONG) for _ in range(CONCURRENT)]
    next_one = client.videos.create(model="sora-2", prompt="a green square")
    eventually(lambda: client.videos.retrieve(long[0].id).status == "in_progress", RENDERED_S, "in progress")
    assert client.videos.retrieve(next_one.id).status == "queued"
    for video in long:
        gone = client.videos.delete(video.id)
        assert (gone.id, gone.object, gone.deleted) == (video.id, "video.deleted", True)
        with pytest.raises(NotFoundError):
            client.videos.retrieve(video.id)
    eventually(lambda: client.videos.retrieve(next_one.id).status == "completed", RENDERED_S, "the next one")


def test_a_video_that_is_not_ready_has_no_content(client: OpenAI) -> None:
    video = client.videos.create(model="sora-2", prompt="a yellow circle", **LONG)
    with pytest.raises(BadRequestError) as refused:
        client.videos.download_content(video.id)
    assert refused.value.code == "video_not_ready"
    client.videos.delete(video.id)


def test_videos_are_listed_newest_first_and_page_by_page(client: OpenAI) -> None:
    made = [client.videos.create(model="sora-2", prompt=f"circle {n}", **LONG).id for n in range(3)]
    first = client.videos.list(limit=2)
    assert [video.id for video in first.data] == [made[2], made[1]]
    assert first.has_more
    assert client.videos.list(limit=1, after=made[1]).data[0].id == made[0]
    assert [video.id for video in client.videos.list(limit=3)][:3] == made[::-1]
    for video in made:
        client.videos.delete(video)


def test_another_key_sees_none_of_it(laptop: Server, client: OpenAI) -> None:
    made = json.loads(laptop.moray("keys", "create", "another", "--json").stdout)[0]
    video = client.videos.create(model="sora-2", prompt="a secret", **LONG)
    other = laptop.client(made["key"])
    for forbidden in (other.videos.retrieve, other.videos.delete, other.videos.download_content):
        with pytest.raises(NotFoundError):
            forbidden(video.id)
    assert other.videos.list().data == []
    assert client.videos.delete(video.id).deleted
