"""Adds to files.json an example of each file of the agent that has none: PYTHONPATH=. python tests/vectors/make_files.py

What is in the file stays as it is: agents in the field have written such files, and read them after a rollback. The test that
compares them is tests/agentd/test_files.py, and the rule is ADR 75.
"""

import json

from tests.agentd.file_examples import EXAMPLES, FILE, FROZEN, text_of


def main() -> None:
    """Adds what is missing."""
    files = {**{name: text_of(make()) for name, make in EXAMPLES.items()}, **FROZEN}
    note = "Files of the agent as they were first written. Frozen: make_files.py only adds to them. Their keys protect nothing."
    FILE.write_text(json.dumps({"note": note, "files": files}, indent=1) + "\n")


if __name__ == "__main__":
    main()
