"""What the server has signed and is malformed all the same: each ends as a typed failure of one contact, and is retried later.

A server whose keys were stolen, or a new one with a fault, says such things.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey

from agentd.admin.service import explain
from agentd.secrets.installer import unwrap
from agentd.sync.cycle import FAILURES
from agentd.uplink.transport import Response
from contracts.delivery import DELIVERY_TYPE
from contracts.exchange import REPLY_TYPE, Cause
from contracts.jose import MalformedToken, b64decode, b64encode
from ipc.errors import ErrorCode
from server.keys.jose import public_jwk
from tests.support.pair import Pair, prepare

OFF_CURVE = {"kty": "EC", "crv": "P-256", "x": b64encode(b"\x01" * 32), "y": b64encode(b"\x02" * 32)}
JUNK: dict[str, Any] = {
    "null": None,
    "a list": [],
    "an object": {"a": 1},
    "an empty text": "",
    "a text": "a text of nobody",
    "half a surrogate pair": "\ud800",
    "a list of halves": ["\udfff"],
    "a list of texts": ["a text of nobody"] * 4,
    "a negative number": -1,
    "zero": 0,
    "a huge number": 2**64,
    "the latest time": 253_402_300_799,
    "true": True,
}
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Pair]:
    return prepare(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def pair(copy: Callable[[Path], Pair], tmp_path: Path) -> Iterator[Pair]:
    made = copy(tmp_path / "pair")
    yield made
    made.close()


class Forger:
    """Changes what the server has signed, and signs it again with the server's own key."""

    def __init__(self, pair: Pair, purpose: str, change: Change) -> None:
        self._pair = pair
        self._ask = pair.wire._ask
        self._purpose = purpose
        self._change = change
        self.changed = 0
        pair.wire._ask = self  # type: ignore[method-assign, assignment]

    def sign(self, kind: str, content: dict[str, Any]) -> str:
        loaded = self._pair.server.server_side.keys._now()
        header = {"alg": "ES256", "typ": kind, "kid": public_jwk(loaded.rotation)["kid"]}
        text: str = jws.serialize_compact(
            header, json.dumps(content).encode(), ECKey.import_key(loaded.rotation_key), algorithms=["ES256"]
        )
        return text

    def __call__(self, name: str, text: str) -> Response:
        answer = self._ask(name, text)
        if name != self._purpose:
            return answer
        self.changed += 1
        reply = json.loads(answer.body)["reply"]
        content = json.loads(b64decode(reply.split(".")[1]))
        return Response(answer.status, json.dumps({"reply": self.sign(REPLY_TYPE, self._change(content))}).encode())

    def stop(self) -> None:
        self._pair.wire._ask = self._ask  # type: ignore[method-assign]


def fails_typed(pair: Pair, error: BaseException | None) -> None:
    """Nothing, or a failure that everybody above knows, and that is not tried again at once."""
    if error is None:
        return
    assert isinstance(error, FAILURES)
    assert explain(error)[0] is not ErrorCode.INTERNAL  # type: ignore[arg-type]
    assert pair.agent.cycle.record.failures >= 1
    assert pair.agent.cycle.wait_s() > 0


def contact(pair: Pair, purpose: str) -> BaseException | None:
    """A contact in which the agent makes this request."""
    pair.clock.seconds += 60
    if purpose == "renew-certificate":
        return _outcome(pair, lambda: pair.agent.cycle.contact(renew=True))
    return pair.contact(Cause.FORCED)


def _outcome(pair: Pair, act: Callable[[], Any]) -> BaseException | None:
    try:
        asyncio.run(act())
    except FAILURES as error:
        return error
    return None


MEMBERS = {
    "secret-status": ("secret_version", "rotate_now", "revocations", "key_set", "next_contact_s", "audit_seq"),
    "rotate-secret": ("delivery",),
    "confirm-rotation": ("secret_version",),
    "reissue-licenses": ("tokens", "missing"),
    "revocation-list": ("number", "next_update", "revoked"),
    "renew-certificate": ("certificates",),
}
COMMON = ("v", "agent_id", "request_id", "issued_at", "result")


@pytest.mark.parametrize("purpose", MEMBERS)
def test_junk_in_any_member_of_any_reply_is_a_typed_failure(copy: Callable[[Path], Pair], tmp_path: Path, purpose: str) -> None:
    made, tried = 0, 0
    pair = copy(tmp_path / "first")
    for member in (*MEMBERS[purpose], *COMMON, "unknown"):
        for what, value in JUNK.items():
            if made == 8:  # more versions than that, and the server refuses
                pair.close()
                pair, made = copy(tmp_path / f"{member} {what}"), 0
            made += 1

            def change(content: dict[str, Any], member: str = member, value: Any = value) -> dict[str, Any]:
                return {**content, member: value}

            if purpose == "revocation-list":
                pair.agent.validator.revocations = type(pair.agent.validator.revocations)()
            forger = Forger(pair, purpose, change)
            fails_typed(pair, contact(pair, purpose))
            assert forger.changed, f"{purpose}: no such request"
            forger.stop()
            tried += 1
    pair.clock.seconds += 3600
    assert pair.contact() is None, "the server has come to its senses"
    pair.close()
    assert tried == len(JUNK) * (len(MEMBERS[purpose]) + len(COMMON) + 1)


# A delivery


def _delivery(change: Change) -> Callable[["Pair"], Change]:
    def made(pair: Pair) -> Change:
        def outer(content: dict[str, Any]) -> dict[str, Any]:
            inner = json.loads(b64decode(content["delivery"].split(".")[1]))
            signer = Forger(pair, "none", lambda same: same)
            signer.stop()
            return {**content, "delivery": signer.sign(DELIVERY_TYPE, change(inner))}

        return outer

    return made


