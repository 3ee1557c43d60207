"""Credentials: where they are looked for, when they are read again, and that they do not show."""

from __future__ import annotations

import base64
import os
import threading
from pathlib import Path

import pytest

from pilot.errors import Code, ServerError
from pilot.server.auth import Auth, CredentialError, TokenFile, find_auth, write_private
from pilot.server.expiry import token_end


def bearer(auth: Auth) -> str:
    return auth.headers()["Authorization"]


def test_a_token_goes_with_its_origin(tmp_path):
    (tmp_path / "token").write_text("abc.def-123\n")
    auth = find_auth({"PANDA_AUTH_TOKEN": str(tmp_path / "token"), "PANDA_AUTH_ORIGIN": "vo.production"})
    assert auth.headers() == {"Authorization": "Bearer abc.def-123", "Origin": "vo.production"}
    assert auth.certificate is None


def test_the_oidc_names_are_known_too_and_panda_comes_first(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    environ = {"OIDC_AUTH_TOKEN": str(tmp_path / "one"), "OIDC_AUTH_ORIGIN": "vo"}
    assert find_auth(environ).headers() == {"Authorization": "Bearer one", "Origin": "vo"}
    assert bearer(find_auth(environ | {"PANDA_AUTH_TOKEN": str(tmp_path / "two")})) == "Bearer two"


@pytest.mark.parametrize("place", ["here", "auth", "launch", "work", "home"])
def test_a_relative_token_file_is_found_in(place, tmp_path, monkeypatch):
    for name in ("here", "auth", "launch", "work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / place / "token").write_text("t")
    environ = {"PANDA_AUTH_TOKEN": "token", "PANDA_AUTH_DIR": str(tmp_path / "auth"), "HOME": str(tmp_path / "home")}
    assert bearer(find_auth(environ, directories=[tmp_path / "launch", tmp_path / "work"])) == "Bearer t"


def test_a_missing_token_file_is_an_error_that_says_where_it_was_looked_for(tmp_path):
    auth = find_auth({"PANDA_AUTH_TOKEN": "nosuch.token"}, directories=[tmp_path])
    with pytest.raises(ServerError, match="not found") as caught:
        auth.headers()
    assert str(tmp_path / "nosuch.token") in caught.value.detail
    assert caught.value.code is Code.NOPROXY


@pytest.mark.parametrize("token", ["0123456789abcdef" * 3, "abcd/efgh+" * 4, "e" * 2000])
def test_a_token_where_the_name_of_its_file_should_be_is_not_shown(tmp_path, token):
    with pytest.raises(CredentialError, match="may hold the token itself") as caught:
        TokenFile(token, [tmp_path]).token()
    assert token not in str(caught.value)


@pytest.mark.parametrize("text", ["tok\n", "tok\r\n", " tok \n\n", "tok"])
def test_blanks_around_a_token_do_not_matter(text, tmp_path):
    (tmp_path / "token").write_text(text)
    assert TokenFile(str(tmp_path / "token")).token().reveal() == "tok"


@pytest.mark.parametrize("text", ["secret\nother", "secret token", "secretö", "secret\0", "secret\x7f", "", " \n"])
def test_a_token_no_header_may_hold_is_refused_without_showing_it(text, tmp_path):
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ServerError) as caught:
        TokenFile(str(path)).token()
    assert str(path) in caught.value.detail
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("origin", ["vo\nX-Other: 1", "vo production"])
def test_an_origin_no_header_may_hold_is_refused(origin, tmp_path):
    with pytest.raises(ServerError, match="origin"):
        find_auth({"PANDA_AUTH_TOKEN": "t", "PANDA_AUTH_ORIGIN": origin})


def test_a_token_is_read_again_when_its_file_changes(tmp_path):
    path = tmp_path / "token"
    path.write_text("old")
    file = TokenFile(str(path))
    assert file.token().reveal() == "old"
    renewed = tmp_path / "renewed"
    renewed.write_text("new")
    times = path.stat()
    os.utime(renewed, ns=(times.st_atime_ns, times.st_mtime_ns))  # same time, same size: the inode tells
    renewed.replace(path)
    assert file.token().reveal() == "new"
    path.write_text("newer")
    assert file.token().reveal() == "newer"


def test_an_unchanged_token_file_is_not_read_again(tmp_path):
    path = tmp_path / "token"
    path.write_text("one")
    file = TokenFile(str(path))
    first = file.token()
    assert file.token() is first


def test_a_token_does_not_print(tmp_path):
    (tmp_path / "token").write_text("hunter2")
    auth = find_auth({"PANDA_AUTH_TOKEN": str(tmp_path / "token")})
    auth.headers()
    assert "hunter2" not in f"{auth!r} {auth.kind} {vars(auth)}"


def test_without_a_token_the_client_certificate_is_used(tmp_path):
    environ = {"X509_USER_PROXY": str(tmp_path / "proxy")}
    assert find_auth(environ).certificate == tmp_path / "proxy"
    assert find_auth(environ, cacert="/other/proxy").certificate == Path("/other/proxy")
    assert find_auth(environ).headers() == {}


def test_with_a_token_no_certificate_is_shown(tmp_path):
    auth = find_auth({"X509_USER_PROXY": "/p", "PANDA_AUTH_TOKEN": "t"}, cacert="/q")
    assert auth.certificate is None


def test_the_usual_proxy_file_is_used_when_it_is_there():
    usual = Path(f"/tmp/x509up_u{os.getuid()}")
    assert find_auth({}).certificate == (usual if usual.exists() else None)


def test_each_token_that_is_read_is_told_to_the_masker(tmp_path):
    path = tmp_path / "token"
    told = []
    file = TokenFile(str(path), tell=told.append)
    for text in ("first-opaque-token", "second-opaque-token"):
        path.write_text(text + "\n")
        file.token()
        file.token()
    assert [secret.reveal() for secret in told] == ["first-opaque-token", "second-opaque-token"]


def test_two_threads_that_renew_at_once_do_not_disturb_each_other(tmp_path):
    """The look before a job and the one while jobs run may both find that a token has ended."""
    path, errors = tmp_path / "token", []

    def renew(text: str) -> None:
        for _ in range(100):
            try:
                write_private(path, text)
            except OSError as error:
                errors.append(error)

    texts = ("a" * 50_000, "b" * 50_000)
    threads = [threading.Thread(target=renew, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert path.read_text() in texts
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("claim", "end"), [("-1e30", 0.0), ("1e30", 253402300799.0), ("NaN", None), ('"x"', None), ("7", 7)]
)
def test_the_end_of_a_token_is_a_date_or_unknown(claim, end):
    body = base64.urlsafe_b64encode(f'{{"exp": {claim}}}'.encode()).decode().rstrip("=")
    assert token_end(f"h.{body}.s") == end
