"""The server's memory: jobs, their updates and what else it was told, in SQLite.

The rules of `update` are those of `updateJobStatus` in panda-server 1.0.4, and can be seen in wire/v1-job-states.jsonl.
"""

from __future__ import annotations

import itertools
import json
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.devserver import jobs as definitions
from pilot.devserver.spec import COMMAND_LIMIT, FIELD_LIMITS

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, queue TEXT NOT NULL, label TEXT NOT NULL, status TEXT NOT NULL, attempt INTEGER NOT NULL,
    priority INTEGER NOT NULL, definition TEXT NOT NULL, created REAL NOT NULL, modified REAL NOT NULL,
    archived INTEGER NOT NULL DEFAULT 0, command TEXT NOT NULL DEFAULT '', debug INTEGER NOT NULL DEFAULT 0,
    held INTEGER NOT NULL DEFAULT 0, batch_id TEXT NOT NULL DEFAULT '', fields TEXT NOT NULL DEFAULT '{}',
    final TEXT NOT NULL DEFAULT '', due REAL, ddm_error_code INTEGER NOT NULL DEFAULT 0,
    ddm_error_diag TEXT NOT NULL DEFAULT '', killed_by TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (archived, status, priority DESC, id);
CREATE INDEX IF NOT EXISTS jobs_due ON jobs (due) WHERE due IS NOT NULL;
CREATE TABLE IF NOT EXISTS updates (
    seq INTEGER PRIMARY KEY, job_id INTEGER NOT NULL, time REAL NOT NULL, api TEXT NOT NULL, arguments TEXT NOT NULL,
    fields TEXT NOT NULL, answer TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS updates_by_job ON updates (job_id);
CREATE TABLE IF NOT EXISTS notices (
    seq INTEGER PRIMARY KEY, time REAL NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, arguments TEXT NOT NULL);
"""
# Which labels a request for a label is given (`construct_where_clause`); others get their own.
_LABELS: Mapping[str, tuple[str, ...]] = {
    "user": ("user", "panda", "install"),
    "managed": ("managed", "test", "prod_test", "install"),
    "test": ("prod_test", "install", "test"),
    "unified": ("managed", "test", "prod_test", "install", "user", "panda"),
}
_DEBUGGABLE = ["defined", "activated", "running", "sent", "starting", "assigned"]
_SENT_WINDOW = 60.0  # s: nSent counts jobs that were sent so recently
_CLOSING_CODES = (2, 4, 10, 51, 55, 60)  # kill codes that end in `closed`
_TOO_BIG = 2**63  # SQLite has no such integer, so no job has such an id
_NUMBER = re.compile(r"\d+\.*\d+")


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request for jobs says. Memory and disk in MB, remaining time in s; 0 and None do not restrict."""

    queue: str
    label: str | None = None
    n_jobs: int = 1
    memory: int = 0
    disk: int = 0
    remaining_time: int = 0
    resource_type: str | None = None
    task_id: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """One update of a job: `fields` under their v1 names, `arguments` as they were sent."""

    api: str
    job_id: int
    state: str
    attempt: int | None
    fields: Mapping[str, Any]
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to an update. `secrets` is the pilotSecrets text that goes with debug mode, or None."""

    status_code: int
    command: str = ""
    secrets: str | None = None

    def as_answer(self) -> dict[str, Any]:
        """For a person who looks at the job later."""
        return {"StatusCode": self.status_code, **({"command": self.command} if self.command else {})}


@dataclass(slots=True)
class _Decision:
    """What an update does to a job: columns to set, and what the pilot is told."""

    command: str
    status_code: int = 0
    columns: dict[str, Any] = field(default_factory=dict)


class State:
    """Jobs and notices. Thread-safe: one connection behind one lock, every method is one step.

    Args:
        path: the SQLite file; None keeps everything in memory.
        adder_delay: seconds from a final report to the job's last state.
        clock: seconds since 1970.
        url: the server's own address, put where a definition says `{devserver}`.
    """

    def __init__(
        self,
        path: Path | None = None,
        adder_delay: float = 0.2,
        clock: Callable[[], float] = time.time,
        url: str = "",
    ) -> None:
        self._url = url
        self._grants: dict[str, Path] = {}
        self._lock = threading.RLock()
        self._clock = clock
        self._adder_delay = adder_delay
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        # Speed over safety: this is a server for tests and demos, a power cut may cost its file.
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;" + _SCHEMA)

    def close(self) -> None:
        """Write out and forget everything; no other method may be called after it."""
        with self._lock:
            self._db.close()

    # --- credentials

    def grant(self, what: str, path: Path) -> None:
        """Hand out the text of a file as `proxy`, `access token` or `keys`; it is read anew each time."""
        self._grants[what] = path

    def granted(self, what: str) -> str | None:
        """The text, None if nobody gets one."""
        path = self._grants.get(what)
        return path.read_text(encoding="utf-8") if path else None

    def key_pair(self, user: str, public: str, private: str) -> tuple[str, str] | str | None:
        """Two of the granted keys; else what is missing; None if nobody gets any."""
        text = self.granted("keys")
        if text is None:
            return None
        keys = json.loads(text)
        missing = next((name for name in (public, private) if name not in keys), None)
        return (keys[public], keys[private]) if missing is None else f"'{user}' since {missing} is missing"

    # --- jobs in

    def submit(self, jobs: Sequence[definitions.Definition]) -> list[int]:
        """Offer jobs; those without a PandaID get the next free one.

        Raises:
            DefinitionError: a PandaID or attemptNr is no number, or a PandaID is there already. Nothing is stored.
        """
        with self._lock:
            self._db.execute("BEGIN")
            try:
                ids = [self._insert(job) for job in jobs]
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
            return ids

    def _insert(self, job: definitions.Definition) -> int:
        now = self._clock()
        raw = bool(job.get(definitions.RAW))
        values = {
            "id": _number(job, "PandaID", None, raw),
            "queue": str(job.get(definitions.QUEUE) or ""),
            "label": str(job.get("prodSourceLabel") or "managed"),
            "attempt": _number(job, "attemptNr", 1, raw),
            "priority": _number(job, "currentPriority", 1000, raw),
            "definition": json.dumps(dict(job)),
            "now": now,
        }
        try:
            cursor = self._db.execute(
                "INSERT INTO jobs (id, queue, label, status, attempt, priority, definition, created, modified)"
                " VALUES (:id, :queue, :label, 'activated', :attempt, :priority, :definition, :now, :now)",
                values,
            )
        except sqlite3.IntegrityError:
            raise definitions.DefinitionError(f"PandaID {values['id']} is there already") from None
        job_id = cursor.lastrowid or 0
        full = definitions.complete(job, job_id) | {definitions.RAW: raw}
        self._db.execute("UPDATE jobs SET definition=? WHERE id=?", (json.dumps(full), job_id))
        return job_id

    # --- jobs out

    def acquire(self, ask: Ask) -> list[dict[str, Any]]:
        """Hand out up to `n_jobs` jobs that fit, highest priority and lowest id first; each is given away once."""
        with self._lock:
            self.settle()
            chosen = list(itertools.islice((row for row in self._waiting() if _fits(row, ask)), max(0, ask.n_jobs)))
            for row in chosen:
                self._set(row["id"], status="sent", modified=self._clock())
            n_sent = self._recently_sent(ask)
            return [_dispatched(row, self._url) | {"nSent": n_sent} for row in chosen]

    def _waiting(self) -> Iterator[sqlite3.Row]:
        return self._db.execute("SELECT * FROM jobs WHERE archived=0 AND status='activated' ORDER BY priority DESC, id")

    def _recently_sent(self, ask: Ask) -> int:
        if ask.label not in (None, "managed"):
            return 0
        query = "SELECT count(*) FROM jobs WHERE archived=0 AND status='sent' AND label IN ('managed', 'test')"
        row = self._db.execute(
            query + " AND queue IN ('', ?) AND modified>?", (ask.queue, self._clock() - _SENT_WINDOW)
        )
        return int(row.fetchone()[0])

    # --- updates

    def update(self, update: Update) -> Verdict:
        """Take an update of a job and say what the pilot must hear."""
        with self._lock:
            self.settle()
            row = self._row(update.job_id)
            if row is None:
                return Verdict(0, "tobekilled")
            if row["archived"] or update.attempt not in (None, row["attempt"]):
                decision = _Decision("tobekilled")
            else:
                decision = self._decide(row, update)
                self._set(update.job_id, **decision.columns)
            verdict = _verdict(decision, row)
            self._keep(update, verdict)
            return verdict

    def _decide(self, row: sqlite3.Row, update: Update) -> _Decision:
        final = update.state in ("finished", "failed")
        new = "holding" if final else update.state
        decision = _Decision(_command_text(row))
        if row["status"] == "holding" and new == "holding" and not final:
            return decision
        if row["status"] == "holding" and final and not row["held"]:
            decision.command = "alreadydone"
            return decision
        if row["status"] in ("holding", "transferring") and new in ("running", "starting"):
            return decision
        if _another_batch(row["batch_id"], str(update.fields.get("batch_id") or "")):
            return _Decision("", status_code=30)
        decision.columns = self._changes(row, update, new)
        return decision

    def _changes(self, row: sqlite3.Row, update: Update, new: str) -> dict[str, Any]:
        now = self._clock()
        fields = json.loads(row["fields"])
        fields |= {key: _cut(key, value) for key, value in update.fields.items() if value not in (None, "")}
        columns = {"fields": json.dumps(fields), "modified": now, "batch_id": fields.get("batch_id") or ""}
        if update.state in ("finished", "failed"):
            columns |= {"held": 0, "final": update.state, "due": now + self._adder_delay}
        elif update.state in ("holding", "transferring"):
            columns["held"] = 1
        if not (new == "starting" and row["status"] == "running") and not (
            new == "transferring" and row["status"] == "holding"
        ):
            columns["status"] = new
        return columns

    def _keep(self, update: Update, verdict: Verdict) -> None:
        values = (update.arguments, update.fields, verdict.as_answer())
        self._db.execute(
            "INSERT INTO updates (job_id, time, api, arguments, fields, answer) VALUES (?, ?, ?, ?, ?, ?)",
            (update.job_id, self._clock(), update.api, *map(json.dumps, values)),
        )

    # --- the adder

    def settle(self, everything: bool = False) -> int:
        """Run the adder for the reports that are due, or for all; returns how many jobs came to their end.

        It runs before every question instead of in a thread of its own: nobody can see the difference.
        """
        with self._lock:
            limit = float("inf") if everything else self._clock()
            rows = self._db.execute("SELECT * FROM jobs WHERE due<=?", (limit,)).fetchall()
            for row in rows:
                self._add(row)
            return len(rows)

    def _add(self, row: sqlite3.Row) -> None:
        fields = json.loads(row["fields"])
        named = bool(fields.get("pilot_error_code") or fields.get("trans_exit_code"))
        report = str(fields.get("job_output_report") or "")
        outcome = definitions.outcome(json.loads(row["definition"]), row["final"], report, named)
        killed = row["command"] == "tobekilled" and outcome.state == "failed"
        self._archive(
            row["id"],
            "cancelled" if killed else outcome.state,
            ddm_error_code=outcome.ddm_error_code,
            ddm_error_diag=outcome.ddm_error_diag,
        )

    def _archive(self, job_id: int, status: str, **columns: Any) -> None:
        self._set(job_id, status=status, archived=1, due=None, modified=self._clock(), **columns)

    # --- orders from outside

    def kill(self, job_id: int, code: int | None = None, user: str = "") -> bool:
        """Kill a job as a user or the task engine does.

        A running one is told `tobekilled` at its next update. Any other one is over at once, and so is one that is
        killed with force (codes 9, 52 and 99).
        """
        with self._lock:
            self.settle()
            row = self._active(job_id)
            if row is None:
                return False
            self._set(job_id, command="tobekilled", killed_by=user)
            production = row["label"] == "managed" or "test" in row["label"]
            if row["status"] != "running" or code == 99 or (code in (9, 52) and production):
                self._archive(job_id, "closed" if code in _CLOSING_CODES else "cancelled")
            return True

    def set_command(self, job_id: int, text: str) -> tuple[bool, str]:
        """Let every update of a job be answered with `text` until another one replaces it; empty takes it away."""
        with self._lock:
            self.settle()
            if len(text) > COMMAND_LIMIT:
                return False, f"command string too long. must be less than {COMMAND_LIMIT} chars"
            row = self._active(job_id)
            if row is None:
                return False, f"no active job with PandaID={job_id}"
            if row["command"] == "tobekilled":
                return False, "job is being killed"
            self._set(job_id, command=text)
            return True, "command received"

    def set_debug(self, job_id: int, on: bool) -> str:
        """Switch debug mode; returns the real server's words, `Succeeded` if it did."""
        with self._lock:
            self.settle()
            row = self._active(job_id)
            if row is None:
                return f"PandaID={job_id} not found in active DB"
            if row["status"] not in _DEBUGGABLE:
                return (
                    f"Cannot set debugMode since the job status is {row['status']} which is not in one of {_DEBUGGABLE}"
                )
            if bool(row["debug"]) == on:
                return "Already set accordingly"
            self._set(job_id, debug=int(on))
            return "Succeeded"

    # --- looking

    def status(self, job_id: int) -> tuple[str, int, str] | None:
        """A job's state, attempt number and command, or None if there is no such job."""
        with self._lock:
            self.settle()
            row = self._row(job_id)
            return None if row is None else (row["status"], row["attempt"], row["command"])

    def states(self) -> dict[int, str]:
        """All jobs' states by id."""
        with self._lock:
            self.settle()
            return {row["id"]: row["status"] for row in self._db.execute("SELECT id, status FROM jobs ORDER BY id")}

    def job(self, job_id: int) -> dict[str, Any] | None:
        """Everything known of one job: see `client.DevServer.job`."""
        with self._lock:
            self.settle()
            row = self._row(job_id)
            if row is None:
                return None
            query = "SELECT * FROM updates WHERE job_id=? ORDER BY seq"
            return _shown(row, self._db.execute(query, (job_id,)).fetchall(), self._url)

    def jobs(self) -> list[dict[str, Any]]:
        """`job` for all jobs, by id."""
        with self._lock:
            return [job for job in map(self.job, self.states()) if job is not None]

    # --- notices

    def note(self, kind: str, arguments: Mapping[str, Any], key: str = "") -> bool:
        """Keep what was told beside jobs (workers, nodes); True if nothing of this kind and key was there before."""
        with self._lock:
            known = self._db.execute("SELECT 1 FROM notices WHERE kind=? AND key=?", (kind, key)).fetchone()
            values = (self._clock(), kind, key, json.dumps(dict(arguments)))
            self._db.execute("INSERT INTO notices (time, kind, key, arguments) VALUES (?, ?, ?, ?)", values)
            return known is None

    def notices(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What was told, in order: `time`, `kind` (the v1 call's name) and `arguments`."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM notices WHERE kind=? OR ? IS NULL ORDER BY seq", (kind, kind))
            return [
                {"time": row["time"], "kind": row["kind"], "arguments": json.loads(row["arguments"])} for row in rows
            ]

    # --- rows

    def _row(self, job_id: int) -> sqlite3.Row | None:
        if abs(job_id) >= _TOO_BIG:
            return None
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM jobs WHERE id=?", (job_id,)).fetchone()
        return row

    def _active(self, job_id: int) -> sqlite3.Row | None:
        row = self._row(job_id)
        return None if row is None or row["archived"] else row

    def _set(self, job_id: int, **columns: Any) -> None:
        if columns:
            assignments = ", ".join(f"{name}=:{name}" for name in columns)
            query = f"UPDATE jobs SET {assignments} WHERE id=:job_id"  # noqa: S608  (names are ours, values are bound)
            self._db.execute(query, {**columns, "job_id": job_id})


def _number(job: definitions.Definition, key: str, default: int | None, raw: bool) -> int | None:
    value = job.get(key)
    if value in (None, "", "NULL"):
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        if raw:  # the pilot shall see the wrong value, we need one that is right
            return default
        raise definitions.DefinitionError(f"{key} {value!r} is not a number") from None


def _fits(row: sqlite3.Row, ask: Ask) -> bool:
    if row["queue"] not in ("", ask.queue) or row["label"] not in _LABELS.get(ask.label or "managed", (ask.label,)):
        return False
    job = json.loads(row["definition"])
    return (
        _within(job.get("minRamCount"), ask.memory)
        and _within(job.get("maxDiskCount"), ask.disk)
        and _within(job.get("maxWalltime"), ask.remaining_time)
        and ask.resource_type in (None, job.get("resource_type"))
        and ask.task_id in (None, "NULL", str(job.get("taskID")))
    )


def _within(need: Any, limit: int) -> bool:
    return not limit or not isinstance(need, int | float) or need <= limit


def _dispatched(row: sqlite3.Row, url: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(row["definition"])
    job.pop(definitions.RAW)
    job = {
        key: value.replace(definitions.PLACEHOLDER, url) if isinstance(value, str) else value
        for key, value in job.items()
    }
    if row["debug"]:
        job["debug"] = "True"
    return job


def _command_text(row: sqlite3.Row) -> str:
    return ",".join(filter(None, ["debug" if row["debug"] else "", row["command"]])) or "NULL"


def _verdict(decision: _Decision, row: sqlite3.Row) -> Verdict:
    secrets = None
    if "debug" in decision.command:
        secrets = json.loads(row["definition"]).get("pilotSecrets") or "{}"
        secrets = secrets if isinstance(secrets, str) else json.dumps(secrets)
    return Verdict(decision.status_code, decision.command, secrets)


def _another_batch(old: str, new: str) -> bool:
    """The real server leaves alone ids that are plain numbers on either side."""
    return bool(old and new and old != new and not _NUMBER.fullmatch(old) and not _NUMBER.fullmatch(new))


def _cut(key: str, value: Any) -> Any:
    limit = FIELD_LIMITS.get(key)
    return value[:limit] if limit and isinstance(value, str) else value


def _shown(row: sqlite3.Row, updates: Sequence[sqlite3.Row], url: str) -> dict[str, Any]:
    fields = json.loads(row["fields"])
    return {
        "id": row["id"],
        "state": row["status"],
        "archived": bool(row["archived"]),
        "queue": row["queue"],
        "label": row["label"],
        "attempt": row["attempt"],
        "command": row["command"],
        "debug": bool(row["debug"]),
        "created": row["created"],
        "modified": row["modified"],
        "definition": _dispatched(row, url),
        "fields": fields,
        "files": definitions.report_files(str(fields.get("job_output_report") or "")),
        "ddm_error_code": row["ddm_error_code"],
        "ddm_error_diag": row["ddm_error_diag"],
        "updates": [_shown_update(update) for update in updates],
    }


def _shown_update(row: sqlite3.Row) -> dict[str, Any]:
    fields = json.loads(row["fields"])
    return {
        "time": row["time"],
        "api": row["api"],
        "state": fields.get("job_status", ""),
        "fields": fields,
        "arguments": json.loads(row["arguments"]),
        "answer": json.loads(row["answer"]),
    }
