"""The transport against small real servers on loopback: faults, TLS, proxies, and requests that are called off."""

from __future__ import annotations

import gzip
import http.server
import logging
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pilot.errors import ServerError
from pilot.server.auth import CredentialError
from pilot.server.faults import UnavailableError
from pilot.server.tls import Tls, find_tls
from pilot.server.transport import CalledOff, Flight, Transport, base_url
from pilot.server.wire import Request

POST = Request("POST", "/echo?a=1", b'{"x": 1}', {"Content-Type": "application/json", "Authorization": "Bearer t"})


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; what was asked is kept in `server.asked`."""

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        peer = self.connection.getpeercert() if isinstance(self.connection, ssl.SSLSocket) else None
        self.server.certificates.append(peer)
        name = self.path.strip("/").partition("?")[0].rpartition("/")[2]
        getattr(self, f"do_{name}", self.do_echo)(body)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_echo(self, body):
        self.reply(200, body or b"empty")

    def do_zipped(self, body):
        self.reply(200, gzip.compress(b"inside"), {"Content-Encoding": "gzip"})

    def do_bomb(self, body):
        self.reply(200, gzip.compress(b"\0" * (80 << 20)), {"Content-Encoding": "gzip"})

    def do_away(self, body):
        self.reply(302, b"", {"Location": f"{self.server.url}/echo"})

    def do_reset(self, body):
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def do_close(self, body):
        self.close_connection = True

    def do_short(self, body):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"only this")
        self.close_connection = True

    def do_garbage(self, body):
        self.wfile.write(b"\x16\x03\x01 no http at all\r\n\r\n")
        self.close_connection = True

    def do_hang(self, body):
        self.server.hanging.set()
        self.server.ended.wait(10)
        self.close_connection = True

    def reply(self, status, body, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Peer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple] = []
        self.certificates: list = []
        self.hanging, self.ended = threading.Event(), threading.Event()
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def handle_error(self, request, client_address):
        pass  # a client that does not trust us breaks the handshake

    def stop(self):
        self.ended.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.fixture
def peer():
    server = Peer()
    yield server
    server.stop()


# --- plain HTTP -------------------------------------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_made_and_the_answer_comes_back(peer):
    answer = Transport(peer.url).send(POST, 5)
    assert (answer.status, answer.content_type, answer.body) == (200, "application/json", POST.body)
    ((method, path, headers, body),) = peer.asked
    assert (method, path, body) == ("POST", "/echo?a=1", POST.body)
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer t"
    assert headers["Connection"] == "close"
    assert headers["User-Agent"].startswith("pilot/")
    assert f"Linux {os.uname().machine})" in headers["User-Agent"]


def test_a_get_has_no_body(peer):
    answer = Transport(peer.url).send(Request("GET", "/echo", b"", {}), 5)
    assert answer.body == b"empty"
    assert "Content-Length" not in peer.asked[0][2]


def test_a_path_in_front_of_the_api_is_kept(peer):
    Transport(f"{peer.url}/prefix").send(POST, 5)
    assert peer.asked[0][1] == "/prefix/echo?a=1"


def test_a_compressed_answer_is_unpacked(peer):
    assert Transport(peer.url).send(Request("GET", "/zipped", b"", {}), 5).body == b"inside"


def test_an_answer_without_end_is_refused(peer):
    with pytest.raises(UnavailableError, match="larger than 64 MB"):
        Transport(peer.url).send(Request("GET", "/bomb", b"", {}), 10)


def test_redirects_are_not_followed(peer):
    answer = Transport(peer.url).send(Request("POST", "/away", b"x", {}), 5)
    assert (answer.status, answer.location) == (302, f"{peer.url}/echo")
    assert len(peer.asked) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/reset", "Connection"),
        ("/close", "closed connection without response"),
        ("/short", "IncompleteRead|Connection broken"),
        ("/garbage", "no http at all"),
    ],
)
def test_a_broken_answer_is_an_error_with_a_cause(path, words, peer):
    with pytest.raises(UnavailableError, match=words) as caught:
        Transport(peer.url).send(Request("POST", path, b"x", {}), 5)
    assert peer.url in caught.value.detail
    assert " at 0x" not in caught.value.detail


def test_nobody_there_is_an_error_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="refused"):
            Transport(url).send(POST, 5)


@pytest.fixture
def no_names(monkeypatch):
    """No question leaves the node."""

    resolve = socket.getaddrinfo

    def fail(host, *args):
        if host == "127.0.0.1":
            return resolve(host, *args)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def test_a_name_that_does_not_resolve_is_an_error(no_names):
    with pytest.raises(UnavailableError, match="Name or service not known"):
        Transport("https://nosuch.invalid:1").send(POST, 5)


def test_a_silent_server_is_left_after_the_time_given(peer):
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="timeout"):
        Transport(peer.url).send(Request("POST", "/hang", b"x", {}), 0.3)
    assert time.monotonic() - start < 2


def test_a_request_called_off_in_flight_ends_at_once(peer):
    flight, failures = Flight(), []

    def send():
        try:
            Transport(peer.url).send(Request("POST", "/hang", b"x", {}), 30, flight)
        except UnavailableError as error:
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert peer.hanging.wait(5)
    flight.call_off()
    thread.join(2)
    assert not thread.is_alive()
    assert len(failures) == 1


def test_a_request_called_off_before_it_was_sent_is_never_sent(peer):
    flight = Flight()
    flight.call_off()
    with pytest.raises(CalledOff):
        Transport(peer.url).send(POST, 5, flight)
    assert peer.asked == []


def test_one_line_is_logged_without_body_and_headers(peer, caplog):
    with caplog.at_level(logging.DEBUG, "pilot.server"):
        Transport(peer.url).send(POST, 5)
    (record,) = [record for record in caplog.records if record.name.startswith("pilot.server")]
    assert "POST /echo: 200" in record.getMessage()
    assert "Bearer" not in caplog.text
    assert '"x"' not in caplog.text


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "port", "result"),
    [
        ("panda.example.org", 25443, "https://panda.example.org:25443"),
        ("https://panda.example.org", 25443, "https://panda.example.org:25443"),
        ("https://panda.example.org:443/", 25443, "https://panda.example.org:443"),
        ("http://127.0.0.1:8080", 25443, "http://127.0.0.1:8080"),
        ("localhost:1", 2, "https://localhost:1"),
        ("https://[::1]", 7, "https://[::1]:7"),
        ("https://h/server/panda", None, "https://h"),
        ("https://h/prefix/api/v1/", 1, "https://h:1/prefix"),
    ],
)
def test_base_url(url, port, result):
    assert base_url(url, port) == result


@pytest.mark.parametrize("url", ["", "ftp://h", "https://", "https://user:pw@h", "https://h:port", "https://[::1"])
def test_base_url_refuses(url):
    with pytest.raises(ServerError):
        base_url(url, 25443)


@pytest.mark.parametrize("url", ["http://panda.example.org:25080", "http://128.0.0.1", "http://localhost.example.org"])
def test_plain_http_may_not_leave_the_node(url):
    with pytest.raises(ServerError, match="plain http"):
        Transport(url)
    Transport(url, allow_http=True)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://127.9.9.9:1", "http://[::1]:1", "http://localhost:1"])
def test_plain_http_may_go_to_loopback(url):
    Transport(url)


# --- TLS --------------------------------------------------------------------------------------------------------------


@dataclass
class Pki:
    """A CA, a server certificate for 127.0.0.1, one for another host, and a client's certificate with its key."""

    directory: Path

    def __getattr__(self, name: str) -> Path:
        return self.directory / f"{name}.pem"


def openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


def make_ca(directory: Path, name: str) -> None:
    openssl(directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")  # fmt: skip


def make_certificate(directory: Path, name: str, extension: str) -> None:
    """`name.pem`: certificate and key, signed by `ca`."""
    openssl(directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout",
            f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
    (directory / f"{name}.ext").write_text(extension)
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
            "-CAcreateserial", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip
    parts = [(directory / f"{name}.{suffix}").read_text() for suffix in ("crt", "key")]
    (directory / f"{name}.pem").write_text("".join(parts))


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pki")
    make_ca(directory, "ca")
    make_ca(directory, "otherca")
    make_certificate(directory, "server", "subjectAltName=IP:127.0.0.1")
    make_certificate(directory, "elsewhere", "subjectAltName=DNS:elsewhere.example.org,IP:127.0.0.2")
    make_certificate(directory, "client", "extendedKeyUsage=clientAuth")
    make_certificate(directory, "renewed", "extendedKeyUsage=clientAuth")
    return Pki(directory)


@pytest.fixture
def tls_peer(pki):
    servers = []

    def start(certificate: str = "server", client: int = ssl.CERT_NONE) -> Peer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(getattr(pki, certificate))
        context.load_verify_locations(pki.ca)
        context.verify_mode = client
        servers.append(Peer(context))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_server_is_trusted_by_its_ca(pki, tls_peer):
    peer = tls_peer()
    assert Transport(peer.url, Tls(bundles=[str(pki.ca)])).send(POST, 5).body == POST.body


@pytest.mark.parametrize("trusted", [[], ["otherca"]], ids=["the system's CAs", "another CA"])
def test_a_server_of_an_unknown_ca_is_not_spoken_to(trusted, pki, tls_peer):
    peer = tls_peer()
    with pytest.raises(UnavailableError, match="not trusted"):
        Transport(peer.url, Tls(bundles=[str(getattr(pki, name)) for name in trusted])).send(POST, 5)
    assert peer.asked == []


def test_a_server_with_a_certificate_for_another_host_is_not_spoken_to(pki, tls_peer):
    peer = tls_peer("elsewhere")
    with pytest.raises(UnavailableError, match=r"not trusted.*IP address mismatch"):
        Transport(peer.url, Tls(bundles=[str(pki.ca)])).send(POST, 5)
    assert peer.asked == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"])
def test_variables_name_files_of_cas(variable, pki, tls_peer):
    tls = find_tls({variable: str(pki.ca)})
    assert Transport(tls_peer().url, tls).send(POST, 5).status == 200


def test_a_hashed_directory_of_cas_is_used(pki, tls_peer, tmp_path):
    hashed = subprocess.check_output(["openssl", "x509", "-hash", "-noout", "-in", pki.ca], text=True).strip()
    (tmp_path / f"{hashed}.0").write_bytes(pki.ca.read_bytes())
    (tmp_path / f"{hashed}.signing_policy").write_text("no certificate")
    assert Transport(tls_peer().url, find_tls({"X509_CERT_DIR": str(tmp_path)})).send(POST, 5).status == 200


@pytest.mark.parametrize("place", ["grid", "alrb"])
def test_where_the_grid_has_its_cas_is_known(place, pki, tls_peer, tmp_path, monkeypatch):
    """Such as behind a server that has its certificate of a grid's CA, on a node that names no directory."""
    places = {"grid": tmp_path / "grid", "alrb": tmp_path / "alrb/etc/grid-security-emi/certificates"}
    places[place].mkdir(parents=True)
    (places[place] / "ca.pem").write_bytes(pki.ca.read_bytes())
    monkeypatch.setattr("pilot.server.tls.GRID_CAS", str(places["grid"]))
    tls = find_tls({"X509_CERT_DIR": "/nosuch", "ATLAS_LOCAL_ROOT_BASE": str(tmp_path / "alrb")})
    assert Transport(tls_peer().url, tls).send(POST, 5).status == 200


@pytest.mark.parametrize("name", ["my-ca.pem", "my-ca.crt"])
def test_a_directory_of_plain_files_is_used(name, pki, tls_peer, tmp_path, caplog):
    (tmp_path / name).write_bytes(pki.ca.read_bytes())
    (tmp_path / "broken.pem").write_text("no certificate")
    tls = find_tls({"X509_CERT_DIR": "/nosuch"}, capath=str(tmp_path))
    assert Transport(tls_peer().url, tls).send(POST, 5).status == 200
    assert "broken.pem" in caplog.text


def test_a_missing_directory_of_cas_is_a_warning(caplog):
    Tls(directory="/nosuch/dir", bundles=["/nosuch/file"]).context()
    assert "/nosuch/dir" in caplog.text
    assert "/nosuch/file" in caplog.text


def test_the_client_certificate_arrives_and_the_renewed_one_after_it(pki, tls_peer, tmp_path):
    peer = tls_peer(client=ssl.CERT_REQUIRED)
    proxy = tmp_path / "proxy"
    proxy.write_bytes(pki.client.read_bytes())
    transport = Transport(peer.url, Tls(proxy, bundles=[str(pki.ca)]))
    transport.send(POST, 5)
    transport.send(POST, 5)
    (tmp_path / "new").write_bytes(pki.renewed.read_bytes())
    (tmp_path / "new").replace(proxy)
    transport.send(POST, 5)
    names = [dict(part[0] for part in peer["subject"])["commonName"] for peer in peer.certificates]
    assert names == ["client", "client", "renewed"]


def test_a_server_that_wants_a_certificate_does_not_get_on_without(pki, tls_peer):
    peer = tls_peer(client=ssl.CERT_REQUIRED)
    with pytest.raises(UnavailableError):
        Transport(peer.url, Tls(bundles=[str(pki.ca)])).send(POST, 5)


@pytest.mark.parametrize("content", [None, "no certificate", "key only"])
def test_a_client_certificate_that_cannot_be_used_is_an_error_that_names_it(content, pki, tmp_path):
    path = tmp_path / "proxy"
    if content is not None:
        path.write_text((pki.directory / "client.key").read_text() if content == "key only" else content)
    with pytest.raises(CredentialError, match="proxy"):
        Tls(path).context()


def test_a_locked_key_does_not_wait_for_a_pass_phrase(pki, tmp_path):
    path = tmp_path / "locked.pem"
    openssl(pki.directory, "ec", "-in", "client.key", "-aes128", "-passout", "pass:hunter2", "-out", str(path))
    path.write_text((pki.directory / "client.crt").read_text() + path.read_text())
    with pytest.raises(CredentialError, match=r"locked\.pem"):
        Tls(path).context()


def test_a_context_is_kept_while_the_certificate_is_the_same(pki):
    tls = Tls(pki.client)
    assert tls.context() is tls.context()


# --- proxies ----------------------------------------------------------------------------------------------------------


class TunnelHandler(http.server.BaseHTTPRequestHandler):
    """A proxy whose tunnels all end at `server.target`."""

    def do_CONNECT(self):
        self.server.asked.append((self.path, self.headers.get("Proxy-Authorization")))
        with socket.create_connection(self.server.target) as far:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self.pump, args=(far, self.connection))
            back.start()
            self.pump(self.connection, far)
            back.join()
        self.close_connection = True

    def do_POST(self):
        self.server.asked.append((self.path, self.headers.get("Proxy-Authorization")))
        self.send_response(200)
        self.end_headers()

    @staticmethod
    def pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def log_message(self, *args):
        pass


@pytest.fixture
def proxy():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), TunnelHandler)
    server.daemon_threads = True
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_https_goes_through_a_tunnel_and_the_far_end_is_verified(pki, tls_peer, proxy):
    proxy.target = ("127.0.0.1", tls_peer("elsewhere").server_port)
    environ = {"https_proxy": f"http://me:p%40ss@127.0.0.1:{proxy.server_port}"}
    tls = Tls(bundles=[str(pki.ca)])
    answer = Transport("https://elsewhere.example.org:25443", tls, environ).send(POST, 5)
    assert answer.body == POST.body
    assert proxy.asked == [("elsewhere.example.org:25443", "Basic bWU6cEBzcw==")]
    with pytest.raises(UnavailableError, match="not trusted"):
        Transport("https://another.example.org:25443", tls, environ).send(POST, 5)


