"""Says what is wrong with a text that was given as a token. Pure; repeats none of it, since it may be a token all the same."""

import re

PARTS = 5
"""Of a license token: JWE in compact serialization (RFC 7516 section 7.1)."""
MIN_ENROLLMENT_CHARS = 16
_QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb"
_FILE_ENDING = re.compile(r"\.(txt|token|jwt|jwe|jws|json|license|licence|lic|pem|key)$", re.IGNORECASE)
_ALPHABET = re.compile(r"[A-Za-z0-9._-]*")


def _text_hint(text: str) -> str | None:
    """What no token is, of whatever kind."""
    if not text:
        return "it is empty"
    if text.startswith("\ufeff"):
        return "it begins with a byte order mark: save the file without one"
    if text.startswith("-----BEGIN"):
        return "it is a PEM file"
    if text[0] in "{[":
        return "it is JSON: give the token alone, without what is around it"
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return "it is in quotes: leave them out"
    if text.startswith("@"):
        return "it begins with '@': '@FILE' reads a file where the command is given it, not within a file or standard input"
    if _FILE_ENDING.search(text) or "/" in text or text.startswith("~"):
        return "it looks like a file name: did you mean '@FILE'?"
    if "\n" in text or "\r" in text:
        return "it contains line breaks: a token is one line"
    if any(character.isspace() for character in text):
        return "it contains blanks: was it copied whole, and alone?"
    if not text.isascii():
        return "it contains characters that are not ASCII"
    if not _ALPHABET.fullmatch(text):
        return "it contains other characters than letters, digits, '-', '_' and '.': was it encoded again?"
    return None


def license_token_hint(text: str) -> str | None:
    """What is wrong with a text that should be a license token, as far as its form shows it; None if nothing does."""
    hint = _text_hint(text)
    if hint is not None:
        return hint
    parts = text.count(".") + 1
    if parts == 1:
        return "it has no dots: a license token has five parts, separated by dots"
    if parts == 3:
        return "it has three parts: that is a signed token (JWS), a license token has five"
    if parts != PARTS:
        return f"it has {parts} parts, separated by dots: a license token has five; was it copied whole?"
    header, _, iv, ciphertext, tag = text.split(".")
    if not (header and iv and ciphertext and tag):
        return "a part of it is empty: was it copied whole?"
    return None


def enrollment_token_hint(text: str) -> str | None:
    """What is wrong with a text that should be an enrollment token; None if its form is right."""
    hint = _text_hint(text)
    if hint is not None:
        return hint
    if text.count(".") >= 2:
        return "it is a license token, or another signed one: an enrollment token has no dots"
    if len(text) < MIN_ENROLLMENT_CHARS:
        return f"it is too short: an enrollment token has at least {MIN_ENROLLMENT_CHARS} characters"
    return None
