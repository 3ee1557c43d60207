"""Log sink `google-cloud-logging`: batches to Google Cloud Logging, through its client library.

The project is the option `project=`, or GOOGLE_CLOUD_PROJECT, or that of the credentials. These are found the library's
way (`GOOGLE_APPLICATION_CREDENTIALS`, the node's service account), or in the file that `credentials_file=` names.
`google-cloud-logging;https://host:port` is another address; `http://` is an emulator on loopback, without credentials.

Written is through the library's `LoggingServiceV2Client`, not its `Logger`: that one retries by itself, 48 s long with
its server gone, gives up a batch for RESOURCE_EXHAUSTED or PERMISSION_DENIED, and adds an entry about itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pilot.download import is_loopback
from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError
from pilot.logship.tail import CUT_MARK
from plugins.logsinks._identity import Identity

#: Bytes of an entry: Google takes 256 kB, and other fields than ours are added there.
ENTRY_LIMIT = 250_000
#: Bytes of the message in an entry that was cut, and of each other text in it.
_CUT_MESSAGE, _CUT_FIELD = 200_000, 1000
_SCOPE = "https://www.googleapis.com/auth/logging.write"
#: Fields that are the same in all records of a job, under the names of their labels. A worker's log has several jobs.
_JOB_LABELS = {
    "queue": "queue",
    "host": "host",
    "panda_job_id": "PandaJobID",
    "task_id": "TaskID",
    "harvester_id": "Harvester_ID",
    "worker_id": "Harvester_WorkerID",
}
_LINE_LABELS = ("phase", "file")
#: gRPC waits up to 2 minutes between connections; our own pauses are enough.
_CHANNEL = [("grpc.max_reconnect_backoff_ms", 2000), ("grpc.max_send_message_length", -1)]


class GoogleCloudLogging(LogSink):
    """Writes entries with severity, labels, a `generic_node` (or `global`) as resource, and the record as payload."""

    name = "google-cloud-logging"
    needs: ClassVar[Mapping[str, str]] = {"google.cloud.logging_v2": "pip install 'pilot-toolkit[gcloud-logging]'"}
    #: A request may have 10 MB; 1 MiB of characters are at most 4 MB, and the fields of 1000 records 1 MB.
    max_records = 1000

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        parts = urlsplit(context.url)
        if context.url and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise SinkError(f"{context.url!r}: expected https://HOST[:PORT], or nothing for Google's", retry=False)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise SinkError(f"{parts.hostname}: plain http is for emulators on loopback", retry=False)
        self._client: Any = None
        self._project = ""
        self._types: Any = None
        self._identity = Identity()

    def send(self, batch: Sequence[Record]) -> None:
        """Write a batch, in one call without a retry of the library's."""
        from google.api_core import exceptions

        client = self._client or self._connect()
        try:
            client.write_log_entries(request=self._request(batch), retry=None, timeout=self.context.timeout)
        except (exceptions.InvalidArgument, exceptions.OutOfRange) as error:
            raise SinkError(_short(error), retry=False, refused=self._refused(error)) from error
        except exceptions.GoogleAPICallError as error:
            raise SinkError(_short(error)) from error

    def close(self) -> None:
        """Close the channel."""
        if self._client is not None:
            self._client.transport.close()
            self._client = None

    def _connect(self) -> Any:
        """The client; made here, in a thread, because finding credentials may ask the node's metadata server."""
        from google.cloud.logging_v2 import types
        from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client

        parts = urlsplit(self.context.url)
        transport, found = _emulated(parts.netloc) if parts.scheme == "http" else self._transport(parts.netloc)
        options, environ = self.context.options, self.context.environ
        self._project = options.get("project") or environ.get("GOOGLE_CLOUD_PROJECT") or found or ""
        if not self._project:
            raise SinkError("no project: neither project=, nor GOOGLE_CLOUD_PROJECT, nor one in the credentials")
        self._types, self._client = types, LoggingServiceV2Client(transport=transport)
        return self._client

    def _transport(self, address: str) -> tuple[Any, str | None]:
        """How to get there, and the project of the credentials."""
        from google.cloud.logging_v2.services.logging_service_v2.transports import LoggingServiceV2GrpcTransport

        def channel(host: str, **more: Any) -> Any:
            more["options"] = [*more.get("options", ()), *_CHANNEL]
            return LoggingServiceV2GrpcTransport.create_channel(host, **more)

        credentials, project = self._credentials()
        host: Any = {"host": address} if address else {}
        made = LoggingServiceV2GrpcTransport(
            credentials=credentials, channel=channel, always_use_jwt_access=True, **host
        )
        return made, project

    def _credentials(self) -> tuple[Any, str | None]:
        import google.auth

        auth: Any = google.auth
        variable = self.context.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
        path = self.context.options.get("credentials_file") or variable
        found: tuple[Any, str | None] = (
            auth.load_credentials_from_file(path, scopes=[_SCOPE]) if path else auth.default(scopes=[_SCOPE])
        )
        return found

    def _refused(self, error: Any) -> int | None:
        """How many entries were not written, where the answer says it: the others were, with `partial_success`."""
        from google.rpc import status_pb2

        errors = self._types.WriteLogEntriesPartialErrors.pb(self._types.WriteLogEntriesPartialErrors())
        for call in error.errors:
            for key, value in call.trailing_metadata() or ():
                if key == "grpc-status-details-bin":
                    details = status_pb2.Status.FromString(value).details
                    if any(detail.Unpack(errors) for detail in details):
                        return len(errors.log_entry_errors)
        return None

    def _request(self, batch: Sequence[Record]) -> Any:
        request = self._types.WriteLogEntriesRequest()
        message = self._types.WriteLogEntriesRequest.pb(request)
        first = batch[0].fields
        message.log_name = f"projects/{self._project}/logs/{self.context.log_name}"
        message.partial_success = True
        message.labels.update({label: str(first[key]) for label, key in _JOB_LABELS.items() if first.get(key)})
        self._fill_resource(message.resource, first)
        severities = self._types.LogEntry.pb(self._types.LogEntry()).DESCRIPTOR.fields_by_name["severity"].enum_type
        numbers = {value.name: value.number for value in severities.values}
        for record in batch:
            entry = message.entries.add()
            self._fill(entry, record, numbers)
            if record.fields.get("PandaJobID") != first.get("PandaJobID"):
                entry.labels.update({label: str(record.fields.get(key, "")) for label, key in _JOB_LABELS.items()})
            if entry.ByteSize() > ENTRY_LIMIT:
                _cut(entry)
        return request

    def _fill_resource(self, resource: Any, fields: Mapping[str, Any]) -> None:
        """What the log is of. A node needs a place: without the option `location` it is `global`, all the world."""
        resource.type = self.context.options.get("resource", "generic_node")
        resource.labels["project_id"] = self._project
        if resource.type == "generic_node":
            resource.labels["location"] = self.context.options.get("location", "global")
            resource.labels["namespace"] = str(fields.get("queue", ""))
            resource.labels["node_id"] = str(fields.get("host", ""))

    def _fill(self, entry: Any, record: Record, numbers: Mapping[str, int]) -> None:
        entry.insert_id = self._identity.of(record)
        entry.timestamp.FromMicroseconds(int(record.when * 1e6))
        entry.severity = numbers[record.severity]
        for key in _LINE_LABELS:
            entry.labels[key] = str(record.fields.get(key, ""))
        payload = entry.json_payload
        for key, value in record.fields.items():
            if isinstance(value, str):  # three times as fast as Struct.update, and nearly all are texts
                payload.fields[key].string_value = value
            elif isinstance(value, int | float) and not isinstance(value, bool):
                payload.fields[key].number_value = value
            else:
                payload.update({key: value})


def _emulated(address: str) -> tuple[Any, str]:
    import grpc
    from google.cloud.logging_v2.services.logging_service_v2.transports import LoggingServiceV2GrpcTransport

    return LoggingServiceV2GrpcTransport(channel=grpc.insecure_channel(address, options=_CHANNEL)), "emulated"


def _cut(entry: Any) -> None:
    """Shorten the texts of an entry; what is no text goes if it is still too long."""
    for key, value in entry.json_payload.fields.items():
        if value.HasField("string_value"):
            data = value.string_value.encode()
            limit = _CUT_MESSAGE if key == "message" else _CUT_FIELD
            if len(data) > limit:
                value.string_value = data[:limit].decode("utf-8", "ignore") + CUT_MARK
    if entry.ByteSize() > ENTRY_LIMIT:
        for key, value in list(entry.json_payload.fields.items()):
            if value.ByteSize() > _CUT_FIELD and key != "message":
                del entry.json_payload.fields[key]


def _short(error: Any) -> str:
    return f"{error.grpc_status_code.name if error.grpc_status_code else error.code}: {error.message[:200]}"
