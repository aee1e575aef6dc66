"""A real server on this machine answers under public addresses: what connects is led here, no check is left out."""

import asyncio
import base64
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from deployments.video import fetch as module
from deployments.video.fetch import fetch, public

PUBLIC, OTHER = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
LIMIT_BYTES = 100


@dataclass
class Site:
    """Answers by path, as bytes on the wire. `asked`: address that was connected to, Host header, path."""

    answers: dict[str, bytes]
    names: dict[str, Sequence[str]] = field(default_factory=lambda: {"pictures.example": (PUBLIC,)})
    dead: tuple[str, ...] = ()
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    answering: list[Any] = field(default_factory=list)
    port: int = 0
    trusted: ssl.SSLContext | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.answering.append(asyncio.current_task())
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(self.answers[request.split()[1]])
        if "waits" in request.split()[1]:
            await reader.read()  # until the client leaves
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    async def get(self, url: str, limit_bytes: int = LIMIT_BYTES) -> bytes:
        transport = Led(self)
        return await fetch(url, limit_bytes, param="image_url", resolve=self.resolve, transport=transport)

    async def refusal(self, url: str) -> str:
        return await refusal(self.get(url))


class Led(httpx.AsyncHTTPTransport):
    """Connects to the site whatever the address is; refuses those that are dead."""

    def __init__(self, site: Site) -> None:
        super().__init__(verify=site.trusted or False)
        self._site = site

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host in self._site.dead:
            raise httpx.ConnectError("dead", request=request)
        self._site.asked.append((request.url.host, request.headers["host"], request.url.path))
        request.url = request.url.copy_with(host="127.0.0.1", port=self._site.port)
        return await super().handle_async_request(request)


async def refusal(fetching: object) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await fetching  # type: ignore[misc]
    assert refused.value.param == "image_url"
    where, _, said = refused.value.message.partition(": ")
    assert (where, said.count("; ")) == ("image_url", 2)
    return said.rpartition("; ")[0]


@asynccontextmanager
async def serving(site: Site, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    server = await asyncio.start_server(site.answer, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    async with server:
        yield site
        await asyncio.gather(*site.answering)


def ok(body: bytes, *headers: str) -> bytes:
    lines = ("HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers, "", "")
    return "\r\n".join(lines).encode() + body


def to(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


async def test_a_picture_is_fetched_from_the_address_that_was_checked() -> None:
    async with serving(Site({"/a.png?size=2": ok(b"picture")})) as site:
        assert await site.get("http://pictures.example:8080/a.png?size=2") == b"picture"
        assert site.asked == [(PUBLIC, "pictures.example:8080", "/a.png")]


async def test_a_name_that_changes_its_address_meanwhile_changes_nothing() -> None:
    answers = iter([(PUBLIC,), ("127.0.0.1",)])

    async def resolve(host: str, port: int) -> Sequence[str]:
        return next(answers)

    async with serving(Site({"/": ok(b"picture")})) as site:
        got = await fetch("http://rebound.example/", LIMIT_BYTES, resolve=resolve, transport=Led(site))
        assert (got, site.asked[0][0]) == (b"picture", PUBLIC)
        assert list(answers) == [("127.0.0.1",)]  # it was asked once


async def test_the_next_address_is_tried_where_one_takes_no_connection() -> None:
    site = Site({"/": ok(b"picture")}, names={"pictures.example": (OTHER, PUBLIC)}, dead=(OTHER,))
    async with serving(site):
        assert await site.get("http://pictures.example/") == b"picture"
        assert site.asked == [(PUBLIC, "pictures.example", "/")]
        site.dead = (OTHER, PUBLIC)
        assert await site.refusal("http://pictures.example/") == (
            "pictures.example takes no connection; a reachable URL is allowed"
        )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_relative_ones_too(status: int) -> None:
    async with serving(Site({"/a/b": to("../c", status), "/c": ok(b"picture")})) as site:
        assert await site.get("http://pictures.example/a/b") == b"picture"


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "host '169.254.169.254' is not public"),
        ("http://10.0.0.1/", "host '10.0.0.1' is not public"),
        ("http://[::1]/", "host '::1' is not public"),
        ("http://[::ffff:127.0.0.1]/", "host '::ffff:127.0.0.1' is not public"),
        ("//inside.example/", "host 'inside.example' is not public"),
        ("http://nowhere.example/", "host 'nowhere.example' is not known"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("data:text/plain,inside", "scheme 'data'"),
        ("http://999.0.0.1/", "redirects to no URL"),
        ("http://user:password@pictures.example/", "has a user name in it"),
    ],
)
async def test_each_redirect_is_checked_as_the_first_url_is(location: str, said: str) -> None:
    names = {host: (host,) for host in ("169.254.169.254", "10.0.0.1", "::1", "::ffff:127.0.0.1")}
    site = Site(
        {"/": to(location)}, names={"pictures.example": (PUBLIC,), "inside.example": (PUBLIC, "10.1.2.3"), **names}
    )
    async with serving(site):
        assert (await site.refusal("http://pictures.example/")).startswith(f"{said}; ")
        assert len(site.asked) == 1


async def test_redirects_end() -> None:
    async with serving(Site({"/": to("/")})) as site:
        assert await site.refusal("http://pictures.example/") == "redirects again and again; 5 redirects are allowed"
        assert len(site.asked) == 6


GZIP = ok(b"\x1f\x8b", "content-encoding: gzip")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"20\r\n" + b"x" * 32 + b"\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "answers 404; 200 is allowed"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "answers 204; 200 is allowed"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answers 304; 200 is allowed"),
        (ok(bytes(101)), "is too long; at most 100 bytes are allowed"),
        (CHUNKED + b"50\r\n" + b"x" * 80 + b"\r\n0\r\n\r\n", "is too long; at most 100 bytes are allowed"),
        (CHUNKED, "broke off; a whole answer in HTTP is allowed"),
        (ok(b"picture")[:-2], "broke off; a whole answer in HTTP is allowed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "broke off; a whole answer in HTTP is allowed"),
        (GZIP, "is sent compressed; it is allowed as it is"),
    ],
)
async def test_what_is_no_whole_bounded_answer_is_refused(answer: bytes, said: str) -> None:
    async with serving(Site({"/": answer})) as site:
        assert await site.refusal("http://pictures.example/") == said


