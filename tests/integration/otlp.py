"""A collector: takes spans as OTLP over HTTP, in the protocol's own messages."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PATH = "/v1/traces"


class Collector:
    """On a port of its own until it is closed. `spans`: all that came, in the order of their arrival."""

    def __init__(self) -> None:
        collector = self
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self._asked, self._answers = threading.Event(), threading.Event()
        self._answers.set()

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._asked.set()
                collector._answers.wait()
                body = self.rfile.read(int(self.headers["content-length"]))
                data = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                collector.take(ExportTraceServiceRequest.FromString(data))
                with contextlib.suppress(ConnectionError):  # who was kept waiting may have gone
                    self.send_response(200 if self.path == PATH else 404)
                    self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self.url = f"http://127.0.0.1:{self._server.server_port}{PATH}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextlib.contextmanager
    def hung(self) -> Iterator[threading.Event]:
        """It takes connections meanwhile, and answers none. Yields what is set once somebody waits."""
        self._asked.clear()
        self._answers.clear()
        try:
            yield self._asked
        finally:
            self._answers.set()

    def take(self, request: Any) -> None:
        for group in request.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def trace(self, trace_id: str) -> list[Any]:
        """Its spans by their start."""
        found = [span for span in self.spans if span.trace_id.hex() == trace_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, -span.end_time_unix_nano))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
