"""The pytest plugin of the client wheel: fixtures that give a test an agent, a fake one or a real one on a stand.

`license_agent` is what the option `--license-agent` says, or the ini value `license_agent`: `fake` (the default), `stand`, or
`auto`, a stand where `license-stand` is installed. `fake_license_agent` is always the fake. Both set LICENSE_AGENT_SOCKET for
the length of the test, so that a till that names no socket asks them.
"""

from collections.abc import Iterator

import pytest

from .base import AgentInTest, NotAvailable
from .fake import FakeLicenseAgent
from .standagent import StandLicenseAgent, find_command

KINDS = ("fake", "stand", "auto")
_HELP = "which agent the fixture license_agent is: fake, stand (a real one, by license-stand), or auto (a stand if installed)"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option and the ini value."""
    group = parser.getgroup("license-agent", "tests of POS applications with license-agent-client")
    group.addoption("--license-agent", choices=KINDS, default=None, help=_HELP)
    group.addoption(
        "--license-agent-backend", choices=("software", "tpm"), default="software", help="how a stand keeps its secrets"
    )
    parser.addini("license_agent", _HELP, default="fake")


def _kind(config: pytest.Config) -> str:
    kind = config.getoption("--license-agent") or config.getini("license_agent")
    if kind not in KINDS:
        raise pytest.UsageError(f"license_agent = {kind}: it is one of {', '.join(KINDS)}")
    if kind == "auto":
        return "fake" if find_command() is None else "stand"
    return str(kind)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Says which agent the tests ask, where somebody has chosen one."""
    if config.getoption("--license-agent") is None and config.getini("license_agent") == "fake":
        return None
    return f"license agent: {_kind(config)}"


@pytest.fixture(scope="session")
def _license_stand(request: pytest.FixtureRequest) -> Iterator[StandLicenseAgent]:
    try:
        stand = StandLicenseAgent(request.config.getoption("--license-agent-backend"))
    except NotAvailable as error:
        # Never a skip: a test that was asked for and could not be made has not passed.
        pytest.fail(str(error), pytrace=False)
    with stand:
        yield stand


@pytest.fixture
def fake_license_agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLicenseAgent]:
    """A fake license agent of this test's own, with no token issued yet."""
    with FakeLicenseAgent() as agent:
        monkeypatch.setenv("LICENSE_AGENT_SOCKET", agent.socket)
        yield agent


@pytest.fixture
def license_agent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AgentInTest:
    """A license agent: the fake, or a real one that all tests of the session share (see --license-agent)."""
    if _kind(request.config) == "fake":
        fake: FakeLicenseAgent = request.getfixturevalue("fake_license_agent")
        return fake
    stand: StandLicenseAgent = request.getfixturevalue("_license_stand")
    stand.reset()
    monkeypatch.setenv("LICENSE_AGENT_SOCKET", stand.socket)
    return stand
