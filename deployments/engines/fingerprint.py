"""What an equal seed gives equal answers by: a short name for the weights, the engine that computes them, and versions.

Of a large file of weights evenly spaced blocks are read, not all of it: training moves every tensor.
"""

from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from cluster.family import Tier

WHOLE_BYTES = 16 << 20
BLOCKS, BLOCK_BYTES = 64, 1 << 16
_FILES = ("config.json", "generation_config.json", "tokenizer*", "chat_template*", "*.safetensors", "*.bin")
_PACKAGES = {"torch": ("torch",), "vllm": ("vllm", "torch"), "deepspeed": ("deepspeed", "torch"), "simulated": ()}


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fingerprint(tier: Tier, accelerator: str) -> str:
    """Of the answers of a replica. A file that cannot be read counts by its name: the engine says what is wrong."""
    found = blake2b(digest_size=5)
    packages = [f"{name} {_version(name)}" for name in ("moray", *_PACKAGES[tier.engine])]
    found.update(repr((tier.engine, tier.dtype, accelerator, packages)).encode())
    if tier.engine != "simulated":
        folder = Path(tier.checkpoint)
        for file in sorted({file for form in _FILES for file in folder.glob(form)}):
            _read(file, found)
    return f"fp_{found.hexdigest()}"


def _read(file: Path, found: _Hash) -> None:
    found.update(file.name.encode())
    try:
        size = file.stat().st_size
        found.update(b"%d" % size)
        with file.open("rb") as data:
            if size <= WHOLE_BYTES:
                found.update(data.read())
                return
            for block in range(BLOCKS):
                data.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
                found.update(data.read(BLOCK_BYTES))
    except OSError:
        return


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
