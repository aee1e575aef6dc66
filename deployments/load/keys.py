"""Who asks: API keys, read from files. A secret in a command line is seen by every user of the machine."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.errors import ConfigurationError

ANYBODY = "default"  # the one tenant, where none are told apart


def keys(given: Sequence[str]) -> dict[str, str]:
    """By tenant, from [NAME=]FILE each; without a name it is the key of ANYBODY.

    Raises ConfigurationError, which never shows what was given: it may be the secret itself.
    """
    found: dict[str, str] = {}
    for number, one in enumerate(given, 1):
        name, _, file = one.rpartition("=")
        name = name or ANYBODY
        if name in found:
            raise ConfigurationError(f"--key: {name} given again; each tenant once is allowed; write NAME=FILE")
        found[name] = _secret(Path(file), f"--key: number {number}")
    if ANYBODY in found and len(found) > 1:
        raise ConfigurationError("--key: one without a name beside named ones; write NAME=FILE for each of them")
    return found


def _secret(file: Path, where: str) -> str:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            f"{where} names no file that can be read; a file with the key is needed, since others see command lines; "
            "write the key into one"
        ) from None
    if not text or len(text.split()) > 1 or not text.isascii():
        raise ConfigurationError(f"{where}: the file holds no key; one ASCII word is needed; write the key alone")
    return text


def tenants(keys: Mapping[str, str], shares: Mapping[str, float]) -> dict[str, float]:
    """Who asks, with shares. Raises ConfigurationError where a tenant has no key and others have theirs."""
    if not shares:
        return dict.fromkeys(keys or (ANYBODY,), 1.0)
    named = set(keys) - {ANYBODY}
    for name in shares:
        if named and name not in named:
            raise ConfigurationError(f"--key: none for tenant {name}; one for each is needed; add --key {name}=FILE")
    for name in named - set(shares):
        raise ConfigurationError(f"--key: {name} is no tenant; {', '.join(shares)} are; drop it or give it a share")
    return dict(shares)


def of(tenant: str, keys: Mapping[str, str]) -> dict[str, str]:
    """The headers of a tenant's requests. One key without a name serves all."""
    key = keys.get(tenant) or keys.get(ANYBODY)
    return {"Authorization": f"Bearer {key}"} if key else {}