async def test_a_site_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    async with serving(Site({"/waits": CHUNKED})) as site:
        assert (await site.refusal("http://pictures.example/waits")).startswith("does not answer")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://pictures.example/a.png", "scheme 'ftp'; http, https and data URLs are allowed"),
        ("a.png", "scheme ''; http, https and data URLs are allowed"),
        ("http://", "scheme 'http'; http, https and data URLs are allowed"),
        ("http://pictures.example:99999/", "port 99999; ports up to 65535 are allowed"),
        ("http://0177.0.0.1/", "no URL; http, https and data URLs are allowed"),
        ("http://" + "a" * 8_200, "8207 characters; 8192 are allowed"),
    ],
)
async def test_what_is_no_such_url_is_refused(url: str, said: str) -> None:
    assert await refusal(fetch(url, LIMIT_BYTES)) == said


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "2130706433", "0x7f.1", "017700000001", "0", "10.1"]
)
async def test_this_machine_and_its_network_are_refused_however_they_are_written(host: str) -> None:
    said = await refusal(fetch(f"http://{host}:8000/metrics", LIMIT_BYTES))
    assert said.endswith(" is not public; hosts of the open internet are allowed")


@given(st.text(max_size=60) | st.text("0123456789abcdefx.:/[]@%?#-", max_size=40).map("http://{}".format))
async def test_any_text_at_all_is_a_url_or_is_refused(text: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        raise OSError(host.encode("ascii"), port)

    with contextlib.suppress(InvalidRequest):
        await fetch(text, LIMIT_BYTES, resolve=resolve)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "168.63.129.16", "169.254.169.254",
        "172.16.0.1", "192.0.0.192", "192.168.1.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::8.8.8.8", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8",
        "2001::1", "2001:db8::1", "2002:808:808::1", "fc00::1", "fd00:ec2::254", "fe80::1%eth0", "fec0::1", "ff02::1",
    ],
)  # fmt: skip
def test_addresses_of_no_open_network_are_not_public(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, OTHER, "64:ff9b::8.8.8.8", "2a00:1450:4001:81b::200e"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert public(address)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str))
def test_a_public_address_is_one_that_python_too_calls_global(address: str) -> None:
    there = ip_address(address)
    assert not public(address) or (there.is_global and not there.is_multicast)


@given(st.binary(max_size=LIMIT_BYTES))
async def test_a_data_url_is_what_it_carries(data: bytes) -> None:
    assert await fetch(f"data:image/png;base64,{base64.b64encode(data).decode()}", LIMIT_BYTES) == data
    assert await fetch("data:," + "".join(f"%{byte:02x}" for byte in data), LIMIT_BYTES) == data


async def test_data_urls_are_bounded_by_their_characters_and_their_bytes() -> None:
    head = "data:image/png;base64,"
    longest = head + "A" * (module.LONGEST_DATA_URL_CHARS - len(head) - 2)
    assert len(await fetch(longest, 1 << 24)) == 15_728_622
    assert await refusal(fetch(longest + "AAAA", 1 << 24)) == "20971522 characters; 20971520 are allowed in data"
    assert await refusal(fetch(head + "A" * 136, LIMIT_BYTES)) == "is too long; at most 100 bytes are allowed"


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:;base64,A", "data:;base64,A*==", "data:,\udc80"])
async def test_what_is_no_data_url_is_refused(url: str) -> None:
    assert (await refusal(fetch(url, LIMIT_BYTES))).startswith("no data URL; ")


def certified(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate of that name, and a client's that trusts it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "chain.pem").write_bytes(pem + key.private_bytes(*forms))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "chain.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_a_certificate_is_held_against_the_name_not_the_address(tmp_path: Path) -> None:
    server, client = certified("pictures.example", tmp_path)
    site = Site(
        {"/": ok(b"picture")}, names={"pictures.example": (PUBLIC,), "others.example": (PUBLIC,)}, trusted=client
    )
    async with serving(site, server):
        assert await site.get("https://pictures.example/") == b"picture"
        assert site.asked == [(PUBLIC, "pictures.example", "/")]
        assert (await site.refusal("https://others.example/")).startswith("others.example takes no connection")
