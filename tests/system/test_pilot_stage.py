"""`pilot stage` as a person or a script uses it, with real storages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from pilot.stagerun import UsageError, Wish, destinations, name_of, targets
from pilot.testing.copytool import checksums, content
from tests.grid import ENVIRON, ROOT
from tests.parts import wait_until
from tests.parts.proxy import Throttle
from tests.parts.s3 import OWNER, S3Server
from tests.parts.xrootd import xrootd  # noqa: F401 - a fixture

NAME = "it's $(touch x); 日本.root"


class Storage:
    """A real storage: a URL for a name, and what it has under that name."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind = kind
        self.environ: dict[str, str] = {}
        if kind == "s3":
            self.s3: S3Server = request.getfixturevalue("s3_server")
            self.environ = {
                "S3_ENDPOINT_URL": self.s3.endpoint,
                "S3_ACCESS_KEY": OWNER[0],
                "S3_SECRET_KEY": OWNER[1],
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        elif kind != "paths":
            self.xrootd = request.getfixturevalue("xrootd")
        self.folder = f"stage-{kind}-{os.getpid()}-{time.monotonic_ns()}"
        self.top = request.getfixturevalue("tmp_path")

    @property
    def url(self) -> str:
        """Of a directory, with a slash."""
        return {
            "paths": lambda: f"{self.top}/there/",
            "s3": lambda: f"s3://{self.s3.bucket}/{self.folder}/",
            "root": lambda: f"{self.xrootd.url}//{self.folder}/",
            "https": lambda: f"{self.xrootd.http_url}/{self.folder}/",
        }[self.kind]()

    def url_of(self, name: str) -> str:
        return self.url + (quote(name) if self.kind == "https" else name)

    def fetch(self, name: str) -> bytes | None:
        if self.kind == "s3":
            return self.s3.fetch(f"{self.folder}/{name}")
        top = self.top / "there" if self.kind == "paths" else self.xrootd.data / self.folder
        path = top / name
        return path.read_bytes() if path.exists() else None


@pytest.fixture(params=["paths", "root", "https", "s3"])
def storage(request) -> Storage:
    return Storage(request.param, request)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "pilot.cli.main", "stage", *words]


def environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**ENVIRON, "PYTHONPATH": str(ROOT), **more}


def stage(top: Path, *words: str, status: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words), cwd=top, env=environment(environ), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


def test_files_go_out_are_seen_come_back_and_go_away(storage, tmp_path):
    data = content(300_000)
    (tmp_path / NAME).write_bytes(data)
    (tmp_path / "empty").write_bytes(b"")
    out = stage(tmp_path, "put", NAME, "empty", storage.url, **storage.environ)
    assert len(out.stdout.splitlines()) == 2
    assert "300.0 kB, adler32:" in out.stdout
    assert (storage.fetch(NAME), storage.fetch("empty")) == (data, b"")
    seen = stage(tmp_path, "stat", storage.url_of(NAME), **storage.environ).stdout.split()
    assert seen[0] == "300000"
    (tmp_path / "back").mkdir()
    urls = [storage.url_of(NAME), storage.url_of("empty")]
    back = stage(tmp_path, "get", "--json", *urls, "back", **storage.environ)
    told = [json.loads(line) for line in back.stdout.splitlines()]
    assert [(one["size"], one["error"]) for one in told] == [(300000, None), (0, None)]
    assert told[0]["checksums"]["adler32"] == checksums(data)["adler32"]
    assert (tmp_path / "back" / NAME).read_bytes() == data
    assert not list(tmp_path.rglob("x"))
    stage(tmp_path, "rm", *urls, **storage.environ)
    assert storage.fetch(NAME) is None
    gone = stage(tmp_path, "rm", urls[0], status=1, **storage.environ)
    assert "1103 NOSUCHFILE" in gone.stderr


def test_a_presigned_url_is_enough_to_put_a_file_and_to_get_it(s3_server, tmp_path):
    (tmp_path / "f").write_bytes(b"data")
    where = {"Bucket": s3_server.bucket, "Key": f"signed-{os.getpid()}-{time.monotonic_ns()}"}
    put, get = (s3_server.client().generate_presigned_url(f"{way}_object", Params=where) for way in ("put", "get"))
    done = stage(tmp_path, "put", "f", put).stdout + stage(tmp_path, "get", get, "back").stdout
    assert (tmp_path / "back").read_bytes() == b"data"
    assert "Signature" not in done


