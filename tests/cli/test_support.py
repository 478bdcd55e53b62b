"""A support bundle has what helps, lists what it could not read, and has no token and no key whatever its sources hold."""

import io
import json
import os
import secrets
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cli.agent import Agent
from cli.doctor.machine import Ran
from cli.main import main
from cli.support import archive, leaks, sources
from cli.support.command import _by_reason
from ipc.posclient.policy import AgentUnavailable
from server.keys.jose import issue_token
from tests.agentd.world import secret, token
from tests.contracts.world import CLAIMS, LICENSE_KEY


def _pem(kind: Any, form: Any, password: bytes | None = None) -> str:
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return str(kind.private_bytes(serialization.Encoding.PEM, form, locked).decode())


EC = ec.generate_private_key(ec.SECP256R1())
SECRETS = {
    "a license token": token(),
    "a cut license token": token()[:-9],
    "a signed text": ".".join(issue_token(CLAIMS, secret(1), 1, LICENSE_KEY).split(".")[i] for i in (0, 3, 3)),
    "a webhook key": f"lawh_{secrets.token_urlsafe(32)}",
    "an enrollment token": next(
        text for text in iter(lambda: secrets.token_urlsafe(24), "") if text[0].isalnum() and text[-1].isalnum()
    ),
    "a PKCS #8 key": _pem(EC, serialization.PrivateFormat.PKCS8),
    "an EC key": _pem(EC, serialization.PrivateFormat.TraditionalOpenSSL),
    "a locked key": _pem(EC, serialization.PrivateFormat.PKCS8, b"x"),
    "an SSH key": _pem(ed25519.Ed25519PrivateKey.generate(), serialization.PrivateFormat.OpenSSH),
    "a key without its end": _pem(EC, serialization.PrivateFormat.PKCS8)[:150],
    "an age key": "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX",
    "a JWK": '{"kty":"EC","crv":"P-256","d":"' + "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI" + '"}',
}
POISON = "\n".join(f"{what}: {text}" for what, text in SECRETS.items() if "without its end" not in what)
HARMLESS = (
    "sha256:b12c48f496aa04b72ede3f7206c097cc79dfd83d93898938e9cb345278cb7b15",
    "f56fc0dd9ec8f0fd2a96b0cb8a3a04d1",  # a machine's id
    "c7b6d6f8-93f1-4d9f-8f0f-8b1f1a1e7c55",
    "https://license.example:8443",
    '"attested":"/1RDR4AUACIAC82Y0mtQPuo2p6j2rm/ATPTip78Upxv+JjU2kJaoq+IlACB/Y0isEAdcZB0CNB6MVeIMw5uiCDicJ2gGcJMOkK9wjAAAAAAA"',
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "license_agent_validations_failed_total 0",
)


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("around", ["{}", 'text="{}"', "Nov 30 host x[1]: {} end", '{{"a":"{}"}}'])
def test_each_secret_is_found_and_removed(what: str, around: str) -> None:
    text = around.format(SECRETS[what])
    assert leaks.found(text)
    left, counts = leaks.removed(text)
    assert leaks.found(left) == [] and sum(counts.values()) >= 1
    assert _core(SECRETS[what]) not in left


@pytest.mark.parametrize("what", SECRETS)
def test_it_is_found_in_json_too(what: str) -> None:
    text = json.dumps({"text": SECRETS[what]})
    left, _counts = leaks.removed(text)
    assert leaks.found(text) and _core(json.dumps(SECRETS[what])[1:-1]) not in left


@pytest.mark.parametrize(
    "text",
    [
        '[webhook]\nurl = "https://chat.example/services/T0/B0/Xq3ZtOKs"\nmin = 1\n',
        "[webhook]\n  url='https://chat.example:8443/services/T0/B0/Xq3ZtOKs' # https://chat.example/services/Xq3ZtOKs\n",
        'webhook.url = "https://chat.example/services/T0/B0/Xq3ZtOKs"\n',
        'webhook = { url = "https://chat.example/services/Xq3ZtOKs" }\n',
        '["webhook"]\nurl = """https://chat.example/services/Xq3ZtOKs"""\n',
    ],
)
def test_a_webhooks_path_stays_here_and_its_host_goes(poisoned: sources.Sources, text: str) -> None:
    """Who knows the whole address can write to the receiver: with many services it is their only secret."""
    link = poisoned.root / "etc/license-agent/link.toml"
    link.write_text('[upstream]\nurl = "https://license.example/api"\n')
    (made,) = [each for each in sources.members(poisoned, licenses=True) if each[0] == "link.toml"]
    assert made[2]() == link.read_text()
    link.write_text(link.read_text() + text if text.startswith("[") else text + link.read_text())
    assert "Xq3ZtOKs" not in made[2]() and "https://chat.example" in made[2]() and "license.example/api" in made[2]()


@pytest.mark.parametrize("text", HARMLESS)
def test_what_support_needs_stays(text: str) -> None:
    assert leaks.removed(text) == (text, {})


