"""Certificate chains as two strangers judge them: cryptography's verifier and the openssl command."""

import datetime
import ipaddress
import subprocess
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from server.keys.keyring import Keyring
from server.keys.pki import pem_of
from tests.support.waiting import READY_S


def pems(text: str) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(text.encode())


def server_chain(keys: Keyring) -> list[x509.Certificate]:
    """Server certificate, issuing CA, root."""
    return pems(keys.tls_material()[0])


def at(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def holds(chain: list[x509.Certificate], root: x509.Certificate, when: int, name: str | None) -> bool:
    """What both verifiers say; they must agree. `name` is that of a server; None checks a client."""
    builder = PolicyBuilder().store(Store([root])).time(at(when))
    verifier = builder.build_client_verifier() if name is None else builder.build_server_verifier(_subject(name))
    try:
        verifier.verify(chain[0], chain[1:])
        first = True
    except VerificationError:
        first = False
    assert first is _openssl(chain, root, when, name)
    return first


def _subject(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _openssl(chain: list[x509.Certificate], root: x509.Certificate, when: int, name: str | None) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        files = {"root": [root], "above": chain[1:] or [root], "leaf": chain[:1]}
        for part, certificates in files.items():
            Path(directory, part).write_text("".join(pem_of(certificate) for certificate in certificates))
        command = ["openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-attime", str(when)]
        command += ["-CAfile", f"{directory}/root", "-untrusted", f"{directory}/above"]
        if name is None:
            command += ["-purpose", "sslclient"]
        else:
            kind = "-verify_ip" if isinstance(_subject(name), x509.IPAddress) else "-verify_hostname"
            command += ["-purpose", "sslserver", kind, name]
        done = subprocess.run([*command, f"{directory}/leaf"], capture_output=True, text=True, timeout=READY_S)
    return done.returncode == 0
