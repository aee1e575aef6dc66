"""A line of a log with fields, whatever a client sends in them."""

import json
import logging
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.log import event

log = logging.getLogger("test_log")


def told(caplog: pytest.LogCaptureFixture, **fields: object) -> logging.LogRecord:
    caplog.clear()
    with caplog.at_level(logging.INFO, log.name):
        event(log, logging.INFO, "what", **fields)
    (record,) = caplog.records
    return record


def test_a_line_has_its_fields_as_words_and_its_record_as_members(caplog: pytest.LogCaptureFixture) -> None:
    record = told(caplog, path="/v1/models", seconds=0.5, ledger={"queue": 1.0}, why="")
    assert record.getMessage() == 'what path=/v1/models seconds=0.5 ledger={"queue": 1.0} why=""'
    assert (record.__dict__["path"], record.__dict__["ledger"]) == ("/v1/models", {"queue": 1.0})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_a_value_is_one_word_of_printable_ascii_or_a_json_string_and_can_be_read_back(
    caplog: pytest.LogCaptureFixture, value: str
) -> None:
    shown = told(caplog, value=value).getMessage().removeprefix("what value=")
    assert re.fullmatch("[ -~]*", shown)
    if shown != value:
        assert json.loads(shown) == value
    else:
        assert re.fullmatch('[^ "=]+', shown)


@pytest.mark.parametrize("value", ["a\nrequest status=200", "\x1b[2K", "\x7f", "\u202e", "\u2028", 'a" code=ok'])
def test_a_client_can_write_no_line_no_field_and_no_control_code(caplog: pytest.LogCaptureFixture, value: str) -> None:
    assert told(caplog, path=value).getMessage() == f"what path={json.dumps(value)}"
