"""A disk without room for a request is no bug: what remains to be registered is told."""

import pytest

from pilot.errors import Code, PilotError
from pilot.job import File, Kind
from pilot.staging.catalogue import CatalogueContext, Registration, RegistrationError
from pilot.testing.copytool import WatchfulHandle
from plugins.catalogues.rucio import Rucio

pytest.importorskip("rucio")


def test_a_request_that_cannot_be_written_down_is_an_error_of_the_table(tmp_path):
    catalogue = Rucio(CatalogueContext(host="https://rucio.example.org", scratch=tmp_path / "full"))
    file = File(kind=Kind.OUTPUT, lfn="out", scope="s", endpoint="RSE")
    new = Registration(file=file, url="root://x//out", size=1, checksums={"adler32": "00000001"})
    with pytest.raises(RegistrationError) as told:
        catalogue.register([new], WatchfulHandle())
    assert told.value.remaining == ("out",)
    with pytest.raises(PilotError) as error:
        catalogue.replicas([file], WatchfulHandle())
    assert error.value.code in (Code.RUCIOLISTREPLICASFAILED, Code.STAGEINFAILED, Code.NOLOCALSPACE)
