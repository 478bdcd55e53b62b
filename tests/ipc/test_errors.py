"""One `except LicenseAgentError` misses no exception of the client library, and each is in the wheel's README."""

import ast
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import license_agent_client
import pytest
from license_agent_client import (
    AgentRefused,
    AgentTooOld,
    AgentUnavailable,
    ErrorCode,
    LicenseAgentError,
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    TokenFileError,
    UntrustedDaemon,
)
from license_agent_client.testing import NotAvailable

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "packaging" / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text("utf-8"))
FILES = [(CLIENT / source).resolve() for source in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]]
MODULES = [path for path in FILES if path.parent.name != "testing"]
"""What a till imports; what its tests import raises errors about the tests."""
PUBLIC = {
    name: value
    for name in license_agent_client.__all__
    if isinstance(value := getattr(license_agent_client, name), type) and issubclass(value, BaseException)
}
MAKERS = {
    node.name
    for path in MODULES
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in PUBLIC
}
"""Functions that make one of them."""
# The library's own code catches these: they reach no caller.
INSIDE = {"EOFError", "OSError", "TimeoutError", "ValueError"}


def _classes(path: Path) -> dict[str, set[str]]:
    """The classes of a file, each with its bases."""
    return {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    }


def test_every_exception_is_of_one_family() -> None:
    assert len(PUBLIC) == 9
    assert all(issubclass(kind, LicenseAgentError) for kind in PUBLIC.values())


def test_every_exception_of_the_wheel_is_public() -> None:
    bases = {name: found for path in MODULES for name, found in _classes(path).items()}
    exceptions = {"Exception", "OSError"}
    while True:
        more = {name for name, found in bases.items() if found & exceptions} - exceptions
        if not more:
            break
        exceptions |= more
    assert exceptions - {"Exception", "OSError"} == set(PUBLIC)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_nothing_else_is_raised(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            name = node.exc.func.id
            assert name in PUBLIC or name in MAKERS or name in INSIDE or name.startswith("_"), (
                f"{path.name}:{node.lineno}: {name}"
            )


def test_a_till_that_handles_every_error_hides_none_of_its_tests() -> None:
    """A wrong use of the fake or of a stand must fail the test, and not show the till's screen for errors."""
    ours = {"NotAvailable", "OSError", "RuntimeError", "ValueError"}
    raised = {
        node.exc.func.id
        for path in set(FILES) - set(MODULES)
        if path.name != "requests.py" and path.name != "plugin.py"  # the agent's own refusals, and pytest's
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    assert raised == ours and not issubclass(NotAvailable, LicenseAgentError)


def test_the_readme_explains_each() -> None:
    text = (CLIENT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    assert {name for name, _when, _do in rows} == set(PUBLIC)


@pytest.mark.parametrize("page", ["README.md", "packaging/client/README.md"])
def test_the_handlers_of_the_example_miss_none(page: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    tries = [node for text in examples for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Try)]
    assert tries
    for handlers in (node.handlers for node in tries):
        caught = tuple(PUBLIC[kind.type.id] for kind in handlers if isinstance(kind.type, ast.Name))
        assert all(issubclass(kind, caught) for kind in PUBLIC.values())


@pytest.mark.parametrize(
    "error",
    [
        AgentRefused(ErrorCode.FORBIDDEN, "not you"),
        AgentTooOld("require"),
        AgentUnavailable("gone"),
        LocalProtocolError(ErrorCode.BAD_REQUEST, "why"),
        ProtocolError(ErrorCode.BAD_REQUEST, "why", 7),
        RemoteProtocolError(ErrorCode.BAD_MESSAGE, "why", 7),
        TokenFileError(13, "Permission denied", "/shop/license.token"),
        UntrustedDaemon("somebody"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_passes_from_a_worker_process_to_its_parent(error: LicenseAgentError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_token_file_error_is_an_os_error_too() -> None:
    error = TokenFileError(13, "Permission denied", "/shop/license.token")
    assert isinstance(error, OSError)
    assert (error.errno, error.strerror, error.filename) == (13, "Permission denied", "/shop/license.token")


def test_the_version_is_that_of_the_release() -> None:
    release = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert license_agent_client.__version__ == release
    assert PROJECT["project"]["dynamic"] == ["version"]


@pytest.mark.system
def test_the_library_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "license_agent_client", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, f"license-agent-client {license_agent_client.__version__}\n")
