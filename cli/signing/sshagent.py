"""Has an ssh-agent sign with a P-256 key that it holds, be it from a file or, by its PKCS #11 helper, on a token.

Protocol: draft-ietf-sshm-ssh-agent. A key of the type ecdsa-sha2-nistp256 signs the SHA-256 of the data as it is (RFC 5656,
3.1.2), which is ES256; only the form of the signature is another.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ANSWER_S = 120.0
"""A token may want a PIN or a touch first."""
MAX_ANSWER_BYTES = 256 * 1024
_LIST, _LISTED, _SIGN, _SIGNED = 11, 12, 13, 14
_KIND, _CURVE = b"ecdsa-sha2-nistp256", b"nistp256"


class NoSignature(Exception):
    """The ssh-agent does not sign; the message says why and what to do."""


def signer(key: ec.EllipticCurvePublicKey, certificate: Path) -> Callable[[bytes], bytes]:
    """What signs with the private half of a key: data in, ES256 in DER out.

    Args:
        key: P-256.
        certificate: the file that the key is from, for errors.

    Raises:
        NoSignature: there is no ssh-agent, or it does not hold the key.
    """
    path = os.environ.get("SSH_AUTH_SOCK")
    if not path:
        raise NoSignature(
            f"the key of {certificate} is wanted: name its file with --auth-key, or start an ssh-agent and add the key to it "
            "(ssh-add FILE; ssh-add -s LIBRARY for a PKCS #11 token)"
        )
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    wanted = _text(_KIND) + _text(_CURVE) + _text(point)
    if wanted not in _keys(_ask(path, bytes([_LIST]), _LISTED)):
        raise NoSignature(
            f"the ssh-agent does not hold the key of {certificate}: add it (ssh-add FILE; ssh-add -s LIBRARY for a PKCS #11 "
            "token), or name its file with --auth-key"
        )

    def sign(data: bytes) -> bytes:
        request = bytes([_SIGN]) + _text(wanted) + _text(data) + bytes(4)
        return _to_der(_ask(path, request, _SIGNED))

    return sign


def _ask(path: str, request: bytes, wanted: int) -> bytes:
    """One request to the agent; the content of its answer."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(path)
            sock.sendall(_text(request))
            length = int.from_bytes(_read(sock, 4), "big")
            if not 1 <= length <= MAX_ANSWER_BYTES:
                raise NoSignature(f"what answers at {path} is no ssh-agent")
            answer = _read(sock, length)
    except (OSError, EOFError) as error:
        raise NoSignature(f"the ssh-agent at {path} (SSH_AUTH_SOCK) does not answer: {error}") from None
    if answer[0] != wanted:
        raise NoSignature("the ssh-agent refuses to sign: it is locked, or somebody has declined it there")
    return answer[1:]


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("it has closed the connection")
        data += part
    return data


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _cut(data: bytes) -> tuple[bytes, bytes]:
    """A string of the protocol, and what is behind it."""
    end = 4 + int.from_bytes(data[:4], "big")
    if len(data) < max(end, 4):
        raise NoSignature("the ssh-agent's answer is cut short")
    return data[4:end], data[end:]


def _keys(answer: bytes) -> list[bytes]:
    found, rest = [], answer[4:]
    for _key in range(int.from_bytes(answer[:4], "big")):
        blob, rest = _cut(rest)
        _comment, rest = _cut(rest)
        found.append(blob)
        if not rest:
            break
    return found


def _to_der(answer: bytes) -> bytes:
    signature, _ = _cut(answer)
    kind, rest = _cut(signature)
    numbers, _ = _cut(rest)
    if kind != _KIND:
        raise NoSignature(f"the ssh-agent has signed with a key of another kind ({kind.decode('ascii', 'replace')[:40]})")
    r, rest = _cut(numbers)
    s, _ = _cut(rest)
    return encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
