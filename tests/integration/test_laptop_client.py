"""What a user of the family does first: paste what was printed, name the models, talk to each of them."""

import subprocess
import sys
from typing import Any

import pytest
from integration.server import Server

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "What is a prime number?"}]
TIERS = ("gpt-5.2-mini", "gpt-5.2-turbo", "gpt-5.2-pro", "gpt-5.2-ultra")


def pasted(server: Server, first: str) -> str:
    """The paragraph of the output that begins so."""
    return first + server.output.split(first, 1)[1].split("\n\n", 1)[0]


def test_the_printed_curl_line_works_when_pasted(laptop: Server) -> None:
    command = pasted(laptop, "curl ")
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert '"role":"assistant"' in ran.stdout


def test_the_printed_python_works_when_pasted(laptop: Server) -> None:
    program = pasted(laptop, "from openai import OpenAI")
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip()


def test_every_model_of_the_family_is_listed(laptop: Server) -> None:
    listed = [model.id for model in laptop.client().models.list()]
    assert sorted(listed) == sorted([*TIERS, "gpt-5.2", "sora-2"])
    assert laptop.client().models.retrieve("sora-2").owned_by == "moray"


@pytest.mark.parametrize("model", TIERS)
def test_every_tier_answers_streamed_and_whole_alike(laptop: Server, model: str) -> None:
    """pro and ultra have no replica at first: their first request wakes them and waits."""
    completions = laptop.client().chat.completions
    whole = completions.create(model=model, messages=ASK, seed=3, max_tokens=64)
    assert whole.model == model
    assert whole.usage is not None
    assert 1 <= whole.usage.completion_tokens <= 64
    assert whole.usage.prompt_tokens > 5
    chunks = list(
        completions.create(
            model=model, messages=ASK, seed=3, max_tokens=64, stream=True, stream_options={"include_usage": True}
        )
    )
    *said, end, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.usage is not None
    assert usage.usage.total_tokens == whole.usage.total_tokens
    assert {chunk.model for chunk in chunks} == {model}


def test_an_answer_goes_on_behind_its_end_where_asked_and_every_chunk_tells_the_usage_so_far(laptop: Server) -> None:
    """As load tools ask, in vLLM's words."""
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(
        laptop.client().chat.completions.create(
            model="gpt-5.2-mini",
            messages=ASK,
            max_tokens=300,
            temperature=0,
            stream=True,
            stream_options=options,
            extra_body={"ignore_eos": True},
        )
    )
    so_far = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(so_far) == len(chunks)
    assert so_far == sorted(so_far)
    assert (so_far[0], so_far[-1]) == (0, 300)
    assert chunks[-2].choices[0].finish_reason == "length"


def test_the_response_says_which_tier_served_it(laptop: Server) -> None:
    raw = laptop.client().chat.completions.with_raw_response.create(model="gpt-5.2-turbo", messages=ASK, max_tokens=8)
    assert raw.headers["moray-tier"] == "turbo"
    assert "moray-engine" not in raw.headers