def test_http_goes_through_the_proxy_with_the_whole_url(proxy):
    environ = {"HTTP_PROXY": f"127.0.0.1:{proxy.server_port}"}
    Transport("http://panda.example.org:25080", environ=environ, allow_http=True).send(POST, 5)
    assert proxy.asked == [("http://panda.example.org:25080/echo?a=1", None)]


@pytest.mark.parametrize(
    ("no_proxy", "exempt"),
    [
        ("", "https://127.0.0.1:1"),
        ("192.0.2.0/24", "https://192.0.2.1:1"),
        ("*", "https://elsewhere.invalid:1"),
        ("other, .invalid", "https://elsewhere.invalid:1"),
        ("elsewhere.invalid:1", "https://elsewhere.invalid:1"),
    ],
)
def test_exempt_hosts_and_loopback_are_reached_directly(no_proxy, exempt, proxy, no_names):
    environ = {"https_proxy": f"http://127.0.0.1:{proxy.server_port}", "no_proxy": no_proxy}
    with pytest.raises(UnavailableError):
        Transport(exempt, environ=environ).send(POST, 5)
    assert proxy.asked == []


def test_plain_http_to_loopback_never_meets_a_proxy(peer, proxy):
    environ = {"http_proxy": f"http://127.0.0.1:{proxy.server_port}", "all_proxy": "http://127.0.0.1:1"}
    assert Transport(peer.url, environ=environ).send(POST, 5).body == POST.body
    assert proxy.asked == []


def test_a_proxy_that_cannot_be_used_is_refused():
    with pytest.raises(ServerError, match="proxy"):
        Transport("https://panda.example.org", environ={"https_proxy": "socks5://127.0.0.1:1"})
