"""A payload's command is the job's own text; what it calls is fetched, new in the job directory, and quoted."""

import asyncio
import functools
import http.server
import os
import stat
import subprocess
import threading
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pilot.assembly import make_fetch
from pilot.errors import Code, PilotError, ServerError
from pilot.experiment import Experiment
from pilot.job import Job
from pilot.payload.command import prepare_command
from pilot.server.tls import find_tls
from pilot.stop import in_thread

SCRIPT = b'#!/bin/sh\necho "ran $0 with $*"\n'


class Shelf:
    """Places on the network: URL to bytes."""

    def __init__(self, **content):
        self.content = {f"https://{name}": value for name, value in content.items()}
        self.asked = []

    async def __call__(self, url):
        self.asked.append(url)
        if url not in self.content:
            raise ServerError("404 Not Found")
        return self.content[url]


class Lab(Experiment):
    name = "lab"
    base_urls = ("https://lab.example/trf/",)

    def command(self, job, transformation):
        return f"setup; {transformation} -- {job.parameters}"


def prepare(workdir, transformation, *, fetch=None, experiment=None, base_urls=(), parameters="", **fields):
    job = Job(job_id=1, transformation=transformation, parameters=parameters, **fields)
    return asyncio.run(prepare_command(job, workdir, experiment or Experiment(), fetch or Shelf(), base_urls))


def refusal(*args, **options):
    with pytest.raises(PilotError) as caught:
        prepare(*args, **options)
    return caught.value


def bash(text, workdir):
    return subprocess.run(["bash", "-c", text], cwd=workdir, capture_output=True, text=True, timeout=20).stdout


# ------------------------------------------------------------------------------------------------------ texts, options


@pytest.mark.parametrize(
    ("transformation", "parameters", "command"),
    [
        ("bash -c 'echo $HOME'; exit 3", "", "bash -c 'echo $HOME'; exit 3"),
        ("Reco_tf.py", "--in=a 'b c'", "Reco_tf.py --in=a 'b c'"),
        ("/no/such/file", "x", "/no/such/file x"),
        ("/bin/echo two words", "x", "/bin/echo two words x"),
        ("cat https://a/b | wc", "", "cat https://a/b | wc"),
        ("root://eos/trf.sh", "", "root://eos/trf.sh"),
    ],
)
def test_a_text_is_taken_as_it_is(tmp_path, transformation, parameters, command):
    assert prepare(tmp_path, transformation, parameters=parameters) == command
    assert os.listdir(tmp_path) == []


def test_an_experiment_may_change_the_text(tmp_path):
    assert prepare(tmp_path, "run", experiment=Lab(), parameters="-n 3") == "setup; run -- -n 3"


def test_a_job_without_a_transformation_says_which_field_is_missing(tmp_path):
    error = refusal(tmp_path, "")
    assert error.code is Code.SETUPFAILURE
    assert "transformation" in error.detail


def test_lists_of_inputs_become_files_a_line_each(tmp_path):
    prepare(tmp_path, "run", write_to_file={"tmpin_1.txt": ("--inputFile", "a.root", "b.root"), "x.txt": ("c",)})
    assert (tmp_path / "tmpin_1.txt").read_text() == "--inputFile\na.root\nb.root\n"
    assert (tmp_path / "x.txt").read_text() == "c\n"


def test_a_list_never_overwrites_what_is_there_nor_what_a_link_leads_to(tmp_path):
    log = tmp_path / "main" / "pilotlog.txt"
    log.parent.mkdir()
    log.write_text("the pilot's own log")
    workdir = tmp_path / "job"
    workdir.mkdir()
    (workdir / "pilotlog.txt").symlink_to(log)
    error = refusal(workdir, "run", write_to_file={"pilotlog.txt": ("x",)})
    assert error.code is Code.SETUPFAILURE
    assert "writeToFile" in error.detail and "pilotlog.txt" in error.detail
    assert log.read_text() == "the pilot's own log"


def test_a_list_that_cannot_be_written_is_an_error_of_the_table(tmp_path):
    assert refusal(tmp_path, "run", write_to_file={"x.txt": ("\ud800",)}).code is Code.SETUPFAILURE


# ----------------------------------------------------------------------------------------------------------- downloads


def test_a_transformation_is_fetched_made_executable_and_called(tmp_path):
    command = prepare(tmp_path, "https://a.example/trf/runGen-1.2", fetch=Shelf(**{"a.example/trf/runGen-1.2": SCRIPT}))
    assert command == "./runGen-1.2"
    assert (tmp_path / "runGen-1.2").read_bytes() == SCRIPT
    assert stat.S_IMODE((tmp_path / "runGen-1.2").stat().st_mode) == 0o755
    assert bash(f"{command} one", tmp_path) == "ran ./runGen-1.2 with one\n"


def test_other_places_are_asked_in_their_order_those_of_the_settings_first(tmp_path):
    shelf = Shelf(**{"lab.example/trf/t.sh": SCRIPT})
    prepare(tmp_path, "https://a.example/x/t.sh?v=1", fetch=shelf, experiment=Lab(), base_urls=["https://b.example/y/"])
    assert shelf.asked == ["https://a.example/x/t.sh?v=1", "https://b.example/y/t.sh", "https://lab.example/trf/t.sh"]
    assert (tmp_path / "t.sh").exists()


