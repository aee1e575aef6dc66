"""Who signs: an operator's certificate and key, or a development chain that is made on first use.

The development chain is a P-256 root and one leaf; the root's key signs that leaf and is thrown away. Public verifiers
do not know the root. It is written beside its place and renamed as a folder, so of processes that start together one
makes it and all use the same.
"""

import contextlib
import datetime
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cluster.errors import ConfigurationError
from cluster.video import Provenance

DEVELOPMENT = "provenance"  # a folder in the state folder
CHAIN, KEY, ANCHOR = "chain.pem", "key.pem", "anchor.pem"
_YEARS = 10  # without a time stamp a signature ends with its certificate
_MEND = "give another video.provenance.certificate and key, or leave both out for a development chain"
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """`chain`: PEM, leaf first. `key`: PEM. `algorithm`: C2PA's name of it."""

    chain: bytes
    key: bytes
    algorithm: str


def identity(provenance: Provenance, state_folder: Path, now: datetime.datetime) -> Identity:
    """Raises ConfigurationError: files that cannot be read, do not belong together, or are not valid now."""
    if provenance.certificate is None or provenance.key is None:
        folder = development(state_folder, now)
        return _checked(folder / CHAIN, folder / KEY, now, f"remove {folder}, then a new chain is made")
    return _checked(Path(provenance.certificate), Path(provenance.key), now, _MEND)


def _checked(chain: Path, key: Path, now: datetime.datetime, mend: str) -> Identity:
    chain_pem, key_pem = _read(chain, mend), _read(key, mend)
    with _parsing(chain, "a chain of certificates as PEM, leaf first,", mend):
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
    with _parsing(key, "an unencrypted private key as PEM", mend):
        private = serialization.load_pem_private_key(key_pem, None)
    first, last = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if not first <= now <= last:
        raise ConfigurationError(
            f"{chain}: valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC; one that is valid now, at "
            f"{now:%Y-%m-%d %H:%M}, is allowed; {mend}"
        )
    if private.public_key() != leaf.public_key():
        raise ConfigurationError(f"{key}: not the key of the first certificate of {chain}; its own is allowed; {mend}")
    match private:
        case ec.EllipticCurvePrivateKey() if private.curve.name in _CURVES:
            algorithm = _CURVES[private.curve.name]
        case rsa.RSAPrivateKey():
            algorithm = "ps256"
        case ed25519.Ed25519PrivateKey():
            algorithm = "ed25519"
        case _:
            raise ConfigurationError(
                f"{key}: a key of another kind; P-256, P-384, P-521, RSA and Ed25519 are allowed; {mend}"
            )
    return Identity(chain=chain_pem, key=key_pem, algorithm=algorithm)


def _read(file: Path, mend: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{file}: {error.strerror}; a PEM file that this user may read is allowed; {mend}"
        ) from error


@contextlib.contextmanager
def _parsing(file: Path, allowed: str, mend: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise ConfigurationError(f"{file}: {error}; {allowed} is allowed; {mend}") from error


def development(state_folder: Path, now: datetime.datetime) -> Path:
    """The folder of the development chain, made where there is none. Raises ConfigurationError."""
    folder = state_folder / DEVELOPMENT
    try:
        if not folder.is_dir():
            state_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{DEVELOPMENT}-", dir=state_folder) as made:
                _make(draft := Path(made) / DEVELOPMENT, now)
                try:
                    draft.rename(folder)
                except OSError:
                    if not folder.is_dir():  # else another process was quicker
                        raise
    except OSError as error:
        raise ConfigurationError(
            f"{folder}: {error.strerror}; a folder that this user may write is allowed; mend its owner and mode, "
            "or give video.provenance.certificate and key"
        ) from error
    return folder


def _make(folder: Path, now: datetime.datetime) -> None:
    folder.mkdir(0o700)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name, leaf_name = _named("Moray development root"), _named("Moray development signer")
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    usage = {each: False for each in _USAGES}
    root = (
        _dated(root_name, root_name, root_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"key_cert_sign": True, "crl_sign": True}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        _dated(leaf_name, root_name, leaf_key.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf_key.public_key()), critical=False)
        .add_extension(authority, critical=False)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = leaf_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / KEY, private)
    _write(folder / CHAIN, leaf.public_bytes(pem) + root.public_bytes(pem))
    _write(folder / ANCHOR, root.public_bytes(pem))


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def _named(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Moray development"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _dated(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of others are behind
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
    )


def _write(file: Path, content: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
