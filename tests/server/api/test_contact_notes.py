"""What a response says of the device that asked: failures that are its fleet's business, and those that are not."""

from typing import Any

import pytest

from server.api.contactnotes import failure_of, note_agent, note_ddi
from server.fleet.monitoring.contacts import Contacts, Failure, failures
from server.web.middleware import CALLER, Caller, Note
from server.web.peers import Peer

PEER = Peer("f" * 64, 0, 2**33, agent_id="pos-000001")


def noted(status: int, code: str | None = None, *, judged: bool = True, peer: Peer | None = PEER) -> dict[str, Failure]:
    contacts = Contacts(lambda: 0.0)
    scope: dict[str, Any] = {"extensions": {CALLER: Caller(peer, "192.0.2.1", peer)}}
    note_agent(contacts, scope, Note(code, judged), "secret-status", status, 0.01)
    return {name: failures(each) for taken in contacts.take(everything=True).values() for name, each in taken.devices.items()}


@pytest.mark.parametrize(
    ("status", "code", "failure"),
    [
        (200, None, Failure.NONE),
        (400, "stale_challenge", Failure.NONE),
        (403, "bad_signature", Failure.REFUSED),
        (409, "key_mismatch", Failure.REFUSED),
        (500, "unavailable", Failure.REFUSED),
        (503, "unavailable", Failure.REFUSED),
    ],
)
def test_a_response_is_noted_for_the_agent_of_the_certificate(status: int, code: str | None, failure: Failure) -> None:
    assert noted(status, code) == {"pos-000001": failure}


@pytest.mark.parametrize(("status", "code"), [(401, "unknown_agent"), (403, "agent_revoked"), (429, "rate_limited")])
def test_who_is_no_device_of_a_fleet_any_more_is_not_noted(status: int, code: str) -> None:
    assert noted(status, code) == {}


def test_a_certificate_that_nobody_has_looked_at_counts_only_where_the_server_has_failed() -> None:
    assert noted(404, None, judged=False) == {}
    assert noted(503, "unavailable", judged=False) == {"pos-000001": Failure.REFUSED}
    assert noted(200, None, peer=None) == {}
    contacts = Contacts(lambda: 0.0)
    note_agent(contacts, {"extensions": {}}, Note(), "x", 400, 0.1)
    assert contacts.take(everything=True) == {}


def test_a_secret_that_is_refused_is_a_failed_rotation() -> None:
    assert failure_of("rotate-secret", 409, "too_many_versions") == Failure.REFUSED | Failure.ROTATION
    assert failure_of("confirm-rotation", 503, "unavailable") == Failure.REFUSED | Failure.ROTATION
    assert failure_of("rotate-secret", 200, None) == Failure.NONE
    assert failure_of("rotate-secret", 400, "stale_challenge") == Failure.NONE


@pytest.mark.parametrize(
    ("status", "failed"), [(200, False), (404, False), (410, False), (429, False), (400, True), (500, True)]
)
def test_of_ddi_what_is_ordinary_is_no_failure(status: int, failed: bool) -> None:
    contacts = Contacts(lambda: 0.0)
    note_ddi(contacts, "box", status, 0.1)
    [taken] = contacts.take(everything=True).values()
    assert bool(failures(taken.devices["box"])) is (status in (400, 500))
