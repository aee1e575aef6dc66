"""Who asks, and what the key may do: organisations have projects, projects have keys, keys have scopes.

An organisation and a project are what keys say: they exist with their first key. An admin's key is the operator's own:
it sees and changes the keys of all organisations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Literal

from cluster.errors import Forbidden, InvalidRequest, RequestError, Unauthorized

SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "chat": "language models: /v1/chat and all that no other scope names",
        "videos": "/v1/videos, /v1/storyboards and what belongs to them",
        "files": "/v1/files",
        "admin": "/v1/admin and /v1/organization: keys of all organisations, plans, usage and costs",
    }
)
USUAL = tuple(scope for scope in SCOPES if scope != "admin")  # of a key that names none, and of keys from before scopes
OF_PATHS = {
    "/v1/videos": "videos",
    "/v1/storyboards": "videos",
    "/v1/files": "files",
    "/v1/admin": "admin",
    "/v1/organization": "admin",
}
OPEN = ("/v1/models", "/v1/usage")  # to every key that is valid: what is served, and what the key itself used
Sharing = Literal["key", "project", "family"]
DEFAULT = "default"  # the organisation and the project of who names none


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Whose a key is, what it may do, and until when (Unix seconds; None: until it is revoked)."""

    org: str = DEFAULT
    project: str = DEFAULT
    scopes: tuple[str, ...] = USUAL
    expires_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """`plan`: of the family file, None for a key that may use every tier. Times are Unix seconds.

    `expires_s`: refused from then on; of a secret that was rotated out, the end of its grace.
    """

    id: str
    name: str
    plan: str | None
    created_s: float
    revoked_s: float | None
    org: str = DEFAULT
    project: str = DEFAULT
    scopes: tuple[str, ...] = USUAL
    expires_s: float | None = None


def scope_of(path: str) -> str | None:
    """The scope that a route needs; None where any valid key will do."""
    if any(path == each or path.startswith(f"{each}/") for each in OPEN):
        return None
    return next((scope for each, scope in OF_PATHS.items() if path == each or path.startswith(f"{each}/")), "chat")


def refusal(record: KeyRecord, path: str, now_s: float) -> RequestError | None:
    """Why this key may not ask for that route now; None where it may."""
    if record.expires_s is not None and record.expires_s <= now_s:
        return Unauthorized(
            "authorization: the API key has expired, or was rotated; a valid one is allowed; `moray keys create` "
            "makes a new one",
            code="key_expired",
        )
    needed = scope_of(path)
    if needed is None or needed in record.scopes:
        return None
    return Forbidden(
        f"authorization: the key has the scopes {', '.join(record.scopes)}; {path[:64]} needs {needed}; use a key "
        "that has it"
    )


def checked_scopes(given: tuple[str, ...]) -> tuple[str, ...]:
    """In their own order, each once. Raises InvalidRequest."""
    for scope in given:
        if scope not in SCOPES:
            known = ", ".join(SCOPES)
            raise InvalidRequest(f"scopes: {scope[:64]!r}; {known} are allowed; choose of them", param="scopes")
    return tuple(scope for scope in SCOPES if scope in given) or USUAL


def cache_salt(record: KeyRecord, sharing: Sharing) -> str:
    """Equal for keys that may use each other's cached prefixes, and for no others. "" where all do.

    Who shares a cache can tell from its time, and from `cached_tokens`, whether another asked the same before.
    """
    match sharing:
        case "key":
            whose: tuple[str, ...] = (record.id,)
        case "project":
            whose = (record.org, record.project)
        case "family":
            return ""
    return blake2b("\0".join((sharing, *whose)).encode(), digest_size=16).hexdigest()
