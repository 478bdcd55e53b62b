"""The unit and the profile of the REST interface are locked as the link's are, which the guest system attacks."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    *("Type", "ExecStart", "Sockets", "User", "Group", "SupplementaryGroups", "AppArmorProfile", "BindReadOnlyPaths"),
    *("Restart", "RestartSec", "RestartPreventExitStatus", "RuntimeMaxSec"),
}
"""How each is started, and as whom; what each sees of /run differs too."""


def locks(name: str) -> list[str]:
    """Every other line of the section, in order."""
    section = (ROOT / "systemd" / f"{name}.service").read_text("utf-8").partition("[Service]\n")[2].partition("\n[")[0]
    lines = [line for line in section.splitlines() if "=" in line and not line.startswith("#")]
    return [line for line in lines if line.partition("=")[0] not in RUNS]


def number(line: str) -> int:
    return int(line.partition("=")[2].rstrip("M"))


def test_the_unit_has_every_lock_of_the_links_unit() -> None:
    link, manage = locks("license-agent-link"), locks("license-agent-manage")
    bounds = ("TasksMax=", "MemoryMax=")
    assert [line for line in manage if not line.startswith(bounds)] == [line for line in link if not line.startswith(bounds)]
    for bound in bounds:  # of these it has less
        (ours,), (theirs,) = ([line for line in lines if line.startswith(bound)] for lines in (manage, link))
        assert number(ours) < number(theirs)


def test_the_profile_lets_it_write_nothing_and_start_nothing() -> None:
    rules = [
        line.strip()
        for line in (ROOT / "apparmor" / "license-agent-manage").read_text("utf-8").splitlines()
        if line.strip().startswith(("/", "@", "owner"))
    ]
    writes = [rule for rule in rules if "w" in rule.rsplit(" ", 1)[1] or "x" in rule.rsplit(" ", 1)[1]]
    assert rules and writes == ["@{license_agent_run}/admin.sock rw,"]
