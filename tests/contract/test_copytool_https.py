"""Copy tool `https` against the WebDAV of a real XRootD server, and against servers that redirect, break and refuse."""

from __future__ import annotations

import http.server
import threading
from urllib.parse import quote

import pytest

from copytools.https import Https, parse_digest
from pilot.errors import Code, Trait, TransferError
from pilot.job import File, Kind
from pilot.staging.copytool import ToolContext, Transfer
from pilot.testing.copytool import CopyToolConformance, WatchfulHandle, checksums, content
from tests.parts import free_port
from tests.parts.xrootd import xrootd  # noqa: F401 - a fixture


class TestHttps(CopyToolConformance):
    @pytest.fixture(autouse=True)
    def place(self, xrootd, request):  # noqa: F811
        self.server = xrootd
        self.folder = f"https-{request.node.originalname}"

    @pytest.fixture
    def tool(self):
        return Https(ToolContext())

    def name(self, name: str) -> str:
        """XRootD stores no name with a `?`, whatever the protocol."""
        return f"{self.folder}/{name.replace('?', '!')}"

    def remote_url(self, name: str) -> str:
        return f"{self.server.http_url}/{quote(self.name(name))}"

    def store(self, name: str, data: bytes) -> None:
        self.server.write(self.name(name), data)

    def fetch(self, name: str) -> bytes | None:
        path = self.server.data / self.name(name)
        return path.read_bytes() if path.exists() else None

    def forbid(self, name: str) -> bool:
        (self.server.data / self.name(name)).chmod(0)
        return True


