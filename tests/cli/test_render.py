"""Tables and paragraphs fit the terminal; where there is none, they are as wide as they are."""

import click

from cli.render import hanging, secrets_text, table

ROWS = [(3, click.style("ACTIVE", fg="green"), "2027-01-31 12:00:00Z"), (2, "GRACE", "-")]
HEADERS = ("version", "state", "valid from")
SECRET = {
    "version": 1,
    "state": "ACTIVE",
    "valid_from": 1_800_000_000,
    "valid_until": 1_800_000_000,
    "grace_until": 1_800_000_000,
    "invalidated_at": None,
}


def test_a_table_that_is_too_wide_becomes_a_block_for_each_row() -> None:
    wide = table(ROWS, HEADERS, None)
    assert wide == table(ROWS, HEADERS, 200) and len(wide.splitlines()) == 4
    blocks = click.unstyle(table(ROWS, HEADERS, 35)).split("\n\n")
    assert len(blocks) == 2
    assert [line.split(maxsplit=1)[0] for line in blocks[0].splitlines()] == ["version", "state", "valid"]
    assert "2027-01-31 12:00:00Z" in blocks[0] and "GRACE" in blocks[1]


def test_the_list_of_secrets_fits_into_80_columns() -> None:
    reply = {"secrets": [SECRET, SECRET]}
    assert max(map(len, click.unstyle(secrets_text(reply)).splitlines())) > 80
    assert max(map(len, click.unstyle(secrets_text(reply, 80)).splitlines())) <= 80


def test_a_command_between_quotes_is_never_broken() -> None:
    text = "the file is not there: run 'license-agent-cli server trust --root PIN --file FILE' and start the agent"
    lines = hanging(text, 10, 60).splitlines()
    assert len(lines) > 1 and all(line.startswith(" " * 10) for line in lines[1:])
    assert any("'license-agent-cli server trust --root PIN --file FILE'" in line for line in lines)
    assert " ".join(" ".join(lines).split()) == text
    assert hanging(text, 10, None) == hanging(text, 75, 80) == text
