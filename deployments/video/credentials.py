"""Content credentials (C2PA): every file that leaves says that a model made it, which, and out of what.

A manifest has an action (c2pa.created, or c2pa.opened and c2pa.edited of its parent), its digital source type (IPTC),
its ingredients with the manifests that these carry, and an assertion of our own with model, job and seed. Nothing is
fetched: neither to sign, but the time stamp where the family file names an authority, nor to verify. Without a time
stamp a signature is good as long as its certificate.
"""

import contextlib
import datetime
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from cluster.errors import ConfigurationError, EngineFailed, InvalidRequest
from cluster.video import Provenance
from deployments.video.certificates import identity
from deployments.video.encode import beside

OWN = "org.moray.generation"  # label of our own assertion
_TYPES = {".mp4": "video/mp4", ".webp": "image/webp", ".jpg": "image/jpeg", ".png": "image/png", ".wav": "audio/wav"}
_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}
_TRIAL = bytes.fromhex("524946461a000000574542505650384c0d0000002f00000010071011118888fe0700")  # a WebP of one pixel

Action = Literal["created", "edited", "remixed", "extended", "joined"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What is said of a file. `ingredients`: titles and files.

    The first ingredient of what is edited, remixed or extended is its parent; all of what is joined are its parts; any
    other was an input of the model. `watermark`: the payload of the mark in its frames.
    """

    title: str
    model: str
    job_id: str
    seed: int
    action: Action = "created"
    ingredients: tuple[tuple[str, Path], ...] = ()
    watermark: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """`manifest`: the label of its own; None where it carries none. `faults`: C2PA's codes, as it was taken in."""

    title: str
    relationship: str
    manifest: str | None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`own`: model, job_id, seed and more of a file that Moray made."""

    label: str
    title: str
    generator: str
    signer: str
    signed_at: str | None
    actions: tuple[str, ...]
    own: Mapping[str, Any]
    ingredients: tuple[Ingredient, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`state`: Trusted by an anchor, Valid by a signer whom no anchor knows, Invalid, or Unsigned.

    `faults`: C2PA's codes; those that an ingredient had before are with it. `manifests`: the file's own first, then
    those of its ingredients, the nearest first.
    """

    state: Literal["Trusted", "Valid", "Invalid", "Unsigned"]
    faults: tuple[str, ...]
    manifests: tuple[Manifest, ...]


class Signer:
    """Signs files in place. One thread at a time."""

    def __init__(self, provenance: Provenance, state_folder: Path) -> None:
        """Signs a trial, so that a wrong certificate is told before anything is rendered. Raises ConfigurationError."""
        import c2pa

        self._identity = identity(provenance, state_folder, datetime.datetime.now(datetime.UTC))
        self._time_stamp_url = provenance.time_stamp_url
        trial = Claim(title="trial", model="", job_id="", seed=0)
        try:
            self._sign("image/webp", io.BytesIO(_TRIAL), io.BytesIO(), trial, None)
        except c2pa.C2paError as error:
            raise ConfigurationError(
                f"{provenance.certificate or state_folder}: {error}; a certificate that C2PA takes is allowed: "
                "not self-signed, for digital signatures and e-mail protection or document signing; give another "
                "video.provenance.certificate and key"
            ) from error

    def sign(self, file: Path, claim: Claim) -> None:
        """MP4, WebP or JPEG. A reader meets the file as it was, or signed. Raises EngineFailed, OSError."""
        import c2pa

        with beside(file) as partial, file.open("rb") as source, _Target(partial) as target:
            try:
                self._sign(_type_of(file), source, target, claim, self._time_stamp_url)
            except c2pa.C2paError as error:
                if target.failure is not None:
                    raise target.failure from error
                raise EngineFailed(
                    f"{file.name}: not signed, {error}; a valid certificate, and an answer of the time stamp authority "
                    f"where there is one ({self._time_stamp_url}), are needed; mend video.provenance"
                ) from error

    def _sign(self, kind: str, source: io.IOBase, target: io.IOBase, claim: Claim, time_stamp_url: str | None) -> None:
        import c2pa

        settings = {"verify": _OFFLINE | {"verify_trust": False}, "builder": {"thumbnail": {"enabled": False}}}
        chain, key = self._identity.chain, self._identity.key
        info = c2pa.C2paSignerInfo(self._identity.algorithm, chain, key, time_stamp_url)
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(kind, claim), context) as builder,
        ):
            for number, (title, file) in enumerate(claim.ingredients):
                name = f"ingredient{number}"
                asked = {"title": title, "relationship": _relationship(claim, number)}
                with file.open("rb") as stream:
                    builder.add_ingredient(asked | {"label": name, "instance_id": name}, _type_of(file), stream)
            builder.sign(signer, kind, source, target)


class _Target(io.FileIO):
    """The library tells that a write failed, not why."""

    failure: OSError | None = None

    def __init__(self, file: Path) -> None:
        super().__init__(file, "w+b")

    def write(self, data: Any, /) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
            raise
        return len(data)


