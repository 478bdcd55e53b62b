"""Defines the client library's calls as conversations: each yields questions, receives replies and returns its result.

Nothing here performs IO; `client` and `aioclient` drive the same conversations over their sockets. What ends
a question without an answer is thrown into its conversation, which decides whether it ends the call.
"""

import logging
import os
import secrets
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from ..answers import AgentInfo, ConsentAnswer, FeatureVerdict, HeldLicense, Reason, UsageCount, Verdict, WaitingUpdate
from ..bounds import COUNT_ID_BYTES, NONCE_BYTES
from ..clientwire import FAKE_FIELD, check_consent, check_count, check_requirement, check_token, may_be_sent
from ..errors import LicenseAgentError
from ..replies import (
    agent_info_from,
    feature_verdict_from,
    licenses_from,
    refreshed_token_from,
    usage_count_from,
    verdict_from,
    waiting_update_from,
)
from .refresh import UnstoredTokens
from .tokenfile import TokenFile

log = logging.getLogger("license_agent_client")

RefreshCallback = Callable[[str, str], None]
"""Is given the old token and the newer one that takes its place; returns when the newer one is kept.

What it raises does not cost the caller the verdict: the verdict's `refresh_error` says it.
"""


@dataclass(frozen=True, slots=True)
class Question:
    """One request. `fields` is called again for each attempt, so that a nonce is never sent twice."""

    op: str
    fields: Callable[[], dict[str, Any]] = field(default=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, and the fields with which the answered attempt was made."""

    sent: dict[str, Any]
    reply: dict[str, Any]


def ask_validate(token: str) -> Generator[Question, Answer, Verdict]:
    """One verdict on one token."""
    check_token(token)
    answer = yield Question("validate_license", lambda: {"token": token, "nonce": secrets.token_bytes(NONCE_BYTES)})
    _warn_of_fake(answer)
    return verdict_from(answer.reply, answer.sent["nonce"])


def ask_require(feature: str, product: str | None) -> Generator[Question, Answer, FeatureVerdict]:
    """Whether a license of the machine allows a feature."""
    check_requirement(feature, product)
    answer = yield Question(
        "require", lambda: {"feature": feature, "product": product, "nonce": secrets.token_bytes(NONCE_BYTES)}
    )
    _warn_of_fake(answer)
    return feature_verdict_from(answer.reply, answer.sent["nonce"], feature, product)


def ask_licenses(metadata: bool) -> Generator[Question, Answer, list[HeldLicense]]:
    """All licenses of the machine, page after page."""
    found: list[HeldLicense] = []
    after: str | None = ""
    while after is not None:
        answer = yield _page_after(after, metadata)
        _warn_of_fake(answer)
        page, after = licenses_from(answer.reply, answer.sent["nonce"], after)
        found += page
    return found


def _page_after(license_id: str, metadata: bool) -> Question:
    return Question("licenses", lambda: {"after": license_id, "metadata": metadata, "nonce": secrets.token_bytes(NONCE_BYTES)})


def ask_count(meter: str, amount: int, count_id: bytes | None) -> Generator[Question, Answer, UsageCount]:
    """Counts usage; each attempt has the same id."""
    used = secrets.token_bytes(COUNT_ID_BYTES) if count_id is None else count_id
    check_count(meter, amount, used)
    answer = yield Question("count_usage", lambda: {"meter": meter, "amount": amount, "count_id": used})
    _warn_of_fake(answer)
    return usage_count_from(answer.reply, used)


def _warn_of_fake(answer: Answer) -> None:
    if FAKE_FIELD in answer.reply:
        log.warning("this verdict comes from a fake of the agent, which is for tests only: it licenses nothing")


def ask_refresh(token: str) -> Generator[Question, Answer, str | None]:
    """The newest token of the same license, or None if the agent holds none that is newer."""
    check_token(token)
    answer = yield Question("refresh_license", lambda: {"token": token})
    return refreshed_token_from(answer.reply, token)


def ask_consent(answer: ConsentAnswer | str | None, until: int) -> Generator[Question, Answer, WaitingUpdate]:
    """Whether an update waits for the shop. Each attempt has the same answer, of which the last one counts."""
    said = "" if answer is None else str(answer)
    check_consent(said, until)
    reply = yield Question("ota_consent", lambda: {"answer": said, "until": until})
    return waiting_update_from(reply.reply)


def ask_info() -> Generator[Question, Answer, AgentInfo]:
    """What the agent says about itself."""
    answer = yield Question("agent_info")
    return agent_info_from(answer.reply)


def ask_ping() -> Generator[Question, Answer, None]:
    """Whether the agent answers."""
    yield Question("ping")


def validate_and_refresh(
    token: str,
    on_refresh: RefreshCallback | None,
    unstored: UnstoredTokens | None = None,
    *,
    place: Hashable = None,
    obstacle: Callable[[], Hashable] = lambda: None,
) -> Generator[Question, Answer, Verdict]:
    """A verdict; where the agent holds a newer token of this license, the caller is handed it and it is judged instead.

    Once there is a verdict it is returned, whatever happens to the newer token: a shop does not stop because a file cannot be
    replaced. `Verdict.refresh_error` says what happened.

    Args:
        token: the token that the caller has.
        on_refresh: stores a newer one.
        unstored: what could not be stored before.
        place: where the token is kept; of use in `unstored` only.
        obstacle: what storing depends on, as far as it can be seen.
    """
    if on_refresh is None:
        return (yield from ask_validate(token))
    unstored = unstored or UnstoredTokens(lambda: 0.0)
    key = (place, token)
    known = unstored.find(key)
    if known is not None:
        verdict = yield from ask_validate(known.newer)
        if verdict.valid and not verdict.refreshed:
            return _store(verdict, token, known.newer, on_refresh, unstored, key, obstacle())
    verdict = yield from ask_validate(token)
    if not verdict.refreshed:
        unstored.forget(key)
        return verdict
    try:
        newer = yield from ask_refresh(token)
        if newer is None:
            return verdict
        newer_verdict = yield from ask_validate(newer)
    except LicenseAgentError as error:
        return _not_refreshed(verdict, f"the agent did not hand over the newer token: {error}")
    if verdict.valid and not newer_verdict.valid:
        return verdict
    return _store(newer_verdict, token, newer, on_refresh, unstored, key, obstacle())


def _store(
    verdict: Verdict,
    token: str,
    newer: str,
    on_refresh: RefreshCallback,
    unstored: UnstoredTokens,
    key: Hashable,
    obstacle: Hashable,
) -> Verdict:
    known = unstored.find(key)
    if known is not None and known.newer == newer and not unstored.due(known, obstacle):
        return replace(verdict, refresh_error=known.why)
    try:
        on_refresh(token, newer)
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        why = f"{where}{error.strerror or error}"
    except Exception as error:  # noqa: BLE001 - the caller's own code; the verdict was there before it failed
        why = f"{type(error).__name__}: {error}"
    else:
        unstored.forget(key)
        return verdict
    why = f"the newer token could not be stored: {why}"
    unstored.failed(key, newer, why, obstacle)
    return _not_refreshed(verdict, why)


def validate_file(file: TokenFile, content: str, unstored: UnstoredTokens) -> Generator[Question, Answer, Verdict]:
    """The verdict on what a token file holds. What may not even be sent is `malformed` without a question."""
    if not may_be_sent(content):
        log.warning("%s holds no license token: it is empty, not ASCII text, or too long", file.path)
        return Verdict(valid=False, reason=Reason.MALFORMED)
    return (
        yield from validate_and_refresh(
            content, file.replace, unstored, place=os.path.abspath(file.path), obstacle=file.obstacle
        )
    )


def _not_refreshed(verdict: Verdict, why: str) -> Verdict:
    log.warning("%s", why)
    return replace(verdict, refresh_error=why)
