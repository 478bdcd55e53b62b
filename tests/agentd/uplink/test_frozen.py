"""The agent asks in the words of release 0.1.0, and takes the replies of a server of that release."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agentd.uplink.client import ExchangeClient
from agentd.uplink.tlskey import check_certificate
from agentd.uplink.transport import NoContact, Response
from contracts.exchange import RefusalCode, Refused, convert
from contracts.jose import public_key_from_jwk
from contracts.keyset import verify_key_set
from contracts.trust import parse_trust
from tests.vectors.frozen import FROZEN, REPLIES, REQUESTS, parts, signed_exchanges

HEAD = {"v", "purpose", "agent_id", "request_id", "challenge", "timestamp"}
TRUST = parse_trust(json.dumps(FROZEN["trust"]).encode())
IDENTITY = ec.derive_private_key(FROZEN["agent"]["identity_scalar"], ec.SECP256R1())


class Signer:
    """The hardware of the agent in the file, as far as an exchange needs it; also the connection to it, and its backend."""

    @property
    def backend(self) -> "Signer":
        return self

    async def run(self, work: Callable[["Signer"], bytes], deadline: float) -> bytes:
        return work(self)

    def sign(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(IDENTITY.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class Clock:
    def __init__(self, now: int) -> None:
        self._now = now

    def now(self) -> int:
        return self._now

    def monotonic(self) -> float:
        return 0.0


def exchange_of(each: dict[str, Any], asked: dict[str, Any], sent: list[tuple[str, str, bytes]]) -> ExchangeClient:
    async def carry(method: str, path: str, body: bytes) -> Response:
        sent.append((method, path, body))
        if path.endswith("/challenge"):
            return Response(200, json.dumps({"challenge": asked["challenge"], "expires_in": 300}).encode())
        return Response(each["status"], each["reply"].encode())

    core = SimpleNamespace(agent_id=asked["agent_id"], hardware=Signer(), clock=Clock(asked["timestamp"]))
    store = SimpleNamespace(trust=TRUST)
    certificates = SimpleNamespace(ends=FROZEN["now"] + 86_400)
    return ExchangeClient(core, store, carry, certificates, lambda size: bytes.fromhex(asked["request_id"])[:size])  # type: ignore[arg-type]


@pytest.mark.parametrize("each", signed_exchanges(), ids=lambda each: each["name"])
def test_the_same_request_is_sent_and_the_reply_is_taken(each: dict[str, Any]) -> None:
    frozen = json.loads(each["request"])["request"]
    asked = json.loads(parts(frozen)[1])
    kind = REQUESTS[each["purpose"]]
    request = convert(asked, kind, "request")
    fields = {name: getattr(request, name) for name in asked.keys() - HEAD}
    sent: list[tuple[str, str, bytes]] = []
    exchange = exchange_of(each, asked, sent)
    asking = exchange.ask(REPLIES[each["purpose"]], kind, **fields)
    if each["status"] == 200:
        asyncio.run(asking)
    else:
        with pytest.raises(Refused) as caught:
            asyncio.run(asking)
        refusal = json.loads(parts(json.loads(each["reply"])["reply"])[1])
        assert caught.value.refusal.code is RefusalCode(refusal["code"])
        assert caught.value.refusal.text == refusal["text"]
    method, path, body = next(one for one in sent if not one[1].endswith("/challenge"))
    said = json.loads(body)
    assert (method, path, said.keys()) == ("POST", f"/api/v1/{each['purpose']}", {"request"})
    # Byte for byte, but for the signature, which is another one each time.
    assert said["request"].rpartition(".")[0] == frozen.rpartition(".")[0]


def test_the_challenge_of_the_file_is_taken_as_one() -> None:
    (first, _later) = (each for each in FROZEN["exchanges"] if each["purpose"] == "challenge")
    asked = signed_exchanges()[0]
    content = json.loads(parts(json.loads(asked["request"])["request"])[1])
    assert json.loads(first["reply"])["challenge"] == content["challenge"]


def test_an_unsigned_error_is_no_contact() -> None:
    for each in FROZEN["unsigned"]:
        asked = json.loads(parts(json.loads(signed_exchanges()[0]["request"])["request"])[1])
        exchange = exchange_of({**signed_exchanges()[0], **each}, asked, [])
        with pytest.raises(NoContact, match=f"HTTP status {each['status']}"):
            asyncio.run(exchange.ask(REPLIES["revocation-list"], REQUESTS["revocation-list"]))


def test_the_certificates_are_for_the_keys_that_were_sent() -> None:
    for each in signed_exchanges():
        if each["purpose"] == "renew-certificate" and each["status"] == 200:
            csr = json.loads(parts(json.loads(each["request"])["request"])[1])["csr"]
            check_certificate(json.loads(parts(json.loads(each["reply"])["reply"])[1])["certificates"][0], csr)


def test_the_key_set_is_the_one_that_signs() -> None:
    content = verify_key_set(FROZEN["key_sets"][0], (FROZEN["root_pin"],)).content
    kids = {parts(json.loads(each["reply"])["reply"])[0]["kid"] for each in signed_exchanges()}
    assert kids <= {key.kid for key in content.rotation_keys}
    assert public_key_from_jwk(FROZEN["agent"]["identity_key"]).public_numbers() == IDENTITY.public_key().public_numbers()