def test_a_file_that_fails_does_not_keep_back_the_others(storage, tmp_path):
    (tmp_path / "good").write_bytes(b"good")
    stage(tmp_path, "put", "-q", "good", storage.url, **storage.environ)
    got = stage(tmp_path, "get", storage.url_of("bad"), storage.url_of("good"), "in/", status=1, **storage.environ)
    assert (tmp_path / "in" / "good").read_bytes() == b"good"
    (line,) = got.stderr.splitlines()
    assert line.startswith("pilot stage: ")
    assert "1331 MISSINGINPUTFILE" in line
    assert len(got.stdout.splitlines()) == 1


@pytest.mark.parametrize("storage", ["paths", "root"], indirect=True)
def test_a_checksum_that_must_be_is_compared(storage, tmp_path):
    (tmp_path / "f").write_bytes(b"data")
    right, wrong = checksums(b"data"), "00000001"
    refused = stage(tmp_path, "put", "--checksum", f"adler32:{wrong}", "f", storage.url, status=1, **storage.environ)
    assert "1172" in refused.stderr
    assert storage.fetch("f") is None
    stage(tmp_path, "put", "--checksum", f"adler32:{right['adler32']}", "f", storage.url, **storage.environ)
    url = storage.url_of("f")
    bad = stage(tmp_path, "get", "--checksum", f"adler32:{wrong}", url, "bad", status=1, **storage.environ)
    assert "1171" in bad.stderr
    assert not (tmp_path / "bad").exists()
    stage(tmp_path, "get", "--checksum", f"md5:{right['md5']}", url, "good", **storage.environ)
    assert (tmp_path / "good").read_bytes() == b"data"
    stage(tmp_path, "stat", "--checksum", f"adler32:{right['adler32']}", url, **storage.environ)
    assert "1171" in stage(tmp_path, "stat", "--checksum", wrong_sum(), url, status=1, **storage.environ).stderr


def wrong_sum() -> str:
    return "adler32:00000001"


def test_what_is_there_is_not_replaced_unless_asked(tmp_path):
    for name, data in (("a", b"mine"), ("b", b"theirs")):
        (tmp_path / name).write_bytes(data)
    assert "1221 FILEEXISTS" in stage(tmp_path, "put", "a", str(tmp_path / "b"), status=1).stderr
    assert "--force" in stage(tmp_path, "get", "a", "b", status=1).stderr
    assert (tmp_path / "b").read_bytes() == b"theirs"
    stage(tmp_path, "get", "--force", "a", "b")
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_what_is_no_file_is_an_error_of_that_one_and_stays_what_it_is(tmp_path):
    (tmp_path / "good").write_bytes(b"good")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "1221" in stage(tmp_path, "get", "--force", "good", "pipe", status=1).stderr
    assert (tmp_path / "pipe").is_fifo()
    below = [
        json.loads(line) for line in stage(tmp_path, "get", "--json", "good", "good/x", status=1).stdout.splitlines()
    ]
    assert [one["error"]["name"] for one in below] == ["STAGEINFAILED"]
    seen = stage(tmp_path, "stat", "--json", "folder", "pipe", "good", status=1).stdout.splitlines()
    assert [bool(json.loads(line)["error"]) for line in seen] == [True, True, False]


def test_a_path_may_be_said_as_a_url_in_every_way(tmp_path):
    (tmp_path / os.fsdecode(b"f\xff")).write_bytes(b"data")
    urls = [f"file:{slashes}{tmp_path}/f%ff" for slashes in ("", "//", "//localhost")]
    assert stage(tmp_path, "stat", *urls).stdout.count("adler32:0400019b") == len(urls)


def test_closed_streams_are_no_fault(tmp_path):
    (tmp_path / "a").write_bytes(b"data")
    words = [*command("get", "a", "b")]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], cwd=tmp_path, env=environment({}), timeout=60
    )
    assert done.returncode == 0
    assert (tmp_path / "b").read_bytes() == b"data"


