"""The catalogue `rucio` against a real Rucio server: replicas, registrations, and what can go wrong with them."""

from __future__ import annotations

import itertools
import os
import stat
import threading
import time
import uuid

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from copytools.rucio import Rucio as RucioTool
from copytools.rucio import file_url
from pilot.errors import Code, PilotError
from pilot.job import File, Kind
from pilot.staging.catalogue import CatalogueContext, Registration, RegistrationError
from pilot.staging.copytool import ToolContext, Transfer
from pilot.stop import Stop
from pilot.testing.copytool import Programs, TransferHandle
from plugins.catalogues.rucio import Rucio
from tests.parts import free_port, rucio_tls, x509
from tests.parts.rucio import PILOT, STRANGER

HERE, THERE, OTHER, TAPE = "CAT_HERE", "CAT_THERE", "CAT_OTHER", "CAT_TAPE"
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def place(rucio):
    """RSEs, of which nobody reads or writes a byte here."""
    rucio.make_scope("cat")
    rucio.make_rse(HERE, "root://here.example.org:1094", site="SITE-HERE")
    rucio.make_rse(THERE, "root://there.example.org:1094")
    rucio.make_rse(TAPE, "root://tape.example.org:1094", kind="TAPE")
    rucio.make_rse(OTHER, "https://other.example.org:443", "/rucio/")
    return rucio


@pytest.fixture
def catalogue(place, tmp_path):
    def make(url: str = "", environ=None, **config: str) -> Rucio:
        given = {"RUCIO_CONFIG": str(place.client_config(**config)), "PATH": os.environ["PATH"]}
        return Rucio(CatalogueContext(host=url, environ=given if environ is None else environ, scratch=tmp_path))

    return make


def handle(seconds: float = 60.0, stop: Stop | None = None) -> TransferHandle:
    late = PilotError(Code.COMMANDTIMEDOUT, "the test does not wait any longer")
    return TransferHandle(stop or Stop(), Programs(), seconds, late, {})


def name(stem: str = "file") -> str:
    return f"{stem}.{next(_NUMBERS)}"


def output(place, lfn: str, dataset: str = "", rse: str = HERE, **facts) -> Registration:
    guid = str(uuid.uuid5(uuid.NAMESPACE_OID, lfn)).upper()
    file = File(lfn=lfn, kind=Kind.OUTPUT, scope="cat", dataset=dataset, endpoint=rse, guid=guid, events=50)
    url = place.pfn(rse, "cat", lfn) if rse != OTHER else place.pfn(rse, "cat", lfn, "https")
    facts = {
        "size": 1000,
        "checksums": {"adler32": "0a1b2c3d", "md5": "0" * 31 + "a"},
        "url": url,
    } | facts
    return Registration(file=file, **facts)