def _core(text: str) -> str:
    """A part of a secret that tells it: from its middle."""
    return text[len(text) // 2 : len(text) // 2 + 16]


class PoisonedAgent(Agent):
    """Every reply of this agent has every secret in it, as text and as a member's name."""

    def ask(self, op: str, *, deadline: float = 0.0, **_fields: Any) -> dict[str, Any]:
        record = json.dumps({"seq": 1, "event": "license.validated", "license": "shop-7", "text": POISON})
        return {"text": POISON, "records": [record], "health": {"verdict": "fine", "findings": []}, POISON: [POISON]}


class SilentAgent(Agent):
    asked: ClassVar[list[str]] = []

    def ask(self, op: str, *, deadline: float = 0.0, **_fields: Any) -> dict[str, Any]:
        SilentAgent.asked.append(op)
        raise AgentUnavailable(f"nobody answers {op} {SECRETS['a license token']}")


@pytest.fixture
def poisoned(tmp_path: Path) -> sources.Sources:
    """Sources whose every answer, file and error has secrets in it."""
    root = tmp_path / "root"
    for name in ("etc/license-agent/config.toml", "etc/license-agent/link.toml", "etc/os-release"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {POISON}\n")
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> Ran:
        ran.append(command)
        return Ran(1, "", POISON) if "installer" in " ".join(command) else Ran(0, POISON)

    made = sources.Sources(PoisonedAgent("x", False, None), run=run, root=root, now=lambda: 1.8e9)
    made.ran = ran  # type: ignore[attr-defined]
    return made


def unpacked(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        return {
            entry.name.removeprefix("license-agent-support/"): tar.extractfile(entry).read().decode()  # type: ignore[union-attr]
            for entry in tar
        }


@pytest.mark.parametrize("licenses", [True, False])
def test_secrets_in_every_source_reach_no_member(
    poisoned: sources.Sources, monkeypatch: pytest.MonkeyPatch, licenses: bool
) -> None:
    monkeypatch.setattr(sources, "_doctor", lambda read: json.dumps({"checks": [read.ask("status")]}))
    made = archive.collect(sources.members(poisoned, licenses=licenses))
    data = archive.packed(made, "1", 1)
    files = unpacked(data)
    whole = "\n".join(files.values())
    for what, text in SECRETS.items():
        if what != "a key without its end":
            assert _core(text) not in whole and _core(json.dumps(text)[1:-1]) not in whole, what
    assert archive.leaked(data) == []
    # Each source was really read: without its poison a member proves nothing.
    names = {name for name, _what, _read in sources.members(poisoned, licenses=True)}
    assert set(files) - {"manifest.json"} | {each["name"] for each in made.missing} == names
    assert {each["name"] for each in made.missing} == {name for name in names if "installer" in name}
    clean = {name for name, text in files.items() if "was removed]" not in text} - {"manifest.json"}
    assert clean == set(), clean
    assert ("shop-7" in files["audit-records.jsonl"]) is licenses and (
        "license 1" in files["audit-records.jsonl"]
    ) is not licenses


def test_the_proof_reads_the_archive_and_not_what_was_put_in(poisoned: sources.Sources) -> None:
    made = archive.collect([])
    made.files["deep/er.txt"] = f"x {SECRETS['an enrollment token']} y".encode()
    assert archive.leaked(archive.packed(made, "1", 1)) == [("license-agent-support/deep/er.txt", "an enrollment token")]


def test_what_is_not_proven_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "removed", lambda text: (text, {}))
    monkeypatch.setattr(sources, "members", lambda _read, licenses: [("a.txt", "a", lambda: POISON)])
    monkeypatch.setattr(archive.Counter, "__add__", lambda self, _other: self)
    done = CliRunner().invoke(main, ["support-bundle", str(tmp_path / "b.tar.gz")])
    assert done.exit_code == 1 and "a.txt has a private key" in done.stderr and "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == [] and SECRETS["a license token"] not in done.output


def test_without_an_agent_there_is_a_bundle_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "ask", SilentAgent.ask)
    monkeypatch.setattr(sources, "_doctor", lambda _read: "{}")
    file = tmp_path / "b.tar.gz"
    SilentAgent.asked.clear()
    done = CliRunner().invoke(main, ["--json", "support-bundle", str(file)])
    reply = json.loads(done.stdout)
    assert done.exit_code == 5 and stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert {"config.json", "audit-verify.json"} <= {each["name"] for each in reply["missing"]}
    assert SilentAgent.asked == ["ping"], "an agent that does not answer is not waited for again"
    files = unpacked(file.read_bytes())
    manifest = json.loads(files["manifest.json"])
    assert manifest["missing"] == reply["missing"] and _core(token()) not in files["manifest.json"]
    assert {each["name"] for each in manifest["members"]} == set(files) - {"manifest.json"}
    assert json.loads(files["status.json"])["health"]["verdict"] == "not_working"


def test_a_file_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    done = CliRunner().invoke(main, ["support-bundle", str(tmp_path / "there")])
    assert done.exit_code == 2 and "exists; name a new file" in done.stderr and (tmp_path / "there").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert CliRunner().invoke(main, ["support-bundle", str(tmp_path / "link")]).exit_code == 2


@pytest.mark.parametrize("error", [FileNotFoundError(), OSError(5, "I/O error")])
def test_a_program_that_cannot_be_run_is_a_reason(error: OSError) -> None:
    def run(_command: Sequence[str]) -> Ran:
        raise error

    with pytest.raises(sources.NotRead, match="systemctl"):
        sources.Sources(PoisonedAgent("x", False, None), run=run).output("systemctl", "show")


def test_one_cause_is_said_once() -> None:
    missing = [
        {"name": "a.json", "what": "the status", "why": "the agent is down"},
        {"name": "nft", "what": "the rules", "why": "nft is not installed"},
        {"name": "b.json", "what": "the secrets", "why": "the agent is down"},
    ]
    assert _by_reason(missing) == {
        "the agent is down": ["a.json (the status)", "b.json (the secrets)"],
        "nft is not installed": ["nft (the rules)"],
    }
