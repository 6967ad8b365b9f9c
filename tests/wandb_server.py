"""A server on loopback that speaks as much of W&B as a run needs, or misbehaves in a given way."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterator

_ANSWERS = {
    "upsertBucket": {
        "upsertBucket": {
            "inserted": True,
            "bucket": {
                "id": "abc", "name": "0123abcd", "displayName": "run", "description": "", "config": "{}",
                "sweepName": None, "historyLineCount": 0,
                "project": {"id": "p", "name": "project", "entity": {"id": "e", "name": "someone"}},
            },
        }
    },
    "createRunFiles": {"createRunFiles": {"runID": "abc", "uploadHeaders": [], "files": []}},
    "viewer": {"viewer": {"id": "v", "username": "someone", "entity": "someone", "flags": "{}"}},
    "serverInfo": {"serverInfo": {"features": [], "cliVersionInfo": {}}},
}  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    behaviour = ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.behaviour.isdigit():
            return self._answer(int(self.behaviour), b'{"errors": [{"message": "no"}]}')
        if self.behaviour == "html":
            return self._answer(200, b"<html>Welcome to the hotel</html>")
        if self.behaviour == "silent":
            time.sleep(600)
        if self.behaviour == "slow":
            time.sleep(3)
        if self.behaviour == "trickle":
            self._answer(200, b"", length=100_000)
            for _ in range(600):
                self.wfile.write(b" ")
                time.sleep(1)
        data = {}
        if self.path == "/graphql":
            query = json.loads(body)["query"]
            data = next((answer for name, answer in _ANSWERS.items() if name in query), {"model": {"bucket": None}})
        return self._answer(200, json.dumps({"data": data}).encode())

    do_GET = do_PUT = do_POST

    def _answer(self, code: int, body: bytes, length: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests' output is theirs."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


@contextlib.contextmanager
def wandb_server(behaviour: str = "sound") -> Iterator[http.server.HTTPServer]:
    """Its address is http://127.0.0.1:{server_port}. A number: that status to all; html, silent, slow, trickle."""
    handler = type("Handler", (_Handler,), {"behaviour": behaviour})
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
