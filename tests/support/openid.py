"""Keys and tokens of an OpenID provider, made by hand with `cryptography`: right ones, and every kind of wrong one."""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from contracts.jose import b64encode
from tests.support.tlspeer import Exchange

ISSUER, AUDIENCE = "https://id.example/realms/shop", "license-server"


@dataclass(frozen=True)
class SigningKey:
    """A key: its public JWK, and what signs with it."""

    jwk: dict[str, Any]
    sign: Callable[[bytes], bytes]

    @property
    def kid(self) -> str:
        return str(self.jwk["kid"])


def number(value: int) -> str:
    return b64encode(value.to_bytes((value.bit_length() + 7) // 8))


def es256(kid: str = "ec") -> SigningKey:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_numbers()

    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)

    x, y = (b64encode(each.to_bytes(32)) for each in (public.x, public.y))
    return SigningKey({"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid, "use": "sig"}, sign)


def rsa256(kid: str = "rsa", bits: int = 2048, *, pss: bool = False, alg: str | None = None) -> SigningKey:
    key = rsa.generate_private_key(65537, bits)
    public = key.public_key().public_numbers()
    pad = padding.PSS(padding.MGF1(hashes.SHA256()), 32) if pss else padding.PKCS1v15()
    jwk = {"kty": "RSA", "n": number(public.n), "e": number(public.e), "kid": kid, "use": "sig"}
    return SigningKey(jwk if alg is None else {**jwk, "alg": alg}, lambda data: key.sign(data, pad, hashes.SHA256()))


def ed25519_key(kid: str = "ed") -> SigningKey:
    key = ed25519.Ed25519PrivateKey.generate()
    x = b64encode(key.public_key().public_bytes_raw())
    return SigningKey({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": kid}, key.sign)


def hs256(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda data: hmac.new(secret, data, hashlib.sha256).digest()


def key_set(*keys: SigningKey) -> bytes:
    return json.dumps({"keys": [key.jwk for key in keys]}).encode()


def claims(now: int, **changed: Any) -> dict[str, Any]:
    """Those of an access token that counts; a claim that is changed to None is left out."""
    found = {"iss": ISSUER, "sub": "17", "aud": AUDIENCE, "iat": now - 10, "exp": now + 300, "jti": "j", "client_id": "desk"}
    return {name: value for name, value in (found | changed).items() if value is not None}


def signed(
    key: SigningKey,
    content: dict[str, Any] | bytes,
    alg: str = "ES256",
    sign: Callable[[bytes], bytes] | None = None,
    **header: Any,
) -> str:
    """A token. A member of the header that is None is left out.

    Args:
        key: whose id it names, and that signs it.
        content: its claims, or the bytes in their place.
        alg: what the header says.
        sign: signs in the key's place.
        header: further members.
    """
    head = {"alg": alg, "kid": key.kid, "typ": "at+jwt"} | header
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return compact(
        json.dumps({name: value for name, value in head.items() if value is not None}).encode(), data, sign or key.sign
    )


def compact(header: bytes, content: bytes, sign: Callable[[bytes], bytes]) -> str:
    body = f"{b64encode(header)}.{b64encode(content)}"
    return f"{body}.{b64encode(sign(body.encode()))}"


class Documents:
    """What a provider serves: its configuration and keys. Everything may be changed between requests.

    Args:
        issuer: where it is.
        keys: those of the key set.
    """

    def __init__(self, issuer: str, *keys: SigningKey) -> None:
        self.issuer = issuer
        self.keys = keys
        self.status = "200 OK"
        self.headers = ""
        self.asked: list[str] = []
        self.hang = False

    def __call__(self, exchange: Exchange) -> None:
        """Answers one request; a behavior of `TlsPeer`."""
        request = exchange.request()
        if not request:
            return  # whoever has connected took too long, and is gone
        path = request.split(b" ")[1].decode()
        self.asked.append(path)
        if self.hang:
            exchange.pause(60)
            return
        configuration = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        body = key_set(*self.keys) if path.endswith("/keys") else json.dumps(configuration).encode()
        head = f"HTTP/1.1 {self.status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{self.headers}\r\n"
        exchange.send(head.encode() + body)
