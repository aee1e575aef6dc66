"""A stand-in for Grafana's HTTP API, with a memory: the routes that Moray calls, written from their documentation.

It is no Grafana. It shows that calls are made, repeated and refused as they should be; that a real one takes them it
cannot show.
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "glsa_secret"
Body = dict[str, Any]
Answer = tuple[int, Any]
OK, NOT_FOUND, BAD, CONFLICT, PRECONDITION = 200, 404, 400, 409, 412


@dataclass
class StandIn:
    """`calls`: method and path of what was let in. `faults`: by method and the path's beginning, statuses for the next

    calls: 0 to answer normally, -1 to answer no JSON.
    """

    url: str = ""
    prefix: str = "/api"
    folders: dict[str, Body] = field(default_factory=dict)
    sources: dict[str, Body] = field(default_factory=dict)
    dashboards: dict[str, Body] = field(default_factory=dict)
    groups: dict[tuple[str, str], Body] = field(default_factory=dict)
    annotations: list[Body] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    held: threading.Event | None = None  # until it is set, nothing is answered

    def writes(self) -> list[tuple[str, str]]:
        return [call for call in self.calls if call[0] != "GET"]

    def answer(self, method: str, target: str, body: Body, authorization: str) -> Answer:
        if authorization not in (f"Bearer {TOKEN}", "Basic YWRtaW46Z2xzYV9zZWNyZXQ="):
            return 401, {"message": "Unauthorized"}
        parts = urlsplit(target)
        if not parts.path.startswith(self.prefix):
            return NOT_FOUND, {"message": "Not found"}
        path = parts.path.removeprefix(self.prefix)
        self.calls.append((method, path))
        for (verb, beginning), statuses in self.faults.items():
            if verb == method and path.startswith(beginning) and statuses and (status := statuses.pop(0)):
                return status, {"message": "as the test wants it"}
        first, *rest = (unquote(part) for part in path.strip("/").split("/"))
        asked = parse_qs(parts.query)
        routes: dict[str, Callable[[], Answer]] = {
            "health": lambda: (OK, {"database": "ok", "version": "12.0.0"}),
            "folders": lambda: self._folder(method, *rest, body=body),
            "datasources": lambda: self._source(method, rest[1], body) if rest else self._new_source(body),
            "dashboards": lambda: self._dashboard(body) if rest == ["db"] else self._shown(rest[1]),
            "v1": lambda: self._group(method, (rest[2], rest[4]), body),
            "annotations": lambda: self._annotations(method, body, asked),
        }
        return routes[first]() if first in routes else (NOT_FOUND, {"message": "Not found"})

    def _folder(self, method: str, *uid: str, body: Body) -> Answer:
        if method == "POST":
            if body["uid"] in self.folders:
                return PRECONDITION, {"message": "a folder with the same uid already exists"}
            self.folders[body["uid"]] = {"id": len(self.folders) + 1, "version": 1, **body}
            return OK, self.folders[body["uid"]]
        there = self.folders.get(uid[0])
        if there is None:
            return NOT_FOUND, {"message": "folder not found"}
        if method == "PUT":
            if body.get("version") != there["version"]:
                return PRECONDITION, {"message": "the folder has been changed by someone else"}
            there |= {"title": body["title"], "version": there["version"] + 1}
        return OK, there

    def _new_source(self, body: Body) -> Answer:
        if any(body["name"] == there["name"] or body["uid"] == uid for uid, there in self.sources.items()):
            return CONFLICT, {"message": "data source with the same name already exists"}
        self.sources[body["uid"]] = {"id": len(self.sources) + 1, "version": 1, "readOnly": False, **body}
        return OK, {"datasource": self.sources[body["uid"]]}

    def _source(self, method: str, uid: str, body: Body) -> Answer:
        if uid not in self.sources:
            return NOT_FOUND, {"message": "data source not found"}
        if method == "PUT":
            self.sources[uid] = body | {"version": self.sources[uid]["version"] + 1}
        return OK, self.sources[uid]

    def _shown(self, uid: str) -> Answer:
        return (OK, self.dashboards[uid]) if uid in self.dashboards else (NOT_FOUND, {"message": "not found"})

    def _dashboard(self, body: Body) -> Answer:
        made, folder = dict(body["dashboard"]), body["folderUid"]
        there = self.dashboards.get(made["uid"])
        if folder not in self.folders:
            return BAD, {"message": "folder not found"}
        others = [one for uid, one in self.dashboards.items() if uid != made["uid"]]
        if any((one["dashboard"]["title"], one["meta"]["folderUid"]) == (made["title"], folder) for one in others):
            return PRECONDITION, {"status": "name-exists", "message": "a dashboard with the same name exists"}
        if there is not None and not body["overwrite"] and made.get("version") != there["dashboard"]["version"]:
            return PRECONDITION, {"status": "version-mismatch", "message": "changed by someone else"}
        version = 1 if there is None else there["dashboard"]["version"] + 1
        made |= {"id": len(self.dashboards) + 1, "version": version}
        self.dashboards[made["uid"]] = {"dashboard": made, "meta": {"folderUid": folder, "version": version}}
        return OK, {"status": "success", "uid": made["uid"], "version": version}

    def _group(self, method: str, key: tuple[str, str], body: Body) -> Answer:
        if method == "PUT":
            if key[0] not in self.folders:
                return BAD, {"message": "folder does not exist"}
            known = {query["datasourceUid"] for rule in body["rules"] for query in rule["data"]} - {"__expr__"}
            if not known <= set(self.sources) or body["interval"] % 10:
                return BAD, {"message": "invalid rule group"}
            rules = [rule | {"id": n, "orgID": 1, "provenance": "api"} for n, rule in enumerate(body["rules"])]
            self.groups[key] = body | {"rules": rules}
        return (OK, self.groups[key]) if key in self.groups else (NOT_FOUND, {"message": "not found"})

    def _annotations(self, method: str, body: Body, asked: dict[str, list[str]]) -> Answer:
        if method == "POST":
            self.annotations.append({"id": len(self.annotations) + 1, **body})
            return OK, {"message": "Annotation added"}
        first, last, limit = (int(asked[name][0]) for name in ("from", "to", "limit"))
        found = [
            one
            for one in self.annotations
            if first <= one["time"] <= last and set(asked.get("tags", ())) <= set(one["tags"])
        ]
        return OK, found[-limit:]


@contextlib.contextmanager
def grafana() -> Iterator[StandIn]:
    stand_in = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            if stand_in.held is not None:
                stand_in.held.wait()
            status, answer = stand_in.answer(self.command, self.path, body, self.headers.get("Authorization", ""))
            data = b"<html>" if status == -1 else json.dumps(answer).encode()
            with contextlib.suppress(OSError):  # who asked may have left
                self.send_response(OK if status == -1 else status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
