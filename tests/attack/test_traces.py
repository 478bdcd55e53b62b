"""Whether a whole life of the agent leaves a key, a secret or what a license says where it does not belong."""

import json
import os
import secrets
import signal
from pathlib import Path

import pytest
from license_agent_client import LicenseClient

from stand.setup import tamper
from tests.attack.disk import assert_clear
from tests.support.machine import Machine, furnished_machine
from tests.support.memory import forms
from tests.support.waiting import READY_S

pytestmark = pytest.mark.slow


class _Told:
    """Everything that was written to somebody: outputs, command lines, environments."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.texts: dict[str, bytes] = {}

    def tool(self, *arguments: str, stdin: str | None = None, fine: tuple[int, ...] = (0,)) -> str:
        text = self._machine.tool(*arguments, stdin=stdin, fine=fine)
        self.texts[f"{len(self.texts)}: output of {' '.join(arguments[:3])}"] = text.encode()
        return text

    def process(self, pid: int) -> None:
        for name in ("cmdline", "comm", "status", *(("environ",) if os.geteuid() == 0 else ())):
            self.texts[f"{len(self.texts)}: /proc/PID/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()

    def journal(self) -> None:
        self.texts[f"{len(self.texts)}: journal"] = (self._machine.root / "stderr").read_bytes()


def _files(machine: Machine) -> dict[str, bytes]:
    """All files of the machine; the server's own are not the agent's to keep, nor is the inside of a TPM."""
    others = {machine.server, *([machine.tpm.state] if machine.tpm else [])}
    paths = (path for path in machine.root.rglob("*") if path.is_file() and others.isdisjoint(path.parents))
    return {str(path.relative_to(machine.root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("backend", ["software", "tpm"])
def test_a_whole_life_leaves_no_key_no_secret_and_no_content_of_a_license(backend: str) -> None:
    mark = secrets.token_hex(8)
    with furnished_machine(backend) as machine:
        told = _Told(machine)
        delivery = machine.root / "delivery"
        issue = ("license-server", "issue", "--agent", "pos-009", "--expires", "+1d", "--feature")
        tokens: list[str] = []

        def rotate() -> None:
            told.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(delivery))
            told.tool("license-agent-cli", "secrets", "install", str(delivery))
            # Its dates are on standard error, behind it.
            tokens.append(machine.tool(*issue, f"f-{mark}", "--metadata", f"shop=s-{mark}").splitlines()[0])

        with machine.running(inherited=True) as running:
            told.process(running.process.pid)
            rotate()
            rotate()
            with LicenseClient(machine.run_dir / "pos.sock", deadline=READY_S, agent_uid=machine.uid) as client:
                assert client.validate(tokens[0]).metadata == {"shop": f"s-{mark}"}
                assert client.validate(tokens[1]).valid and client.validate(tokens[1]).valid
                bad = tamper(tokens[1])
                assert client.validate(bad).reason == "bad_signature"
                assert client.validate("not a token").reason == "malformed"
                told.tool("license-agent-cli", "secrets", "invalidate", "1", "--yes")
                assert client.validate(tokens[0]).reason == "secret_invalidated"
            told.tool("license-agent-cli", "secrets", "install", str(delivery), fine=(4,))
            told.tool("license-agent-cli", "secrets", "install", "-", stdin=f"{tokens[1]}.x", fine=(4,))
            for arguments in (("status",), ("secrets",), ("audit", "tail", "-n", "100"), ("audit", "verify"), ("metrics",)):
                told.tool("license-agent-cli", "--json", *arguments)
            told.process(running.process.pid)
            running.process.send_signal(signal.SIGHUP)
            running.notice("READY=1")
            told.journal()
        for path in machine.run_dir.iterdir():
            path.unlink()
        with machine.running() as running:
            told.process(running.process.pid)
            told.journal()
        assert running.process.returncode == 0
        told.journal()
        values = machine.keys_in_use([delivery.read_text()])
        values |= {f"secret {version}": secret for version, secret in machine.secrets().items()}
        places = told.texts | _files(machine)
        _assert_nowhere(values, places)
        _assert_license_unknown(mark, [*tokens, bad], places)
        for name, text in told.texts.items():
            if "journal" in name or "output" in name:
                assert_clear(text.decode())
        # Nor do the server's files show any, who made them: they are sealed there.
        _assert_nowhere(values, {path.name: path.read_bytes() for path in machine.server.rglob("*") if path.is_file()})
        # The search finds what is there.
        with pytest.raises(AssertionError, match=r"secret 2: first half, raw"):
            _assert_nowhere(values, {"opened": b"".join(machine.secrets().values())})


_OBJECTS = ("state/tpm.objects", "state/tpm.objects.twin")
_THERE_FOR = {"key material": ("keys/software.key",), "KEK's auth value": _OBJECTS, "keys_auth": _OBJECTS}


def _assert_nowhere(values: dict[str, bytes], places: dict[str, bytes]) -> None:
    found = [
        f"{place}: {name}: {form}"
        for name, value in values.items()
        for form, text in forms(value).items()
        for place, content in places.items()
        # The material that the KEK is stretched from is what the software backend's key file is there for.
        # and for two random auth values the TPM backend's file of sealed objects.
        if text in content and place not in _THERE_FOR.get(name, ())
    ]
    assert found == [], "\n".join(found)


def _assert_license_unknown(mark: str, tokens: list[str], places: dict[str, bytes]) -> None:
    """Records name a license by its id; what was licensed to whom, and the token itself, stand in none of them."""
    for place, content in places.items():
        assert mark.encode() not in content, place
        for token in tokens:
            assert token.encode() not in content, place
            # The part that is encrypted, without which it is worth nothing.
            assert token.split(".")[3].encode() not in content, place
    assert any(b'"license":"' in content for content in places.values()), json.dumps(sorted(places))
