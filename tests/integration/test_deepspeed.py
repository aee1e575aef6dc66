"""A deferrable tier as its user meets it: named, it answers as the torch engine does; nobody else is sent there."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import pytest
from integration.conftest import Stage
from integration.families import shipped
from integration.server import Server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is missing; mend: pip install '.[deepspeed]'"),
]
ASK: Any = [{"role": "user", "content": "What is a prime number?"}]


def offline(folder: Path, port: int) -> dict[str, Any]:
    """mini twice, of which one is brought to each layer from memory; auto chooses the other."""
    raw = shipped(folder, port)
    mini = raw["tiers"]["mini"]
    deferred = {
        "names": ["offline"],
        "engine": "deepspeed",
        "offload": {"to": "cpu", "gather_s": 0.1, "limit_s": 60},
        "slo": {"ttft_s": 60, "tpot_ms": 1000},
        "patience_s": 60,
        "replicas": {"min": 1, "max": 1, "initial": 1},
    }
    raw["tiers"] = {"mini": mini, "offline": {**mini, **deferred}}
    raw["auto"] = {"names": ["auto"], "default": "mini", "long": "mini", "long_prompt_tokens": 1000}
    return {key: value for key, value in raw.items() if key not in ("video", "plans", "personas")}


@pytest.fixture
def served(stage: Stage) -> Server:
    return stage.serve("offline", offline)


def test_a_deferrable_tier_answers_whoever_names_it_whole_and_streamed_as_the_torch_engine_does(
    served: Server,
) -> None:
    completions = served.client().chat.completions
    settings: Any = {"messages": ASK, "seed": 3, "max_tokens": 48}
    raw = completions.with_raw_response.create(model="offline", **settings)
    assert (raw.headers["moray-tier"], raw.headers["moray-class"]) == ("offline", "deferrable")
    whole, other = raw.parse(), completions.create(model="gpt-5.2-mini", **settings)
    assert whole.choices[0].message.content == other.choices[0].message.content != ""
    chunks = list(completions.create(model="offline", stream=True, **settings))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert len(chunks) > 5


def test_its_class_is_told(served: Server) -> None:
    listed = {model.id: model.model_extra or {} for model in served.client().models.list()}
    assert {name: facts.get("deferrable") for name, facts in listed.items()} == {
        "offline": True,
        "gpt-5.2-mini": False,
        "auto": None,
    }


def test_the_plain_name_never_chooses_it(served: Server) -> None:
    raw = served.client().chat.completions.with_raw_response
    tiers = {raw.create(model="auto", messages=ASK, max_tokens=4).headers["moray-tier"] for _ in range(3)}
    assert tiers == {"mini"}


def test_what_it_cannot_do_is_refused(served: Server) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "any", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="response_format"):
        served.client().chat.completions.create(model="offline", messages=ASK, response_format=schema)
