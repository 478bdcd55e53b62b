"""Issues what agents open: license tokens, secret deliveries and signed times. Pure.

It uses joserfc and not the agent's own parsers, so that each side tests the other against the standards.
"""

import json
from typing import Any

from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey

from contracts.audithead import AUDIT_HEAD_TYPE
from contracts.claims import Claims
from contracts.delivery import DELIVERY_TYPE
from contracts.jose import thumbprint
from contracts.licensetoken import LICENSE_TYPE, key_id
from contracts.servertime import TIME_TYPE

_JWE = ["dir", "ECDH-ES", "A256GCM"]
_JWS = ["ES256"]


def new_signing_key() -> dict[str, str]:
    """A fresh P-256 private key as a JWK."""
    key: dict[str, Any] = ECKey.generate_key("P-256", private=True).as_dict(private=True)
    return {name: str(key[name]) for name in ("kty", "crv", "x", "y", "d")}


def public_jwk(private: dict[str, str]) -> dict[str, str]:
    """The public half, with its thumbprint as `kid`."""
    public = {name: private[name] for name in ("kty", "crv", "x", "y")}
    return public | {"kid": thumbprint(public)}


def issue_token(claims: Claims, secret: bytes, version: int, issuer_key: dict[str, str]) -> str:
    """Issues a license token for the agent in `claims.aud`, signed, then encrypted under one of its secrets.

    Args:
        claims: of the license.
        secret: 32 bytes.
        version: the secret's version.
        issuer_key: private JWK that signs.
    """
    signed = _sign(claims.as_json(), LICENSE_TYPE, issuer_key)
    header = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": key_id(claims.aud, version)}
    token: str = jwe.encrypt_compact(header, signed.encode(), OctKey.import_key(secret), algorithms=_JWE)
    return token


def issue_delivery(
    agent_id: str,
    version: int,
    dates: dict[str, int],
    secret: bytes,
    agreement_key: dict[str, str],
    delivery_key: dict[str, str],
) -> str:
    """Issues a secret for one agent, encrypted to its agreement key, then signed.

    Args:
        agent_id: the agent.
        version: the secret's version.
        dates: valid_from, valid_until, grace_until and issued_at, in seconds since 1970 UTC.
        secret: 32 bytes.
        agreement_key: the agent's public JWK.
        delivery_key: private JWK that signs.
    """
    encrypted = jwe.encrypt_compact(
        {"alg": "ECDH-ES", "enc": "A256GCM"},
        secret,
        ECKey.import_key({name: agreement_key[name] for name in ("kty", "crv", "x", "y")}),
        algorithms=_JWE,
    )
    payload = {"agent_id": agent_id, "secret_version": version, **dates, "new_secret_encrypted": encrypted}
    return _sign(payload, DELIVERY_TYPE, delivery_key)


def issue_server_time(agent_id: str, challenge: str, now: int, delivery_key: dict[str, str]) -> str:
    """Issues the server's time for one agent and challenge.

    Args:
        agent_id: the agent.
        challenge: the agent's.
        now: seconds since 1970 UTC.
        delivery_key: private JWK that signs.
    """
    return _sign({"agent_id": agent_id, "challenge": challenge, "time": now}, TIME_TYPE, delivery_key)


def issue_audit_head(content: dict[str, Any], delivery_key: dict[str, str]) -> str:
    """Issues a statement about an agent's audit log.

    Args:
        content: with the members `contracts.audithead.MEMBERS`.
        delivery_key: private JWK that signs.
    """
    return _sign(content, AUDIT_HEAD_TYPE, delivery_key)


def _sign(payload: dict[str, Any], kind: str, key: dict[str, str]) -> str:
    header = {"alg": "ES256", "typ": kind, "kid": public_jwk(key)["kid"]}
    data = json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()
    signed: str = jws.serialize_compact(header, data, ECKey.import_key({**key}), algorithms=_JWS)
    return signed
