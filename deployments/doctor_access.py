"""The address of a Kubernetes API and who asks there: from a kubeconfig file, or from inside of a pod."""

import base64
import binascii
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import httpx
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from cluster.errors import ConfigurationError
from deployments.doctor_options import IN_CLUSTER

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVER = "https://kubernetes.default.svc"
PATIENCE_S = 10.0
LOCAL = {"127.0.0.1", "localhost", "::1"}
AGAIN = "write one with: kubectl config view --raw --minify --flatten"
T = TypeVar("T", bound="_Entry")


def _decoded(given: object) -> object:
    """Raises ValueError: no base64."""
    try:
        return base64.b64decode(given, validate=True).decode() if isinstance(given, str) else given
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("no base64 of text") from error


Data = Annotated[str, BeforeValidator(_decoded)]


def _kebab(name: str) -> str:
    return name.replace("_", "-")


class _Entry(BaseModel):
    model_config = ConfigDict(alias_generator=_kebab)


class _Cluster(_Entry):
    server: str
    certificate_authority: str | None = None
    certificate_authority_data: Data | None = None
    insecure_skip_tls_verify: bool = False


class _User(_Entry):
    token: str | None = Field(default=None, repr=False)
    token_file: str | None = Field(default=None, alias=to_camel("token_file"))
    client_certificate: str | None = None
    client_certificate_data: Data | None = None
    client_key: str | None = None
    client_key_data: Data | None = Field(default=None, repr=False)
    exec: dict[str, Any] | None = None
    auth_provider: dict[str, Any] | None = None


class _Context(_Entry):
    cluster: str
    user: str = ""
    namespace: str = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """`namespace`: of the context. `client` asks the API as the file says."""

    server: str
    namespace: str
    client: httpx.Client


def access(kubeconfig: str) -> Access:
    """For `in-cluster`, of the pod's service account. Raises ConfigurationError where a file is missing or wrong."""
    try:
        return _of_the_pod() if kubeconfig == IN_CLUSTER else _of_file(Path(kubeconfig))
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"--kubeconfig: {kubeconfig}: {error.reason or error}; certificates in PEM are needed; {AGAIN}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--kubeconfig: {kubeconfig}: {error}; a file that can be read is needed, or {IN_CLUSTER} inside of a pod; "
            "mend the path"
        ) from error


def _of_the_pod() -> Access:
    token = (ACCOUNT / "token").read_text(encoding="utf-8").strip()
    namespace = (ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    return Access(server=SERVER, namespace=namespace, client=_client(SERVER, token, trust))


def _of_file(file: Path) -> Access:
    """Of its current context. Relative paths are meant relative to the file, as kubectl takes them."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--kubeconfig: {file}: not YAML; a kubeconfig is needed; {AGAIN}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"--kubeconfig: {file}: no mapping; a kubeconfig is needed; {AGAIN}")
    context = _entry(file, raw, "context", raw.get("current-context"), _Context)
    cluster = _entry(file, raw, "cluster", context.cluster, _Cluster)
    user = _entry(file, raw, "user", context.user, _User) if context.user else _User()
    if user.exec or user.auth_provider:
        raise ConfigurationError(
            f"--kubeconfig: {file}: user {context.user!r} logs in through a program, which is not run here; a token or "
            "a client certificate is allowed; put in a token: kubectl create token NAME"
        )
    token = user.token or (_beside(file, user.token_file).read_text().strip() if user.token_file else None)
    server = cluster.server.rstrip("/")
    return Access(
        server=server, namespace=context.namespace, client=_client(server, token, _trust(file, cluster, user))
    )


def _entry(file: Path, raw: dict[str, Any], kind: str, name: object, model: type[T]) -> T:
    """That of the name, out of contexts, clusters or users."""
    entries = raw.get(f"{kind}s") or []
    named = {each.get("name"): each.get(kind) for each in entries if isinstance(each, dict)}
    if name not in named:
        known = ", ".join(map(str, named)) or "none"
        raise ConfigurationError(f"--kubeconfig: {file}: {kind} {name!r}; there are {known}; {AGAIN}")
    try:
        return model.model_validate(named[name] or {})
    except ValidationError as error:  # its own words would show what was given
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigurationError(f"--kubeconfig: {file}: {kind} {name!r}: {faults}; {AGAIN}") from None


def _trust(file: Path, cluster: _Cluster, user: _User) -> ssl.SSLContext:
    """Whom to trust and what to show. Raises OSError; ssl.SSLError is one."""
    authority = cluster.certificate_authority
    trust = ssl.create_default_context(
        cafile=str(_beside(file, authority)) if authority else None, cadata=cluster.certificate_authority_data
    )
    if cluster.insecure_skip_tls_verify:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    if user.client_certificate_data and user.client_key_data:
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads them from files alone
            certificate, key = Path(folder) / "certificate", Path(folder) / "key"
            certificate.write_text(user.client_certificate_data)
            key.write_text(user.client_key_data)
            trust.load_cert_chain(certificate, key)
    elif user.client_certificate and user.client_key:
        trust.load_cert_chain(_beside(file, user.client_certificate), _beside(file, user.client_key))
    return trust


def _beside(file: Path, path: str) -> Path:
    return file.resolve().parent / path


def _client(server: str, token: str | None, trust: ssl.SSLContext) -> httpx.Client:
    """A token goes over TLS, or to this machine, and nowhere else."""
    url = httpx.URL(server)
    tell = token is not None and (url.scheme == "https" or url.host in LOCAL)
    headers = {"Authorization": f"Bearer {token}"} if tell else {}
    return httpx.Client(base_url=server, headers=headers, timeout=PATIENCE_S, verify=trust)
