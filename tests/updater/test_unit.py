"""The updater's unit has every lock of the link's, which a booted guest attacks, and no network."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = {
    *("Type", "ExecStart", "Sockets", "User", "Group", "AppArmorProfile", "BindReadOnlyPaths", "ReadWritePaths"),
    *("NoExecPaths", "InaccessiblePaths", "SystemCallFilter", "LimitNOFILE", "LimitNPROC", "TasksMax", "MemoryMax"),
    *("RuntimeMaxSec", "RestrictAddressFamilies", "IPAddressDeny", "IPAddressAllow"),
}
"""How it is started and as whom, what it sees, and bounds."""


def lines(name: str) -> list[str]:
    section = (ROOT / "systemd" / f"{name}.service").read_text("utf-8").partition("[Service]\n")[2].partition("\n[")[0]
    return [line for line in section.splitlines() if "=" in line and not line.startswith("#")]


def words(name: str, key: str) -> set[str]:
    return {word for line in lines(name) if line.startswith(f"{key}=") for word in line.partition("=")[2].split()}


def test_the_unit_has_every_lock_of_the_links_unit() -> None:
    ours, links = (
        {line for line in lines(f"license-agent-{name}") if line.partition("=")[0] not in OWN} for name in ("updater", "link")
    )
    assert links - ours == set()
    for key in ("NoExecPaths", "SystemCallFilter", "InaccessiblePaths"):
        assert words("license-agent-link", key) <= words("license-agent-updater", key), key
    for key in ("LimitNOFILE", "LimitNPROC", "TasksMax"):
        ((own,), (theirs,)) = (words(f"license-agent-{name}", key) for name in ("updater", "link"))
        assert int(own) < int(theirs), key


def test_it_has_no_network_but_the_links_socket() -> None:
    assert words("license-agent-updater", "RestrictAddressFamilies") == {"AF_UNIX"}
    assert words("license-agent-updater", "PrivateNetwork") == {"yes"}
    assert words("license-agent-updater", "IPAddressDeny") == {"any"} and not words("license-agent-updater", "IPAddressAllow")
    assert words("license-agent-updater", "BindReadOnlyPaths") == {"/run/systemd/journal", "-/run/license-agent/link.sock"}


def test_it_writes_to_one_directory_and_runs_nothing_from_there() -> None:
    assert words("license-agent-updater", "ReadWritePaths") == {"/var/lib/license-agent-updater"}
    assert "/var/lib/license-agent-updater" in words("license-agent-updater", "NoExecPaths")
    assert words("license-agent-updater", "User") == {"license-agent-updater"}


def test_the_profile_lets_it_write_to_its_directory_and_start_nothing() -> None:
    profile = (ROOT / "apparmor" / "license-agent-updater").read_text("utf-8")
    rules = [line.strip().rstrip(",") for line in profile.splitlines() if line.strip().startswith(("/", "@", "owner"))]
    writes = [rule for rule in rules if "w" in rule.rsplit(" ", 1)[1] or "x" in rule.rsplit(" ", 1)[1]]
    assert writes == [
        "@{license_agent_run}/updater.sock rw",
        "@{license_agent_run}/link.sock rw",
        "/var/lib/license-agent-updater/** rwk",
    ]
    assert "network" not in profile.replace("No network", ""), "a Unix socket is all that the abstraction gives"
