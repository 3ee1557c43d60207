"""The embedded server answers the recorded exchanges as the real servers did: every line of tests/contract/wire.

Each file is replayed in order against a fresh server, twice: in the encoding of the recording and in the other one
(v1: gzip requests, no Accept header; legacy: JSON where the recording has `a=b`, and the other way round).
Answers in the recorded encoding are compared byte by byte. What differs, and why:

- Credentials: the recordings have shortened tokens, or none of the headers. We send our own; the few lines that were
  recorded without credentials or without role are known by their answers (`_credentials`).
- Four lines of v1-calls have the answer only. `_ANSWERS_ONLY` says what was sent for them.
- Three legacy job answers are cut off in the recording (about 1500 characters): ours must begin with what is there.
- The 500 of update_event_ranges prints a Python set, whose order is by chance: compared without order.
- Nothing else. Ids, GUIDs, checksums and names agree because the jobs are made from the recorded answers.
"""

from __future__ import annotations

import ast
import functools
import gzip
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from pilot.devserver.app import Settings
from pilot.devserver.auth import Guard
from pilot.devserver.client import LocalDevServer
from pilot.masking import Secret

WIRE = Path(__file__).parent / "wire"
TOKEN, ORIGIN = "replayed-token", "loop.production"
FILES = {
    "v1-calls": "v1",
    "v1-job-states": "v1",
    "v1-harvester-push": "both",
    "legacy-calls": "legacy",
    "legacy-one-job-by-pilot3": "legacy",
}
LINES = {name: [json.loads(line) for line in (WIRE / f"{name}.jsonl").read_text().splitlines()] for name in FILES}

# What the last four lines of v1-calls were sent as, each to a rule of SERVER.md: content type, accept, encoding, body.
_ANSWERS_ONLY = [
    ("application/x-www-form-urlencoded", "", "", b"job_id=1&job_status=running"),
    ("application/json", "application/json", "", b"{not json"),
    (
        "application/json",
        "application/json",
        "gzip",
        gzip.compress(b'{"job_id":1,"job_status":"running","attempt_nr":1}'),
    ),
    ("application/json; charset=utf-8", "", "", b'{"job_id":1,"job_status":"running"}'),
]
_NO_ROLE = "no production/pilot role in VOMS FQANs or non pilot owner"
# Legacy calls that answer in one encoding whatever the client accepts.
_FIXED = {"isAlive", "getStatus", "checkJobStatus", "updateEventRange", "checkEventsAvailability", "getProxy"}
_FIXED |= {"get_access_token", "get_user_secrets", "setDebugMode", "nosuch"}


def test_every_recorded_file_is_replayed() -> None:
    assert {path.stem for path in WIRE.glob("*.jsonl")} == set(FILES)


# --- seeds


def _response(line: dict[str, Any]) -> str:
    return line.get("response", line.get("response_body"))