class TestReplicas:
    def test_all_files_in_one_call_with_facts_and_domain(self, place, catalogue):
        first, second, unknown = name(), name(), name()
        place.add_replica(THERE, "cat", first, size=7, adler32="00000007", md5="b" * 32)
        place.add_replica(HERE, "cat", first, size=7, adler32="00000007")
        place.add_replica(OTHER, "cat", first, size=7, adler32="00000007")
        place.add_replica(THERE, "cat", second, size=8, adler32="00000008")
        files = [File(lfn=lfn, kind=Kind.INPUT, scope="cat") for lfn in (first, second, unknown)]
        found = catalogue().replicas(files, handle(), ["root"], "SITE-HERE")
        assert set(found) == {first, second}, "a file without replicas must be left out"
        near, far = found[first]
        assert (near.endpoint, near.domain, far.endpoint, far.domain) == (HERE, "lan", THERE, "wan")
        assert near.priority < far.priority
        assert near.url == place.pfn(HERE, "cat", first)
        assert (near.size, near.checksums) == (7, {"adler32": "00000007", "md5": "b" * 32})
        assert [replica.size for replica in found[second]] == [8]

    def test_schemes_are_all_if_none_is_said(self, place, catalogue):
        lfn = name()
        place.add_replica(OTHER, "cat", lfn, size=7, adler32="00000007")
        (replica,) = catalogue().replicas([File(lfn=lfn, kind=Kind.INPUT, scope="cat")], handle())[lfn]
        assert replica.url.startswith("https://other.example.org")

    def test_tape_is_left_out(self, place, catalogue):
        lfn = name()
        place.add_replica(TAPE, "cat", lfn, size=7, adler32="00000007")
        assert catalogue().replicas([File(lfn=lfn, kind=Kind.INPUT, scope="cat")], handle()) == {}

    def test_virtual_placement_reads_real_disks_that_are_available_by_xrootd(self, place, catalogue):
        attributes = {"HERE": {}, "BLOCKED": {}, "SPECIAL": {"type": "SPECIAL"}, "WEB": {}}
        lfn = name()
        for kind, more in attributes.items():
            url = f"{'https' if kind == 'WEB' else 'root'}://{kind.lower()}.example.org:1094"
            rse = place.make_rse(f"VP_{kind}", url, istape=False, **({"type": "DATADISK"} | more))
            place.add_replica(rse, "cat", lfn, size=7, adler32="00000007")
        place.call("PUT", "/rses/VP_BLOCKED", {"availability_read": False})
        file = File(lfn=lfn, kind=Kind.INPUT, scope="cat")
        assert {replica.endpoint for replica in catalogue().replicas([file], handle())[lfn]} == {
            f"VP_{kind}" for kind in attributes
        }
        here = {"RUCIO_LATITUDE": "46.2", "RUCIO_LONGITUDE": "6.1"}
        environ = {"RUCIO_CONFIG": str(place.client_config()), "PATH": os.environ["PATH"], **here}
        found = catalogue(environ=environ).virtual_replicas([file], handle(), "SITE-HERE")[lfn]
        assert [replica.endpoint for replica in found] == ["VP_HERE"]

    def test_unknown_files_and_scopes_have_no_replicas(self, catalogue):
        for scope in ("cat", "noscope"):
            assert catalogue().replicas([File(lfn=name(), kind=Kind.INPUT, scope=scope)], handle()) == {}

    def test_token_is_private_and_used_again(self, place, catalogue, tmp_path):
        files = [File(lfn=name(), kind=Kind.INPUT, scope="cat")]
        one = catalogue()
        one.replicas(files, handle())
        (folder,) = tmp_path.glob("pilot-rucio-*")
        (token,) = folder.rglob("auth_token_*")
        before = token.read_text()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        one.replicas(files, handle())
        assert token.read_text() == before
        token.write_text("stale")
        one.replicas(files, handle())
        assert token.read_text() not in ("stale", before)
        del one
        assert not folder.exists(), "a token is left"


class TestRegister:
    def test_files_have_facts_and_are_in_their_datasets(self, place, catalogue):
        data, logs = name("data"), name("logs")
        first, second, log = name(), name(), name("log")
        catalogue().register(
            [output(place, first, data), output(place, second, data, THERE), output(place, log, f"cat:{logs}/")],
            handle(),
        )
        assert set(place.files("cat", data)) == {first, second}
        assert place.files("cat", logs) == [log]
        assert place.did("cat", data)["open"], "a dataset must stay open"
        meta = place.meta("cat", first)
        assert (meta["bytes"], meta["adler32"], meta["md5"]) == (1000, "0a1b2c3d", "0" * 31 + "a")
        assert (meta["guid"], meta["events"]) == (uuid.uuid5(uuid.NAMESPACE_OID, first).hex, 50)
        assert place.replicas("cat", second) == {THERE: [place.pfn(THERE, "cat", second)]}

    def test_again_is_no_error_and_changes_nothing(self, place, catalogue):
        data, lfn = name("data"), name()
        for _ in range(2):
            catalogue().register([output(place, lfn, data)], handle())
        assert place.files("cat", data) == [lfn]
        assert list(place.replicas("cat", lfn)) == [HERE]

    def test_dataset_that_exists_gets_the_files(self, place, catalogue):
        data, old, new = name("data"), name(), name()
        place.add_replica(HERE, "cat", old, size=1, adler32="00000001")
        place.make_dataset("cat", data, old)
        catalogue().register([output(place, new, data)], handle())
        assert place.files("cat", data) == sorted([old, new])

    def test_dataset_is_closed_if_a_setting_says_so(self, place, catalogue, tmp_path):
        data = name("data")
        settings = {"catalogue_close": True}
        closing = Rucio(CatalogueContext(environ=catalogue().context.environ, scratch=tmp_path, settings=settings))
        one = output(place, name(), data)
        closing.register([one], handle())
        assert not place.did("cat", data)["open"]
        closing.register([one], handle())  # it may be so already, with the file in it
        with pytest.raises(RegistrationError, match="is closed"):
            closing.register([output(place, name(), data)], handle())

    def test_mounted_path_of_an_rse_is_registered_by_name(self, place, catalogue):
        lfn = name()
        catalogue().register([output(place, lfn, url=f"file://localhost/mnt/{lfn}")], handle())
        assert place.replicas("cat", lfn) == {HERE: [place.pfn(HERE, "cat", lfn)]}

    def test_half_registered_job_is_resumed(self, place, catalogue):
        data, good, bad = name("data"), name(), name()
        files = [output(place, good, data), output(place, bad, data, THERE)]
        broken = [files[0], output(place, bad, data, THERE, url="root://there.example.org:1094//rucio/elsewhere")]
        with pytest.raises(RegistrationError) as caught:
            catalogue().register(broken, handle())
        assert caught.value.code is Code.NOSTORAGEPROTOCOL
        assert caught.value.remaining == (good, bad), "no file is in its dataset yet"
        assert place.replicas("cat", good), "the first RSE has its file"
        assert place.did("cat", data) is None, "a dataset must have all files of a job or none"
        catalogue().register(files, handle())
        assert set(place.files("cat", data)) == {good, bad}

    def test_remainder_names_only_what_is_missing(self, place, catalogue):
        good, bad = name(), name()
        wrong = output(place, bad, rse=THERE, url="root://there.example.org:1094//rucio/elsewhere")
        with pytest.raises(RegistrationError) as caught:
            catalogue().register([output(place, good), wrong], handle())
        assert caught.value.remaining == (bad,)
        assert f"1 of 2 outputs not registered ({bad})" in caught.value.diag


