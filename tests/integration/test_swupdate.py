"""Debian's SWUpdate installs signed images from a license server over TLS 1.3: proved, failed, and taken back."""

import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import select

from server.base.settings import SETTINGS
from server.fleet.ddi import credentials, devices
from server.fleet.devices import blocklist
from server.fleet.rollouts import lifecycle
from server.fleet.rollouts.policy import policy_of
from server.fleet.rollouts.rows import Plan
from server.registry.models.ddi import DdiAction
from server.registry.models.fleets import Fleet, FleetMember
from server.registry.models.rollouts import RolloutDevice
from server.registry.models.updates import UpdatePackage
from tests.server.devices import make_csr
from tests.support.apiserver import ApiServer
from tests.support.swupdates import SwUpdate, free_port, make_image, make_key
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("swupdate") is None, reason="swupdate is not installed: scripts/bootstrap does that"),
]


class Shop:
    """A server with the listener, a fleet, and a vendor who signs images."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.key = make_key(directory, "vendor")
        self.root = directory / "root.pem"
        self.root.write_text(server.root)
        now = int(time.time())
        with server.server_side() as side, side.database.write() as session:
            session.add(
                Fleet(id="shops", name="", tags="[]", selection=None, rank=1, policy="{}", configuration=None, created_at=now,
                      updated_at=now, revision=1)
            )  # fmt: skip

    def add(self, device: str) -> str:
        """Adds a device to the fleet; returns its token."""
        with self.server.server_side() as side, side.database.write() as session:
            devices.add(session, device, "", int(time.time()), "pos-x200")
            session.add(FleetMember(fleet_id="shops", device_id=device))
            return credentials.make_target(session, device, int(time.time())).text

    def machine(self, device: str) -> SwUpdate:
        """A machine that identifies itself with a token."""
        token, directory = self.add(device), self.directory / device
        directory.mkdir()
        return SwUpdate(directory, device, self.server.ddi, self.root, self.key[1], f'targettoken = "{token}";')

    def with_certificate(self, machine: SwUpdate) -> None:
        """Lets a machine identify itself with a certificate of the server's CA instead."""
        key = ec.generate_private_key(ec.SECP256R1())
        with self.server.server_side() as side, side.database.write() as session:
            chain = credentials.issue(session, side.keys, machine.device, make_csr(key), int(time.time()))
        files = machine.directory / "tls.key", machine.directory / "tls.pem"
        files[0].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        files[1].write_text("".join(chain))
        machine.credential = f'sslkey = "{files[0]}";\n    sslcert = "{files[1]}";'

    def roll_out(self, device: str, image: Path, version: str) -> str:
        """Publishes an image, and starts a rollout of it for one device."""
        now, path = int(time.time()), f"pos/{device}-{image.name}"
        sha256 = hashlib.sha256(image.read_bytes()).hexdigest()
        with self.server.server_side() as side:
            file = side.place.updates / "targets" / "pos" / f"{sha256}.{device}-{image.name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, file)
            with side.database.write() as session:
                session.add(
                    UpdatePackage(path=path, product="pos", version=version, build_id=f"{device}-{version}", kind="swu",
                                  hardware='["pos-x200"]', sha256=sha256, length=image.stat().st_size, role="releases",
                                  published_at=now, updated_at=now)
                )  # fmt: skip
                policy = policy_of({"notice": 0, "groups": ["rest"]})
                rollout = f"r-{device}"
                lifecycle.create(session, Plan(rollout, "shops", path, f"id={device}", policy), "olga", now)
                session.flush()
                lifecycle.start(session, rollout, now)
        return rollout

    def stop(self, rollout: str) -> None:
        with self.server.server_side() as side, side.database.write() as session:
            lifecycle.stop(session, rollout, "by the test", int(time.time()))

    def states(self, device: str) -> tuple[str, str]:
        """Of the device's newest action, and of the device in its rollout."""
        with self.server.server_side() as side, side.database.read() as session:
            query = select(DdiAction).where(DdiAction.device_id == device).order_by(DdiAction.number.desc())
            action = session.scalars(query).first()
            row = session.scalars(select(RolloutDevice).where(RolloutDevice.device_id == device)).first()
            return "" if action is None else action.state, "" if row is None else row.state

    def wait(self, machine: SwUpdate, action: str) -> str:
        """Waits until the action is in a state; returns that of the device in the rollout."""
        wait_until(
            lambda: self.states(machine.device)[0] == action,
            lambda: f"{self.states(machine.device)}, not {action}: {machine.log[-4000:]} {self.server.log()[-2000:]}",
        )
        return self.states(machine.device)[1]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("shop")
    with ApiServer.made(directory / "server") as server:
        settings = directory / "server" / SETTINGS
        port = free_port()
        lines = f'\n[ddi]\nlisten = "127.0.0.1:{port}"\nurl = "https://127.0.0.1:{port}"\npoll_s = 10\n'
        settings.write_text(settings.read_text() + lines)
        server.start()
        yield Shop(server, directory)


