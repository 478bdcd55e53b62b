"""The examples of the page about webhooks accept what the server sends, and nothing else."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from server.notify.signature import new_secret, signed

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "webhooks.md").read_text("utf-8")
BODY = '{"kind":"license.issued","subject":"Größe"}'.encode()


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def requests() -> list[tuple[str, bytes, str, bool]]:
    """Header, body and secret of a request, and whether it is to be accepted."""
    now, key, other = int(time.time()), new_secret(), new_secret()
    good = signed(BODY, now, [key])
    return [
        (good, BODY, key, True),
        (signed(BODY, now, [other, key]), BODY, key, True),
        (good, BODY, other, False),
        (good, BODY + b" ", key, False),
        (signed(BODY, now - 600, [key]), BODY, key, False),
        (good.replace("v1=", "v2="), BODY, key, False),
        (good + f",t={now}", BODY, key, False),
        ("", BODY, key, False),
        (good.replace("v1=", "v1"), BODY, key, False),
    ]


def test_the_example_in_python() -> None:
    names: dict[str, object] = {}
    exec(compile(example("python"), "webhooks.md", "exec"), names)
    check = names["is_from_the_server"]
    assert callable(check)
    assert [check(header, body, key) for header, body, key, _ in requests()] == [right for *_, right in requests()]


@pytest.mark.system
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed; scripts/bootstrap installs it")
def test_the_example_for_node(tmp_path: Path) -> None:
    program = tmp_path / "check.cjs"
    call = "const [, , header, body, key] = process.argv;\nconsole.log(isFromTheServer(header, Buffer.from(body), key));\n"
    program.write_text(example("javascript") + call, "utf-8")
    for header, body, key, right in requests():
        done = subprocess.run(["node", program, header, body.decode(), key], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(right).lower(), header
