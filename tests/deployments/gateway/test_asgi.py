import asyncio
import json
import logging
import re
from pathlib import Path

import pytest
from shell import Exchange
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.access import Grant
from cluster.errors import BodyTooLarge, InvalidRequest, MorayError, Overloaded, RequestError, Unauthorized
from deployments.gateway import asgi
from deployments.gateway.asgi import REQUEST_ID, Envelope, authorize, read_body, respond
from deployments.stores.keys import KeyStore


def refusing(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return Envelope(app)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await read_body(scope, receive, 10)
    await respond(send, 200, json.dumps([scope[REQUEST_ID], body.decode()]).encode())


async def reply(app: ASGIApp, *parts: bytes, **headers: str) -> Exchange:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await Exchange(app, "/", *parts, headers=named).finished()


async def test_an_error_of_ours_becomes_openais_error_object() -> None:
    answer = await reply(refusing(Overloaded("engine: full; try again later", retry_after_s=2.5)))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.json() == {
        "error": {
            "message": "engine: full; try again later",
            "type": "rate_limit_error",
            "param": None,
            "code": "overloaded",
        }
    }


async def test_an_internal_exception_leaks_nothing() -> None:
    answer = await reply(refusing(RuntimeError("password=hunter2 in /etc/secret")))
    assert answer.status == 500
    assert "hunter2" not in answer.body.decode()
    assert "RuntimeError" not in answer.body.decode()
    assert answer.json()["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (InvalidRequest("messages: given 'my prompt'; a list is allowed; change the value"), False),
        (Overloaded("engine: full; try again later", retry_after_s=2.5), True),
    ],
)
async def test_the_log_has_the_code_of_a_refusal_and_its_reason_where_that_cannot_quote_the_request(
    error: MorayError, logged: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi.log, "propagate", True)
    with caplog.at_level(logging.INFO, asgi.log.name):
        answer = await reply(refusing(error))
    assert answer.json()["error"]["message"] == error.message
    assert f"code={error.code}" in caplog.text
    assert any(record.__dict__.get("why") == error.message for record in caplog.records) == logged
    assert "my prompt" not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("secret"), MorayError("known")])
async def test_an_error_after_the_first_byte_breaks_the_response_instead_of_mixing_two(error: Exception) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    exchange = Exchange(Envelope(app), "/")
    with pytest.raises(type(error)):
        await exchange.finished()
    assert len(exchange.sent) == 1


@pytest.mark.parametrize("given", ["abc", "A-b_c.1:2", "x" * 128])
async def test_a_callers_request_id_is_kept(given: str) -> None:
    assert (await reply(Envelope(echo), x_request_id=given)).json()[0] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "ä"])
async def test_a_request_without_a_safe_id_gets_one(given: str) -> None:
    first, second = [(await reply(Envelope(echo), x_request_id=given)).json()[0] for _ in range(2)]
    assert re.fullmatch("req_[0-9a-f]{24}", first)
    assert first != second


@pytest.mark.parametrize("parts", [(b"0123456789",), (b"01234", b"", b"56789"), (b"",)])
async def test_a_body_of_at_most_the_limit_is_read_whole(parts: tuple[bytes, ...]) -> None:
    assert (await reply(Envelope(echo), *parts)).json()[1].encode() == b"".join(parts)


@pytest.mark.parametrize("parts", [(b"0123456789X",), (b"0123456", b"789", b"X"), (b"0123456789", b"X" * 10_000, b"")])
async def test_a_larger_body_is_refused(parts: tuple[bytes, ...]) -> None:
    answer = await reply(Envelope(echo), *parts)
    assert answer.status == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert "at most 10" in answer.json()["error"]["message"]


async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read() -> None:
    async def never() -> dict[str, object]:
        pytest.fail("it was read")

    with pytest.raises(BodyTooLarge, match="11 bytes"):
        await read_body({"headers": [(b"content-length", b"11")]}, never, 10)


async def test_a_body_without_an_end_is_refused_as_soon_as_it_is_too_large() -> None:
    received = 0

    async def receive() -> dict[str, object]:
        nonlocal received
        received += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"xxxx", "more_body": True}

    with pytest.raises(BodyTooLarge):
        await read_body({"headers": []}, receive, 10)
    assert received == 3


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "keys.sqlite")


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_known_key_is_found_whatever_the_case_of_the_scheme(keys: KeyStore, scheme: str) -> None:
    secret, record = keys.create("a", 0.0)
    scope = {"path": "/v1/models", "headers": [(b"authorization", f"{scheme} {secret}".encode())]}
    assert authorize(scope, keys) == record


@pytest.mark.parametrize("given", [b"", b"Bearer", b"Bearer ", b"Basic dTpw", b"Bearer sk-moray-x", b"Bearer \xff"])
def test_any_other_authorization_is_refused_without_repeating_it(keys: KeyStore, given: bytes) -> None:
    headers = [(b"authorization", given)] if given else []
    with pytest.raises(Unauthorized) as refused:
        authorize({"path": "/v1/models", "headers": headers}, keys)
    assert "moray keys create" in refused.value.message
    assert "sk-moray-x" not in refused.value.message


def test_a_revoked_key_is_refused_at_once(keys: KeyStore) -> None:
    secret, record = keys.create("a", 0.0)
    keys.revoke(record.id, 1.0)
    with pytest.raises(Unauthorized):
        authorize({"path": "/v1/models", "headers": [(b"authorization", f"Bearer {secret}".encode())]}, keys)


def test_an_expired_key_and_one_without_the_scope_are_told_apart(keys: KeyStore) -> None:
    def asked(secret: str, path: str) -> str:
        try:
            return authorize({"path": path, "headers": [(b"authorization", f"Bearer {secret}".encode())]}, keys).name
        except RequestError as error:
            return f"{error.status} {error.code}"

    films, _ = keys.create("films", 0.0, None, Grant(scopes=("videos",)))
    gone, _ = keys.create("gone", 0.0, None, Grant(expires_s=1.0))
    assert asked(films, "/v1/videos") == asked(films, "/v1/models") == "films"
    assert asked(films, "/v1/chat/completions") == "403 insufficient_scope"
    assert asked(films, "/v1/admin/keys") == "403 insufficient_scope"
    assert asked(gone, "/v1/chat/completions") == "401 key_expired"
