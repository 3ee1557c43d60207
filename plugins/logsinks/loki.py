"""Log sink `loki`: Grafana Loki's push API (`POST /loki/api/v1/push`, answered with 204).

Lines are grouped into streams by their labels, which are few on purpose: Loki keeps an index entry for each set of
values. Everything else of a record is in the line itself, as JSON. Variables as in Pilot 3: `LOKI_URL` (the whole push
URL), `LOKI_LABELKEYS` (JSON list of the fields that become labels). The login at a gateway before it comes in the job's
pilotSecrets (`loki_login`, `loki_password`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pilot.logship.record import Record
from pilot.logship.sink import LogSink, SinkContext
from plugins.logsinks._post import Poster, login_of

PUSH = "/loki/api/v1/push"
#: Fields that become labels unless LOKI_LABELKEYS says otherwise: few values each.
LABELS = ("queue", "severity", "file")
#: Loki's default `max_label_names_per_series` is 15.
MOST_LABELS = 15


class Loki(LogSink):
    """Pushes to Grafana Loki."""

    name = "loki"

    def __init__(self, context: SinkContext) -> None:
        super().__init__(context)
        url = context.environ.get("LOKI_URL") or context.url
        url = url if PUSH in url else url.rstrip("/") + PUSH
        self._poster = Poster(url, context, login_of(context, "loki_login", "loki_password"))
        self._labels = _label_keys(context.environ.get("LOKI_LABELKEYS", ""))

    def send(self, batch: Sequence[Record]) -> None:
        """Push a batch, a stream for each set of labels, lines in the order of time."""
        streams: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
        for record in batch:
            line = [str(int(record.when * 1e9)), record.to_json()]
            streams.setdefault(self._labels_of(record), []).append(line)
        body = {"streams": [{"stream": dict(labels), "values": values} for labels, values in streams.items()]}
        self._poster.post(json.dumps(body).encode(), {"Content-Type": "application/json"})

    def close(self) -> None:
        """Close the connection."""
        self._poster.close()

    def _labels_of(self, record: Record) -> tuple[tuple[str, str], ...]:
        fixed: Mapping[str, Any] = {"app": self.context.log_name, **self.context.options}
        found = {key: str(record.fields[key]) for key in self._labels if record.fields.get(key) not in (None, "")}
        return tuple(sorted({**{key: str(value) for key, value in fixed.items()}, **found}.items()))[:MOST_LABELS]


def _label_keys(text: str) -> tuple[str, ...]:
    try:
        keys = json.loads(text) if text else LABELS
    except ValueError:
        return LABELS
    return tuple(str(key) for key in keys) if isinstance(keys, list | tuple) else LABELS
