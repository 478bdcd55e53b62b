"""The server reads what agents and devices of release 0.1.0 sent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from joserfc import jwe, jws
from joserfc.jwk import ECKey

from contracts.enrollment.enrollment import Completed
from contracts.exchange import REPLY_TYPE, REQUEST_TYPE, Reply, convert
from contracts.jose import b64decode
from server.api.forms import BeginBody, ChallengeReply, ErrorReply, SignedReply, SignedRequest
from server.base.refused import RequestRefused
from server.enrollment.service import LEVELS, Enrollment, Policy
from server.exchange.challenges import CHALLENGE_LIFETIME_S, is_fresh
from server.exchange.content import KINDS
from server.exchange.requests import open_signed
from server.keys.jose import new_signing_key, public_jwk
from tests.vectors.frozen import FROZEN, parts, signed_exchanges

NOW, AGENT = FROZEN["now"], FROZEN["agent"]


@pytest.mark.parametrize("each", signed_exchanges(), ids=lambda each: each["name"])
def test_a_request_is_authentic_and_of_our_form(each: dict[str, Any]) -> None:
    body = SignedRequest.model_validate_json(each["request"])
    content = open_signed(body.request, REQUEST_TYPE, AGENT["agent_id"], AGENT["identity_key"])
    request: Any = convert(content, KINDS[each["purpose"]], "request")
    assert msgspec.json.encode(request) == parts(body.request)[1]
    key = bytes.fromhex(FROZEN["challenge_key_hex"])
    fresh = each["name"] != "a challenge that is too old"
    assert is_fresh(request.challenge, key, AGENT["fingerprint"], request.timestamp) == fresh
    assert not is_fresh(request.challenge, key, "00" * 32, request.timestamp)
    assert not is_fresh(request.challenge, key, AGENT["fingerprint"], request.timestamp + 2 * CHALLENGE_LIFETIME_S)


def test_every_body_of_a_reply_is_of_the_documented_form() -> None:
    for each in FROZEN["exchanges"]:
        (ChallengeReply if each["purpose"] == "challenge" else SignedReply).model_validate_json(each["reply"])
    for each in FROZEN["unsigned"]:
        ErrorReply.model_validate_json(each["reply"])


@dataclass
class Kept:
    token_id: int
    begin: bytes
    nonce: bytes
    credential: bytes | None


@dataclass
class Activated:
    agent_id: str
    serial: int
    certificates: tuple[str, ...]


@dataclass
class Store:
    """What the two steps need of keys and registry, for one device of the frozen file."""

    device: dict[str, Any]
    key: dict[str, str] = field(default_factory=new_signing_key)
    sessions: dict[str, Kept] = field(default_factory=dict)

    def sign_reply(self, reply: Reply) -> str:
        header = {"alg": "ES256", "typ": REPLY_TYPE, "kid": public_jwk(self.key)["kid"]}
        text: str = jws.serialize_compact(
            header, msgspec.json.encode(reply), ECKey.import_key({**self.key}), algorithms=["ES256"]
        )
        return text

    def open_enrollment_token(self, text: str) -> bytes:
        key = ECKey.import_key({**FROZEN["enrollment_key"]})
        opened = jwe.decrypt_compact(text, key, algorithms=["ECDH-ES", "A256GCM"]).plaintext
        assert opened is not None
        return opened

    def key_set(self) -> str:
        text: str = FROZEN["key_sets"][0]
        return text

    def use(self, _session: object, text: str, hw_id: str, now: int) -> int:
        assert text == self.device["claim"]
        return 1

    def start_attempt(
        self, _session: object, name: str, token_id: int, begin: bytes, nonce: bytes, credential: bytes | None, now: int
    ) -> None:
        self.sessions[name] = Kept(token_id, begin, nonce, credential)

    def attempt(self, _session: object, name: str, now: int) -> Kept:
        return self.sessions[name]

    @contextmanager
    def write(self) -> Iterator["Store"]:
        yield self

    read = write

    def activate(self, *fields: Any) -> Activated:
        done = json.loads(parts(json.loads(self.device["completed"])["reply"])[1])
        return Activated(done["agent_id"], done["serial"], tuple(done["certificates"]))

    def record_refusal(
        self, _session: object, address: str, event: str, refused: RequestRefused, now: int, fields: dict[str, Any]
    ) -> None:
        raise AssertionError(f"{event}: {refused}")


@pytest.mark.parametrize("device", FROZEN["provisioning"], ids=lambda device: device["backend"])
def test_a_device_is_provisioned(device: dict[str, Any]) -> None:
    store = Store(device)
    begun = json.loads(parts(json.loads(device["begun"])["reply"])[1])
    sizes = {32: b64decode(begun["nonce"]), 16: bytes.fromhex(begun["session"])}
    enrollment = Enrollment(
        store,  # type: ignore[arg-type]
        store,  # type: ignore[arg-type]
        store,  # type: ignore[arg-type]
        store,  # type: ignore[arg-type]
        Policy(frozenset(LEVELS)),
        lambda size: sizes.get(size, bytes(size)),
        lambda: 0.0,
    )
    body = BeginBody.model_validate_json(device["begin"])
    answer = enrollment.begin(body.model_dump(), "192.0.2.1", NOW)
    said = json.loads(parts(json.loads(answer.body())["reply"])[1])
    assert answer.status == 200 and said.keys() == begun.keys()
    assert (said["nonce"], said["session"]) == (begun["nonce"], begun["session"])
    # The credential that was made in 0.1.0, since this is what the device has opened.
    credential = device["credential_hex"]
    store.sessions[begun["session"]].credential = None if credential is None else bytes.fromhex(credential)
    answer = enrollment.complete(SignedRequest.model_validate_json(device["complete"]).request, "192.0.2.1", NOW)
    assert answer.status == 200, answer
    # The same content, under another signature.
    found, wanted = (parts(json.loads(text)["reply"])[1] for text in (answer.body(), device["completed"]))
    assert found == wanted and msgspec.json.decode(found, type=Completed)