def test_a_transformation_that_nobody_has_names_every_place(tmp_path):
    error = refusal(tmp_path, "https://a.example/t.sh", base_urls=["https://b.example"])
    assert error.code is Code.TRFDOWNLOADFAILURE
    assert "https://a.example/t.sh: 404" in error.detail and "https://b.example/t.sh: 404" in error.detail
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url", ["https://a.example/", "https://a.example", "https://a/x/..", "https://a/%2e%2e", "http://a/-rf"]
)
def test_a_url_that_ends_in_no_file_name_is_refused(tmp_path, url):
    assert refusal(tmp_path, url).code is Code.TRFDOWNLOADFAILURE


@pytest.mark.parametrize("url", ["http://[x/t.sh", "https://[::1/t.sh"])
def test_a_url_that_is_none_is_refused_with_its_text(tmp_path, url):
    error = refusal(tmp_path, url)
    assert error.code is Code.TRFDOWNLOADFAILURE
    assert url in error.detail


def test_a_name_that_the_file_system_does_not_bear_is_an_error_of_the_table(tmp_path):
    name = "x" * 300
    error = refusal(tmp_path, f"https://a.example/{name}", fetch=Shelf(**{f"a.example/{name}": SCRIPT}))
    assert error.code is Code.TRFDOWNLOADFAILURE


@pytest.mark.parametrize("name", ["input.root", "journal.jsonl", "payload.stdout"])
def test_a_transformation_never_overwrites_what_is_in_the_job_directory(tmp_path, name):
    (tmp_path / name).write_text("precious")
    error = refusal(tmp_path, f"https://a.example/{name}", fetch=Shelf(**{f"a.example/{name}": SCRIPT}))
    assert error.code is Code.TRFDOWNLOADFAILURE
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..%2f..%2fpasswd", "a/../../../passwd", "%2fetc%2fpasswd", "a%2Fpasswd"]
)
def test_a_transformation_stays_in_the_job_directory(tmp_path, path):
    url = f"https://a.example/{path}"

    async def fetch(_):
        return SCRIPT

    assert prepare(tmp_path, url, fetch=fetch) == "./passwd"
    assert os.listdir(tmp_path) == ["passwd"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    name=st.text("ab '\"$`\\;|&<>()*?~!#\n\t-", min_size=1, max_size=12).filter(lambda n: n.strip(".") and n[0] != "-")
)
def test_whatever_it_is_called_the_shell_sees_one_word(tmp_path, name):
    async def fetch(_):
        return b'#!/bin/sh\nprintf %s "$0"\n'

    for old in tmp_path.iterdir():
        old.unlink()
    command = prepare(tmp_path, f"https://a.example/{quote(name)}", fetch=fetch)
    assert os.listdir(tmp_path) == [name]
    assert bash(command, tmp_path) == f"./{name}"
    assert os.listdir(tmp_path) == [name]


def test_a_transformation_comes_from_a_real_web_server(tmp_path):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "t.sh").write_bytes(SCRIPT)
    workdir = tmp_path / "job"
    workdir.mkdir()
    handler = functools.partial(Quiet, directory=shelf)
    blocking = make_fetch(find_tls({}), allow_http=False, environ={})

    async def fetch(url):
        return await in_thread(blocking, url)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, base = f"http://127.0.0.1:{server.server_port}/none/t.sh", f"http://localhost:{server.server_port}/"
        assert prepare(workdir, url, fetch=fetch, base_urls=[base]) == "./t.sh"
        server.shutdown()
    assert (workdir / "t.sh").read_bytes() == SCRIPT


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


# --------------------------------------------------------------------------------------------------------- local files


@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}"])
def test_a_local_file_is_copied_and_called(tmp_path, form):
    workdir = tmp_path / "job"
    workdir.mkdir()
    (tmp_path / "my trf.sh" if form != "{}" else tmp_path / "trf.sh").write_bytes(SCRIPT)
    path = next(tmp_path.glob("*.sh"))
    command = prepare(workdir, form.format(quote(str(path))))
    assert bash(command, workdir) == f"ran ./{path.name} with \n"
    assert not (workdir / path.name).is_symlink()


@pytest.mark.parametrize("make", [None, os.mkfifo, os.mkdir], ids=["missing", "pipe", "directory"])
def test_a_local_file_that_is_none_is_refused_at_once(tmp_path, make):
    if make:
        make(tmp_path / "t.sh")
    workdir = tmp_path / "job"
    workdir.mkdir()
    assert refusal(workdir, f"file://{tmp_path}/t.sh").code is Code.TRFDOWNLOADFAILURE
    assert os.listdir(workdir) == []


def test_a_local_file_that_is_in_the_job_directory_already_is_not_made_empty(tmp_path):
    (tmp_path / "t.sh").write_bytes(SCRIPT)
    assert refusal(tmp_path, str(tmp_path / "t.sh")).code is Code.TRFDOWNLOADFAILURE
    assert (tmp_path / "t.sh").read_bytes() == SCRIPT
