"""The documents and manual pages read as plain American English: none of the words that this project avoids.

A failure lists file:line: word: text. Words in backticks are names of the code and are not looked at.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "packaging").rglob("*.md"),
        *(ROOT / "packaging" / "man").iterdir(),
    ]
)

AVOIDED: dict[str, str] = {
    # What is avoided, as a regular expression in which a space is any white space: what to write instead.
    r"anew": "again, or new",
    r"mend(s|ed|ing)?": "fix, repair",
    r"whoever": "anyone who, a user who",
    r"lest": "so that … not",
    r"(is|are|was|were|be) none": "there is no …, not a …",
    r"(give|gives|gave|given|giving) up": "discard, stop, invalidate, abandon",
    r"(is|are|was|were|be|been) told": "gets, learns; name who reports it",
    r"(?:hold|holds|held|holding)(?: \w+)? against": "compare with, check against",
    r"(take|takes|took|taken|taking)(?: (?:it|them|this))? over": "accept, adopt; for an attack: control",
    r"(number|numbers) that (stand|stands) for": "name the number",
    r"stand (there|here|so|in the way)|stands (there|here|so|in|on|at|under|beside|outside|behind)": "is, is in, exists",
    r"told apart": "distinguished",
    r"cages?": "confinement",
    r"outgrown": "needs a restart",
    r"strangers?": "unauthorized peer, unknown user",
    r"rotors?": "rotation runner",
    r"mint(s|ed|ing)?": "issue, create",
    r"books?": "license inventory",
    r"(?<!back\s)office": "server",
    r"(?:timebase|policyops|secretops|serverword|kekguard)": "the part's present name",
    r"provisioning claims?": "enrollment token",
    r"thou|thereof|whereof|therein|wherein|heretofore|henceforth": "a word in use today",
    r"(enrol|enrols|licence|licences|behaviour|colour|initialise|authorise|recognise|honour|cancelled)": "American spelling",
}
PATTERNS = [(re.compile(rf"\b(?:{word})\b".replace(" ", r"\s+"), re.IGNORECASE), better) for word, better in AVOIDED.items()]


def plain(text: str) -> str:
    """A document without code: blocks, words in backticks and generated tables become blanks; lines keep their numbers."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    for code in (r"^```.*?^```", r"<!-- table:.*?<!-- end of table -->", r"^    .*$", r"`[^`\n]+(?:\n[^`\n]+)?`"):
        text = re.sub(code, blank, text, flags=re.MULTILINE | re.DOTALL if ".*?" in code else re.MULTILINE)
    return text


def found(where: str, text: str, first_line: int = 1) -> Iterator[str]:
    """A line for each avoided word in a text."""
    for pattern, better in PATTERNS:
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start())
            shown = " ".join(text.splitlines()[line].split())
            yield f"{where}:{first_line + line}: {' '.join(match[0].split())}: {shown}   ({better})"


def report(hits: list[str]) -> str:
    return f"{len(hits)} avoided words:\n" + "\n".join(hits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Write the file anew.", ["anew"]),
        ("It is\nnone.", ["is none"]),
        ("A copy stands in its place; a stand in one directory", ["stands in"]),
        ("its end is not held against the head", ["held against"]),
        ("`mend` in code and a runbook are fine, the back office too", []),
        ("American spelling: behavior, initialize, canceled, enrolled", []),
        ("Mending it", ["Mending"]),
    ],
)
def test_the_check_finds_what_it_should(text: str, words: list[str]) -> None:
    assert [hit.split(": ")[1] for hit in found("x", plain(text))] == words


def test_documents_and_manual_pages_avoid_these_words() -> None:
    assert len(DOCUMENTS) > 30
    hits = [
        hit
        for path in DOCUMENTS
        for hit in found(
            str(path.relative_to(ROOT)), plain(path.read_text("utf-8")) if path.suffix == ".md" else path.read_text("utf-8")
        )
    ]
    assert not hits, report(hits)
