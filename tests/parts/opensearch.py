"""OpenSearch on loopback: osmem-server, whose errors are those of a real node, and a door before it that has faults."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, cast

import pytest

from tests.parts import environment, stop

PACKAGE = "osmem-server==0.1.6"


@dataclass
class SearchServer:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]

    def call(self, method: str, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def documents(self, pattern: str) -> list[dict[str, Any]]:
        """All documents of some indices, in the order of their sequence numbers."""
        self.call("POST", f"/{pattern}/_refresh")
        found = self.call("POST", f"/{pattern}/_search", {"size": 10000})["hits"]["hits"]
        return sorted((hit["_source"] | {"_index": hit["_index"]} for hit in found), key=lambda each: each["seq"])


def start_search() -> SearchServer:
    """Start a server; it ends with us."""
    packages = environment("osmem", PACKAGE).parent / "lib"
    program = next(packages.glob("python*/site-packages/osmem_server/bin/osmem-server"))
    argv = [str(program), "--addr", "127.0.0.1:0", "--no-ja", "--no-stdin-watch", "--parent-pid", str(os.getpid())]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in cast(IO[bytes], process.stdout):
        if line.startswith(b"{") and "url" in (ready := json.loads(line)):
            return SearchServer(ready["url"], process)
    stop(process)
    raise RuntimeError("osmem-server did not start")


@pytest.fixture(scope="session")
def search_server() -> Iterator[SearchServer]:
    """One server for all tests."""
    server = start_search()
    yield server
    stop(server.process)
    cast(IO[bytes], server.process.stdout).close()


class Door:
    """A proxy before a server, with TLS, logins and faults that it has not.

    `plan` holds what to do instead, one a request: a status to answer; `reset`; seconds to wait before it is passed on;
    `lost`, pass it on and reset; `half`, pass half of a bulk on and answer 429 for each of the other documents.
    """

    def __init__(self, server: SearchServer, *, port: int = 0, login: str = "", tls: Any = None) -> None:
        self.plan: list[int | float | str] = []
        self.authorizations: list[str] = []
        self.documents = 0
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                door.authorizations.append(self.headers.get("Authorization", ""))
                step = door.plan.pop(0) if door.plan else None
                if isinstance(step, float):
                    time.sleep(step)
                elif isinstance(step, int):
                    return self.answer(step, b'{"error": "injected"}')
                if login and door.authorizations[-1] != login:
                    return self.answer(401, b"Unauthorized")
                if step != "reset":
                    status, data = door.pass_on(self.path, body, self.headers, step == "half")
                if step in ("reset", "lost"):
                    self.close_connection = True
                    return None
                return self.answer(status, data)

            def answer(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._url = server.url
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def pass_on(self, path: str, body: bytes, headers: Message, half: bool) -> tuple[int, bytes]:
        kept = {name: headers[name] for name in ("Content-Type", "Content-Encoding") if name in headers}
        lines = body.splitlines(keepends=True) if "Content-Encoding" not in headers else []
        self.documents += len(lines) // 2
        middle = len(lines) // 4 * 2 if half else len(lines)
        try:
            request = urllib.request.Request(self._url + path, b"".join(lines[:middle]) or body, kept, method="POST")
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                status, found = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        if not half:
            return status, found
        refused = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue is full"}}
        value = json.loads(found)
        value["items"] += [{"create": refused}] * ((len(lines) - middle) // 2)
        return status, json.dumps(value | {"errors": True}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
