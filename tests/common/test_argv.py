"""Options are found wherever they are, and nothing that belongs to a command moves."""

import pytest

from common.argv import to_back, to_front


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("status --json", "--json status"),
        ("--json status", "--json status"),
        ("license check TOKEN --socket s --json", "--socket s --json license check TOKEN"),
        ("status --socket=s", "--socket=s status"),
        ("audit tail -n 5 -f", "audit tail -n 5 -f"),
        ("policy show -- --json", "policy show -- --json"),
        ("status --socket", "status --socket"),
        ("", ""),
    ],
)
def test_to_the_front(given: str, expected: str) -> None:
    assert to_front(given.split(), {"--json"}, {"--socket"}) == expected.split()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--json agents list", "agents list --json"),
        ("--dir d --json agents list --all", "agents list --all --dir d --json"),
        ("--dir=d agents", "agents --dir=d"),
        ("issue --dir d -- --json", "issue --dir d -- --json"),
        ("--json issue -- x", "issue --json -- x"),
        ("--unknown agents --json", "--unknown agents --json"),
        ("--help", "--help"),
        ("--json", "--json"),
    ],
)
def test_to_the_back(given: str, expected: str) -> None:
    assert to_back(given.split(), {"--json"}, {"--dir"}) == expected.split()
