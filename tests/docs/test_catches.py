"""Whatever catches every exception passes it on, or says in a comment why it does not."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("agentd", "audittrail", "cli", "common", "confine", "contracts", "hwsec", "installer", "ipc", "link", "server",
           "settings", "stand", "standfleet", "standupdates", "updater", "updatetrust")  # fmt: skip
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EVERY = {"Exception", "BaseException"}


def unexplained(source: str) -> list[int]:
    """The lines that catch every exception, and neither clean up and raise it again nor have a comment there or below."""
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else EVERY
            if not caught & EVERY or (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None and node.name is None):
                continue
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            if not {ast.unparse(each) for each in node.args} & EVERY:
                continue
        else:
            continue
        here = "\n".join(lines[node.lineno - 1 : node.lineno + 1])
        if not any(len(words.split("noqa: BLE001")[-1].strip(" -#")) > 10 for words in here.split("#")[1:]):
            found.append(node.lineno)
    return found


def test_each_says_why() -> None:
    assert len(FILES) > 500
    found = {str(path.relative_to(ROOT)): unexplained(path.read_text()) for path in FILES}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_search_finds_what_it_should() -> None:
    body = "    work()\n"
    assert unexplained(f"try:\n{body}except Exception:\n    pass\n") == [3]
    assert unexplained(f"try:\n{body}except (OSError, BaseException) as error:\n    log(error)\n    raise\n") == [3]
    assert unexplained(f"try:\n{body}except:\n    pass  \n") == [3]
    assert unexplained(f"try:\n{body}except Exception:  # noqa: BLE001\n    pass\n") == [3]
    assert unexplained(f"with suppress(Exception):\n{body}") == [1]
    assert unexplained(f"try:\n{body}except Exception:  # the loop goes on after one failure\n    pass\n") == []
    assert unexplained(f"try:\n{body}except Exception:\n    # The loop goes on after one failure.\n    pass\n") == []
    assert unexplained(f"try:\n{body}except BaseException:\n    close()\n    raise\n") == []
    assert unexplained(f"try:\n{body}except OSError:\n    pass\n") == []
