"""Any text is a token or a delivery, or one of three typed errors whose text can be written down."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["contracts"]):
        import contracts.delivery
        import contracts.licensetoken
        import contracts.trust  # noqa: F401


import json

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from contracts.delivery import verify_delivery
from contracts.jose import BadSignature, MalformedToken, b64encode, jwk_from_point, public_key_from_jwk
from contracts.licensetoken import WrongAudience, open_token, parse_token
from contracts.trust import Trust, parse_trust

AGENT = "pos-001"
SECRET = bytes(range(32))
PUBLIC = ec.derive_private_key(12345, ec.SECP256R1()).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
KEY = public_key_from_jwk(jwk_from_point(PUBLIC))
TRUST = Trust("issuer", {"k": KEY}, {"k": KEY})
PROTECTED = b64encode(json.dumps({"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": f"{AGENT}/1"}).encode())
TYPED = (MalformedToken, BadSignature, WrongAudience)


def check(data: bytes) -> None:
    """Reads the bytes as a token, as the content of a genuine envelope, as a delivery and as a trust file."""
    text = data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("latin-1")
    sealed = AESGCM(SECRET).encrypt(bytes(12), data, PROTECTED.encode())
    envelope = f"{PROTECTED}..{b64encode(bytes(12))}.{b64encode(sealed[:-16])}.{b64encode(sealed[-16:])}"
    for attempt in (
        lambda: open_token(parse_token(text), SECRET, TRUST),
        lambda: open_token(parse_token(envelope), SECRET, TRUST),
        lambda: verify_delivery(text, AGENT, TRUST),
        lambda: parse_trust(data),
    ):
        try:
            attempt()
        except TYPED as error:
            str(error)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def main() -> None:
    """Runs under libFuzzer; its options come from the command line."""
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
