"""Operators of a server that runs: people with certificates, programs with tokens, and clients that ask for them."""

import contextlib
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from server.accounts import accounts, certificates, tokens
from server.accounts.roles import Role
from tests.server.devices import make_csr
from tests.support.apiserver import ApiServer
from tests.support.postgres import Postgres
from tests.support.waiting import READY_S

DAY = 86_400


@contextlib.contextmanager
def operators_server(request: pytest.FixtureRequest, directory: Path) -> Iterator[ApiServer]:
    """A server with the operators' listener, on the database that the fixture's parameter names: sqlite or postgresql."""
    with contextlib.ExitStack() as stack:
        url = None
        if request.param == "postgresql":
            cluster: Postgres = request.getfixturevalue("postgres")
            url = stack.enter_context(cluster.database())
        made = stack.enter_context(ApiServer.made(directory, url))
        made.start("--operators", "127.0.0.1:0", "--ops", "127.0.0.1:0")
        yield made


@dataclass
class Person:
    """A person's account, and the files of their certificate."""

    name: str
    fingerprint: str
    certificate: Path
    key: Path


class Operators:
    """Makes accounts directly in the registry, beside the process that serves it.

    Args:
        server: with the operators' listener.
        directory: for files.
    """

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server = server
        self._directory = directory
        self.root = directory / "operators-root.pem"
        self.root.write_text(server.root)

    def person(self, name: str, role: Role) -> Person:
        key = ec.generate_private_key(ec.SECP256R1())
        now = int(time.time())
        with self.server.server_side() as side, side.database.write() as session:
            accounts.create(session, name, "person", role, "local", now)
            issued = certificates.issue(session, side.keys, side.key_lifecycle, name, make_csr(key), DAY, "local", now)
        certificate, private = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        certificate.write_text(issued.pem)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Person(name, issued.row.fingerprint, certificate, private)

    def program(self, name: str, role: Role, scopes: Sequence[str], lifetime: int = DAY) -> str:
        """Returns the token."""
        now = int(time.time())
        with self.server.server_side() as side, side.database.write() as session:
            accounts.create(session, name, "program", role, "local", now)
            return tokens.make(session, name, scopes, lifetime, "local", now).text

    def client(self, person: Person | None = None, token: str | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.root))
        if person is not None:
            context.load_cert_chain(person.certificate, person.key)
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.server.operators, verify=context, headers=headers, timeout=READY_S)
