"""Google Cloud Logging on loopback: the gRPC service LoggingServiceV2 made from the library's own protos.

It keeps the quotas of the real one (256 kB an entry, 10 MB a request), ignores an entry whose insertId it has, and
writes the good entries of a batch that has bad ones, which it names in the details of INVALID_ARGUMENT.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SERVICE = "google.logging.v2.LoggingServiceV2"
ENTRY_LIMIT, REQUEST_LIMIT = 256_000, 10_000_000


class GclServer:
    """A server in threads. `entries` is what it took.

    `plan` holds what to do instead, one a call: the name of a status, or seconds to wait before the call is
    carried out. `lose` answers a call with a status after it was carried out. `bad` is a text that makes an entry
    invalid.
    """

    def __init__(self, port: int = 0, *, tls: tuple[bytes, bytes] | None = None, bad: str = "") -> None:
        import grpc
        from google.cloud.logging_v2.types import WriteLogEntriesRequest, WriteLogEntriesResponse

        self.entries: list[dict[str, Any]] = []
        self.plan: list[str | float] = []
        self.lose: list[str] = []
        self.calls = 0
        self.largest = 0
        self.metadata: dict[str, Any] = {}
        self._bad = bad
        self._seen: set[str] = set()
        write = grpc.unary_unary_rpc_method_handler(
            self._write, WriteLogEntriesRequest.deserialize, WriteLogEntriesResponse.serialize
        )
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", REQUEST_LIMIT)])
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(SERVICE, {"WriteLogEntries": write})]
        )
        address = f"127.0.0.1:{port}"
        if tls:
            self.port = self._server.add_secure_port(address, grpc.ssl_server_credentials([tls]))
        else:
            self.port = self._server.add_insecure_port(address)
        self._server.start()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [entry["jsonPayload"] for entry in self.entries]

    def _write(self, request: Any, context: Any) -> Any:
        import grpc
        from google.cloud.logging_v2.types import WriteLogEntriesRequest, WriteLogEntriesResponse

        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        step = self.plan.pop(0) if self.plan else None
        if isinstance(step, str):
            context.abort(grpc.StatusCode[step], "injected")
        if isinstance(step, float):
            time.sleep(step)
        message = WriteLogEntriesRequest.pb(request)
        self.largest = max(self.largest, message.ByteSize())
        wrong = {n: why for n, entry in enumerate(message.entries) if (why := self._problem(entry))}
        for number, entry in enumerate(message.entries):
            if number not in wrong and entry.insert_id not in self._seen:
                self._seen.add(entry.insert_id)
                self.entries.append(_as_json(message, entry))
        if wrong:
            self._refuse(context, wrong)
        if self.lose:
            context.abort(grpc.StatusCode[self.lose.pop(0)], "injected after it was done")
        return WriteLogEntriesResponse()

    def _problem(self, entry: Any) -> str:
        if entry.ByteSize() > ENTRY_LIMIT:
            return f"Log entry with size {entry.ByteSize()} exceeds maximum size of 256.0K"
        return "bad entry" if self._bad and self._bad in str(entry.json_payload) else ""

    def _refuse(self, context: Any, wrong: dict[int, str]) -> None:
        import grpc
        from google.cloud.logging_v2.types import WriteLogEntriesPartialErrors
        from google.rpc import code_pb2, status_pb2
        from grpc_status import rpc_status

        errors = WriteLogEntriesPartialErrors.pb(WriteLogEntriesPartialErrors())
        for number, why in wrong.items():
            errors.log_entry_errors[number].code = code_pb2.INVALID_ARGUMENT
            errors.log_entry_errors[number].message = why
        status = status_pb2.Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message=next(iter(wrong.values())))
        status.details.add().Pack(errors)
        context.abort_with_status(rpc_status.to_status(status))

    def close(self) -> None:
        self._server.stop(0).wait()


def _as_json(message: Any, entry: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    found = MessageToDict(entry)
    found["labels"] = {**message.labels, **entry.labels}
    return {"logName": message.log_name, "resource": MessageToDict(message.resource), **found}


def service_account(path: Path, key: str) -> Path:
    """A credentials file of a service account, with a key of its own: the library signs its tokens by itself."""
    account = {
        "type": "service_account",
        "project_id": "tests",
        "private_key_id": "1",
        "private_key": key,
        "client_email": "pilot@tests.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": "http://127.0.0.1:1/token",
    }
    path.write_text(json.dumps(account))
    return path
