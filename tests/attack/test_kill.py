"""The daemon is killed without warning while secrets are rotated and a till validates."""

import contextlib
import json
import random
import threading
import time
from collections.abc import Iterator

import pytest
from license_agent_client import LicenseClient

from ipc.adminclient import AdminClient
from ipc.posclient.policy import AgentRefused, AgentUnavailable
from tests.attack.disk import assert_clear
from tests.support.machine import AGENT_ID, Machine, furnished_machine
from tests.support.waiting import READY_S

pytestmark = pytest.mark.slow

KILLS = 5
"""On each backend."""
LONGEST_COMMIT_S = 0.08


class _Till:
    """Validates all licenses that it was given, over and over, and notes what went wrong."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._stop = threading.Event()
        self.tokens: tuple[str, ...] = ()
        self.failures: list[str] = []
        self.rounds = 0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        # It outlasts a start of the daemon; the socket stays open meanwhile.
        with LicenseClient(self._machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=self._machine.uid) as client:
            while not self._stop.wait(0.002):
                for token in self.tokens:
                    try:
                        verdict = client.validate(token)
                    except Exception as error:
                        self.failures.append(repr(error))
                    else:
                        if not verdict.valid:
                            self.failures.append(verdict.reason.value)
                self.rounds += 1


@pytest.mark.parametrize("backend", [pytest.param("software", marks=pytest.mark.thorough), "tpm"])
def test_killed_in_rotations_it_refuses_no_valid_license(backend: str) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    with furnished_machine(backend) as machine:
        deliveries, tokens = [], []
        for number in range(KILLS):
            path = machine.root / f"delivery{number}"
            machine.tool("license-server", "rotate", "--agent", AGENT_ID, "--out", str(path))
            deliveries.append(path.read_text().strip())
            tokens.append(machine.issue())
        till = _Till(machine)

        def versions() -> list[int]:
            with contextlib.closing(
                AdminClient(machine.run_dir / "admin.sock", deadline=READY_S, agent_uid=machine.uid)
            ) as admin:
                return [secret["version"] for secret in admin.call("secrets")["secrets"]]

        def install(delivery: str) -> None:
            with (
                contextlib.suppress(AgentUnavailable, AgentRefused),
                contextlib.closing(
                    AdminClient(machine.run_dir / "admin.sock", deadline=READY_S, agent_uid=machine.uid)
                ) as admin,
            ):
                admin.call("secret_install", delivery=delivery)

        with machine.running(inherited=True) as running, till.working():
            for number, delivery in enumerate(deliveries):
                request = threading.Thread(target=install, args=(delivery,))
                request.start()
                time.sleep(chance.uniform(0, LONGEST_COMMIT_S))
                running.kill_and_restart()
                request.join()
                found = versions()
                assert found in (list(range(1, number + 1)), list(range(1, number + 2))), (seed, found)
                if len(found) == number:
                    install(delivery)
                    assert versions() == list(range(1, number + 2)), seed
                till.tokens = tuple(tokens[: number + 1])
                rounds = till.rounds
                while till.rounds < rounds + 2 and not till.failures:
                    time.sleep(0.01)
                assert till.failures == [], (seed, number, till.failures)
                verified = json.loads(machine.tool("license-agent-cli", "--json", "audit", "verify"))
                assert verified["ok"] is True, (seed, number, verified)
            assert till.rounds > 2 * KILLS
        assert till.failures == [], (seed, till.failures)
        assert_clear(running.log())
        assert "fit its seal" not in running.log(), seed
