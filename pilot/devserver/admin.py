"""The server's own small API under `/devserver/`: JSON in and out, loopback only. `client.DevServer` speaks it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pilot.devserver import faults, jobs
from pilot.devserver.faults import Faults
from pilot.devserver.logbook import LogBook
from pilot.devserver.messages import JSON, Answer, BodyError, Request
from pilot.devserver.record import Recorder
from pilot.devserver.state import State

PREFIX = "/devserver/"
_PAGE = Path(__file__).with_name("page.html")
_LONGEST_WAIT = 20.0  # s that a reader of a log waits for the next line


class Admin:
    """Settles what a test or a person wants of the server while it runs.

    Args:
        counters: what happened so far, to be shown by `counters`.
    """

    def __init__(
        self, state: State, faults: Faults, recorder: Recorder, counters: Callable[[], dict[str, Any]]
    ) -> None:
        self._state = state
        self._faults = faults
        self._recorder = recorder
        self._counters = counters
        self._logs = LogBook()

    def answer(self, request: Request) -> Answer:
        """Do one call. A POST must say that it is JSON, which keeps foreign web pages in a browser out."""
        if not request.loopback:
            return _problem(403, "the devserver API is for loopback clients only")
        if request.method != "GET" and request.header("Content-Type") != JSON:
            return _problem(415, f"Content-Type must be {JSON}")
        try:
            value = request.json(unzip=False) if request.body else None
            parts = request.path.removeprefix(PREFIX).strip("/").split("/")
            if parts[0] in ("", "overview", "log"):
                return self._page(request, parts, value)
            return self._route(request.method, parts, value)
        except (BodyError, jobs.DefinitionError, faults.FaultError) as error:
            return _problem(400, str(error))

    def _route(self, method: str, parts: list[str], value: Any) -> Answer:
        match method, parts:
            case "GET", ["status"]:
                return Answer.json({"pid": os.getpid(), "counters": self._counters(), "faults": self._faults.left()})
            case "GET", ["counters"]:
                return Answer.json(self._counters())
            case "GET", ["states"]:
                return Answer.json(self._state.states())
            case "GET", ["notices", *kind]:
                return Answer.json(self._state.notices(kind[0] if kind else None))
            case "POST", ["adder"]:
                return Answer.json({"settled": self._state.settle(everything=True)})
            case _, ["faults"]:
                return self._change_faults(method, value)
            case _, ["jobs", *rest]:
                return self._jobs(method, rest, value)
        return _unknown()

    def _page(self, request: Request, parts: list[str], value: Any) -> Answer:
        """The page, and what it and its senders ask for."""
        match request.method, parts:
            case "GET", [""]:
                return Answer(200, content_type="text/html; charset=utf-8", file=_PAGE)
            case "GET", ["overview"]:
                return Answer.json(self._overview())
            case "POST", ["log"]:
                return Answer.json({"taken": self._logs.add(value)})
            case "GET", ["log", *job]:
                asked = request.parameters()
                wait = min(_number(asked.get("wait")), _LONGEST_WAIT)
                return Answer.json(self._logs.after("".join(job), int(_number(asked.get("after"))), wait))
        return _unknown()

    def _overview(self) -> list[dict[str, Any]]:
        """Jobs for the page, the newest first: no definitions, which have secrets."""
        logs = self._logs.jobs()
        rows = [_row(job, logs.pop(str(job["id"]), {})) for job in self._state.jobs()]
        rows += [{"id": job, "state": "", "name": "", "memory": [], **log} for job, log in logs.items()]
        return rows[::-1]

    def _change_faults(self, method: str, value: Any) -> Answer:
        if method == "POST":
            self._faults.add(faults.from_json(value))
        elif method == "DELETE":
            self._faults.clear()
        return Answer.json(self._faults.left())

    def _jobs(self, method: str, rest: list[str], value: Any) -> Answer:
        match method, rest:
            case "GET", []:
                return Answer.json(self._state.jobs())
            case "POST", []:
                return Answer.json({"ids": self.submit(jobs.definitions(value))})
            case "GET", [job_id] if job_id.isdigit():
                job = self._state.job(int(job_id))
                return Answer.json(job) if job else _problem(404, f"no job {job_id}")
            case "POST", [job_id, "command"] if job_id.isdigit():
                return _done(*self.command(int(job_id), str(_argument(value, "command"))))
            case "POST", [job_id, "kill"] if job_id.isdigit():
                killed = self._state.kill(int(job_id), _code(value), "devserver")
                return _done(killed, "" if killed else f"no active job with PandaID={job_id}")
        return _unknown()

    def submit(self, definitions: list[dict[str, Any]]) -> list[int]:
        """Offer jobs; returns their ids. Their secrets are kept out of the record from now on."""
        self._recorder.learn(definitions)
        return self._state.submit(definitions)

    def command(self, job_id: int, text: str) -> tuple[bool, str]:
        """Answer every update of a job with `text`; `debug` and `debugoff` switch debug mode, empty clears."""
        if text in ("debug", "debugoff"):
            message = self._state.set_debug(job_id, text == "debug")
            return message in ("Succeeded", "Already set accordingly"), message
        return self._state.set_command(job_id, "" if text == "NULL" else text)


def _row(job: Mapping[str, Any], log: Mapping[str, Any]) -> dict[str, Any]:
    updates = [(update["time"], update["fields"].get("max_rss")) for update in job["updates"]]
    memory = [(when, _number(size)) for when, size in updates if size]
    name = str(job["definition"].get("jobName") or job["queue"])
    return {"phase": "", **log, "id": str(job["id"]), "state": job["state"], "name": name, "memory": memory}


def _number(value: Any) -> float:
    """A number that came as text, 0 if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if 0 <= number < 1e15 else 0.0


def _argument(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise BodyError(f"the body must be a JSON object with {name!r}")
    return value[name]


def _code(value: Any) -> int | None:
    code = _argument(value, "code")
    return code if isinstance(code, int) else None


def _done(ok: bool, message: str) -> Answer:
    return Answer.json({"message": message}) if ok else _problem(409, message)


def _unknown() -> Answer:
    return _problem(404, "unknown call; see docs/devserver.md")


def _problem(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"error": message}).encode(), JSON)
