"""The nginx.conf that tls.md shows, run by the real nginx between the official client and a gateway."""

import asyncio
import contextlib
import datetime as dt
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from integration.server import eventually, free_port
from openai import DefaultHttpxClient, OpenAI
from served_app import Served, served
from shell import Replica

from cluster.request import Chat

CONF = Path(__file__).parents[3] / "deployments" / "gateway" / "nginx.conf"
NAME = "moray.example.com"
MOST_BODY = 4096
WAIT_S = 60.0


class Stepwise:
    """A replica that gives nothing behind its first bytes until the test has them."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self.go_on = threading.Event()

    async def complete(self, chat: Chat) -> Any:
        return await self._replica.complete(chat)

    async def stream(self, chat: Chat) -> AsyncIterator[Any]:
        told = 0
        async for item in self._replica.stream(chat):
            yield item
            told += 1
            if told == 1:
                await asyncio.to_thread(self.go_on.wait, WAIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxied:
    gateway: Served
    replica: Stepwise
    port: int
    clear_port: int
    authority: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, **words: Any) -> httpx.Client:
        verify = ssl.create_default_context(cafile=str(self.authority))
        return httpx.Client(base_url=self.url, verify=verify, trust_env=False, timeout=WAIT_S, **words)


def certified(folder: Path) -> None:
    """A fresh authority, ca.crt, and a certificate of its for this machine: tls.crt, tls.key."""
    begin = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "tls")}
    names = {name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in keys}
    for name, key in keys.items():
        made = x509.CertificateBuilder().subject_name(names[name]).issuer_name(names["ca"]).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(begin).not_valid_after(begin + dt.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key())
        made = made.add_extension(issuer, critical=False)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if name == "tls":
            here = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            made = made.add_extension(x509.SubjectAlternativeName(here), critical=False)
        signed = made.sign(keys["ca"], hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    words = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "tls.key").write_bytes(keys["tls"].private_bytes(*words))


def here_instead(text: str, changes: dict[str, str]) -> str:
    for there, here in changes.items():
        assert text.count(there) >= 1, there
        text = text.replace(there, here)
    return text


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is missing: install the Debian package nginx-light")
    folder, replicas = tmp_path_factory.mktemp("proxied"), list[Stepwise]()
    certified(folder)

    def stepwise(replica: Replica) -> Stepwise:
        replicas.append(Stepwise(replica))
        return replicas[-1]

    limits = {"coalesce_ms": 0, "tokens": "streamed", "max_body_bytes": MOST_BODY}
    with served(folder / "state", {"gateway": limits}, stepwise) as gateway:
        port, clear_port = free_port(), free_port()
        changes = {
            "server 127.0.0.1:8000": f"server 127.0.0.1:{gateway.port}",
            "listen 80;": f"listen 127.0.0.1:{clear_port};",
            "listen 443 ": f"listen 127.0.0.1:{port} ",
            f"server_name {NAME}": "server_name localhost",
            "/etc/moray/": f"{folder}/",
        }
        (folder / "moray.conf").write_text(here_instead(CONF.read_text(), changes))
        temps = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))  # fmt: skip
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
            f"http {{ access_log off; {temps} include {folder}/moray.conf; }}\n"
        )
        bound = shutil.which("setpriv")  # a killed test run takes it along
        command = [*((bound, "--pdeathsig", "KILL") if bound else ()), nginx, "-p", str(folder), "-c"]
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen([*command, str(folder / "nginx.conf")], stdout=out, stderr=out)
        try:
            eventually(lambda: answers(port) or process.poll() is not None, WAIT_S, "nginx answers")
            assert process.poll() is None, (folder / "out").read_text() + (folder / "error.log").read_text()
            yield Proxied(
                gateway=gateway,
                replica=replicas[0],
                port=port,
                clear_port=clear_port,
                authority=folder / "ca.crt",
            )
        finally:
            process.terminate()
            process.wait(WAIT_S)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def openai(proxied: Proxied) -> Iterator[OpenAI]:
    """The client, as the document has it."""
    trusted = DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(proxied.authority)), trust_env=False)
    with OpenAI(
        base_url=f"{proxied.url}/v1", api_key=proxied.gateway.key, http_client=trusted, max_retries=0, timeout=WAIT_S
    ) as client:
        yield client


def test_the_first_event_arrives_before_the_last_is_sent(proxied: Proxied) -> None:
    proxied.replica.go_on.clear()
    with openai(proxied) as client:
        stream = client.chat.completions.create(
            model="mini", messages=[{"role": "user", "content": "hello"}], max_tokens=8, stream=True
        )
        events = iter(stream)
        first = next(events)  # would wait for ever where the proxy kept it: the others are not made before
        assert first.choices[0].delta.role == "assistant"
        assert not proxied.replica.go_on.is_set()
        proxied.replica.go_on.set()
        last = list(events)[-1]
        assert last.choices[0].finish_reason == "length"


def test_files_and_whole_answers_pass(proxied: Proxied) -> None:
    proxied.replica.go_on.set()
    with openai(proxied) as client:
        sent = client.files.create(file=("a.txt", b"x" * 3_000_000), purpose="user_data")
        assert client.files.content(sent.id).read() == b"x" * 3_000_000
        answer = client.chat.completions.create(
            model="mini", messages=[{"role": "user", "content": "hello"}], max_tokens=3
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


def test_what_is_too_large_is_refused_by_the_gateway_in_its_words(proxied: Proxied) -> None:
    with proxied.client(headers=proxied.gateway.auth) as http:
        answer = http.post("/v1/chat/completions", content=b"x" * 10 * MOST_BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_who_does_not_know_the_authority_is_told_nothing(proxied: Proxied) -> None:
    with (
        httpx.Client(trust_env=False, timeout=WAIT_S) as http,
        pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        http.get(f"{proxied.url}/v1/models", headers=proxied.gateway.auth)


def test_http_in_the_clear_is_refused_and_leads_nowhere(proxied: Proxied) -> None:
    with httpx.Client(trust_env=False, timeout=WAIT_S, headers=proxied.gateway.auth) as http:
        answer = http.get(f"http://127.0.0.1:{proxied.clear_port}/v1/models")
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "https_required")
        assert "location" not in answer.headers


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_http_2_is_spoken_over_tls_of_today(proxied: Proxied, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(proxied.authority))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", proxied.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as spoken,
    ):
        assert spoken.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("path", ["/metrics", "/metrics/targets", "/health", "/console", "/console/state", "/"])
def test_pages_that_ask_for_no_key_stay_inside(proxied: Proxied, path: str) -> None:
    with proxied.client() as http:
        assert http.get(path).status_code == 404
        assert http.get("/openapi.json").json()["openapi"] == "3.1.0"


def test_what_a_caller_says_of_its_address_is_dropped(proxied: Proxied) -> None:
    with proxied.client(headers=proxied.gateway.auth) as http:
        http.get("/v1/admin/plans", headers={"X-Forwarded-For": "6.6.6.6"})
        assert http.get("/v1/admin/acts").json()["data"][-1]["from"] == "127.0.0.1"


def test_two_keys_are_refused_through_the_proxy_too(proxied: Proxied) -> None:
    with proxied.client() as http:
        given = [("Authorization", f"Bearer {proxied.gateway.key}"), ("Authorization", "Bearer sk-moray-none")]
        assert http.get("/v1/models", headers=given).status_code in (400, 401)


def test_every_line_that_the_document_explains_is_in_the_configuration() -> None:
    document = (CONF.parent / "tls.md").read_text()
    cells = itertools.takewhile(bool, re.findall(r"^\| (.*?) \|", document, re.MULTILINE)[2:])
    lines = [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]
    assert len(lines) > 5
    for line in lines:
        parts = [re.escape(part.strip()) for part in line.split("...")]
        assert re.search(".*".join(parts), CONF.read_text()), line
