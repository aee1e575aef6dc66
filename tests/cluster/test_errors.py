import inspect
import pickle
from typing import Any

import pytest

from cluster import errors
from cluster.errors import (
    InvalidRequest,
    MethodNotAllowed,
    MorayError,
    Overloaded,
    RateLimited,
    RequestError,
    ServiceError,
)

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, MorayError)]
every = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def made(kind: type[MorayError]) -> MorayError:
    given: dict[str, Any] = {"retry_after_s": 1.5} if issubclass(kind, Overloaded | RateLimited) else {}
    given |= {"allowed": "GET"} if kind is MethodNotAllowed else {}
    return kind("a: b; c; d", **given)


@every
def test_every_error_crosses_a_process_border_whole(kind: type[MorayError]) -> None:
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.__dict__) == (str(error), error.__dict__)


@every
def test_the_docstring_shows_every_error_with_its_status_and_code(kind: type[MorayError]) -> None:
    assert errors.__doc__ is not None
    line = next(line for line in errors.__doc__.splitlines() if line.split()[:1] and kind.__name__ in line)
    if not kind.__subclasses__() and issubclass(kind, RequestError | ServiceError):
        assert f"{kind.status} {kind.code}" in line


@every
def test_the_callers_faults_are_4xx_and_ours_5xx(kind: type[MorayError]) -> None:
    assert kind.status // 100 == (4 if issubclass(kind, RequestError) else 5)


def test_a_code_given_replaces_the_codes_default_on_that_error_alone() -> None:
    assert InvalidRequest("x", code="unknown_parameter", param="top_p").code == "unknown_parameter"
    assert InvalidRequest("x").code == "invalid_value"


def test_param_and_retry_after_cross_too() -> None:
    again = pickle.loads(pickle.dumps(Overloaded("x", retry_after_s=2.0, param="model")))
    assert (again.retry_after_s, again.param) == (2.0, "model")
