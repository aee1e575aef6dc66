import gzip
import json
from pathlib import Path

import pytest

from cluster.errors import ConfigurationError
from deployments.trace_files import fitted, lines

TEXT = "t_s\r\n0.5\n"
CLIENTS = "client,ts,rate_rps,pattern,shape\n0,0,1,Gamma,1\n"
LENGTHS = json.dumps({"0": {"w": 1, "pdf": {"input_tokens": {"5": 1}, "output_tokens": {"6": 1}}}})


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
@pytest.mark.parametrize(
    "data", [TEXT.encode(), TEXT.encode("utf-8-sig"), gzip.compress(TEXT.encode())], ids=["plain", "mark", "gzip"]
)
def test_a_file_is_known_by_its_first_bytes_not_by_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert lines(tmp_path / name) == ["t_s", "0.5"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            gzip.compress(b"0" * 9999)[:-9],
            "broken gzip: Compressed file ended before the end-of-stream marker was reached",
        ),
        (b"\x1f\x8bnothing", "broken gzip: "),
        (gzip.compress(b"0" * 9999)[:14] + b"\xff" * 20, "broken gzip: "),
        (b"\x1f\x8b", "broken gzip: "),
        (b"t_s\n0\n\xff\n", ":3: byte 0xff is not UTF-8; plain or gzipped UTF-8 text is allowed; convert the file"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "trace.csv").write_bytes(data)
    with pytest.raises(ConfigurationError) as told:
        lines(tmp_path / "trace.csv")
    assert message in told.value.message
    assert told.value.message.startswith(f"{tmp_path}/trace.csv:")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"none: No such file or directory; a readable file is needed; give its"
    ):
        lines(tmp_path / "none")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        lines(tmp_path)


def test_a_fit_is_read_from_both_its_files(tmp_path: Path) -> None:
    (tmp_path / "fit_clients.csv").write_text(CLIENTS)
    (tmp_path / "fit_lengths.json.gz").write_bytes(gzip.compress(LENGTHS.encode()))
    assert fitted(tmp_path / "fit").clients.span_s == 600


def test_a_fit_without_one_of_its_files_is_told(tmp_path: Path) -> None:
    (tmp_path / "fit_clients.csv").write_text(CLIENTS)
    with pytest.raises(
        ConfigurationError, match=r"fit_lengths.json: missing, and so is .*gz; one of them is needed; give"
    ):
        fitted(tmp_path / "fit")
