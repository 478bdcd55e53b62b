"""A bench with a choice of backend, and the keys that its agent works with, for tests that play an attacker."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentd.secrets.open import machine_id
from hwsec.tpm import NV_BASE, TpmBackend
from hwsec.tpm2.templates import SRK
from tests.hwsec.auth_values import INDICES, auth_values
from tests.support.daemon import Bench
from tests.support.serversecrets import server_secrets
from tests.support.stand import short_directory
from tests.support.swtpm import Swtpm

AGENT_ID = "pos-009"
_KEYS = ("attestation", "identity", "agreement")
_OTHER_INFO = b"\0\0\0\x07A256GCM" + bytes(8) + (256).to_bytes(4, "big")  # RFC 7518, 4.6.2


class Machine(Bench):
    """An agent on either backend, with a TPM of its own where it has one."""

    def __init__(self, root: Path, backend: str) -> None:
        self.backend = backend
        self.tpm = Swtpm(root / "tpm").start() if backend == "tpm" else None
        super().__init__(root)

    def write_config(self, extra: str = "", uids: list[int] | None = None) -> None:
        super().write_config(extra, uids)
        if self.tpm is not None:
            text = self.config.read_text()
            self.write_raw_config(text.replace("enabled = false", f'enabled = true\ntcti = "{self.tpm.tcti}"'))

    @property
    def store(self) -> Path:
        """The store's main file."""
        return self.state / ("secret.enc" if self.tpm is None else "secrets.store")

    def end(self) -> None:
        """Ends the TPM."""
        if self.tpm is not None:
            self.tpm.stop()

    # What the attacker in the tests looks for

    def secrets(self) -> dict[int, bytes]:
        """The agent's secret versions, as the server knows them."""
        return server_secrets(self.server, AGENT_ID)

    def keys_in_use(self, deliveries: list[str]) -> dict[str, bytes]:
        """The KEK and all that is derived from it or agreed with its help. The daemon must not run.

        Each is used once as the agent uses it, so that none is looked for that is not the agent's.

        Args:
            deliveries: their shared values and content keys are among what is returned.
        """
        points = [_ephemeral_point(delivery) for delivery in deliveries]
        keys = self._software_keys(points) if self.tpm is None else self._tpm_keys(points)
        kek = keys["KEK"]
        for purpose in ("record", "tag"):
            keys[f"store {purpose} key"] = _hkdf(kek, f"license-agent store {purpose} v1")
        data = self.store.read_bytes()
        assert hmac.digest(keys["store tag key"], data[:-32], "sha256") == data[-32:]
        body = msgspec.msgpack.decode(data[8:-32])
        for record in body["records"]:
            if not record["sealed"]:
                continue  # destroyed
            associated = msgspec.msgpack.encode((AGENT_ID, record["meta"]))
            opened = AESGCM(keys["store record key"]).decrypt(record["nonce"], record["sealed"], associated)
            assert opened == self.secrets()[record["meta"]["version"]]
        for number, delivery in enumerate(deliveries):
            shared = keys[f"shared value {number}"]
            key = keys[f"content key {number}"] = ConcatKDFHash(hashes.SHA256(), 32, _OTHER_INFO).derive(shared)
            assert _decrypted(delivery, key) in self.secrets().values()
        return keys

    def _software_keys(self, points: list[bytes]) -> dict[str, bytes]:
        content = msgspec.msgpack.decode((self.keys / "software.key").read_bytes())
        material = content["material"] + machine_id()
        kek = hashlib.pbkdf2_hmac("sha256", material, content["salt"], content["iterations"])
        keys = {"KEK": kek, "key material": content["material"]}
        for purpose in ("check", "state", *_KEYS):
            keys[f"software {purpose} key"] = _hkdf(kek, f"license-agent software {purpose}")
        state = msgspec.msgpack.decode((self.keys / "software.anchor").read_bytes())
        tagged = msgspec.msgpack.encode((state["counter"], state["audit"], state["anchor"]))
        assert hmac.digest(keys["software state key"], tagged, "sha256") == state["tag"]
        for purpose in _KEYS:
            sealed = content[purpose]
            scalar = AESGCM(keys[f"software {purpose} key"]).decrypt(sealed["nonce"], sealed["sealed"], purpose.encode())
            private = keys[f"private scalar of {purpose}"] = scalar
            public = _private(private).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            assert public == sealed["public"]
        for number, point in enumerate(points):
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            keys[f"shared value {number}"] = _private(keys["private scalar of agreement"]).exchange(ec.ECDH(), peer)
        return keys

    def _tpm_keys(self, points: list[bytes]) -> dict[str, bytes]:
        assert self.tpm is not None
        objects = self.state / "tpm.objects"
        backend = TpmBackend(self.tpm.tcti, objects)
        backend.open()
        with backend.kek() as kek:
            keys = {"KEK": bytes(kek.view)}
        keys |= auth_values(objects, keys["KEK"])
        for number, point in enumerate(points):
            with backend.agree(point) as shared:
                keys[f"shared value {number}"] = bytes(shared.view)
        backend.close()
        self._prove_auth_values(objects, keys)
        return keys

    def _prove_auth_values(self, objects: Path, keys: dict[str, bytes]) -> None:
        """The TPM takes them all; the KEK's own and `keys_auth` have shown themselves by what was done with them."""
        import tpm2_pytss as t

        assert self.tpm is not None
        content = msgspec.msgpack.decode(objects.read_bytes()[40:])
        with t.ESAPI(self.tpm.tcti) as esys:
            for number, purpose in enumerate((*INDICES, "policy counter"), 1):
                index = esys.tr_from_tpmpublic(NV_BASE + number)
                esys.tr_set_auth(index, keys[f"auth value {purpose}"])
                esys.nv_read(index, 4, 0, index)
            parent = esys.create_primary(None, t.TPM2B_PUBLIC(publicArea=t.TPMT_PUBLIC.unmarshal(SRK)[0]))[0]
            for purpose in _KEYS:
                private = t.TPM2B_PRIVATE.unmarshal(content[purpose]["private"])[0]
                public = t.TPM2B_PUBLIC.unmarshal(content[purpose]["public"])[0]
                handle = esys.load(parent, private, public)
                esys.tr_set_auth(handle, keys[f"auth value {purpose}"])
                if purpose == "agreement":
                    esys.ecdh_zgen(handle, t.TPM2B_ECC_POINT(public.publicArea.unique.ecc))
                else:
                    esys.get_time(handle, b"", t.TPMT_SIG_SCHEME(scheme=t.TPM2_ALG.NULL))
                esys.flush_context(handle)
            esys.flush_context(parent)


def _private(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def _hkdf(key: bytes, info: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=info.encode()).derive(key)


def unpadded(text: str) -> bytes:
    """Decodes base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _jwe(delivery: str) -> list[str]:
    jwe: str = json.loads(unpadded(delivery.strip().split(".")[1]))["new_secret_encrypted"]
    return jwe.split(".")


def _ephemeral_point(delivery: str) -> bytes:
    epk = json.loads(unpadded(_jwe(delivery)[0]))["epk"]
    return b"\x04" + unpadded(epk["x"]) + unpadded(epk["y"])


def _decrypted(delivery: str, key: bytes) -> bytes:
    protected, _, nonce, ciphertext, tag = _jwe(delivery)
    return AESGCM(key).decrypt(unpadded(nonce), unpadded(ciphertext) + unpadded(tag), protected.encode())


@contextlib.contextmanager
def furnished_machine(backend: str) -> Iterator[Machine]:
    """An enrolled agent without a secret, not running."""
    with short_directory() as directory:
        machine = Machine(directory, backend)
        try:
            machine.enroll()
            yield machine
        finally:
            machine.end()
