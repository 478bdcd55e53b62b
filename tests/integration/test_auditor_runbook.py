"""The guide 'Verify the audit log without the machine', command by command, on a stand with a server."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.stand import BIN, running_stand

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides.md"


def commands(heading: str) -> list[str]:
    """The commands in a section of the guides, in their order."""
    section = re.split(r"^## ", GUIDES.read_text("utf-8"), flags=re.MULTILINE)
    body = next(part for part in section if part.startswith(heading + "\n"))
    return [line.strip() for line in body.splitlines() if re.match(r" {4,6}[a-z]", line) and "|" not in line[:6]]


@pytest.mark.parametrize("backend", ["software", "tpm"])
def test_an_auditor_follows_the_guide(tmp_path: Path, backend: str) -> None:
    found = commands("Verify the audit log without the machine")
    assert len(found) == 14
    with running_stand(backend) as stand:
        assert stand.run("license-agent-cli", "contact").returncode == 0
        agent, log = stand.info["agent_id"], str(stand.root / "log")
        env = {**stand.env, "PATH": f"{BIN}:{os.environ['PATH']}"}
        said = []
        for command in found:
            # The names of the guide's machine are those of this one; nothing else is changed.
            here = command.replace("pos-001", agent).replace("/var/log/license-agent", log)
            done = subprocess.run(["sh", "-c", here], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (here, done.stdout, done.stderr)
            said.append(done.stdout)
        first = next(text for text in said if text)
        assert re.match(r"intact from 1 to \d+, acknowledged by the server up to \d+", first), said
        assert f"agent {agent}" in first and "trust.json" in first
        assert re.match(r"intact from 1 to \d+, end open: ", said[-1])
        pin = stand.run("license-server", "root-pin").stdout.strip()
        verify = [str(BIN / "license-agent-cli"), "audit", "verify", "--file", "copy/audit.log", "--archive-key", "archive.key"]
        words = [*verify, "--head", "head", "--root", pin]
        rooted = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert rooted.returncode == 0 and f"under the root {pin}" in rooted.stdout
        # The same copy, cut before the head: exit status 1 with a head, and the end is told to be open without.
        copy = tmp_path / "copy" / "audit.log"
        lines = copy.read_bytes().splitlines(keepends=True)
        first_certificate = next(number for number, line in enumerate(lines) if b'"audit.certified"' in line)
        copy.write_bytes(b"".join(lines[: first_certificate + 1]))
        cut = subprocess.run([*words[:-2], "--trust", "trust.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert cut.returncode == 1 and "its end is missing" in cut.stdout
