"""Makes and uses an AES key that never leaves its PKCS #11 token, found by its URI (RFC 7512). Only this file uses the library.

    pkcs11:token=TOKEN;object=KEY?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/license-server/pin

The PIN is in a file of its own, and not in the URI, which is no secret.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from server.base import privatefile
from server.base.errors import RegistryError

if TYPE_CHECKING:
    from pkcs11 import Session

_SCHEME = "pkcs11:"
_BITS, _TAG_BITS = 256, 128
_EXAMPLE = "pkcs11:token=TOKEN;object=KEY?module-path=FILE.so&pin-source=FILE"
_PATH, _QUERY = frozenset({"token", "object", "serial"}), frozenset({"module-path", "pin-source"})
_one_login = threading.Lock()
"""A token has one login for each process, whatever sessions the process has."""


@dataclass(frozen=True, slots=True)
class Uri:
    """The place of a key.

    Attributes:
        token: label of the token.
        object: label of the key.
        module: the token's library.
        pin_file: holds the user's PIN in its first line.
        serial: the token's serial number, to tell tokens with the same label apart; None if it does not matter.
    """

    token: str
    object: str
    module: Path
    pin_file: Path
    serial: str | None


def is_uri(text: str) -> bool:
    """Whether a text has the scheme of a PKCS #11 URI, in any case (RFC 3986, 3.1)."""
    return text[: len(_SCHEME)].lower() == _SCHEME


def parse(text: str) -> Uri:
    """Parses a URI.

    Raises:
        RegistryError: an attribute is missing or unknown.
    """
    path, _, query = text[len(_SCHEME) :].partition("?")
    found = {**_attributes(path, ";", _PATH), **_attributes(query, "&", _QUERY)}
    missing = sorted(({"token", "object"} | _QUERY) - found.keys())
    if missing:
        raise RegistryError(f"the PKCS #11 URI has no {', '.join(missing)}; write {_EXAMPLE}")
    module, pin = Path(found["module-path"]), Path(found["pin-source"].removeprefix("file://").removeprefix("file:"))
    if not module.is_absolute() or not pin.is_absolute():
        raise RegistryError("module-path and pin-source of the PKCS #11 URI must be absolute paths")
    return Uri(found["token"], found["object"], module, pin, found.get("serial"))


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(separator) if text else ():
        name, sign, value = part.partition("=")
        if name == "pin-value":
            raise RegistryError(
                "a PIN must not be in a URI; write it to a file of mode 0600, and name the file with pin-source"
            )
        if name not in known or name in found or not sign or not value:
            raise RegistryError(f"invalid {name!r} in the PKCS #11 URI; write {_EXAMPLE}")
        found[name] = unquote(value)
    return found


@contextmanager
def _session(uri: Uri, *, writing: bool = False) -> Iterator["Session"]:
    # The library is imported only if a token is used.
    import pkcs11

    pin = privatefile.read(uri.pin_file, "the PIN file").split(b"\n", 1)[0].decode("utf-8", "replace")
    with _one_login:
        try:
            found: dict[str, Any] = {"token_label": uri.token}
            if uri.serial is not None:
                found["token_serial"] = uri.serial.encode()
            token = pkcs11.lib(str(uri.module)).get_token(**found)
            with token.open(rw=writing, user_pin=pin) as session:
                yield session
        except pkcs11.PinIncorrect:
            raise RegistryError(
                f"the PIN in {uri.pin_file} is not that of token {uri.token!r}; fix it before you try again: tokens lock"
            ) from None
        except pkcs11.PKCS11Error as error:
            text = f"{type(error).__name__} {error}".strip()
            raise RegistryError(f"the token {uri.token!r} ({uri.module}) cannot be used: {text}") from None


def _key(session: "Session", uri: Uri) -> Any:
    import pkcs11

    try:
        return session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, key_type=pkcs11.KeyType.AES, label=uri.object)
    except pkcs11.NoSuchKey:
        raise RegistryError(f"token {uri.token!r} has no AES key {uri.object!r}") from None
    except pkcs11.MultipleObjectsReturned:
        raise RegistryError(f"token {uri.token!r} has several AES keys {uri.object!r}; give one a label of its own") from None


def exists(uri: Uri) -> bool:
    """Whether the token has such a key.

    Raises:
        RegistryError: the token cannot be used.
    """
    import pkcs11

    wanted = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY,
        pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.AES,
        pkcs11.Attribute.LABEL: uri.object,
    }
    with _session(uri) as session:
        return bool(list(session.get_objects(wanted)))


def make(uri: Uri) -> None:
    """Makes an AES-256 key in the token: private, sensitive, not extractable.

    Raises:
        RegistryError: the token has a key with this label, or cannot be used.
    """
    import pkcs11

    if exists(uri):
        raise RegistryError(f"token {uri.token!r} already has a key {uri.object!r}, which is not overwritten")
    with _session(uri, writing=True) as session:
        session.generate_key(
            pkcs11.KeyType.AES,
            _BITS,
            label=uri.object,
            store=True,
            capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
            template={
                pkcs11.Attribute.PRIVATE: True,
                pkcs11.Attribute.SENSITIVE: True,
                pkcs11.Attribute.EXTRACTABLE: False,
            },
        )


def remove(uri: Uri) -> None:
    """Deletes the key from the token.

    Raises:
        RegistryError: the token has no such key, or cannot be used.
    """
    with _session(uri, writing=True) as session:
        _key(session, uri).destroy()


def encrypt(uri: Uri, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    """Encrypts `data` with AES-256-GCM in the token; the tag comes last (CKM_AES_GCM, PKCS #11 3.0, 2.13.2).

    Raises:
        RegistryError: the token cannot be used.
    """
    import pkcs11

    with _session(uri) as session:
        result: bytes = _key(session, uri).encrypt(
            data, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=pkcs11.GCMParams(nonce, associated, _TAG_BITS)
        )
    return result


def decrypt(uri: Uri, nonce: bytes, data: bytes, associated: bytes) -> bytes | None:
    """Decrypts what `encrypt` has returned; None if another key encrypted it.

    Raises:
        RegistryError: the token cannot be used.
    """
    import pkcs11

    with _session(uri) as session:
        key = _key(session, uri)
        try:
            result: bytes = key.decrypt(
                data, mechanism=pkcs11.Mechanism.AES_GCM, mechanism_param=pkcs11.GCMParams(nonce, associated, _TAG_BITS)
            )
        except (pkcs11.EncryptedDataInvalid, pkcs11.EncryptedDataLenRange, pkcs11.GeneralError):
            # SoftHSM reports a wrong tag as "general error" only.
            return None
    return result
