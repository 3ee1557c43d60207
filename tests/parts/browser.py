"""A headless Chromium, steered through its debugging pipe: messages of JSON that end with a NUL."""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.parts import debian, program, stop

_QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,600"]
_QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]


class Page:
    """A page of a browser that runs."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._count = 0
        self._rest = b""
        self._session = ""
        (target,) = [each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        found = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20.0) -> None:
        """Until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"after {seconds:.0f} s still not: {script}; the page: {self.run('document.body.innerText')}"
                )
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> bytes:
        while b"\0" not in self._rest:
            assert select.select([self._back], [], [], 30)[0], "the browser says nothing"
            self._rest += os.read(self._back, 1 << 16)
        message, _, self._rest = self._rest.partition(b"\0")
        return message


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with an empty profile in a folder; it ends with the block."""
    debian("chromium", provides=["chromium"])
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    # The pipe is descriptors 3 and 4 there, which a shell can set without closing anything of ours.
    pipe = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    argv = ["bash", "-c", pipe, "bash", program("chromium"), *_QUIET, "--remote-debugging-pipe"]
    process = subprocess.Popen(
        [*argv, f"--user-data-dir={folder / 'profile'}", "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs_in, theirs_out),
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(to, back)
    finally:
        stop(process)
        os.close(to)
        os.close(back)
