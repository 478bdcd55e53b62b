"""Two hundred rotations under eight tills that validate without a pause: not one refusal."""

import json
import threading
import time
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from ipc.adminclient import AdminClient
from ipc.posclient.policy import AgentRefused
from tests.support.stand import Stand, running_stand
from tests.support.waiting import READY_S

ROTATIONS, TILLS = 200, 8
INTERVAL_S, GRACE_S = 2, 3
"""Short, since no more than 15 versions may be live; what a till holds dies five seconds after it was made."""
LIVE = 10
"""Versions that may be live besides those that the stand begins with."""


class Tills:
    """POS applications, each with its token in a file that the client library keeps up to date."""

    def __init__(self, stand: Stand, directory: Path) -> None:
        self._stop = threading.Event()
        self.asked = 0
        self.refused: list[str] = []
        self.swapped = 0
        self._path = stand.info["pos_socket"]
        files = [directory / f"till-{number}" for number in range(TILLS)]
        for file in files:
            file.write_text(stand.info["tokens"]["valid"] + "\n")
        self._threads = [threading.Thread(target=self._work, args=(file,)) for file in files]

    def _work(self, file: Path) -> None:
        with LicenseClient(self._path, deadline=READY_S) as client:
            while not self._stop.is_set():
                before = file.read_text()
                try:
                    verdict = client.validate_file(file)
                    if not verdict.valid:
                        self.refused.append(verdict.reason)
                except Exception as error:  # whatever it is, it counts as a refusal
                    self.refused.append(repr(error))
                self.asked += 1
                self.swapped += file.read_text() != before
                time.sleep(0.01)

    def __enter__(self) -> "Tills":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def rotate(admin: AdminClient) -> int:
    """A rotation; where the agent's own have filled the room for live versions, a moment later."""
    ends = time.monotonic() + READY_S
    while True:
        try:
            return int(admin.call("rotate")["secret_version"])
        except AgentRefused as error:
            # The server's own limits: versions that are live, and requests of one agent.
            passing = "too_many_versions" in str(error) or "too many requests" in str(error)
            if not passing or time.monotonic() > ends:
                raise
            time.sleep(0.25)


@pytest.mark.slow
def test_two_hundred_rotations_refuse_no_till(tmp_path: Path) -> None:
    with running_stand("software", "--raise-limits") as stand:
        with AdminClient(stand.info["admin_socket"], deadline=READY_S, agent_uid=stand.info["agent_uid"]) as admin:
            before = admin.call("status")["secrets"]["total"]
            first = admin.call("rotate")["secret_version"]
            short = ("--interval", str(INTERVAL_S), "--grace", str(GRACE_S))
            assert stand.run("license-server", "periods", *short).returncode == 0
            with Tills(stand, tmp_path) as tills:
                newest = first
                for _ in range(ROTATIONS):
                    began = time.monotonic()
                    newest = rotate(admin)
                    time.sleep(max(0.0, (INTERVAL_S + GRACE_S) / LIVE - (time.monotonic() - began)))
                # Back to a day, so that the last token is good for the rest of the test.
                assert stand.run("license-server", "periods", "--interval", "86400", "--grace", "604800").returncode == 0
                newest = rotate(admin)
        assert tills.refused == []
        assert before >= 3 and newest - first >= ROTATIONS
        assert tills.asked > 20 * ROTATIONS and tills.swapped >= TILLS * ROTATIONS / 2
        versions = json.loads(stand.run("license-agent-cli", "--json", "secrets").stdout)["secrets"]
        assert [version["state"] for version in versions].count("ACTIVE") == 1 and len(versions) <= 16