def test_an_image_is_installed_and_proved_after_the_restart(shop: Shop) -> None:
    machine = shop.machine("till-1")
    shop.roll_out("till-1", make_image(shop.directory, "2.1", machine.installed, shop.key), "2.1")
    with machine.running():
        shop.wait(machine, "under-way")
        wait_until(machine.installed.exists, lambda: machine.log[-4000:])
        machine.wait_for("Update successful, executing post-update actions")
    assert machine.installed.read_text() == "pos 2.1\n"
    machine.version = "2.1"
    with machine.running("-c 2"):
        assert shop.wait(machine, "proved") == "proved"


def test_an_image_that_somebody_else_has_signed_fails_on_the_machine(shop: Shop) -> None:
    """What a server that was captured can do: the machine refuses it (threat-model T65)."""
    machine = shop.machine("till-2")
    shop.with_certificate(machine)
    stranger = make_key(shop.directory, "stranger")
    shop.roll_out("till-2", make_image(shop.directory, "6.6", machine.installed, stranger), "6.6")
    with machine.running():
        assert shop.wait(machine, "failed") == "failed"
    assert not machine.installed.exists()


def test_a_rollout_that_is_stopped_stops_the_download_on_the_machine(shop: Shop) -> None:
    machine = shop.machine("till-3")
    image = make_image(shop.directory, "3.0", machine.installed, shop.key, os.urandom(6_000_000))
    rollout = shop.roll_out("till-3", image, "3.0")
    with machine.running("-n 300k", "-p 1"):
        shop.wait(machine, "under-way")
        machine.wait_for("Total download size is")
        shop.stop(rollout)
        assert shop.wait(machine, "canceled") == "left-out"
    # SWUpdate writes a file as it comes: a part of it is there.
    assert not machine.installed.exists() or machine.installed.stat().st_size < image.stat().st_size // 2


def test_a_block_counts_on_a_connection_that_is_open_and_tls_1_2_is_refused(shop: Shop) -> None:
    token, address = shop.add("till-4"), urlsplit(shop.server.ddi)
    context = ssl.create_default_context(cadata=shop.server.root)
    context.check_hostname = False
    connection = http.client.HTTPSConnection(address.hostname or "", address.port, context=context)

    def ask() -> int:
        connection.request("GET", "/default/controller/v1/till-4", headers={"Authorization": f"TargetToken {token}"})
        response = connection.getresponse()
        content = json.loads(response.read())
        assert response.status != 200 or "config" in content
        return response.status

    assert ask() == 200
    before = connection.sock
    with shop.server.server_side() as side, side.database.write() as session:
        blocklist.block(session, side.server.agents, "till-4", int(time.time()))
    assert ask() == 401
    assert before is not None
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((address.hostname, address.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    connection.close()
