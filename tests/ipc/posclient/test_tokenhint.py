"""What is said of a text that is no token: what it looks like, and never what it holds."""

import pytest

from ipc.posclient.tokenhint import enrollment_token_hint, license_token_hint

GOOD = "eyJhbGciOiJkaXIifQ..MTIzNDU2Nzg5MDEy.c2VjcmV0LXdvcmRz.dGFndGFndGFndGFn"
ENROLLMENT = "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4"
OF_BOTH = [
    ("", "it is empty"),
    ("\ufeff{token}", "byte order mark"),
    ("-----BEGIN CERTIFICATE-----\n{token}", "PEM"),
    ('{{"token": "{token}"}}', "it is JSON"),
    ('["{token}"]', "it is JSON"),
    ('"{token}"', "in quotes"),
    ("'{token}'", "in quotes"),
    ("\u201c{token}\u201d", "in quotes"),
    ("@{token}", "begins with '@'"),
    ("license.token", "did you mean '@FILE'?"),
    ("/srv/till/license", "did you mean '@FILE'?"),
    ("~/license", "did you mean '@FILE'?"),
    ("{token}\n{token}", "line breaks"),
    ("{token}\r\nx", "line breaks"),
    ("{token} {token}", "blanks"),
    ("{token}\u00a0", "blanks"),
    ("{token}\u00e9", "not ASCII"),
    ("{token}=", "encoded again"),
    ("%7B{token}", "encoded again"),
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *OF_BOTH,
        ("license", "it has no dots"),
        ("a.b.c", "it has three parts"),
        ("{token}.x", "it has 6 parts"),
        ("a.b.c.d", "it has 4 parts"),
        ("a..b.c.", "a part of it is empty"),
    ],
)
def test_license_tokens(text: str, expected: str) -> None:
    hint = license_token_hint(text.format(token=GOOD) if "{" in text else text)
    assert hint is not None and expected in hint
    assert not [part for part in GOOD.split(".") if part and part in hint]


@pytest.mark.parametrize(
    ("text", "expected"), [*OF_BOTH, (GOOD, "license token"), ("a" * 15, "too short: an enrollment token has at least 16")]
)
def test_enrollment_tokens(text: str, expected: str) -> None:
    hint = enrollment_token_hint(text.format(token=ENROLLMENT) if "{" in text else text)
    assert hint is not None and expected in hint and ENROLLMENT not in hint


def test_nothing_is_said_of_what_has_the_right_form() -> None:
    assert license_token_hint(GOOD) is None
    assert enrollment_token_hint(ENROLLMENT) is None
    assert enrollment_token_hint("a" * 16) is None
