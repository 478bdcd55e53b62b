"""The examples of the page about alerts accept what the agent sends, and nothing else; its figures are those of the code."""

import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from agentd.base.config.config import parse_config
from agentd.telemetry.alertqueue import AGAIN_S, MAX_DEAD, MAX_WAITING
from agentd.telemetry.webhook import FAILING_S, TIMEOUT_S
from common.webhooksignature import header_value, signature
from link.config import parse_config as parse_link

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "alerts.md").read_text("utf-8")
BODY = '{"alert":"access.denied","title":"Größe"}'.encode()
KEY, OTHER = "lawh_" + "a" * 43, "lawh_" + "b" * 43


def example(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


def signed(at: int, *keys: str) -> str:
    return header_value(at, [signature(BODY, at, key.encode()) for key in keys])


def requests() -> list[tuple[str, bytes, str, bool]]:
    """Header, body and key of a request, and whether it is to be accepted."""
    now = int(time.time())
    good = signed(now, KEY)
    return [
        (good, BODY, KEY, True),
        (signed(now, OTHER, KEY), BODY, KEY, True),
        (good, BODY, OTHER, False),
        (good, BODY + b" ", KEY, False),
        (signed(now - 600, KEY), BODY, KEY, False),
        (good.replace("v1=", "v2="), BODY, KEY, False),
        (good + f",t={now}", BODY, KEY, False),
        ("", BODY, KEY, False),
    ]


def test_the_example_in_python() -> None:
    names: dict[str, object] = {}
    exec(compile(example("python"), "alerts.md", "exec"), names)
    check = names["is_from_the_agent"]
    assert callable(check)
    assert [check(header, body, key) for header, body, key, _ in requests()] == [right for *_, right in requests()]


@pytest.mark.system
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed; scripts/bootstrap installs it")
def test_the_example_for_node(tmp_path: Path) -> None:
    program = tmp_path / "check.cjs"
    call = "const [, , header, body, key] = process.argv;\nconsole.log(isFromTheAgent(header, Buffer.from(body), key));\n"
    program.write_text(example("javascript") + call, "utf-8")
    for header, body, key, right in requests():
        done = subprocess.run(["node", program, header, body.decode(), key], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(right).lower(), header


def test_the_files_on_the_page_are_accepted() -> None:
    link, config = (example(r"toml", number).replace("\n   ", "\n").strip() for number in (0, 1))
    assert tomllib.loads(config)["alerts"]["webhook"] and parse_config(config, "page").alerts.min_severity == "medium"
    assert parse_link(f"[core]\nuser = 1\n{link}", "page").upstreams["webhook"].ca_file is not None


def test_the_figures_are_those_of_the_code() -> None:
    prose = " ".join(PAGE.split())
    assert f"within {TIMEOUT_S:g} seconds" in prose and AGAIN_S == 60 and "once a minute at most" in prose
    assert f"Up to {MAX_WAITING} events wait, and {MAX_DEAD} that were put aside" in prose
    assert FAILING_S == 3600 and "nothing has arrived for an hour" in prose
