"""POS applications that validate without a pause while the agent is killed, or its secret rotates."""

import threading
import time
from pathlib import Path

import click
from license_agent_client import LicenseClient

from stand.programs import READY_S

from .scenario import Scenario, restart_agent


class Tills:
    """POS applications that validate without a pause, each with its token in a file.

    Args:
        scenario: the stand.
        directory: for the files.
        count: how many.
    """

    def __init__(self, scenario: Scenario, directory: Path, count: int = 1) -> None:
        self._files = [directory / f"till-{number}.token" for number in range(count)]
        for file in self._files:
            file.write_text(scenario.tokens["valid"] + "\n")
        self._path = scenario.info["pos_socket"]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(file,)) for file in self._files]
        self.asked = 0
        self.failed: list[str] = []

    def __enter__(self) -> "Tills":
        for thread in self._threads:
            thread.start()
        self.wait_for(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, file: Path) -> None:
        with LicenseClient(self._path, deadline=READY_S) as client:
            while not self._stop.is_set():
                try:
                    verdict = client.validate_file(file)
                    if not verdict.valid:
                        self.failed.append(verdict.reason)
                except Exception as error:  # noqa: BLE001 - whatever it is, it counts as a failure
                    self.failed.append(type(error).__name__)
                self.asked += 1
                time.sleep(0.005)

    def wait_for(self, more: int) -> None:
        """Returns when so many more have been answered."""
        wanted, ends = self.asked + more, time.monotonic() + READY_S
        while self.asked < wanted and time.monotonic() < ends:
            time.sleep(0.02)

    def outcome(self) -> str:
        """What became of all requests."""
        if self.failed or self.asked < 20:
            return f"{self.asked} asked, failed: {sorted(set(self.failed))} ({len(self.failed)})"
        click.echo(f"      {self.asked} requests")
        return "every request answered: valid"


def killed(scenario: Scenario, directory: Path) -> str:
    """Validates without a pause while the agent is killed and comes back."""
    with Tills(scenario, directory) as tills:
        restart_agent(scenario)
        tills.wait_for(20)
    return tills.outcome()


def rotated_live(scenario: Scenario, directory: Path) -> str:
    """Three rotations with the server while four tills validate without a pause."""
    with Tills(scenario, directory, 4) as tills:
        for _ in range(3):
            scenario.tool("license-agent-cli", "rotate")
            tills.wait_for(20)
    return tills.outcome()


def refreshed(scenario: Scenario, directory: Path) -> str:
    """After a rotation the client library swaps a token file for the re-issued token."""
    file = directory / "license.token"
    file.write_text(scenario.tokens["valid"] + "\n")
    scenario.tool("license-stand", "rotate", "--dir", str(Path(scenario.info["state_dir"]).parent))
    with LicenseClient(scenario.info["pos_socket"]) as client:
        verdict = client.validate_file(file)
        # A re-issued token is under the new secret, so nothing is due for it.
        swapped = file.read_text().strip() != scenario.tokens["valid"]
        word, age = "valid" if verdict.valid else "refused", "new" if swapped else "old"
        return f"{word} under {verdict.secret_state}, {age} token in the file"
