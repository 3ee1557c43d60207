"""A person reads a job's log in a browser while the job runs, whatever its payload writes."""

import json
import time
import urllib.parse
import urllib.request

import pytest

from pilot.devserver.client import LocalDevServer
from pilot.logship.choose import make_sinks, parse
from pilot.logship.record import Origin
from pilot.logship.sink import SinkContext
from tests.parts.browser import browser
from tests.parts.logs import make_record

EVIL = '<img src=x onerror="document.title=1"><script>document.title="taken"</script>'


@pytest.fixture
def server():
    with LocalDevServer() as server:
        yield server


def send(server, job, *texts, phase="payload"):
    """As a pilot does, with the sink `logstash`."""
    (sink,) = make_sinks(parse(f"logstash;{server.url}/devserver/log"), SinkContext())
    origin = Origin(job_id=str(job)).fields()
    made = [
        make_record(origin, source="payload.stdout", number=n, sequence=n, phase=phase, text=text)
        for n, text in enumerate(texts, 1)
    ]
    sink.send(made)
    sink.close()


def report(server, job, **fields):
    """An update as a pilot sends it."""
    form = urllib.parse.urlencode({"jobId": job, "state": "running", "attemptNr": 0, **fields}).encode()
    urllib.request.urlopen(f"{server.url}/server/panda/updateJob", form).close()


def get(server, path):
    with urllib.request.urlopen(f"{server.url}/devserver/{path}") as answer:
        return json.load(answer)


def test_a_log_can_be_waited_for(server):
    send(server, 5, "one", "ERROR two")
    found = get(server, "log/5?after=0")
    assert [(line["message"], line["severity"], line["phase"]) for line in found["lines"]] == [
        ("one", "INFO", "payload"),
        ("ERROR two", "ERROR", "payload"),
    ]
    began = time.monotonic()
    assert get(server, f"log/5?after={found['next']}&wait=0.3")["lines"] == []
    assert time.monotonic() - began >= 0.3
    send(server, 5, "three")
    assert [line["message"] for line in get(server, f"log/5?after={found['next']}&wait=9")["lines"]] == ["three"]


def test_the_overview_has_no_secrets(server):
    (job,) = server.submit({"jobName": "my.job", "secrets": json.dumps({"key": "very-secret-value"})})
    send(server, job, "x", phase="stagein")
    (row,) = get(server, "overview")
    assert (row["id"], row["state"], row["phase"], row["name"]) == (str(job), "activated", "stagein", "my.job")
    assert "very-secret-value" not in json.dumps(row)


def test_the_page_shows_jobs_and_their_logs_live_and_as_text(server, tmp_path):
    first, second = server.submit([{"jobName": "my.job"}, {"jobName": "<b>other</b>"}])
    send(server, first, "hello from the payload", "ERROR it broke", EVIL)
    lines = "[...document.querySelectorAll('#log div:not([hidden])')].map(row => row.lastChild.textContent)"
    with browser(tmp_path) as page:
        page.open(f"{server.url}/devserver/#{first}")
        page.wait(
            "document.querySelectorAll('#log div').length === 3 && document.querySelectorAll('nav b').length === 2"
        )
        assert page.run(lines) == ["hello from the payload", "ERROR it broke", EVIL]
        assert page.run("document.title") == "devserver"
        assert page.run("document.querySelectorAll('#log img, #log script, nav b b').length") == 0
        page.wait(f"title.textContent === '{first} · activated · payload'")

        send(server, first, "WARNING this came later", phase="stageout")
        page.wait("document.querySelectorAll('#log div').length === 4")
        page.wait("title.textContent.endsWith('stageout')")

        page.run("level.value = 'WARNING'; level.onchange()")
        assert page.run(lines) == ["ERROR it broke", "WARNING this came later"]
        page.run("filter.value = 'LATER'; filter.oninput()")
        assert page.run(lines) == ["WARNING this came later"]
        assert page.run("document.getElementById('count').textContent") == "1 of 4 lines"

        page.run(
            f"[...document.querySelectorAll('nav button')].find(each => each.textContent.includes('{second}')).click()"
        )
        page.wait(f"title.textContent.startsWith('{second}') && document.querySelectorAll('#log div').length === 0")


def test_the_page_draws_the_memory_of_a_job(server, tmp_path):
    (job,) = server.submit({"jobName": "my.job"})
    for size in (100_000, 400_000, 200_000):
        report(server, job, maxRSS=size)
    with browser(tmp_path) as page:
        page.open(f"{server.url}/devserver/")
        page.wait("memory.innerText === '195 MiB, most 391 MiB'")
        points = page.run("document.querySelector('polyline').getAttribute('points')").split()
        assert len(points) == 3
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 5000
