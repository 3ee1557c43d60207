"""Log sink `opensearch`: bulk requests through opensearch-py, an index a day: `<logname>-YYYY.MM.DD`, in UTC.

`opensearch;https://host:9200`, with one of these, the first that is there:

- a token: `opensearch_token` of the job's pilotSecrets, the file of the option `token_file=`, or OPENSEARCH_TOKEN;
- user and password: `opensearch_login` and `opensearch_password` of pilotSecrets, the options `login=` and
  `password_file=`, or OPENSEARCH_USERNAME and OPENSEARCH_PASSWORD;
- `auth=aws;region=REGION` (and `service=aoss` for the serverless one): requests signed with the node's AWS credentials.

Each document has an id of its own and is only ever created, so a batch that is sent again leaves no doubles.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext, SinkError
from plugins.logsinks._identity import Identity
from plugins.logsinks._post import check_url, login_of

#: What a document that is there already is answered with: a try whose answer was lost had created it.
_CONFLICT = 409
#: Statuses after which the same may be taken: credentials may be renewed, a full disk emptied.
_LATER = (401, 403, 408, 429)
_CREATED = 300
_SHOWN = 200


class Opensearch(LogSink):
    """Indexes records in OpenSearch."""

    name = "opensearch"
    needs: ClassVar[Mapping[str, str]] = {"opensearchpy": "pip install 'pilot-toolkit[opensearch]'"}
    max_records = 1000

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        check_url(context.url, context)
        self._client: Any = None
        self._identity = Identity()
        self._settled: set[str] = set()
        self._refused = 0
        self._why = ""

    def send(self, batch: Sequence[Record]) -> None:
        """Index a batch; of one that is sent again, what was not settled before."""
        named = [(self._identity.of(record), record) for record in batch]
        waiting = [(name, record) for name, record in named if name not in self._settled]
        later = self._sort(waiting, self._bulk(waiting)) if waiting else 0
        if later:
            raise SinkError(f"{later} of {len(batch)} later: {self._why}")
        refused, self._refused = self._refused, 0
        self._settled.clear()
        if refused:
            raise SinkError(self._why, retry=False, refused=refused)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _bulk(self, named: Sequence[tuple[str, Record]]) -> list[dict[str, Any]]:
        """What became of each document."""
        from opensearchpy import exceptions

        client = self._client or self._connect()
        wanted = {"filter_path": "errors,items.*.status,items.*.error.type,items.*.error.reason"}
        try:
            answer = client.bulk(body="".join(self._lines(*each) for each in named), params=wanted)
        except exceptions.TransportError as error:
            status = error.status_code if isinstance(error.status_code, int) else 0
            retry = not 300 <= status < 500 or status in _LATER
            raise SinkError(f"HTTP {status or 'failed'}: {str(error)[:_SHOWN]}", retry=retry) from error
        items = [item.get("create", {}) for item in answer.get("items", ())] if isinstance(answer, dict) else []
        if len(items) != len(named):
            raise SinkError(f"the answer has {len(items)} items for {len(named)} documents")
        return items

    def _lines(self, name: str, record: Record) -> str:
        stamp = datetime.fromtimestamp(record.when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        index = json.dumps(f"{self.context.log_name.lower()}-{stamp[:10].replace('-', '.')}")
        return f'{{"create":{{"_index":{index},"_id":"{name}"}}}}\n{record.to_json({"@timestamp": stamp})}\n'

    def _sort(self, named: Sequence[tuple[str, Record]], items: Sequence[Mapping[str, Any]]) -> int:
        """Note what is settled, and how many never will be taken; returns how many must be sent again."""
        later = 0
        for (name, _), item in zip(named, items, strict=True):
            status = int(item.get("status", 500))
            if status >= _CREATED and status != _CONFLICT:
                error = item.get("error") or {}
                self._why = f"{status} {error.get('type', '')} {error.get('reason', '')}"[:_SHOWN]
                if status >= 500 or status in _LATER:
                    later += 1
                    continue
                self._refused += 1
            self._settled.add(name)
        return later

    def _connect(self) -> Any:
        from opensearchpy import OpenSearch

        # The library warns at every try, with a traceback, in a log that is itself sent; our engine says it once.
        logging.getLogger("opensearch").setLevel(logging.CRITICAL)
        secure = self.context.url.startswith("https:")
        more: dict[str, Any] = {"ssl_context": self.context.tls()} if secure and self.context.tls else {}
        self._client = OpenSearch(
            [self.context.url],
            timeout=self.context.timeout,
            max_retries=0,
            http_compress=secure,
            **self._authentication(),
            **more,
        )
        return self._client

    def _authentication(self) -> dict[str, Any]:
        options = self.context.options
        if options.get("auth") == "aws":
            return {"http_auth": self._aws(options.get("region", ""), options.get("service", "es"))}
        if token := self._secret("opensearch_token", "token_file", "OPENSEARCH_TOKEN"):
            return {"headers": {"Authorization": f"Bearer {token}"}}
        login = login_of(self.context, "opensearch_login", "opensearch_password") or (
            options.get("login") or self.context.environ.get("OPENSEARCH_USERNAME", ""),
            self._secret("", "password_file", "OPENSEARCH_PASSWORD"),
        )
        return {"http_auth": login} if all(login) else {}

    def _secret(self, name: str, file: str, variable: str) -> str:
        """From pilotSecrets, from a file, or from the environment; empty if it is nowhere."""
        if name in self.context.secrets:
            return self.context.secrets[name].reveal()
        if path := self.context.options.get(file):
            return Path(path).read_text().strip()
        return self.context.environ.get(variable, "")

    def _aws(self, region: str, service: str) -> Any:
        from botocore.session import Session
        from opensearchpy import Urllib3AWSV4SignerAuth

        session = Session()
        return Urllib3AWSV4SignerAuth(
            session.get_credentials(), region or session.get_config_variable("region"), service
        )
