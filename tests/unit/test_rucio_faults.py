"""What Rucio's errors are in the pilot's table, by the words that come with them."""

import pytest

from copytools._rucio import _fault
from pilot.errors import Code
from pilot.staging.faults import Direction

_TRIED = "HTTPSConnectionPool(host='rucio', port=443): Max retries exceeded with url: /ping (Caused by "


@pytest.mark.parametrize(("why", "code"), [
    ("NewConnectionError('[Errno 111] Connection refused'))", Code.RUCIOSERVICEUNAVAILABLE),
    ("NewConnectionError('[Errno 110] Connection timed out'))", Code.RUCIOSERVICEUNAVAILABLE),
    ("ConnectTimeoutError('Connection to rucio timed out. (connect timeout=600)'))", Code.RUCIOSERVICEUNAVAILABLE),
    ("SSLError(1, '[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert'))", Code.STAGEOUTAUTHENTICATIONFAILURE),
])  # fmt: skip
def test_a_server_that_cannot_be_reached_is_away_unless_it_refuses_who_we_are(why: str, code: Code) -> None:
    classes = ["ServerConnectionException", "RucioException"]
    error = {"classes": classes, "message": f"Cannot connect to the Rucio server. ConnectionError: {_TRIED}{why}"}
    assert _fault(error, Direction.OUT).code is code
