"""Content credentials by the library's own Reader; the public c2patool was never run on them."""

import datetime
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import ConfigurationError, EngineFailed, InvalidRequest
from cluster.video import Provenance
from deployments.video.certificates import ANCHOR, CHAIN, DEVELOPMENT, KEY, development, identity
from deployments.video.credentials import OWN, Claim, Ingredient, Signer, verify
from deployments.video.encode import write

NOW = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)


def clip(path: Path, seed: int = 0) -> Path:
    write([np.random.default_rng(seed).integers(0, 256, (4, 64, 96, 3), np.uint8)], 8, path)
    return path


def still(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(path)
    return path


def claim(title: str = "a red ball", **fields: object) -> Claim:
    return Claim(**{"title": title, "model": "sora-2", "job_id": f"video_{title}", "seed": 7, **fields})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def signer(state: Path) -> Signer:
    return Signer(Provenance(), state)


@pytest.fixture
def anchor(signer: Signer, state: Path) -> Path:
    return state / DEVELOPMENT / ANCHOR


@pytest.mark.parametrize("name", ["video.mp4", "thumbnail.webp", "spritesheet.jpg"])
def test_a_file_is_trusted_by_its_anchor_and_only_valid_without(
    name: str, signer: Signer, anchor: Path, tmp_path: Path
) -> None:
    file = clip(tmp_path / name) if name.endswith("mp4") else still(tmp_path / name)
    assert verify(file, anchor).state == "Unsigned"
    signer.sign(file, claim())
    assert (verify(file, anchor).state, verify(file, anchor).faults) == ("Trusted", ())
    assert (verify(file, None).state, verify(file, None).faults) == ("Valid", ("signingCredential.untrusted",))
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_stranger_s_anchor_trusts_nobody_of_ours(signer: Signer, tmp_path: Path) -> None:
    signer.sign(file := still(tmp_path / "still.webp"), claim())
    assert verify(file, development(tmp_path / "other", NOW) / ANCHOR).state == "Valid"


def test_one_flipped_bit_of_the_pictures_is_found(signer: Signer, anchor: Path, tmp_path: Path) -> None:
    signer.sign(file := clip(tmp_path / "video.mp4"), claim())
    content = bytearray(file.read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    file.write_bytes(content)
    assert (verify(file, anchor).state, verify(file, anchor).faults) == ("Invalid", ("assertion.bmffHash.mismatch",))


def test_a_file_says_which_model_made_it_of_what_seed_for_which_job(
    signer: Signer, anchor: Path, tmp_path: Path
) -> None:
    signer.sign(file := clip(tmp_path / "video.mp4"), claim(watermark=0xABCDE))
    (manifest,) = verify(file, anchor).manifests
    assert (manifest.title, manifest.actions) == ("a red ball", ("c2pa.created",))
    assert dict(manifest.own) | {"moray_version": ""} == {
        **{"model": "sora-2", "job_id": "video_a red ball", "seed": 7, "watermark": "abcde", "moray_version": ""}
    }
    assert OWN.encode() in file.read_bytes()
    assert b"trainedAlgorithmicMedia" in file.read_bytes()


def test_a_remix_of_an_edit_carries_the_chain_of_all_three(signer: Signer, anchor: Path, tmp_path: Path) -> None:
    first, edit, remix = (clip(tmp_path / f"{name}.mp4", seed) for seed, name in enumerate(("first", "edit", "remix")))
    signer.sign(first, claim("first"))
    signer.sign(edit, claim("edit", action="edited", ingredients=(("first", first),)))
    signer.sign(remix, claim("remix", action="remixed", ingredients=(("edit", edit),)))
    verdict = verify(remix, anchor)
    assert (verdict.state, verdict.faults) == ("Trusted", ())
    assert [each.title for each in verdict.manifests] == ["remix", "edit", "first"]
    assert [each.actions for each in verdict.manifests[:2]] == [("c2pa.opened", "c2pa.edited")] * 2
    for made, parent in zip(verdict.manifests, verdict.manifests[1:], strict=False):
        assert made.ingredients == (Ingredient(title=parent.title, relationship="parentOf", manifest=parent.label),)


def test_what_was_done_to_a_parent_shows_in_its_child(signer: Signer, anchor: Path, tmp_path: Path) -> None:
    signer.sign(parent := clip(tmp_path / "parent.mp4"), claim("parent"))
    content = bytearray(parent.read_bytes())
    content[content.index(b"mdat") + 100] ^= 1
    parent.write_bytes(content)
    signer.sign(child := clip(tmp_path / "child.mp4", 1), claim("child", action="edited", ingredients=(("p", parent),)))
    told = verify(child, anchor)
    assert told.manifests[1].title == "parent"
    assert told.manifests[0].ingredients[0].faults == ("assertion.bmffHash.mismatch",)


@pytest.mark.parametrize(
    ("action", "relationships"),
    [("created", ["inputTo", "inputTo"]), ("extended", ["parentOf", "inputTo"]), ("joined", ["componentOf"] * 2)],
)
def test_ingredients_are_inputs_a_parent_or_parts(
    action: str, relationships: list[str], signer: Signer, anchor: Path, tmp_path: Path
) -> None:
    parts = (("a clip", clip(tmp_path / "part.mp4")), ("a picture", still(tmp_path / "part.png")))
    signer.sign(file := clip(tmp_path / "video.mp4", 1), claim(action=action, ingredients=parts))
    verdict = verify(file, anchor)
    assert (verdict.state, verdict.faults) == ("Trusted", ())
    assert [each.relationship for each in verdict.manifests[0].ingredients] == relationships


def test_what_cannot_carry_credentials_is_refused_and_left_alone(signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "master.mkv"
    file.write_bytes(b"frames")
    with pytest.raises(InvalidRequest, match=r"master.mkv: .*; .mp4, .* are allowed"):
        signer.sign(file, claim())
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"frames"]


def test_half_a_file_is_not_signed_and_left_alone(signer: Signer, tmp_path: Path) -> None:
    file = clip(tmp_path / "video.mp4")
    half = file.read_bytes()[:200]
    file.write_bytes(half)
    with pytest.raises(EngineFailed, match=r"video.mp4: not signed"):
        signer.sign(file, claim())
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [half]


def test_a_full_disk_is_told_as_such_and_leaves_the_unsigned_file(signer: Signer, tmp_path: Path) -> None:
    file = clip(tmp_path / "video.mp4")
    unsigned = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(unsigned), limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            signer.sign(file, claim())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [unsigned]


def test_an_unreachable_time_stamp_authority_leaves_the_file_unsigned(state: Path, tmp_path: Path) -> None:
    signer = Signer(Provenance(time_stamp_url="http://127.0.0.1:9/"), state)
    with pytest.raises(EngineFailed, match=r"time stamp authority where there is one \(http://127.0.0.1:9/\)"):
        signer.sign(file := clip(tmp_path / "video.mp4"), claim())
    assert verify(file, None).state == "Unsigned"


def test_a_certificate_that_expires_while_it_is_used_signs_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = datetime.datetime(2010, 1, 1, tzinfo=datetime.UTC)
    signer = Signer(Provenance(), tmp_path / "state")
    monkeypatch.setattr(signer, "_identity", identity(Provenance(), tmp_path / "past", past))
    with pytest.raises(EngineFailed, match="the certificate was not valid at time of signing"):
        signer.sign(file := still(tmp_path / "still.webp"), claim())
    assert verify(file, None).state == "Unsigned"


@pytest.mark.parametrize(("name", "said"), [("no.mp4", "No such file"), ("text.mp4", "a video or a still is allowed")])
def test_what_is_no_media_file_is_not_verified(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("a clip")
    with pytest.raises(ConfigurationError, match=said):
        verify(tmp_path / name, None)


def test_what_are_no_anchors_is_told(tmp_path: Path) -> None:
    anchors = tmp_path / "anchors.pem"
    anchors.write_text("none")
    with pytest.raises(ConfigurationError, match=r"anchors.pem: .*PEM certificates are allowed"):
        verify(still(tmp_path / "still.webp"), anchors)


def test_processes_that_start_together_make_one_chain(tmp_path: Path) -> None:
    program = (
        "import datetime, pathlib, sys; from deployments.video.certificates import *\n"
        "sys.stdin.readline()\n"
        "folder = development(pathlib.Path(sys.argv[1]), datetime.datetime.now(datetime.UTC))\n"
        "print((folder / CHAIN).read_text(), (folder / KEY).read_text())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(4)]
    made = {process.communicate(b"now\n")[0] for process in started}
    assert len(made) == 1
    assert b"CERTIFICATE" in made.pop()
    assert [each.name for each in (tmp_path / "state").iterdir()] == [DEVELOPMENT]


def test_only_their_owner_reads_the_development_key_and_the_root_s_is_thrown_away(tmp_path: Path) -> None:
    folder = development(tmp_path, NOW)
    assert sorted(each.name for each in folder.iterdir()) == [ANCHOR, CHAIN, KEY]
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def operators(folder: Path, made: datetime.datetime) -> Provenance:
    chain = development(folder, made)
    return Provenance(certificate=str(chain / CHAIN), key=str(chain / KEY))


def test_an_operator_s_certificate_signs(tmp_path: Path) -> None:
    provenance = operators(tmp_path / "ca", datetime.datetime.now(datetime.UTC))
    Signer(provenance, tmp_path / "state").sign(file := still(tmp_path / "still.webp"), claim())
    assert verify(file, tmp_path / "ca" / DEVELOPMENT / ANCHOR).state == "Trusted"
    assert not (tmp_path / "state").exists()


def wrong(tmp_path: Path) -> Iterator[tuple[str, Provenance]]:
    now = datetime.datetime.now(datetime.UTC)
    ours, theirs = operators(tmp_path / "ours", now), operators(tmp_path / "theirs", now)
    root = Path(ours.certificate or "").with_name(ANCHOR)
    (words := tmp_path / "words.pem").write_text("a certificate")
    yield r"chain.pem: valid from .* to .* UTC; one that is valid now", operators(tmp_path / "past", NOW.replace(2010))
    yield r"chain.pem: valid from 2\d{3}", operators(tmp_path / "future", NOW.replace(2100))
    yield "key.pem: not the key of the first certificate of .*chain.pem", ours.model_copy(update={"key": theirs.key})
    yield "anchor.pem", ours.model_copy(update={"certificate": str(root)})
    yield "words.pem: .*; a chain of certificates as PEM", ours.model_copy(update={"certificate": str(words)})
    yield "words.pem: .*; an unencrypted private key as PEM", ours.model_copy(update={"key": str(words)})
    yield "none.pem: No such file", ours.model_copy(update={"certificate": str(tmp_path / "none.pem")})


def test_a_wrong_certificate_is_told_before_anything_is_rendered(tmp_path: Path) -> None:
    for said, provenance in wrong(tmp_path):
        with pytest.raises(ConfigurationError, match=said):
            Signer(provenance, tmp_path / "state")
