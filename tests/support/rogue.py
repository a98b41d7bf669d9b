"""Servers that lie: an HTTP server whose answers a test decides, and one that stands between a client and an honest server."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    """With the query."""
    headers: dict[str, str]
    body: bytes


class Answered(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Asked], Answered]


@contextlib.contextmanager
def serve_answers(answer: Answer) -> Iterator[str]:
    """An HTTP server on a free loopback port; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            found = answer(Asked(self.command, self.path, dict(self.headers), self.rfile.read(length)))
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            self.wfile.write(found.body)

        do_GET = do_POST = do_PUT = do_DELETE = _handle

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="rogue")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_KEPT = ("content-type", "content-range", "etag", "retry-after")


class Meddler:
    """Stands between a client and a server.

    Set ``lie`` to change an answer: it gets the request and the honest answer's body and gives the body to send.
    ``upstream`` may be pointed to another server in the middle of a conversation.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.lie: Callable[[Asked, bytes], bytes] = lambda _, body: body
        self.token: str | None = None
        """Sent upstream in the place of the client's."""
        self.deaf_to = ""
        """A path that is answered with 204 and goes nowhere: a server that does not want to know."""

    def answer(self, asked: Asked) -> Answered:
        if asked.path == self.deaf_to:
            return Answered(204, {}, b"")
        parts = urlsplit(self.upstream)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            headers = {name: value for name, value in asked.headers.items() if name.lower() != "host"}
            if self.token is not None:
                headers["Authorization"] = f"Bearer {self.token}"
            connection.request(asked.method, asked.path, asked.body or None, headers)
            response = connection.getresponse()
            body = response.read()
            kept = {name: value for name, value in response.getheaders() if name.lower() in _KEPT}
            return Answered(response.status, kept, self.lie(asked, body) if response.status < 300 else body)
        finally:
            connection.close()


@contextlib.contextmanager
def meddle(upstream: str) -> Iterator[tuple[Meddler, str]]:
    """A :class:`Meddler` and the URL to reach it by."""
    meddler = Meddler(upstream)
    with serve_answers(meddler.answer) as url:
        yield meddler, url
