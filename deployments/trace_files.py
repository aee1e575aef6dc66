"""Reading trace files, plain or gzip, for the pure parsers of cluster.traces and cluster.servegen."""

import gzip
import zlib
from pathlib import Path

from cluster.errors import ConfigurationError
from cluster.servegen import Fitted, parse_clients, parse_lengths

GZIP_MAGIC = b"\x1f\x8b"


def lines(path: str | Path) -> list[str]:
    """All lines of a UTF-8 file; gzip is known by its first bytes, whatever the name.

    Raises ConfigurationError where the file cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(GZIP_MAGIC):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigurationError(f"{path}: broken gzip: {error}; a whole file is needed; fetch it again") from error
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; a readable file is needed; give its path") from error
    try:
        return data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}:{line}: byte {data[error.start]:#04x} is not UTF-8; plain or gzipped UTF-8 text is allowed; "
            "convert the file"
        ) from error


def fitted(prefix: str | Path) -> Fitted:
    """PREFIX_clients.csv and PREFIX_lengths.json, either of them with or without .gz."""
    clients, lengths = _found(f"{prefix}_clients.csv"), _found(f"{prefix}_lengths.json")
    return Fitted(
        clients=parse_clients(lines(clients), str(clients)),
        lengths=parse_lengths(lines(lengths), str(lengths)),
    )


def _found(plain: str) -> Path:
    for path in (Path(plain), Path(f"{plain}.gz")):
        if path.is_file():
            return path
    raise ConfigurationError(f"{plain}: missing, and so is {plain}.gz; one of them is needed; give the files' prefix")
