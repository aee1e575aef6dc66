"""A time stamp authority of OpenSSL on this machine: what it signs stands in the credentials."""

import datetime
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from PIL import Image

from cluster.video import Provenance
from deployments.video.certificates import ANCHOR, DEVELOPMENT
from deployments.video.credentials import Claim, Signer, verify

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SETTINGS = """\
[authority]
serial = {folder}/serial
signer_cert = {folder}/leaf.pem
signer_key = {folder}/leaf.key
certs = {folder}/root.pem
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
signer_digest = sha256
ess_cert_id_alg = sha256
"""
LEAF = ("basicConstraints=critical,CA:FALSE", "extendedKeyUsage=critical,timeStamping", "keyUsage=digitalSignature")


def certificate(folder: Path, name: str, *more: str) -> None:
    made = ["-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/O=Tests/CN={name}", *more]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *made], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[str]:
    certificate(tmp_path, "root")
    extensions = [word for extension in LEAF for word in ("-addext", extension)]
    certificate(tmp_path, "leaf", "-CA", "root.pem", "-CAkey", "root.key", *extensions)
    (tmp_path / "settings").write_text(SETTINGS.format(folder=tmp_path))

    class Authority(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            (tmp_path / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            asked = ["-config", "settings", "-section", "authority", "-queryfile", "query"]
            reply = subprocess.run(["openssl", "ts", "-reply", *asked], cwd=tmp_path, check=True, capture_output=True)
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(reply.stdout)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Authority) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        serving.join()


def test_a_time_stamp_says_when_a_file_was_signed(authority: str, tmp_path: Path) -> None:
    file = tmp_path / "still.webp"
    Image.new("RGB", (96, 64)).save(file)
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    signer = Signer(Provenance(time_stamp_url=authority), tmp_path / "state")
    signer.sign(file, Claim(title="a still", model="sora-2", job_id="video_1", seed=7))
    roots = tmp_path / "roots.pem"
    roots.write_bytes((tmp_path / "state" / DEVELOPMENT / ANCHOR).read_bytes() + (tmp_path / "root.pem").read_bytes())
    verdict = verify(file, roots)
    assert (verdict.state, verdict.faults) == ("Trusted", ())
    assert before <= datetime.datetime.fromisoformat(verdict.manifests[0].signed_at or "") < before.replace(year=2100)