def _with_epk(epk: Any) -> Change:
    def change(inner: dict[str, Any]) -> dict[str, Any]:
        head, *rest = inner["new_secret_encrypted"].split(".")
        header = {**json.loads(b64decode(head)), "epk": epk}
        return {**inner, "new_secret_encrypted": ".".join([b64encode(json.dumps(header).encode()), *rest])}

    return change


DELIVERIES: dict[str, Change] = {
    "an epk that is not on the curve": _with_epk(OFF_CURVE),
    "an epk of zeros": _with_epk({**OFF_CURVE, "x": b64encode(bytes(32)), "y": b64encode(bytes(32))}),
    "an epk beyond the field": _with_epk({**OFF_CURVE, "x": b64encode(b"\xff" * 32)}),
    "another curve": _with_epk({**OFF_CURVE, "crv": "P-384"}),
    "no epk": _with_epk(None),
    **{
        f"{name}: {what}": (lambda inner, name=name, value=value: {**inner, name: value})
        for name in (
            "agent_id",
            "secret_version",
            "valid_from",
            "valid_until",
            "grace_until",
            "issued_at",
            "new_secret_encrypted",
        )
        for what, value in JUNK.items()
    },
}


def test_a_malformed_delivery_is_a_typed_failure(copy: Callable[[Path], Pair], tmp_path: Path) -> None:
    pair = copy(tmp_path / "first")
    for number, (what, change) in enumerate(DELIVERIES.items()):
        if number % 8 == 7:
            pair.close()
            pair = copy(tmp_path / str(number))
        before = pair.agent.ring.newest_number
        forger = Forger(pair, "rotate-secret", _delivery(change)(pair))
        error = contact(pair, "rotate-secret")
        fails_typed(pair, error)
        assert forger.changed, what
        if "epk" in what:
            assert error is not None and pair.agent.ring.newest_number == before, what
        forger.stop()
    pair.clock.seconds += 3600
    pair.contact()
    pair.close()


@pytest.mark.parametrize("epk", [name for name in DELIVERIES if "epk" in name or "curve" in name])
def test_an_administrator_who_installs_one_is_told(pair: Pair, epk: str) -> None:
    kept: list[str] = []

    def keep(content: dict[str, Any]) -> dict[str, Any]:
        changed = _delivery(DELIVERIES[epk])(pair)(content)
        kept.append(changed["delivery"])
        return changed

    forger = Forger(pair, "rotate-secret", keep)
    contact(pair, "rotate-secret")
    forger.stop()
    with pytest.raises(Exception) as told:
        asyncio.run(pair.agent.agent.assembled.installer.install(kept[0], {"uid": 0}))
    code, text = explain(told.value)  # type: ignore[arg-type]
    assert code is ErrorCode.REFUSED, text


# Certificates


def _certificate(key: Any, **changes: Any) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pos-001")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(changes.get("serial", 1))
        .not_valid_before(datetime(1960, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, tzinfo=UTC))
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


def _spoiled(place: bytes, put: bytes) -> str:
    """A certificate whose DER was changed at one place."""
    der = x509.load_pem_x509_certificate(_certificate(ec.generate_private_key(ec.SECP256R1())).encode()).public_bytes(
        Encoding.DER
    )
    assert place in der
    text = base64.encodebytes(der.replace(place, put)).decode()
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n"


CERTIFICATES: dict[str, Callable[[], str]] = {
    "no certificate": lambda: "x",
    "an empty PEM": lambda: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    "letters of another alphabet": lambda: "Zertifikät",
    "a key of another kind": lambda: _certificate(ed25519.Ed25519PrivateKey.generate()),
    "another curve": lambda: _certificate(ec.generate_private_key(ec.SECP384R1())),
    "another key": lambda: _certificate(ec.generate_private_key(ec.SECP256R1())),
    # The object identifiers of id-ecPublicKey and of the curve, each by another that nobody knows.
    "an unknown kind of key": lambda: _spoiled(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0277")),
    "an unknown curve": lambda: _spoiled(bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")),
    "a month that there is not": lambda: _spoiled(b"99991231", b"99991331"),
}


@pytest.mark.parametrize("what", CERTIFICATES)
def test_a_certificate_that_cannot_be_used_is_a_typed_failure(pair: Pair, what: str) -> None:
    forger = Forger(pair, "renew-certificate", lambda content: {**content, "certificates": [CERTIFICATES[what]()]})
    error = contact(pair, "renew-certificate")
    assert forger.changed and error is not None
    fails_typed(pair, error)
    forger.stop()
    assert contact(pair, "renew-certificate") is None


# What nobody has thought of


def test_a_failure_that_nobody_knows_is_not_tried_again_at_each_tick(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async def surprises(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pair.agent.cycle, "_talk", surprises)
    pair.clock.seconds += 7 * 86_400
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pair.agent.cycle.tick())
    assert pair.agent.cycle.wait_s() > 0
    assert not asyncio.run(pair.agent.cycle.tick())


def test_a_backend_that_refuses_the_point_is_a_refused_delivery(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract of a backend names ValueError; its caller maps it."""

    def refuses(_point: bytes) -> None:
        raise ValueError("not on the curve")

    delivery: Any = SimpleNamespace(encrypted=SimpleNamespace(peer_point=bytes(65)))
    backend: Any = SimpleNamespace(agree=refuses)
    with pytest.raises(MalformedToken, match="epk"):
        unwrap(backend, pair.agent.core.vault, delivery)
