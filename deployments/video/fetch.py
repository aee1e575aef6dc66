"""What a URL in a request points at, without letting a request reach into our own network.

http, https and data only. A name is resolved once, every address it has must be public, and the connection is made to
such an address, under the name in TLS and in the Host header: a name that changes its address meanwhile changes
nothing. Each redirect is a new URL to which all of this applies. Bytes, time and redirects are bounded. Proxies of the
environment are not used.
"""

import asyncio
import base64
import binascii
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote_to_bytes

import httpx

from cluster.errors import InvalidRequest
from deployments.video.fit import refused

LONGEST_DATA_URL_CHARS = 20_971_520
LONGEST_URL_CHARS = 8_192
MOST_REDIRECTS = 5
TIMEOUT_S = 20.0
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
_IPV6_UNICAST, _NAT64 = ip_network("2000::/3"), ip_network("64:ff9b::/96")
# What Python counts as global and yet is of a cloud's inside: protocol assignments, Azure's host.
_INSIDE = (ip_network("192.0.0.0/24"), ip_network("168.63.129.16/32"))


async def resolved(host: str, port: int) -> Sequence[str]:
    """Addresses of a name in the order of the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def fetch(
    url: str,
    limit_bytes: int,
    *,
    param: str = "image_url",
    resolve: Resolve = resolved,
    transport: httpx.AsyncBaseTransport | None = None,
) -> bytes:
    """`transport`: what connects, to an address already checked. Raises InvalidRequest."""
    if url[:5].lower() == "data:":
        return _of_data_url(url, limit_bytes, param)
    try:
        # Not a client: one follows redirects by itself, keeps cookies, and asks the environment for proxies.
        async with asyncio.timeout(TIMEOUT_S), transport or httpx.AsyncHTTPTransport(verify=_tls()) as network:
            return await _followed(network, url, limit_bytes, param, resolve)
    except TimeoutError:
        raise refused(param, "does not answer", f"{TIMEOUT_S:.0f} s are allowed", "upload the file instead") from None


@cache
def _tls() -> ssl.SSLContext:
    """Reading the roots costs some 20 ms of the event loop, once."""
    return httpx.create_ssl_context(trust_env=False)


def public(address: str) -> bool:
    """Whether an address is one of the open internet: no private, shared, local, multicast or reserved one.

    Of IPv6 only global unicast, so neither IPv4 in disguise; NAT64 counts as the IPv4 address in it.
    """
    there = ip_address(address.partition("%")[0])
    if isinstance(there, IPv6Address) and there in _NAT64:
        there = IPv4Address(there.packed[-4:])
    if isinstance(there, IPv6Address):
        return there in _IPV6_UNICAST and there.is_global and there.sixtofour is None
    return there.is_global and not there.is_multicast and not there.is_reserved and not any(there in n for n in _INSIDE)


async def _followed(
    network: httpx.AsyncBaseTransport, url: str, limit_bytes: int, param: str, resolve: Resolve
) -> bytes:
    for _ in range(MOST_REDIRECTS + 1):
        at = _parsed(url, param)
        async with aclosing(await _answer(network, at, param, resolve)) as answer:
            if answer.has_redirect_location:
                url = _next(at, answer.headers["location"], param)
                continue
            return await _body(answer, limit_bytes, param)
    raise refused(param, "redirects again and again", f"{MOST_REDIRECTS} redirects are allowed", "give the last URL")


def _parsed(url: str, param: str) -> httpx.URL:
    if len(url) > LONGEST_URL_CHARS:
        raise refused(param, f"{len(url)} characters", f"{LONGEST_URL_CHARS} are allowed", "upload the file instead")
    try:
        at = httpx.URL(url)
    except httpx.InvalidURL:
        raise refused(param, "no URL", "http, https and data URLs are allowed", "mend it") from None
    if at.scheme not in ("http", "https") or not at.host:
        raise refused(param, f"scheme {at.scheme[:16]!r}", "http, https and data URLs are allowed", "give one of them")
    if (at.port or 0) >= 1 << 16:
        raise refused(param, f"port {at.port}", "ports up to 65535 are allowed", "mend it")
    if at.userinfo:
        raise refused(param, "has a user name in it", "URLs without one are allowed", "upload the file instead")
    return at


async def _answer(network: httpx.AsyncBaseTransport, at: httpx.URL, param: str, resolve: Resolve) -> httpx.Response:
    """Of the first address that takes the connection."""
    headers = {"host": at.netloc.decode("ascii"), "accept-encoding": "identity", "user-agent": "moray"}
    extensions = {"sni_hostname": at.raw_host.decode("ascii")}
    for address in await _addresses(at, param, resolve):
        try:
            there = httpx.Request("GET", at.copy_with(host=address), headers=headers, extensions=extensions)
            return await network.handle_async_request(there)
        except httpx.ConnectError:
            continue
        except httpx.HTTPError:
            raise _broken(param) from None
    raise refused(param, f"{at.host[:64]} takes no connection", "a reachable URL is allowed", "upload the file instead")


async def _addresses(at: httpx.URL, param: str, resolve: Resolve) -> Sequence[str]:
    """All of a host's, and all of them public."""
    try:
        found = await resolve(at.raw_host.decode("ascii"), at.port or (443 if at.scheme == "https" else 80))
    except (OSError, UnicodeError):
        found = ()
    if not found:
        raise refused(param, f"host {at.host[:64]!r} is not known", "a reachable URL is allowed", "check its name")
    if not all(map(public, found)):
        raise refused(
            param, f"host {at.host[:64]!r} is not public", "hosts of the open internet are allowed", "upload the file"
        )
    return found


def _next(at: httpx.URL, location: str, param: str) -> str:
    try:
        return str(at.join(location))
    except httpx.InvalidURL:
        raise refused(param, "redirects to no URL", "http and https are allowed", "give the last URL") from None


async def _body(answer: httpx.Response, limit_bytes: int, param: str) -> bytes:
    """As sent: what is compressed on the way could unfold to any size."""
    if answer.status_code != 200:
        raise refused(param, f"answers {answer.status_code}", "200 is allowed", "check that it can be read by all")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise refused(param, "is sent compressed", "it is allowed as it is", "upload the file instead")
    if int(answer.headers.get("content-length", "0")) > limit_bytes:
        raise _too_long(param, limit_bytes)
    body = bytearray()
    try:
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > limit_bytes:
                raise _too_long(param, limit_bytes)
    except httpx.HTTPError:
        raise _broken(param) from None
    return bytes(body)


def _of_data_url(url: str, limit_bytes: int, param: str) -> bytes:
    if len(url) > LONGEST_DATA_URL_CHARS:
        raise refused(
            param, f"{len(url)} characters", f"{LONGEST_DATA_URL_CHARS} are allowed in data", "upload the file instead"
        )
    head, comma, rest = url.partition(",")
    try:
        encoded = unquote_to_bytes(rest)
        data = base64.b64decode(encoded, validate=True) if head.lower().endswith(";base64") else encoded
    except (binascii.Error, UnicodeEncodeError):
        comma = ""
    if not comma:
        raise refused(param, "no data URL", "data:image/png;base64,... is allowed", "encode it anew")
    if len(data) > limit_bytes:
        raise _too_long(param, limit_bytes)
    return data


def _broken(param: str) -> InvalidRequest:
    return refused(param, "broke off", "a whole answer in HTTP is allowed", "upload the file instead")


def _too_long(param: str, limit_bytes: int) -> InvalidRequest:
    return refused(param, "is too long", f"at most {limit_bytes} bytes are allowed", "send a smaller file")
