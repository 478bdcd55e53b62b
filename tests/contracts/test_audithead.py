"""A head counts only with the server's signature, in its form, under keys that the auditor has."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from contracts.audithead import AUDIT_HEAD_TYPE, verify_audit_head
from contracts.claims import MAX_TIME
from contracts.jose import BadSignature, MalformedToken, b64encode, thumbprint
from server.keys.jose import issue_audit_head, issue_server_time, new_signing_key, public_jwk
from tests.contracts.world import AGENT, DELIVERY_KEY, LICENSE_KEY, TRUST

NOW = 1_800_000_000
UNSIGNED = b64encode(json.dumps({"alg": "none", "typ": AUDIT_HEAD_TYPE, "kid": "x"}).encode())
IDENTITY, ATTESTATION = public_jwk(new_signing_key()), public_jwk(new_signing_key())


def content(**changes: Any) -> dict[str, Any]:
    return {
        "agent_id": AGENT,
        "audit_seq": 41,
        "audit_head": "0a" * 32,
        "last_contact": NOW - 60,
        "time": NOW,
        "identity_key": IDENTITY,
        "attestation_key": ATTESTATION,
        **changes,
    }


def signed(payload: Any, key: dict[str, str] = DELIVERY_KEY, **header: Any) -> str:
    whole = {"alg": "ES256", "typ": AUDIT_HEAD_TYPE, "kid": thumbprint(key), **header}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(whole, json.dumps(payload).encode(), ECKey.import_key({**key}), registry=registry)


def test_what_the_server_signs_is_read() -> None:
    head = verify_audit_head(issue_audit_head(content(), DELIVERY_KEY), TRUST)
    assert (head.agent_id, head.seq, head.head) == (AGENT, 41, "0a" * 32)
    assert (head.time, head.last_contact, head.key) == (NOW, NOW - 60, thumbprint(DELIVERY_KEY))
    assert head.identity is not None and head.attestation is not None and head.identity != head.attestation
    none = dict.fromkeys(("audit_seq", "audit_head", "last_contact", "identity_key", "attestation_key"))
    bare = verify_audit_head(issue_audit_head(content(**none), DELIVERY_KEY), TRUST)
    assert (bare.seq, bare.head, bare.last_contact, bare.identity, bare.attestation) == (None,) * 5


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (signed(content(), LICENSE_KEY), BadSignature),
        (signed(content(), new_signing_key()), BadSignature),
        (signed(content())[:-4] + "AAAA", BadSignature),
        (issue_server_time(AGENT, "f" * 32, NOW, DELIVERY_KEY), MalformedToken),
        (signed(content(), typ="server-time+jwt"), MalformedToken),
        (f"{UNSIGNED}.e30.AA", MalformedToken),
        (signed(content(), jku="https://x"), MalformedToken),
        (signed(content(more=1)), MalformedToken),
        (signed({name: value for name, value in content().items() if name != "last_contact"}), MalformedToken),
        (signed(content(time=0)), MalformedToken),
        (signed(content(time=MAX_TIME + 1)), MalformedToken),
        (signed(content(time=None)), MalformedToken),
        (signed(content(audit_seq=-1)), MalformedToken),
        (signed(content(audit_seq=True)), MalformedToken),
        (signed(content(audit_seq=None)), MalformedToken),
        (signed(content(audit_head=None)), MalformedToken),
        (signed(content(audit_head="0A" * 32)), MalformedToken),
        (signed(content(audit_head="0a")), MalformedToken),
        (signed(content(agent_id="")), MalformedToken),
        (signed(content(agent_id=5)), MalformedToken),
        (signed(content(identity_key="x")), MalformedToken),
        (signed(content(identity_key={**IDENTITY, "y": IDENTITY["x"]})), MalformedToken),
        (signed(content(attestation_key={**ATTESTATION, "crv": "P-384"})), MalformedToken),
        ("", MalformedToken),
        ("a.b.c", MalformedToken),
        ("é", MalformedToken),
    ],
    ids=range(26),
)
def test_everything_else_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        verify_audit_head(text, TRUST)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_junk_is_refused_and_nothing_else(text: str) -> None:
    with pytest.raises((MalformedToken, BadSignature)):
        verify_audit_head(text, TRUST)