class TestRefused:
    @pytest.mark.parametrize(
        ("facts", "code"),
        [
            ({"checksums": {"adler32": "ffffffff"}}, Code.PUTADMISMATCH),
            ({"checksums": {"md5": "f" * 32}}, Code.PUTMD5MISMATCH),
            ({"size": 1001}, Code.PUTADMISMATCH),
        ],
        ids=["adler32", "md5", "size"],
    )
    def test_other_content_under_a_known_name(self, place, catalogue, facts, code):
        data, lfn = name("data"), name()
        catalogue().register([output(place, lfn)], handle())
        with pytest.raises(RegistrationError) as caught:
            catalogue().register([output(place, name(), data), output(place, lfn, data, THERE, **facts)], handle())
        assert caught.value.code is code
        assert f"the catalogue has cat:{lfn} with" in caught.value.detail
        assert len(caught.value.remaining) == 2
        assert list(place.replicas("cat", lfn)) == [HERE], "nothing may be changed"
        assert place.did("cat", data) is None

    def test_what_cannot_be_registered_is_told_before_anybody_is_asked(self, place, catalogue):
        lfn = name()
        for facts, problem in (({"checksums": {"crc32c": "00000000"}}, "neither adler32 nor md5"), ({}, "twice")):
            with pytest.raises(RegistrationError, match=problem):
                catalogue("http://127.0.0.1:1").register([output(place, lfn, **facts)] * 2, handle())

    def test_account_without_rights(self, place, catalogue):
        with pytest.raises(RegistrationError) as caught:
            catalogue(account=STRANGER, username=STRANGER).register([output(place, name())], handle())
        assert caught.value.code is Code.STAGEOUTAUTHENTICATIONFAILURE

    def test_rse_that_there_is_not(self, place, catalogue):
        with pytest.raises(RegistrationError) as caught:
            one = output(place, name())
            one = Registration(
                file=File(lfn=one.file.lfn, kind=Kind.OUTPUT, scope="cat", endpoint="NOWHERE"),
                url=one.url, size=1, checksums=one.checksums,
            )  # fmt: skip
            catalogue().register([one], handle())
        assert caught.value.code is Code.NOSTORAGEPROTOCOL


def of_both(catalogue, one: Registration, limit: float = 60.0) -> list[PilotError]:
    """The errors of a look-up and of a registration."""
    errors = []
    for act in (
        lambda: catalogue.replicas([one.file], handle(limit)),
        lambda: catalogue.register([one], handle(limit)),
    ):
        with pytest.raises(PilotError) as caught:
            act()
        errors.append(caught.value)
    return errors