def _type_of(file: Path) -> str:
    if file.suffix.lower() not in _TYPES:
        raise InvalidRequest(f"{file.name}: cannot carry credentials; {', '.join(_TYPES)} are allowed; convert it")
    return _TYPES[file.suffix.lower()]


def _relationship(claim: Claim, number: int) -> str:
    if claim.action == "joined":
        return "componentOf"
    return "parentOf" if claim.action != "created" and number == 0 else "inputTo"


def _manifest(kind: str, claim: Claim) -> dict[str, Any]:
    generator = {"name": "moray", "version": version("moray")}
    own = {"model": claim.model, "job_id": claim.job_id, "seed": claim.seed, "moray_version": generator["version"]}
    own |= {} if claim.watermark is None else {"watermark": f"{claim.watermark:05x}"}
    return {
        "claim_generator_info": [generator],
        "title": claim.title,
        "format": kind,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": _actions(claim)}},
            {"label": OWN, "data": own},
        ],
    }


def _actions(claim: Claim) -> list[dict[str, Any]]:
    names = [f"ingredient{number}" for number in range(len(claim.ingredients))]
    whole, part = f"{_SOURCE}trainedAlgorithmicMedia", f"{_SOURCE}compositeWithTrainedAlgorithmicMedia"
    match claim.action:
        case "created":
            created: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": whole}
            return [created | ({"parameters": {"ingredientIds": names}} if names else {})]
        case "joined":
            placed = [{"action": "c2pa.placed", "parameters": {"ingredientIds": [name]}} for name in names]
            return [{"action": "c2pa.created", "digitalSourceType": part}, *placed]
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": names[:1]}}
    edited: dict[str, Any] = {"action": "c2pa.edited", "digitalSourceType": part, "description": claim.action}
    return [opened, edited | ({"parameters": {"ingredientIds": names[1:]}} if names[1:] else {})]


def verify(file: Path, anchors: Path | None) -> Verdict:
    """`anchors`: PEM of the roots that are trusted. Raises ConfigurationError: no file, or no media."""
    import c2pa

    settings: dict[str, Any] = {"verify": _OFFLINE | {"verify_trust": True}}
    if anchors is not None:
        with _refused(anchors, "PEM certificates are"):
            x509.load_pem_x509_certificates(anchors.read_bytes())
            settings["trust"] = {"trust_anchors": anchors.read_text("ascii")}
    with (
        _refused(file, "a video or a still is"),
        file.open("rb") as stream,
        c2pa.Context.from_dict(settings) as context,
    ):
        reader = c2pa.Reader.try_create(_TYPES.get(file.suffix.lower()), stream, context=context)
        if reader is None:
            return Verdict(state="Unsigned", faults=(), manifests=())
        with reader:
            return _verdict(json.loads(reader.json()))


@contextlib.contextmanager
def _refused(file: Path, allowed: str) -> Iterator[None]:
    import c2pa

    try:
        yield
    except (OSError, ValueError, c2pa.C2paError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{file}: {said}; {allowed} allowed; give another file") from error


def _verdict(told: Mapping[str, Any]) -> Verdict:
    state = told["validation_state"]
    faults = tuple(dict.fromkeys(_faults(told.get("validation_results", {}))))
    found: dict[str, Manifest] = {}
    left = [told["active_manifest"]]
    for label in left:  # grows by what each is made of
        if label not in found:
            found[label] = _told(told["manifests"][label])
            left += [each.manifest for each in found[label].ingredients if each.manifest in told["manifests"]]
    return Verdict(state=state, faults=faults, manifests=tuple(found.values()))


def _faults(results: Mapping[str, Any]) -> Iterator[str]:
    yield from (each["code"] for each in results.get("activeManifest", {}).get("failure", ()))
    for delta in results.get("ingredientDeltas", ()):
        yield from (f"ingredient: {each['code']}" for each in delta["validationDeltas"].get("failure", ()))


def _told(manifest: Mapping[str, Any]) -> Manifest:
    assertions = {each["label"]: each["data"] for each in manifest.get("assertions", ())}
    generator = (manifest.get("claim_generator_info") or [{}])[0]
    signature = manifest.get("signature_info", {})
    actions = next((data["actions"] for label, data in assertions.items() if label.startswith("c2pa.actions")), ())
    return Manifest(
        label=manifest["label"],
        title=manifest.get("title") or "",
        generator=f"{generator.get('name', '')} {generator.get('version', '')}".strip(),
        signer=signature.get("common_name") or signature.get("issuer") or "",
        signed_at=signature.get("time"),
        actions=tuple(each["action"] for each in actions),
        own=assertions.get(OWN, {}),
        ingredients=tuple(_ingredient(each) for each in manifest.get("ingredients", ())),
    )


def _ingredient(told: Mapping[str, Any]) -> Ingredient:
    return Ingredient(
        title=told.get("title") or "",
        relationship=told["relationship"],
        manifest=told.get("active_manifest"),
        faults=tuple(_faults(told.get("validation_results") or {})),
    )
