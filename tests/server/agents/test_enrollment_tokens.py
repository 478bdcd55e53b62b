"""Enrollment tokens, and attempts between the two steps of a provisioning: the same on both databases."""

import json

import pytest

from contracts.exchange import RefusalCode
from server.agents.enrollment_tokens import ATTEMPT_S
from server.base.errors import RegistryError
from server.base.refused import RequestRefused
from tests.server.devices import NOW, Device
from tests.support.serverside import ServerSide

ONE, TWO = Device(1), Device(2)


def refused(code: RefusalCode, match: str | None = None) -> "pytest.RaisesExc[RequestRefused]":
    return pytest.raises(RequestRefused, match=match, check=lambda error: error.code is code)


def test_a_token_binds_itself_to_its_first_device_which_may_come_again(server: ServerSide) -> None:
    text = server.enrollment_tokens.create(None, False, 60, NOW)
    token_id = server.enrollment_tokens.use(text, ONE.hw_id, NOW)
    assert server.enrollment_tokens.use(text, ONE.hw_id, NOW + 59) == token_id
    with refused(RefusalCode.CLAIM_REFUSED, "another device"):
        server.enrollment_tokens.use(text, TWO.hw_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "has expired"):
        server.enrollment_tokens.use(text, ONE.hw_id, NOW + 60)
    with refused(RefusalCode.CLAIM_REFUSED, "no such enrollment token"):
        server.enrollment_tokens.use(text + "x", ONE.hw_id, NOW)


def test_a_token_for_one_device_serves_no_other(server: ServerSide) -> None:
    text = server.enrollment_tokens.create(ONE.hw_id, False, 60, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "another device"):
        server.enrollment_tokens.use(text, TWO.hw_id, NOW)
    assert server.enrollment_tokens.use(text, ONE.hw_id, NOW)


def test_a_token_revoked_between_the_steps_activates_nothing(server: ServerSide) -> None:
    text = server.enrollment_tokens.create(None, False, 60, NOW)
    token_id = server.enrollment_tokens.use(text, ONE.hw_id, NOW)
    server.enrollment_tokens.revoke(token_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED, "is no longer valid"):
        ONE.activate(server, token_id)
    with refused(RefusalCode.CLAIM_REFUSED, "no such enrollment token"):
        server.enrollment_tokens.use(text, ONE.hw_id, NOW)
    assert server.agents.listed() == []
    with pytest.raises(RegistryError, match="no enrollment token 99"):
        server.enrollment_tokens.revoke(99, NOW)


def test_only_who_used_a_token_can_spend_it(server: ServerSide) -> None:
    token_id = server.enrollment_tokens.use(server.enrollment_tokens.create(None, False, 60, NOW), ONE.hw_id, NOW)
    with refused(RefusalCode.CLAIM_REFUSED):
        TWO.activate(server, token_id)
    with refused(RefusalCode.CLAIM_REFUSED):
        ONE.activate(server, token_id, now=NOW + 60)
    with refused(RefusalCode.CLAIM_REFUSED):
        ONE.activate(server, token_id + 1)
    assert ONE.activate(server, token_id).serial == 1  # those that were refused took no number


def test_an_attempt_lasts_ten_minutes(server: ServerSide) -> None:
    token_id = server.enrollment_tokens.use(server.enrollment_tokens.create(None, False, 6000, NOW), ONE.hw_id, NOW)
    server.enrollment_tokens.start_attempt("aa" * 16, token_id, b'{"x": 1}', b"n" * 32, b"credential", NOW)
    server.enrollment_tokens.start_attempt("bb" * 16, token_id, b"{}", b"m" * 32, None, NOW + 1)
    attempt = server.enrollment_tokens.attempt("aa" * 16, NOW + ATTEMPT_S - 1)
    assert (attempt.token_id, attempt.begin, attempt.nonce, attempt.credential) == (
        token_id,
        b'{"x": 1}',
        b"n" * 32,
        b"credential",
    )
    assert "credential" not in repr(attempt)
    assert server.enrollment_tokens.attempt("bb" * 16, NOW + 2).credential is None
    for name, moment in (("aa" * 16, NOW + ATTEMPT_S), ("cc" * 16, NOW)):
        with refused(RefusalCode.CLAIM_REFUSED, "took too long"):
            server.enrollment_tokens.attempt(name, moment)


def test_what_is_recorded_holds_no_token(server: ServerSide) -> None:
    text = server.enrollment_tokens.create(None, False, 60, NOW)
    assert text not in json.dumps([record.fields for record in server.audit.tail(100)])
    assert text not in repr(server.enrollment_tokens.listed())