def _job_in(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The jobs of an answer, also of one that is cut off: then without its last, incomplete pair."""
    text = _response(line)
    if text.startswith("StatusCode=0&PandaID"):
        return [dict(parse_qsl(text, keep_blank_values=True))]
    if '"PandaID"' not in text:
        return []
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = json.loads(text[: text.rindex(', "')] + ("}]}" if '"jobs"' in text else "}"))
    found = found.get("data") or found
    return found.get("jobs", [found])


def _queue(line: dict[str, Any]) -> str:
    body = line.get("body") or line["request_body"]
    given = body["gzip_json"] if isinstance(body, dict) else _body_values(body)
    return given.get("siteName") or given["site_name"]


def _body_values(text: str) -> dict[str, Any]:
    return json.loads(text) if text.startswith("{") else dict(parse_qsl(text))


def _seeds(name: str) -> list[dict[str, Any]]:
    if name == "v1-calls":
        return [{"PandaID": 1, "computingSite": "LOOPQ"}]
    if name == "v1-job-states":
        files = {"outFiles": "out.1194e24516f2.dat,log.1194e24516f2.tgz", "logFile": "log.1194e24516f2.tgz"}
        return [{"PandaID": job_id, **files} for job_id in (2, 3, 4, 5)]
    seeds = []
    for line in LINES[name]:
        for job in _job_in(line):
            seeds.append({key: value for key, value in job.items() if key != "nSent"} | {"computingSite": _queue(line)})
    return seeds


# --- requests


def _credentials(name: str, index: int) -> dict[str, str]:
    """Credentials for a line: ours, unless its answer shows that there were none, or none with the role."""
    text = _response(LINES[name][index])
    without_role = {"Authorization": f"Bearer {TOKEN}", "Origin": ORIGIN.partition(".")[0]}
    if "SSL secure connection" in text:
        return {}
    if "production or pilot role required" in text or (_NO_ROLE in text and name.startswith("v1")):
        return without_role
    if _NO_ROLE in text:  # recorded in pairs: without a token, then with one that has no role
        return without_role if _NO_ROLE in _response(LINES[name][index - 1]) else {}
    return {"Authorization": f"Bearer {TOKEN}", "Origin": ORIGIN}


def _request(name: str, index: int, other: bool) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body of a line, in the recorded encoding or in the other one."""
    line = LINES[name][index]
    headers = _credentials(name, index)
    if "method" not in line:
        kind, accept, encoding, body = _ANSWERS_ONLY[
            index - next(i for i, x in enumerate(LINES[name]) if "method" not in x)
        ]
        headers |= {"Content-Type": kind}
        headers |= {key: value for key, value in (("Accept", accept), ("Content-Encoding", encoding)) if value}
        return "POST", "/api/v1/pilot/update_job", headers, body
    recorded = line.get("body", line.get("request_body"))
    if name.startswith("legacy"):
        return (*_legacy_request(line, recorded, headers, other),)
    body = recorded.encode()
    if line["method"] == "POST":
        headers["Content-Type"] = "application/json"
    if not other:
        headers["Accept"] = "application/json"
    elif body:
        headers["Content-Encoding"], body = "gzip", gzip.compress(body)
    return line["method"], line["path"], headers, body


def _legacy_request(
    line: dict[str, Any], recorded: Any, headers: dict[str, str], other: bool
) -> tuple[str, str, dict[str, str], bytes]:
    if (line.get("content_type") == "application/json") is not other:
        headers["Accept"] = "application/json"
    if line["path"].endswith("updateJobsInBulk") and not other:
        headers["Accept"] = "application/json"  # its own text is JSON in a text; what is inside shows what was accepted
    elif line["path"].endswith("updateJobsInBulk"):
        headers.pop("Accept", None)
    values = recorded["gzip_json"] if isinstance(recorded, dict) else dict(parse_qsl(recorded, keep_blank_values=True))
    if isinstance(recorded, dict) is not other:
        return (
            "POST",
            line["path"],
            headers | {"Content-Type": "application/json"},
            gzip.compress(json.dumps(values).encode()),
        )
    form = urlencode(values) if isinstance(recorded, dict) else recorded
    return "POST", line["path"], headers | {"Content-Type": "application/x-www-form-urlencoded"}, form.encode()


# --- the replay


@functools.cache
def _replay(name: str, other: bool) -> list[tuple[int, str, str]]:
    """Status, content type and text that our server gave for each line, and the jobs afterwards as its attribute."""
    guard = Guard(Secret(TOKEN), ORIGIN)
    with LocalDevServer(Settings(api=FILES[name], guard=guard, adder_delay=3600)) as server:
        server.submit(_seeds(name))
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        answers = []
        for index, line in enumerate(LINES[name]):
            if line.get("note") == "adder":
                server.settle()
            connection.request(*_arranged(_request(name, index, other)))
            response = connection.getresponse()
            answers.append((response.status, response.headers["Content-Type"], response.read().decode()))
        connection.close()
        server.settle()
        _outcomes[name, other] = {job["id"]: job for job in server.jobs()}
    return answers


_outcomes: dict[tuple[str, bool], dict[int, dict[str, Any]]] = {}


def _arranged(request: tuple[str, str, dict[str, str], bytes]) -> tuple[str, str, bytes, dict[str, str]]:
    method, path, headers, body = request
    return method, path, body, headers


CASES = [pytest.param(name, index, id=f"{name}:{index + 1}") for name in FILES for index in range(len(LINES[name]))]


def _status(line: dict[str, Any]) -> int:
    return int(str(line["status"]).split()[0])


@pytest.mark.parametrize(("name", "index"), CASES)
def test_line_is_answered_as_recorded(name: str, index: int) -> None:
    line = LINES[name][index]
    status, content_type, text = _replay(name, other=False)[index]
    assert status == _status(line)
    assert content_type == line.get("content_type", "text/plain")
    expected = _response(line)
    if expected.startswith("Type not serializable"):
        assert sorted(text) == sorted(expected)
    elif _is_cut_off(expected):
        assert text.startswith(expected)
    else:
        assert text == expected


def _is_cut_off(text: str) -> bool:
    return '"PandaID"' in text and not text.endswith("}")


@pytest.mark.parametrize(("name", "index"), CASES)
def test_line_is_answered_alike_in_the_other_encoding(name: str, index: int) -> None:
    line = LINES[name][index]
    status, content_type, text = _replay(name, other=True)[index]
    assert status == _status(line)
    expected = _response(line)
    if expected.startswith("Type not serializable"):
        assert sorted(text) == sorted(expected)
    elif status != 200 or "method" not in line:
        assert text == expected
    elif name.startswith("v1"):
        assert content_type == "text/plain"
        assert (ast.literal_eval(text) if line["method"] == "GET" else json.loads(text)) == json.loads(expected)
    else:
        _compare_legacy(line, content_type, text)


def _compare_legacy(line: dict[str, Any], content_type: str, text: str) -> None:
    method, expected = line["path"].rpartition("/")[2], _response(line)
    if method in _FIXED or "Invalid worker state" in expected:
        assert (content_type, text) == (line["content_type"], expected)
    elif method == "updateJobsInBulk":
        assert [_fields(item) for item in json.loads(text)[1]] == [
            _fields(x["content"]) for x in json.loads(expected)[1]
        ]
    else:
        assert content_type != line.get("content_type", "text/plain")
        ours, theirs = _fields(text), _recorded_fields(line)
        assert {key: ours.get(key) for key in theirs} == theirs
        assert set(theirs) == set(ours) or _is_cut_off(expected)


def _recorded_fields(line: dict[str, Any]) -> dict[str, str]:
    if _is_cut_off(_response(line)):
        jobs = _job_in(line)
        return (
            {key: str(value) for key, value in jobs[0].items()}
            if '"jobs"' not in _response(line)
            else {"StatusCode": "0"}
        )
    return _fields(_response(line))


def _fields(text: str) -> dict[str, str]:
    """An answer's fields as text. `errorDialog` says more in JSON, and getKeyPair says which encoding it is."""
    pairs = json.loads(text) if text.startswith("{") else dict(parse_qsl(text, keep_blank_values=True))
    said = {key: str(value).replace("json=True", "json=False") for key, value in pairs.items()}
    if said["StatusCode"] in ("20", "60"):
        said.pop("errorDialog", None)
    return said


# --- what became of the jobs


@pytest.mark.parametrize("other", [False, True])
def test_jobs_end_as_on_the_real_server(other: bool) -> None:
    for name in FILES:
        _replay(name, other)
    states = {name: {i: job["state"] for i, job in _outcomes[name, other].items()} for name in FILES}
    assert states["v1-job-states"] == {2: "finished", 3: "cancelled", 4: "failed", 5: "cancelled"}
    assert states["legacy-one-job-by-pilot3"] == {13: "finished"}
    assert states["v1-harvester-push"][28] == "starting"
    assert [states["v1-harvester-push"][i] for i in range(30, 35)] == ["activated"] * 5


def test_submitted_job_specs_become_the_jobs_that_the_real_server_dispatches() -> None:
    """One generator made the jobs that were submitted and, under other names, those that were recorded later."""
    _replay("v1-harvester-push", other=False)
    jobs = _outcomes["v1-harvester-push", False]
    recorded, ours = jobs[28]["definition"], jobs[30]["definition"]
    assert list(ours) == list(recorded)
    by_name = {"PandaID", "jobDefinitionID", "logGUID", "GUID", "checksum"}
    renamed = json.dumps(ours).replace("c2c0c5ed2dc3", "463cf5ca8eec")
    assert {k: v for k, v in json.loads(renamed).items() if k not in by_name} == {
        k: v for k, v in recorded.items() if k not in by_name
    }
