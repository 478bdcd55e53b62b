"""One signature is one act: of this agent, boot and connection, by a role that is enough. It uses the challenge up."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from agentd.admin.authentication import Conversation, Grounds, NotAccepted, authenticate, begin_session, in_session
from agentd.admin.chain import Window
from agentd.admin.roles import RULES, Role
from agentd.audit.log import actor
from agentd.base.caller import Caller
from contracts.admin.adminca import read_admin_ca
from ipc.bounds import ADMIN_CHALLENGE_S, ADMIN_SESSION_S
from ipc.errors import ErrorCode
from ipc.messages import PolicyBind, SecretList, Signed, Status
from ipc.peer import Peer
from tests.support.adminops import SIGNABLE, body_of, op_of, params_of
from tests.support.adminpki import DAY, T0, Ca, Holder

CA = Ca()
TRUSTED = read_admin_ca(CA.pem)
BY_ROLE = {role: CA.issue(f"a {role.name.lower()}", role=role.name.lower()) for role in Role}
ADMIN = BY_ROLE[Role.ADMIN]
PEER = Peer(1000, 1000, 77)
GROUNDS = Grounds("till-1", bytes(range(16)), TRUSTED, frozenset(), Window(T0 + DAY, T0 + DAY + 60))
CHALLENGE = bytes(range(32))
ORDER_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def asked(now: float = 100.0) -> Conversation:
    talk = Conversation()
    talk.ask(CHALLENGE, now)
    return talk


def given(**changes: Any) -> dict[str, Any]:
    return {"agent_id": "till-1", "boot_id": bytes(range(16)), "challenge": CHALLENGE, **changes}


def signed(holder: Holder = ADMIN, op: str = "rotate", challenge: dict[str, Any] | None = None, **params: Any) -> Signed:
    signature = holder.sign(challenge or given(), op, **params)
    return Signed(v=1, id=1, certificates=(holder.der,), signature=signature, request=body_of(op, params))


def with_(order: Signed, **changes: Any) -> Signed:
    fields = {name: getattr(order, name) for name in order.__struct_fields__}
    return Signed(**{**fields, **changes})


def refused(order: Signed, talk: Conversation | None = None, grounds: Grounds = GROUNDS, now: float = 101.0) -> NotAccepted:
    talk = talk or asked()
    with pytest.raises(NotAccepted) as error:
        authenticate(order, talk, PEER, grounds, now)
    assert talk.challenge is None  # any attempt uses it up
    return error.value


def test_a_signed_request_is_performed_in_the_name_of_its_signer() -> None:
    found = authenticate(signed(op="policy_bind", kind="custom", pcrs=[7, 11], key="é\n"), asked(), PEER, GROUNDS, 101.0)
    assert found.request == PolicyBind(v=1, id=1, kind="custom", pcrs=(7, 11), key="é\n")
    assert found.caller == Caller(1000, 1000, 77, "admin", ADMIN.digest, "a admin", T0 + 90 * DAY)
    assert actor(found.caller) == {
        "uid": 1000, "gid": 1000, "pid": 77, "role": "admin", "certificate": ADMIN.digest, "name": "a admin",
    }  # fmt: skip


def test_a_challenge_answers_once_and_for_a_minute() -> None:
    talk, order = asked(), signed()
    authenticate(order, talk, PEER, GROUNDS, 100.0 + ADMIN_CHALLENGE_S)
    assert refused(order, talk).outcome == "no_challenge"
    assert refused(order, Conversation()).outcome == "no_challenge"
    assert refused(order, now=100.1 + ADMIN_CHALLENGE_S).outcome == "old_challenge"


@pytest.mark.parametrize(
    "challenge",
    [given(agent_id="till-2"), given(agent_id=""), given(boot_id=bytes(16)), given(challenge=bytes(32))],
    ids=["another agent", "no agent", "another boot", "another connection"],
)
def test_a_signature_for_somewhere_else_is_refused(challenge: dict[str, Any]) -> None:
    assert refused(signed(challenge=challenge)).outcome == "bad_signature"


def test_a_request_that_was_changed_after_signing_is_refused() -> None:
    order = signed(op="secret_invalidate", version=3)
    assert refused(with_(order, request=body_of("secret_invalidate", {"version": 4}))).outcome == "bad_signature"
    assert refused(with_(order, request=body_of("rotate", {}))).outcome == "bad_signature"


def test_only_the_request_that_was_signed_is_inside() -> None:
    order, body = signed(), body_of("rotate", {})
    for changed in (body + b"\0", body + body, body[:-1], b"", b"\xc0", body_of("rotate", {}, on=True)):
        error = refused(with_(order, request=changed or b"\0"))
        assert (error.outcome, error.code in (ErrorCode.BAD_REQUEST, ErrorCode.BAD_MESSAGE)) == ("bad_request", True), changed
    assert refused(with_(order, request=body_of("rotate", {}, 2))).code is ErrorCode.BAD_REQUEST


@pytest.mark.parametrize("op", ["signed", "challenge", "validate_license", "shutdown", "", "Rotate", "__init__"])
def test_an_operation_that_does_not_exist_cannot_be_signed(op: str) -> None:
    error = refused(with_(signed(op=op), request=body_of(op, {})))
    assert (error.outcome, error.code) == ("bad_request", ErrorCode.UNKNOWN_OP)


def test_a_signature_of_another_form_is_refused() -> None:
    order = signed()
    r, s = decode_dss_signature(order.signature)
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    long_form = bytes([0x30, 0x81, len(order.signature) - 2]) + order.signature[2:]
    padded = encode_dss_signature(r, s)
    padded = bytes([0x30, padded[1] + 1, 0x02, padded[3] + 1, 0]) + padded[4:]
    zero = encode_dss_signature(0, 0)
    for forged in (raw, order.signature + b"\0", order.signature[:-1], b"\0", long_form, padded, zero, bytes(72)):
        assert refused(with_(order, signature=forged)).outcome == "bad_signature"


def test_the_other_s_of_a_signature_is_no_second_act() -> None:
    # Half of what openssl makes has a high s, so both count; but the challenge is used up by either.
    order, talk = signed(), asked()
    r, s = decode_dss_signature(order.signature)
    other = with_(order, signature=encode_dss_signature(r, ORDER_P256 - s))
    authenticate(other, talk, PEER, GROUNDS, 101.0)
    assert refused(order, talk).outcome == "no_challenge"


def test_another_key_cannot_sign_for_a_certificate() -> None:
    thief = CA.issue("thief")
    assert refused(with_(signed(thief), certificates=(ADMIN.der,))).outcome == "bad_signature"
    assert refused(signed(Ca().issue("stranger"))).outcome == "other_ca"
    assert refused(signed(CA.issue("late", days=0))).outcome == "expired"
    assert refused(signed(CA.issue("early", start=T0 + 9 * DAY))).outcome == "not_yet_valid"
    assert refused(signed(), grounds=replace(GROUNDS, ca=None)).outcome == "no_ca"


def test_a_revoked_certificate_does_not_count_wherever_it_is_in_the_chain() -> None:
    between = Ca("Between", by=CA)
    holder = between.issue("x")
    order = with_(signed(holder), certificates=(holder.der, between.der))
    authenticate(order, asked(), PEER, GROUNDS, 101.0)
    for each in (holder, between):
        assert refused(order, grounds=replace(GROUNDS, revoked=frozenset({each.digest}))).outcome == "revoked"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("request_type", SIGNABLE, ids=op_of)
def test_each_role_may_do_what_the_table_says(role: Role, request_type: Any) -> None:
    params = params_of(request_type)
    order = signed(BY_ROLE[role], op_of(request_type), **params)
    if role >= RULES[request_type].role:
        found = authenticate(order, asked(), PEER, GROUNDS, 101.0)
        assert type(found.request) is request_type and found.caller.role == role.name.lower()
    else:
        error = refused(order)
        assert (error.outcome, error.code) == ("role", ErrorCode.REFUSED)


def session(holder: Holder = ADMIN) -> Conversation:
    talk = asked()
    begin_session(talk, authenticate(signed(holder, "session_begin"), talk, PEER, GROUNDS, 101.0), TRUSTED, 101.0)
    return talk


def test_a_session_reads_as_a_viewer_and_nothing_else() -> None:
    talk = session()
    for request_type in SIGNABLE:
        found = in_session(request_type, talk, GROUNDS, 102.0)
        reads = RULES[request_type].role is Role.VIEWER and not RULES[request_type].anyone
        assert (found is not None) == reads, request_type
        assert found is None or (found.role, found.name) == ("viewer", "a admin")
    assert in_session(Status, Conversation(), GROUNDS, 102.0) is None


def test_a_session_ends() -> None:
    assert in_session(SecretList, session(), GROUNDS, 100.9 + ADMIN_SESSION_S) is not None
    for grounds, now in (
        (GROUNDS, 101.0 + ADMIN_SESSION_S),
        (replace(GROUNDS, revoked=frozenset({ADMIN.digest})), 102.0),
        (replace(GROUNDS, ca=read_admin_ca(CA.pem)), 102.0),
        (replace(GROUNDS, ca=None), 102.0),
        (replace(GROUNDS, window=Window(T0 + 91 * DAY, None)), 102.0),
    ):
        talk = session()
        assert in_session(SecretList, talk, grounds, now) is None
        assert in_session(SecretList, talk, GROUNDS, 102.0) is None  # it does not come back
