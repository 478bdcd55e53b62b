"""The page about the REST interface, taken literally: its commands make the certificate, sign, act and read."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from agentd.base.config.config import parse_config as parse_agent_config
from ipc.bounds import ADMIN_SESSION_S
from manage import door, http, limits, talks
from manage.config import known_keys, parse_config
from manage.problems import KINDS
from manage.routes import ROUTES
from tests.support.manage import agent_running, issued, managed
from tests.support.waiting import READY_S

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "guides" / "manage-over-rest.md").read_text("utf-8")
PROTOCOL = (DOCS / "protocol.md").read_text("utf-8").partition("\n## The REST interface\n")[2].partition("\n## ")[0]
REFERENCE = (DOCS / "reference.md").read_text("utf-8").partition("\n## The REST interface\n")[2].partition("\n## ")[0]


def blocks(language: str, page: str = PAGE) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]


def bash(script: str, directory: Path, **env: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", script]
    given = {"PATH": os.environ["PATH"], **env}
    done = subprocess.run(command, cwd=directory, env=given, capture_output=True, text=True, check=False, timeout=READY_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.system
@pytest.mark.root
def test_openssl_and_curl_are_enough() -> None:
    make, _services, variables = blocks("sh")
    functions, performs, reads, info, updates = blocks("bash")
    with managed() as manage:
        directory = manage.directory
        manage.key.unlink()
        bash(make, directory)  # writes manage-key.pem and manage-cert.pem, under the names of the page
        os.chown(manage.key, 0, manage.uid)
        manage.key.chmod(0o640)
        holder = issued("admin")
        (directory / "ann.pem").write_bytes(holder.pem + holder.key_pem)  # as `license-agent admin-ca issue` writes them
        bench = manage.bench
        assert "AGENT_ID=pos-009" in variables  # as the agent of this test
        here = variables.replace("8470", str(manage.port))
        assert here != variables
        with agent_running(manage), manage.running():
            bench.tool("license-server", "rotate", "--agent", "pos-009", "--out", str(bench.root / "delivery"))
            delivery = (bench.root / "delivery").read_text().strip()
            install = f"""act '{{"op":"secret_install","params":{{"delivery":"{delivery}"}}}}'"""
            assert '"secret_version":1' in bash(f"{here}\n{functions}\n{install}", directory)
            done = bash(f"{here}\n{functions}\n{performs}", directory)
            assert '"result":{' in done and '"challenge":{"id":' in done
            found = bash(f"{here}\n{functions}\n{reads}", directory)
            assert '"agent_id":"pos-009"' in found and '"records":[' in found
            assert '"boot_id":' in bash(f"{here}\n{functions}\n{info}", directory)
            triggered = bash(f"{here}\n{functions}\n{reads}\n{updates}", directory)
            assert '"enabled":true' in triggered and '"entries":[]' in triggered
            assert triggered.count("urn:license-agent:problem:refused") == 2  # it has no license server, and no update
            wrong = here.replace("pos-009", "pos-010")
            assert "not-accepted" in bash(f"{wrong}\n{functions}\n{performs}", directory)
            (record,) = [each for each in bench.records() if each["event"] == "secret.invalidate"]
    assert record["actor"]["certificate"] == holder.digest


def test_the_configurations_of_the_pages_are_accepted() -> None:
    users = {"license-agent": 900, "license-agent-manage": 901}.__getitem__
    own, agent = blocks("toml")
    (other,) = blocks("toml", REFERENCE)
    assert parse_config(own, "page", users) == parse_config(other, "page", users)
    config = parse_agent_config('[agent]\nid = "a"\n' + agent, "page", users)
    assert config.management.allowed_uids == config.management.signing_uids == {901}


def rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_every_resource_problem_and_key_is_told_and_no_other() -> None:
    told = rows(PROTOCOL)
    resources = {name.split("?")[0].strip("`") for name in told if re.match(r"`(GET|POST|DELETE) ", name)}
    assert resources == {f"{route.method} {route.path}" for route in ROUTES}
    for route in ROUTES:
        (needs,) = [row[0] for name, row in told.items() if name.split("?")[0].strip("`") == f"{route.method} {route.path}"]
        assert (needs == "session") == route.session, route.name
    kinds = {
        (name, int(row[0])) for names, row in told.items() if row[0].isdigit() for name in re.findall(r"`([a-z-]+)`", names)
    }
    assert kinds == {(kind.name, kind.status) for kind in KINDS}
    keys = {name.strip("`") for name in rows(REFERENCE)} - {"key"}
    assert keys == {f"{section}.{key}" for section, names in known_keys().items() for key in names}


def test_the_limits_are_told_as_they_are() -> None:
    text, told, times = " ".join(PROTOCOL.split()), rows(PROTOCOL), http.Times()
    assert told["requests"] == [
        f"{limits.EACH.per_s} a second, {limits.EACH.burst} at once",
        f"{limits.ALL.per_s} a second, {limits.ALL.burst} at once",
    ]
    assert (
        told["signed requests that the agent refuses"][0]
        == f"1 in {1 / limits.FAILED.per_s:g} s, {limits.FAILED.burst} at once"
    )
    assert [row.split(";")[0] for row in told["conversations with the agent: challenges and sessions"]] == [
        str(talks.MAX_TALKS_EACH),
        str(talks.MAX_TALKS),
    ]
    assert [row.split(";")[0] for row in told["connections"]] == [str(door.MAX_CONNECTIONS_EACH), str(door.MAX_CONNECTIONS)]
    assert told["handshakes"][1].startswith(f"{door.MAX_HANDSHAKES}, each {door.HANDSHAKE_S:g} s")
    assert f"ends after {times.life:g} s, or after {times.idle:g} s without a request" in text
    assert f"within {times.request:g} s, with at most {http.MAX_BODY_BYTES:,} bytes" in text
    assert f"for {ADMIN_SESSION_S} s" in text