class Script(http.server.BaseHTTPRequestHandler):
    """A storage for which each test says what it does; it remembers what it was asked."""

    protocol_version = "HTTP/1.1"

    def handle_any(self):
        body = b""
        if self.command == "PUT" and self.server.early is None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        self.server.act(self, body)

    def handle_expect_100(self):
        if self.server.early is not None:
            self.server.asked.append((self.command, self.path, dict(self.headers), b""))
            self.answer(307, {"Location": self.server.early})
            self.close_connection = True
            return False
        return super().handle_expect_100()

    def answer(self, status, headers=None, body=b"", length=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass

    def __getattr__(self, name):
        if name.startswith("do_"):
            return self.handle_any
        raise AttributeError(name)


class Storage(http.server.ThreadingHTTPServer):
    """By default a storage in memory that knows GET, HEAD, PUT, DELETE, and no MOVE."""

    daemon_threads = True

    def __init__(self, host="127.0.0.1"):
        super().__init__((host, 0), Script)
        self.files, self.asked, self.act, self.early = {}, [], self.serve, None
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commands(self):
        return [command for command, *_ in self.asked]

    def serve(self, request, body):
        path = request.path
        if request.command == "PUT":
            self.files[path] = body
            request.answer(201)
        elif request.command in ("MOVE", "MKCOL"):
            request.answer(405)
        elif path not in self.files:
            request.answer(404)
        elif request.command == "DELETE":
            del self.files[path]
            request.answer(204)
        else:
            request.answer(200, {"ETag": '"1"'}, self.files[path])


@pytest.fixture
def storage():
    one = Storage()
    yield one
    one.shutdown()
    one.server_close()


@pytest.fixture
def other():
    one = Storage()
    yield one
    one.shutdown()
    one.server_close()


def tool(**context):
    return Https(ToolContext(**context))


def transfer(url, path, kind=Kind.INPUT, **facts):
    return Transfer(file=File(lfn=path.name, kind=kind, scope="test"), url=url, path=path, **facts)


def output(url, path, data=b"some data"):
    path.write_bytes(data)
    return transfer(url, path, Kind.OUTPUT, size=len(data), checksums=checksums(data))


def failure(act):
    with pytest.raises(TransferError) as caught:
        act()
    return caught.value


def test_a_download_that_breaks_goes_on_where_it_broke(storage, tmp_path):
    data = content(5 << 20)

    def act(request, body):
        wanted = request.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").partition("-")[0] or 0)
        if not start:
            request.answer(200, {"ETag": '"1"'}, data[: 2 << 20], length=len(data))
        else:
            piece = data[start:]
            request.answer(206, {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, piece)

    storage.act = act
    one = transfer(f"{storage.url}/file", tmp_path / "file", size=len(data), checksums=checksums(data))
    stored = tool().get(one, WatchfulHandle())
    assert (tmp_path / "file").read_bytes() == data
    assert stored.checksums == checksums(data)
    assert storage.commands() == ["GET", "GET"]
    assert storage.asked[1][2]["Range"] == f"bytes={2 << 20}-{len(data) - 1}"
    assert storage.asked[1][2]["If-Range"] == '"1"'


def test_a_file_that_changed_meanwhile_is_read_from_its_begin(storage, tmp_path):
    answers = [(b"old" * 1000000, 9000000), (b"new" * 10, None)]
    storage.act = lambda request, body: request.answer(200, {}, *answers.pop(0))
    tool().get(transfer(f"{storage.url}/file", tmp_path / "file"), WatchfulHandle())
    assert (tmp_path / "file").read_bytes() == b"new" * 10


def test_a_storage_that_always_breaks_is_given_up(storage, tmp_path):
    storage.act = lambda request, body: request.answer(200, {}, b"x" * 1000, length=2000)
    error = failure(lambda: tool().get(transfer(f"{storage.url}/file", tmp_path / "file"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.STAGEINFAILED, Trait.RETRY)
    assert len(storage.asked) < 6
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_shown_to_the_first_host_only(storage, other, tmp_path):
    other.files["/there?secret=1"] = b"data"
    (tmp_path / "token").write_text("t0ken\n")
    storage.act = lambda request, body: request.answer(302, {"Location": f"{other.url}/there?secret=1"})
    mine = tool(environ={"BEARER_TOKEN_FILE": str(tmp_path / "token")})
    mine.get(transfer(f"{storage.url}/file", tmp_path / "file"), WatchfulHandle())
    assert (tmp_path / "file").read_bytes() == b"data"
    assert storage.asked[0][2]["Authorization"] == "Bearer t0ken"
    assert "Authorization" not in other.asked[0][2]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_storage_behind_a_proxy_of_the_environment_is_reached_by_it(storage, scheme, tmp_path):
    proxy = storage.url.replace("//", "//me:p%40ss@")
    mine = tool(environ={f"{scheme}_proxy": proxy, "no_proxy": "x.invalid"}, settings={"allow_http": True})
    url = f"{scheme}://storage.invalid/out"
    if scheme == "http":
        mine.put(output(url, tmp_path / "out"), WatchfulHandle())
        mine.get(transfer(url, tmp_path / "back"), WatchfulHandle())
        assert (tmp_path / "back").read_bytes() == b"some data"
        assert {path.rpartition("/")[0] for _, path, *_ in storage.asked} == {"http://storage.invalid"}
        assert {"HEAD", "PUT", "GET"} <= set(storage.commands())
    else:
        storage.act = lambda request, body: request.answer(200)  # a tunnel to what does not speak TLS
        failure(lambda: mine.get(transfer(url, tmp_path / "back"), WatchfulHandle()))
        failure(lambda: mine.put(output(url, tmp_path / "out"), WatchfulHandle()))
        assert {asked[:2] for asked in storage.asked} == {("CONNECT", "storage.invalid:443")}
    known = [{name.lower(): value for name, value in headers.items()} for *_, headers, _ in storage.asked]
    assert {headers["proxy-authorization"] for headers in known} == {"Basic bWU6cEBzcw=="}
    failure(lambda: mine.stat(f"{scheme}://x.invalid/out", WatchfulHandle()))
    assert "x.invalid" not in str(storage.asked)


def test_a_proxy_that_cannot_be_used_says_so(tmp_path):
    mine = tool(environ={"https_proxy": "socks5://127.0.0.1:1"})
    error = failure(lambda: mine.get(transfer("https://storage.invalid/x", tmp_path / "x"), WatchfulHandle()))
    assert "only http:// proxies" in error.detail


def test_a_redirect_to_plain_http_elsewhere_is_refused(storage, tmp_path):
    storage.act = lambda request, body: request.answer(302, {"Location": "http://example.invalid/there?secret=1"})
    error = failure(lambda: tool().get(transfer(f"{storage.url}/file", tmp_path / "file"), WatchfulHandle()))
    assert "plain http is refused" in error.detail
    assert "secret" not in error.detail


def test_plain_http_leaves_the_node_only_where_a_setting_says_so(tmp_path):
    for scheme in ("http", "dav"):
        one = transfer(f"{scheme}://example.invalid/x", tmp_path / "x")
        assert "plain http is refused" in failure(lambda one=one: tool().get(one, WatchfulHandle())).detail
        allowed = tool(settings={"allow_http": True})
        assert "refused" not in failure(lambda one=one, to=allowed: to.get(one, WatchfulHandle())).detail


def test_a_door_that_redirects_an_upload_gets_no_byte_of_it(storage, other, tmp_path):
    other.files = storage.files  # one storage with a door and a data server
    storage.early = f"{other.url}/pool/out"
    storage.files["/out"] = b""

    def act(request, body):
        if request.command in ("HEAD", "GET") and "/pool/out" in storage.files:
            request.answer(200, {}, storage.files["/pool/out"])
        else:
            request.answer(405 if request.command == "MOVE" else 404)

    storage.act = act
    tool().put(output(f"{storage.url}/out", tmp_path / "out", content(3 << 20)), WatchfulHandle())
    assert other.files["/pool/out"] == content(3 << 20)
    assert all(body == b"" for _, _, _, body in storage.asked)


def test_where_nothing_is_moved_a_file_is_sent_to_its_name(storage, tmp_path):
    mine = tool()
    for name in ("one", "two"):
        mine.put(output(f"{storage.url}/{name}", tmp_path / name), WatchfulHandle())
    assert storage.files == {"/one": b"some data", "/two": b"some data"}
    assert storage.commands().count("MOVE") == 1


def test_missing_parents_are_made(storage, tmp_path):
    folders = set()

    def act(request, body):
        if request.command == "MKCOL":
            folders.add(request.path)
            request.answer(201)
        elif request.command == "PUT" and "/a/b/" not in folders:
            request.answer(409)
        else:
            storage.serve(request, body)

    storage.act = act
    tool().put(output(f"{storage.url}/a/b/out", tmp_path / "out"), WatchfulHandle())
    assert folders == {"/a/", "/a/b/"}
    assert storage.files == {"/a/b/out": b"some data"}


def test_a_file_that_arrived_otherwise_than_it_was_sent_is_removed(storage, tmp_path):
    def act(request, body):
        storage.serve(request, body[:-1] if request.command == "PUT" else body)

    storage.act = act
    failure(lambda: tool().put(output(f"{storage.url}/out", tmp_path / "out"), WatchfulHandle()))
    assert storage.files == {}


def test_size_is_asked_by_propfind_where_there_is_no_head(storage):
    answer = b'<D:multistatus xmlns:D="DAV:"><D:getcontentlength>42</D:getcontentlength></D:multistatus>'
    storage.act = lambda request, body: (
        request.answer(405) if request.command == "HEAD" else request.answer(207, {}, answer)
    )
    assert tool().stat(f"{storage.url}/x", WatchfulHandle()).size == 42


@pytest.mark.parametrize(
    ("status", "code", "trait"),
    [
        (401, Code.STAGEINAUTHENTICATIONFAILURE, Trait.NEXT),
        (403, Code.STAGEINFAILED, Trait.NEXT),
        (404, Code.MISSINGINPUTFILE, Trait.NEXT),
        (429, Code.STAGEINFAILED, Trait.RETRY),
        (500, Code.STAGEINFAILED, Trait.RETRY),
        (503, Code.SERVICENOTAVAILABLE, Trait.RETRY),
    ],
)
def test_what_a_status_means(storage, tmp_path, status, code, trait):
    storage.act = lambda request, body: request.answer(status)
    error = failure(lambda: tool().get(transfer(f"{storage.url}/x?key=1", tmp_path / "x"), WatchfulHandle()))
    assert (error.code, error.trait) == (code, trait)
    assert "key" not in error.detail


def test_a_full_storage_is_1333(storage, tmp_path):
    storage.act = lambda request, body: request.answer(404 if request.command == "HEAD" else 507)
    error = failure(lambda: tool().put(output(f"{storage.url}/x", tmp_path / "x"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.NOREMOTESPACE, Trait.NEXT)


def test_a_refused_connection_is_worth_another_try(tmp_path):
    one = transfer(f"http://127.0.0.1:{free_port()}/x", tmp_path / "x")
    error = failure(lambda: tool().get(one, WatchfulHandle()))
    assert (error.code, error.trait) == (Code.STAGEINFAILED, Trait.RETRY)
    assert "refused" in error.detail
    assert "object at" not in error.detail


def test_a_storage_that_does_not_speak_tls_is_not_spoken_to_without(storage, tmp_path):
    one = transfer(storage.url.replace("http:", "davs:") + "/x", tmp_path / "x")
    error = failure(lambda: tool().get(one, WatchfulHandle()))
    assert storage.asked == []
    assert "SSL" in error.detail or "ssl" in error.detail


def test_a_token_file_that_is_missing_is_1163(storage, tmp_path):
    mine = tool(options={"token_file": str(tmp_path / "none")})
    error = failure(lambda: mine.get(transfer(f"{storage.url}/x", tmp_path / "x"), WatchfulHandle()))
    assert (error.code, error.trait) == (Code.NOPROXY, Trait.NEXT)


def test_an_lfn_is_a_name_and_a_url_is_a_url(tmp_path):
    for url, lfn, place in (
        ("https://h/d/a b#c%41", "a b#c%41", "https://h/d/a%20b%23c%2541"),
        ("https://h/d/a%20b", "a b", "https://h/d/a%20b"),
        ("https://h/d/x?sig=a%2Fb", "x", "https://h/d/x?sig=a%2Fb"),
        ("https://h/d e/x", "x", "https://h/d%20e/x"),
    ):
        assert tool().location(transfer(url, tmp_path / lfn)) == place


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("adler32=84b021f", {"adler32": "084b021f"}),
        ("md5=sZRqySSS0jR8YjW00mERhA==", {"md5": "b1946ac92492d2347c6235b4d2611184"}),
        (
            "MD5=b1946ac92492d2347c6235b4d2611184, adler32=0001",
            {"md5": "b1946ac92492d2347c6235b4d2611184", "adler32": "00000001"},
        ),
        ("sha-256=x,crc32c=00", {}),
        ("md5=!!,adler32=zz,,=", {}),
        ("", {}),
    ],
)
def test_digests_are_read(header, found):
    assert parse_digest(header) == found
