"""A Fluentd on loopback: FluentServer of Fluent's own JavaScript package, which prints what it takes."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import IO, Any, cast

from tests.parts import CACHE, _run, alone, cannot, program, stop, wait_until

PACKAGE = "@fluent-org/logger@1.0.10"
_FOLDER = CACHE / "npm" / "fluentd"
_SERVER = """
const { FluentServer } = require("@fluent-org/logger");
class Printer extends FluentServer {
  onEntry(tag, time, record) {
    const when = (time.epoch ?? time) * 1000 + (time.nano ?? 0) / 1e6;
    process.stdout.write(JSON.stringify({ tag, time: when, record }) + "\\n");
  }
}
const server = new Printer({ listenOptions: { port: Number(process.argv[1]), host: "127.0.0.1" } });
if (process.argv[2]) server.server.on("connection", (socket) => { socket.write = () => true; });
server.listen().then(() => process.stdout.write(JSON.stringify({ port: server.port }) + "\\n"));
"""


def install() -> None:
    """Install the package, once."""
    npm = program("npm")
    with alone("npm"):
        if not (_FOLDER / "node_modules" / "@fluent-org" / "logger").is_dir():
            _FOLDER.mkdir(parents=True, exist_ok=True)
            if _run([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(_FOLDER), PACKAGE]) != 0:
                cannot(f"npm install {PACKAGE} failed")


class FluentdServer:
    """A running server. `entries` is what it took: tag, time and record. A `silent` one acknowledges nothing."""

    def __init__(self, port: int = 0, *, silent: bool = False) -> None:
        install()
        self.entries: list[dict[str, Any]] = []
        self.port = 0
        argv = [program("node"), "-e", _SERVER, str(port), *(["silent"] if silent else [])]
        self._process = subprocess.Popen(argv, cwd=_FOLDER, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self.port > 0, "FluentServer listens")

    def _read(self) -> None:
        for line in cast(IO[bytes], self._process.stdout):
            value = json.loads(line)
            if "port" in value:
                self.port = value["port"]
            else:
                self.entries.append(value)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [entry["record"] for entry in self.entries]

    def close(self) -> None:
        stop(self._process)
        self._reader.join(5)
        cast(IO[bytes], self._process.stdout).close()
