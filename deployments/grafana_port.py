"""Grafana's HTTP API as Moray needs it: the one module that knows the package `grafana-api`.

The package is no longer kept up. What of it names routes that Grafana has given up (by number) is passed over for raw
calls; another client would replace this module alone. Never run against a real Grafana: tests stand in for one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlencode, urlsplit

import requests
from grafana_api.grafana_api import GrafanaException
from grafana_api.grafana_face import GrafanaFace

from cluster.errors import ConfigurationError, MorayError

Kind = Literal["folder", "data source", "dashboard", "alert rules"]
Body = dict[str, Any]
Auth = str | tuple[str, str]  # a token, or a user and a password

PATIENCE_S = 10.0
WAITS_S = (0.5, 2.0, 5.0)  # before another try
OK, NOT_FOUND, SERVER_FAILS = 200, 404, 500
AGAIN = "run it again: what is done stays as it is"
MENDS = {
    400: "mend what it names",
    401: "give a token or password that it takes, by --token-file or --user and --password-file",
    403: "give the token's account the right to write folders, dashboards, alert rules and data sources",
    404: "mend --url, or take a Grafana that has this route",
    409: "something there has this name already: rename or delete it there, then " + AGAIN,
    412: "it was changed there meanwhile, or its title is taken in the folder: rename the other one, then " + AGAIN,
}


class GrafanaError(MorayError):
    """Grafana refused, failed, or was not there. `http`: what it answered with, None where it did not."""

    code = "grafana_failed"

    def __init__(self, message: str, http: int | None = None) -> None:
        super().__init__(message)
        self.http = http


class Grafana(Protocol):
    """Things are known by their uid. Every call raises GrafanaError."""

    def health(self) -> str:
        """Its version."""

    def read(self, kind: Kind, uid: str) -> Body | None:
        """As it is there, None where it is not."""

    def write(self, kind: Kind, uid: str, body: Body, there: Body | None) -> None:
        """`there`: as it was read. One that was changed since is refused where Grafana can tell."""

    def annotations(self, tags: Sequence[str], from_ms: int, to_ms: int, most: int) -> list[Body]:
        """Those with all the tags."""

    def annotate(self, body: Body) -> None:
        """Never tried twice: Grafana cannot tell that it is the same one."""


class GrafanaPort:
    """`wait`: lets the seconds pass before another try. Raises ConfigurationError: no such address."""

    def __init__(self, url: str, auth: Auth, wait: Callable[[float], None], patience_s: float = PATIENCE_S) -> None:
        protocol, host, port, prefix = _address(url)
        self._face = GrafanaFace(
            auth, protocol=protocol, host=host, port=port, url_path_prefix=prefix, timeout=patience_s
        )
        self._url = url
        self._wait = wait

    def close(self) -> None:
        self._face.api.s.close()

    def health(self) -> str:
        found = self._read("/health") or {}
        return str(found.get("version", "unknown"))

    def read(self, kind: Kind, uid: str) -> Body | None:
        found = self._read(_path(kind, uid))
        if found is None or kind != "dashboard":
            return found
        return {"dashboard": found["dashboard"], "folderUid": found["meta"].get("folderUid", "")}

    def write(self, kind: Kind, uid: str, body: Body, there: Body | None) -> None:
        path = _path(kind, uid)
        match kind:
            case "folder" if there is None:
                self._tried("POST", "/folders", lambda: self._face.folder.create_folder(body["title"], uid))
            case "folder":
                self._put(path, body | {"version": (there or {}).get("version")})
            case "data source" if there is None:
                self._tried("POST", "/datasources", lambda: self._face.datasource.create_datasource(body))
            case "data source":
                # A change replaces everything: what others have set beside ours stays.
                self._put(path, _over(there or {}, body))
            case "dashboard":
                sent = body | {"overwrite": False, "message": "moray grafana sync"}
                sent["dashboard"] = body["dashboard"] | {"id": None} | _version(there)
                self._tried("POST", "/dashboards/db", lambda: self._face.dashboard.update_dashboard(sent))
            case "alert rules":
                self._put(path, body)

    def annotations(self, tags: Sequence[str], from_ms: int, to_ms: int, most: int) -> list[Body]:
        asked = [("from", from_ms), ("to", to_ms), ("limit", most), *(("tags", tag) for tag in tags)]
        found: list[Body] = self._read(f"/annotations?{urlencode(asked)}") or []  # type: ignore[assignment]
        return found

    def annotate(self, body: Body) -> None:
        self._tried("POST", "/annotations", lambda: self._face.api.POST("/annotations", json=body), waits_s=())

    def _read(self, path: str) -> Body | None:
        try:
            return self._tried("GET", path, lambda: self._face.api.GET(path))
        except GrafanaError as error:
            if error.http == NOT_FOUND and path != "/health":
                return None
            raise

    def _put(self, path: str, body: Body) -> None:
        self._tried("PUT", path, lambda: self._face.api.PUT(path, json=body))

    def _tried(
        self, method: str, path: str, call: Callable[[], Body], waits_s: Sequence[float] = WAITS_S
    ) -> Body | None:
        """Again where Grafana fails or does not answer: everything has a uid, and twice is the same as once."""
        for wait_s in (*waits_s, None):
            try:
                return call()
            except (GrafanaException, requests.RequestException) as error:
                failed = self._told(method, path, error)
                if wait_s is None or not (failed.http is None or failed.http >= SERVER_FAILS):
                    raise failed from None  # the cause may hold what was sent
                self._wait(wait_s)
        return None

    def _told(self, method: str, path: str, error: Exception) -> GrafanaError:
        where = f"{self._url}: {method} {path.partition('?')[0]}"
        match error:
            case GrafanaException():
                answer = error.response
                said = answer.get("message", answer) if isinstance(answer, dict) else answer
                mend = MENDS.get(error.status_code, "see Grafana's log, then " + AGAIN)
                text = f"{where}: {error.status_code} {str(said)[:200]}; a success is needed; {mend}"
                return GrafanaError(text, http=error.status_code)
            case requests.JSONDecodeError():
                text = f"{where}: an answer that is no JSON; Grafana's is needed; mend --url"
                return GrafanaError(text, http=OK)
            case requests.Timeout():
                return GrafanaError(f"{where}: no answer in time; one is needed; see to Grafana, then {AGAIN}")
        return GrafanaError(
            f"{where}: {type(error).__name__}; a Grafana that listens there is needed; start it, or mend --url"
        )


def _address(url: str) -> tuple[str, str, int | None, str]:
    """Protocol, host, port, and the path ahead of /api."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        shown = url.rpartition("@")[2]  # what stands ahead of it may be a password
        raise ConfigurationError(
            f"--url: {shown!r}; http://host:port or https://host/path are allowed, without user or password; mend it"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.strip("/")
    return parts.scheme, host, port, f"{path}/" if path else ""


def _path(kind: Kind, uid: str) -> str:
    match kind:
        case "folder":
            return f"/folders/{quote(uid)}"
        case "data source":
            return f"/datasources/uid/{quote(uid)}"
        case "dashboard":
            return f"/dashboards/uid/{quote(uid)}"
        case "alert rules":  # of a folder, by the group's name
            folder, _, group = uid.partition("/")
            return f"/v1/provisioning/folder/{quote(folder)}/rule-groups/{quote(group)}"


def _version(there: Body | None) -> Body:
    return {} if there is None else {"version": there["dashboard"].get("version")}


def _over(there: Body, body: Body) -> Body:
    return there | {
        key: _over(there[key], value) if isinstance(value, dict) and isinstance(there.get(key), dict) else value
        for key, value in body.items()
    }
