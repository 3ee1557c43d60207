"""The server's own small API under `/devserver/`: JSON in and out, loopback only. `client.DevServer` speaks it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from pilot.devserver import faults, jobs
from pilot.devserver.faults import Faults
from pilot.devserver.messages import JSON, Answer, BodyError, Request
from pilot.devserver.record import Recorder
from pilot.devserver.state import State

PREFIX = "/devserver/"


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

    def answer(self, request: Request) -> Answer:
        """Do one call. A POST must say that it is JSON, which keeps foreign web pages in a browser out."""
        if not request.loopback:
            return _problem(403, "the devserver API is for loopback clients only")
        if request.method != "GET" and request.header("Content-Type") != JSON:
            return _problem(415, f"Content-Type must be {JSON}")
        try:
            value = request.json(unzip=False) if request.body else None
            return self._route(request.method, request.path.removeprefix(PREFIX).strip("/").split("/"), value)
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
