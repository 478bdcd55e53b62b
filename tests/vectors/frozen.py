"""The requests and replies that release 0.1.0 made (make_exchange.py), for the tests of both sides."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from contracts import exchange as forms
from contracts.exchange import Reply, Request, purpose_of

FILE = Path(__file__).with_name("exchange-0.1.0.json")
# Agents and servers of 0.1.0 are in the field: what they send is a fact. Where a test fails on this file, the code is wrong,
# not the file. A change of the wire that is meant gets a new version of the forms, and a file of its own beside this one.
SHA256 = "aba7768e50c0759e5ed3e4bccee43c7740473b316c62cb3cb70ba3af1b6e5a35"

_DATA = FILE.read_bytes()
FROZEN: dict[str, Any] = json.loads(_DATA)

REQUESTS: dict[str, type[Request]] = {purpose_of(kind): kind for kind in forms.AnyRequest.__args__}
REPLIES: dict[str, type[Reply]] = {
    "secret-status": forms.StatusReply,
    "rotate-secret": forms.RotateReply,
    "confirm-rotation": forms.ConfirmReply,
    "reissue-licenses": forms.ReissueReply,
    "validate-license": forms.ValidateReply,
    "revocation-list": forms.RevocationReply,
    "renew-certificate": forms.RenewReply,
}


def is_untouched() -> bool:
    """Whether the file is the one that was frozen."""
    return hashlib.sha256(_DATA).hexdigest() == SHA256


def parts(jws: str) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a JWS, by the standard library alone."""
    protected, payload, _signature = jws.split(".")
    return json.loads(_decoded(protected)), _decoded(payload)


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def signed_exchanges() -> list[dict[str, Any]]:
    """All requests that an agent has signed, with their replies."""
    return [each for each in FROZEN["exchanges"] if each["purpose"] != "challenge"]