def test_the_tool_can_be_chosen_and_must_fit(tmp_path, xrootd):  # noqa: F811
    xrootd.write("chosen", b"data")
    got = stage(tmp_path, "get", "--json", "--tool", "xrdcp", f"{xrootd.url}//chosen", ".")
    assert json.loads(got.stdout)["tool"] == "xrdcp"
    wrong = stage(tmp_path, "get", "--tool", "https", f"{xrootd.url}//chosen", "other", status=1)
    assert "1323 UNKNOWNCOPYTOOL" in wrong.stderr
    assert "1323" in stage(tmp_path, "stat", "--tool", "magic", "x", status=1).stderr


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("get",),
        ("get", "a"),
        ("get", "a", "b", "c"),
        ("get", "root://host//", "x/"),
        ("get", "d1/a", "d2/a", "here/"),
        ("put", "a", "b", "root://host//dir"),
        ("get", "--checksum", "sha1:00", "a", "b"),
        ("get", "--checksum", "md5:00", "a", "b", "c/"),
        ("get", "--parallel", "0", "a", "b"),
    ],
)
def test_what_makes_no_sense_is_2_and_does_nothing(tmp_path, words):
    assert "usage: pilot stage" in stage(tmp_path, *words, status=2).stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scheme", "action", "speed"),
    [(scheme, action, 2 << 20) for scheme in ("root", "http") for action in ("get", "put")] + [("http", "get", 0)],
)
def test_ctrl_c_ends_at_once_and_leaves_no_half_file(tmp_path, xrootd, scheme, action, speed):  # noqa: F811
    big, folder = tmp_path / "big", f"ctrl-c-{scheme}-{action}-{speed}"
    with open(big, "wb") as file:
        file.truncate(64 << 20)
    remote = xrootd.write(f"{folder}/big", b"")
    if action == "get":
        os.truncate(remote, 64 << 20)
    else:
        remote.unlink()
    (tmp_path / "in").mkdir()
    with Throttle(xrootd.http_port if scheme == "http" else xrootd.port, 2 << 20, speed) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}/{'/' if scheme == 'root' else ''}{folder}/big"
        words = (url, "in/") if action == "get" else ("big", url)
        running = subprocess.Popen(
            command(action, *words), cwd=tmp_path, env=environment({}), stdout=-1, stderr=-1, text=True
        )
        place = tmp_path / "in" if action == "get" else remote.parent
        wait_until(lambda: any(path.stat().st_size for path in place.iterdir()), "a transfer has begun")
        running.send_signal(signal.SIGINT)
        sent = time.monotonic()
        _, said = running.communicate(timeout=20)
        assert (running.returncode, said) == (130, "pilot stage: the pilot received SIGINT\n")
        assert time.monotonic() - sent < 4
    assert list((tmp_path / "in").iterdir()) == []
    assert not remote.exists() or action == "get"


def test_there_is_a_line_of_progress_on_a_terminal(tmp_path, xrootd):  # noqa: F811
    path = xrootd.write("shown", b"")
    os.truncate(path, 24 << 20)
    near, far = os.openpty()
    with Throttle(xrootd.http_port, 4 << 20, 16 << 20) as proxy:
        done = subprocess.run(
            command("get", f"http://127.0.0.1:{proxy.port}/shown", "."),
            cwd=tmp_path,
            env=environment({"COLUMNS": "100"}),
            stderr=far,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )
    os.close(far)
    shown = os.read(near, 1 << 16).decode()
    os.close(near)
    assert done.returncode == 0
    assert "stage-in: 0 of 1 files, " in shown
    assert "MB/s" in shown


# ---------------------------------------------------------------------------------------------------- names and places


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/d/a%20b?sig=x/y#z", "a b"),
        ("root://h//d/a%20b?x=1/2", "a%20b"),
        ("s3://b/d/what?#x", "what?#x"),
        ("gs://b/a%41", "a%41"),
        ("file:///d/a%41", "aA"),
        ("/d/a%41?b", "a%41?b"),
        ("relative", "relative"),
    ],
)
def test_the_name_of_a_file_is_that_of_its_url(url, name):
    assert name_of(url) == name


@pytest.mark.parametrize("url", ["root://h//", "https://h", "https://h/d/", "https://h/..", "https://h/a%2Fb", "/"])
def test_a_url_without_a_name_is_refused(url):
    with pytest.raises(UsageError):
        name_of(url)


def test_places_are_files_or_directories(tmp_path):
    assert targets(["s3://b/a"], f"{tmp_path}/new", Wish()) == [tmp_path / "new"]
    assert targets(["s3://b/a"], str(tmp_path), Wish()) == [tmp_path / "a"]
    assert targets(["s3://b/a", "s3://b/c"], f"{tmp_path}/d/", Wish()) == [tmp_path / "d" / "a", tmp_path / "d" / "c"]
    assert destinations(["x/a"], "s3://b/new", Wish()) == {"a": "s3://b/new"}
    assert destinations(["x/a", "y/c"], "s3://b/d/", Wish()) == {"a": "s3://b/d/a", "c": "s3://b/d/c"}
    assert destinations(["a%b"], "file:///d/", Wish()) == {"a%b": "file:///d/a%25b"}
