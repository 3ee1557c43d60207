"""rsyslog on loopback in the place of Logstash: lines of JSON over TCP in, parsed, and on to OpenSearch in bulks."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.parts import debian, free_port, listens, program, stop, wait_until

MODULES = "/usr/lib/x86_64-linux-gnu/rsyslog/omelasticsearch.so"
#: `useRawMsg`: a line of JSON has no syslog header to take off. What is no JSON goes nowhere.
_CONFIGURATION = """
global(workDirectory="{folder}" maxMessageSize="256k")
module(load="imtcp")
module(load="mmjsonparse")
module(load="omelasticsearch")
template(name="event" type="list") {{ property(name="$!all-json") }}
ruleset(name="events" queue.type="LinkedList" queue.dequeueBatchSize="500") {{
  action(type="mmjsonparse" cookie="" useRawMsg="on")
  if $parsesuccess == "OK" then {{
    action(type="omelasticsearch" server="{server}" template="event" searchIndex="{index}" searchType=""
           esVersion.major="8" bulkmode="on" action.resumeRetryCount="-1" errorFile="{folder}/errors.json")
  }}
}}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="events")
"""


class Rsyslog:
    """A running rsyslogd, which ends with `close`.

    Args:
        folder: for its files.
        server: URL of OpenSearch.
        index: where documents go.
        port: to listen on; a free one if none is given.
    """

    def __init__(self, folder: Path, server: str, index: str, port: int = 0) -> None:
        debian("rsyslog", "rsyslog-elasticsearch", provides=["rsyslogd", MODULES])
        self.port = port or free_port()
        text = _CONFIGURATION.format(folder=folder, server=server, index=index, port=self.port)
        (folder / "rsyslog.conf").write_text(text)
        argv = [program("rsyslogd"), "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "rsyslog.pid")]
        with open(folder / "rsyslog.out", "ab") as out:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_until(lambda: listens(self.port), "rsyslog listens")

    def hang(self) -> None:
        """It reads no more; its kernel takes bytes all the same."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """As a crash: what it had in memory is gone."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        stop(self._process)
