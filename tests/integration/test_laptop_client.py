"""What a user of the family does first: paste what was printed, name the models, talk to each of them."""

import subprocess
import sys
from typing import Any, Literal

import numpy as np
import pytest
from integration.server import Server
from openai import BadRequestError, pydantic_function_tool
from pydantic import BaseModel, Field

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "What is a prime number?"}]
TIERS = ("gpt-5.2-mini", "gpt-5.2-turbo", "gpt-5.2-pro", "gpt-5.2-ultra")


class Number(BaseModel):
    """What is said of a number."""

    prime: bool
    digits: list[Literal[2, 3, 5]] = Field(max_length=3)
    name: str = Field(max_length=12)


class Look(BaseModel):
    """Looks a number up."""

    number: int = Field(ge=0, le=999)


HELD: Any = {"model": "gpt-5.2-mini", "messages": ASK, "temperature": 1.0, "max_tokens": 256}
TOOLS = [pydantic_function_tool(Number), pydantic_function_tool(Look)]


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


@pytest.mark.parametrize("model", ["gpt-5.2-mini", "gpt-5.2-pro"])
def test_a_text_has_one_vector_alone_and_among_others_on_every_number_of_ranks(laptop: Server, model: str) -> None:
    """pro has two ranks. The client asks for base64, and reads it with numpy."""
    embeddings = laptop.client().embeddings
    texts = ["What is a prime number?", "Write a story.", "def add(a, b):", "Hello"]
    together = embeddings.create(model=model, input=texts)
    vectors = np.array([one.embedding for one in together.data])
    alone = np.array([embeddings.create(model=model, input=text).data[0].embedding for text in texts])
    np.testing.assert_allclose(vectors, alone, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=0, atol=1e-6)
    assert len({tuple(vector) for vector in vectors}) == len(texts)
    assert together.model_extra is not None
    assert "not trained for retrieval" in together.model_extra["moray"]["vectors"]
    cut = embeddings.create(model=model, input=texts[0], dimensions=7, encoding_format="float").data[0].embedding
    np.testing.assert_allclose(cut, vectors[0, :7] / np.linalg.norm(vectors[0, :7]), rtol=0, atol=1e-5)


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


@pytest.mark.parametrize("seed", range(3))
def test_the_clients_own_model_is_parsed_from_an_answer_whole_and_streamed(laptop: Server, seed: int) -> None:
    completions = laptop.client().chat.completions
    whole = laptop.client().beta.chat.completions.parse(**HELD, seed=seed, response_format=Number)
    assert isinstance(whole.choices[0].message.parsed, Number)
    with completions.stream(**HELD, seed=seed, response_format=Number) as stream:
        told = [event for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert "".join(event.delta for event in told) == whole.choices[0].message.content


def test_a_demanded_call_is_parsed_by_the_client_whole_and_streamed(laptop: Server) -> None:
    completions = laptop.client().chat.completions
    demanded: Any = HELD | {"seed": 1, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = list(completions.parse(**demanded).choices[0].message.tool_calls or [])
    assert isinstance(call.function.parsed_arguments, Number | Look)
    with completions.stream(**demanded) as stream:
        (streamed,) = list(stream.get_final_completion().choices[0].message.tool_calls or [])
    assert streamed.function.parsed_arguments == call.function.parsed_arguments


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_that_may_call_or_meet_a_schema_is_parsed_either_way(laptop: Server, seed: int) -> None:
    completions, asked = laptop.client().chat.completions, HELD | {"seed": seed, "tools": TOOLS}
    whole = completions.parse(**asked, response_format=Number).choices[0]
    with completions.stream(**asked, response_format=Number) as stream:
        streamed = stream.get_final_completion().choices[0]
    calls = [call.function.parsed_arguments for call in whole.message.tool_calls or ()]
    assert calls == [call.function.parsed_arguments for call in streamed.message.tool_calls or ()]
    assert whole.message.parsed == streamed.message.parsed
    found: Any = calls or [whole.message.parsed]
    assert all(isinstance(one, Number | Look) for one in found)


def test_several_answers_come_side_by_side_and_the_first_is_that_of_one(laptop: Server) -> None:
    completions = laptop.client().chat.completions
    asked: Any = {"model": "gpt-5.2-mini", "messages": ASK, "seed": 3, "max_tokens": 24, "temperature": 2.0}
    alone, whole = completions.create(**asked), completions.create(**asked, n=3)
    said = [choice.message.content for choice in whole.choices]
    assert said[0] == alone.choices[0].message.content
    assert len(set(said)) == 3
    assert whole.usage is not None
    assert alone.usage is not None
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens
    assert whole.system_fingerprint == alone.system_fingerprint
    told = dict.fromkeys(range(3), "")
    for chunk in completions.create(**asked, n=3, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert chunk.system_fingerprint == alone.system_fingerprint
    assert list(told.values()) == said


def test_a_text_is_gone_on_with_whole_and_streamed_alike(laptop: Server) -> None:
    completions = laptop.client().completions
    asked: Any = {"model": "gpt-5.2-mini", "prompt": "A prime number is", "seed": 3, "max_tokens": 12}
    whole = completions.create(**asked, n=2, logprobs=2)
    for choice in whole.choices:
        assert choice.logprobs is not None
        offsets, tokens = choice.logprobs.text_offset or [], choice.logprobs.tokens or []
        assert [choice.text.startswith(token, at) for at, token in zip(offsets, tokens, strict=True)].count(True) > 5
        assert all(len(best) <= 2 for best in choice.logprobs.top_logprobs or ())
    told = {0: "", 1: ""}
    for chunk in completions.create(**asked, n=2, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].text
    assert list(told.values()) == [choice.text for choice in whole.choices]
    echo = completions.create(**asked, echo=True).choices[0].text
    assert echo == asked["prompt"] + whole.choices[0].text
    with pytest.raises(BadRequestError, match=r"prompt: token 999999; 0\.\.") as caught:
        completions.create(**asked | {"prompt": [1, 999_999]})
    assert caught.value.param == "prompt"


def test_a_named_tool_is_called_whatever_the_model_would_say(laptop: Server) -> None:
    named: Any = {"type": "function", "function": {"name": "Look"}}
    said = laptop.client().chat.completions.parse(**HELD, tools=TOOLS, tool_choice=named).choices[0]
    (call,) = list(said.message.tool_calls or [])
    assert (call.function.name, said.finish_reason) == ("Look", "tool_calls")
    assert isinstance(call.function.parsed_arguments, Look)
