from __future__ import annotations

import gzip
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pilot.download import DownloadError, fetch_url, is_loopback, shown


class Handler(BaseHTTPRequestHandler):
    """Answers by path; what each does is said there."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if path == "/drip":
            return self.drip()
        if path in ("/chunks", "/chunk"):
            return self.chunks(complete=path == "/chunks")
        if path == "/short":
            return self.reply(200, b"half", {"Content-Length": "8"})
        if path.isdecimal() or path[1:].isdecimal():
            return self.reply(int(path[1:]), b"no")
        if path == "/gzip":
            return self.reply(200, gzip.compress(b"x" * 5000), {"Content-Encoding": "gzip"})
        if path.startswith("/to/"):
            return self.reply(302, b"", {"Location": path[3:]})
        if path == "/loop":
            return self.reply(307, b"", {"Location": "/loop"})
        if path == "/away":
            return self.reply(302, b"", {"Location": "http://example.invalid/file"})
        if path == "/big":
            return self.reply(200, b"x" * 5000)
        return self.reply(200, b"hello")

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def chunks(self, complete: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\nhel\r\n2\r\nlo\r\n" + (b"0\r\n\r\n" if complete else b"5\r\nx"))
        self.close_connection = True

    def drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(100):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return
            time.sleep(0.03)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:  # a client that breaks off is part of these tests
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def url(server: Server, path: str, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{server.server_address[1]}{path}"


def test_the_body_is_returned_and_we_say_who_we_are(server: Server) -> None:
    assert fetch_url(url(server, "/file")) == b"hello"
    assert server.seen[0][1]["User-Agent"].startswith("pilot/")


def test_a_proxy_of_the_environment_is_used(server: Server) -> None:
    environ = {"http_proxy": url(server, ""), "no_proxy": "other.invalid"}
    assert fetch_url("http://cric.invalid/file", allow_http=True, environ=environ) == b"hello"
    assert server.seen[0][0] == "http://cric.invalid/file"


@pytest.mark.parametrize("bad", ["http://[::1", "http://me:secret@squid:no", "squid:99999", "socks5://squid:1080"])
def test_a_proxy_that_cannot_be_used_is_told(bad: str) -> None:
    with pytest.raises(DownloadError, match="proxy") as caught:
        fetch_url("https://cric.invalid/file", environ={"https_proxy": bad})
    assert "secret" not in caught.value.detail


def test_a_port_that_is_none_is_told_where_there_is_a_proxy() -> None:
    with pytest.raises(DownloadError, match="not a URL"):
        fetch_url("https://cric.invalid:no/file", environ={"https_proxy": "squid:3128"})


def test_compressed_bodies_are_unpacked(server: Server) -> None:
    assert fetch_url(url(server, "/gzip")) == b"x" * 5000


@pytest.mark.parametrize("path", ["/big", "/gzip"])
def test_more_than_the_limit_is_refused_for_good(server: Server, path: str) -> None:
    with pytest.raises(DownloadError, match="larger than 4999 bytes") as caught:
        fetch_url(url(server, path), limit=4999)
    assert not caught.value.retry
    assert fetch_url(url(server, path), limit=5000) == b"x" * 5000


@pytest.mark.parametrize(("status", "retry"), [(404, False), (403, False), (408, True), (429, True), (500, True)])
def test_a_bad_status_tells_whether_to_come_back(server: Server, status: int, retry: bool) -> None:
    with pytest.raises(DownloadError, match=f"HTTP status {status}") as caught:
        fetch_url(url(server, f"/{status}"))
    assert caught.value.retry is retry


def test_a_body_in_chunks_is_put_together(server: Server) -> None:
    assert fetch_url(url(server, "/chunks")) == b"hello"


@pytest.mark.parametrize("path", ["/short", "/chunk"])
def test_a_body_that_breaks_off_is_no_body(server: Server, path: str) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_url(url(server, path))
    assert caught.value.retry


def test_a_server_that_drips_is_left_in_time(server: Server) -> None:
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="not complete in time") as caught:
        fetch_url(url(server, "/drip"), timeout=0.3)
    assert caught.value.retry
    assert time.monotonic() - begin < 2


def test_redirects_are_followed_so_far(server: Server) -> None:
    assert fetch_url(url(server, "/to/to/file")) == b"hello"
    with pytest.raises(DownloadError, match="redirects"):
        fetch_url(url(server, "/loop"))


def test_a_redirect_to_plain_http_elsewhere_is_refused(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"redirected to http://example\.invalid/file: plain http") as caught:
        fetch_url(url(server, "/away"))
    assert not caught.value.retry


@pytest.mark.parametrize(
    "bad", ["http://example.org/x", "http://10.0.0.1/", "http://[::2]/", "http://localhost.evil/x"]
)
def test_plain_http_does_not_leave_the_node(bad: str) -> None:
    with pytest.raises(DownloadError, match="plain http is refused"):
        fetch_url(bad)


@pytest.mark.parametrize(
    "bad", ["ftp://x/y", "file:///etc/passwd", "/etc/passwd", "http://", "http://[bad/", "http://x:y/", ""]
)
def test_what_is_no_http_url_is_refused(bad: str) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_url(bad, allow_http=True)
    assert not caught.value.retry


def test_a_closed_port_may_open_later() -> None:
    with serving() as server:
        gone = url(server, "/file")
    with pytest.raises(DownloadError, match="refused") as caught:
        fetch_url(gone, timeout=5)
    assert caught.value.retry


def test_no_message_shows_what_may_be_secret(server: Server) -> None:
    port = server.server_address[1]
    with pytest.raises(DownloadError) as caught:
        fetch_url(f"http://127.0.0.1:{port}/to/404?signature=secret#frag")
    assert caught.value.detail == f"redirected to http://127.0.0.1:{port}/404: HTTP status 404"
    assert shown("https://user:pass@host:1/x?signature=secret#frag") == "https://host:1/x"
    assert shown("/path/to/file?x") == "/path/to/file"


@pytest.mark.parametrize(("host", "yes"), [("127.9.9.9", True), ("::1", True), ("LOCALHOST.", True), ("node", False)])
def test_loopback_is_known_by_name_and_number(host: str, yes: bool) -> None:
    assert is_loopback(host) is yes


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        path,
        "-out",
        f"{path}.crt",
    ]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


def test_only_a_certificate_that_is_trusted_is_accepted(certificate: Path) -> None:
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(certificate)
    with serving(shows) as server:
        with pytest.raises(DownloadError, match="certificate verify failed") as caught:
            fetch_url(url(server, "/file", "https"))
        assert not caught.value.retry
        trusts = ssl.create_default_context(cafile=f"{certificate}.crt")
        assert fetch_url(url(server, "/file", "https"), context=trusts) == b"hello"
        assert [path for path, _ in server.seen] == ["/file"]