class TestFaults:
    def test_server_that_is_down(self, place, catalogue):
        url = f"http://127.0.0.1:{free_port()}"
        for error in of_both(catalogue(rucio_host=url, auth_host=url), output(place, name())):
            assert error.code is Code.RUCIOSERVICEUNAVAILABLE

    def test_wrong_password(self, place, catalogue):
        looked, registered = of_both(catalogue(password="wrong-password"), output(place, name()))
        assert looked.code is Code.STAGEINAUTHENTICATIONFAILURE
        assert registered.code is Code.STAGEOUTAUTHENTICATIONFAILURE
        assert "wrong-password" not in looked.diag + registered.diag
        assert PILOT in looked.diag

    def test_no_configuration(self, place, catalogue, tmp_path):
        for error in of_both(catalogue(environ={"HOME": str(tmp_path)}), output(place, name())):
            assert error.code is Code.BADQUEUECONFIGURATION

    @pytest.mark.parametrize(
        ("credential", "said"),
        [
            ({}, "neither a token nor a proxy"),
            ({"BEARER_TOKEN": "a.b.c"}, "OIDC authentication failed"),
            ({"X509_USER_PROXY": "/nowhere"}, "Cannot find a valid X509 proxy"),
        ],
        ids=["none", "token", "proxy"],
    )
    def test_credentials_of_the_environment_without_a_configuration(self, place, catalogue, credential, said):
        looked, registered = of_both(catalogue(place.url, environ=credential), output(place, name()))
        assert looked.code is Code.STAGEINAUTHENTICATIONFAILURE
        assert registered.code is Code.STAGEOUTAUTHENTICATIONFAILURE
        assert said in looked.detail

    def test_plain_http_to_others_is_refused(self, place, catalogue):
        for error in of_both(catalogue("http://rucio.example.org"), output(place, name())):
            assert error.code is Code.BADQUEUECONFIGURATION
            assert "plain http" in error.diag

    def test_hanging_server_is_waited_for_no_longer_than_the_handle_says(self, place, catalogue):
        ready = catalogue()
        one = output(place, name())
        with place.hanging():
            started = time.monotonic()
            with pytest.raises(PilotError) as caught:
                runner = handle(60)
                threading.Timer(1.5, runner.terminate).start()
                ready.replicas([one.file], runner)
            assert caught.value.code is Code.COMMANDTIMEDOUT
            assert time.monotonic() - started < 4

    def test_library_that_is_missing(self, place, catalogue, monkeypatch):
        monkeypatch.setattr("copytools._rucio.find_spec", lambda name: None)
        for error in of_both(catalogue(), output(place, name())):
            assert error.code is Code.MIDDLEWAREIMPORTFAILURE
            assert "pip install" in error.diag


@pytest.fixture(scope="module")
def door(place, tmp_path_factory):
    """The same server by TLS."""
    top = tmp_path_factory.mktemp("tls")
    place.make_rse("SIGN_IN", "file://localhost", f"{top}/storage/")
    (top / "storage").mkdir()
    with rucio_tls.door(place, top) as one:
        yield one


def signs(door, how: str, tmp_path):
    """The environment of one who has only this credential."""
    top = door.keys.top
    if "proxy" in how:
        own = door.keys.proxy if how == "proxy" else x509.proxy(door.keys, "late", days=-1)
        return door.environ(X509_USER_PROXY=own)
    if "x509" in how:
        name = "user" if how == "x509" else "host"
        pair = {"RUCIO_CLIENT_CERT": top / f"{name}.pem", "RUCIO_CLIENT_KEY": top / f"{name}.key"}
        return door.environ(RUCIO_AUTH_TYPE="x509", **pair)
    others = {"key": rsa.generate_private_key(65537, 2048)} if "others" in how else {}
    (tmp_path / "token").write_text(door.issuer.token(**others))
    return door.environ(BEARER_TOKEN_FILE=tmp_path / "token")


@pytest.mark.parametrize("how", ["proxy", "x509", "token"])
class TestSignIn:
    def test_catalogue_and_tool(self, place, door, catalogue, tmp_path, how):
        environ = signs(door, how, tmp_path)
        lfn = name("signed")
        catalogue(door.url, environ).register([output(place, lfn)], handle())
        assert list(place.replicas("cat", lfn)) == [HERE]
        (tmp_path / lfn).write_bytes(b"1")
        file = File(lfn=lfn, kind=Kind.OUTPUT, scope="cat")
        tool = RucioTool(ToolContext(options={"host": door.url}, environ=environ))
        stored = tool.put(Transfer(file=file, url=file_url("SIGN_IN", "cat", lfn), path=tmp_path / lfn), handle())
        assert stored.size == 1


@pytest.mark.parametrize("how", ["late proxy", "x509 of others", "token of others"])
def test_what_is_no_credential_is_refused(place, door, catalogue, tmp_path, how):
    with pytest.raises(PilotError) as failure:
        catalogue(door.url, signs(door, how, tmp_path)).replicas([output(place, name()).file], handle())
    assert failure.value.code == Code.STAGEINAUTHENTICATIONFAILURE, failure.value.diag
    if how == "late proxy":
        assert "certificate expired" in failure.value.diag
