"""Reads what comes back from the license server. A reply counts when a key of the server signed it for this agent and request.

Everything else, HTTP errors included, means only that there was no contact. Performs no IO.
"""

from typing import TypeVar

from contracts.contact.capabilities import MAX_CAPABILITIES_CHARS
from contracts.exchange import Reply, verify_reply
from contracts.jose import BadSignature, MalformedToken, parse_json_object
from contracts.licensetoken import WrongAudience
from contracts.trust import Trust

from .transport import CertificateRefused, NoContact, NotTheServer, Response

R = TypeVar("R", bound=Reply)

MAX_CHALLENGE_CHARS = 256


def signed_reply(response: Response, kind: type[R], agent_id: str | None, request_id: str, trust: Trust, purpose: str) -> R:
    """The reply in a response.

    Args:
        response: to a POST of the API.
        kind: the reply that this request has.
        agent_id: the reply must be for this agent; None where the server has yet to name it.
        request_id: of the request.
        trust: whose signatures count.
        purpose: of the request, for error texts.

    Raises:
        NotTheServer: the server did not sign it.
        NoContact: no signed reply came.
        Refused: the server's signed refusal.
    """
    text = _member(response, "reply")
    try:
        return verify_reply(text, kind, agent_id, request_id, trust)
    except (MalformedToken, BadSignature, WrongAudience) as error:
        raise NotTheServer(f"the license server did not sign the answer to {purpose}: {error}") from None


def challenge_in(response: Response) -> str:
    """The challenge in a response; nobody signs it. Raises NoContact, NotTheServer.

    It comes with status 401 if the client certificate is not valid yet: it can be renewed then, and nothing else.
    """
    challenge = _member(response, "challenge")
    # JSON can carry half a surrogate pair, which is no text and could not be sent back.
    if not 16 <= len(challenge) <= MAX_CHALLENGE_CHARS or not challenge.isascii():
        raise NotTheServer("malformed response: 'challenge' is not a challenge of the license server")
    return challenge


def key_set_in(response: Response) -> str:
    """The key set in a response; the caller verifies it. Raises NoContact, NotTheServer."""
    if response.status != 200:
        raise no_contact(response)
    try:
        return response.body.decode("ascii")
    except UnicodeDecodeError:
        raise NotTheServer("malformed response: the key set is not ASCII text") from None


def capabilities_in(response: Response) -> str | None:
    """The list of capabilities in a response; the caller verifies it. None if there is no such resource: release 0.1.0.

    Raises:
        NoContact: another answer came.
    """
    if response.status == 404:
        return None
    if response.status != 200:
        raise no_contact(response)
    if len(response.body) > MAX_CAPABILITIES_CHARS or not response.body.isascii():
        raise NotTheServer("malformed response: the list of capabilities is too long, or not ASCII text")
    return response.body.decode("ascii")


def no_contact(response: Response) -> NoContact:
    """What a response without a signed reply means."""
    text = f"the server answers with HTTP status {response.status}"
    try:
        error = parse_json_object(response.body, "error").get("error")
        if isinstance(error, dict):
            text += f": {ascii(str(error.get('text') or error.get('code')))[1:-1][:200]}"
    except MalformedToken:
        pass
    kind = CertificateRefused if response.status == 401 else NoContact
    return kind(text, response.retry_after_s)


def _member(response: Response, name: str) -> str:
    try:
        content = parse_json_object(response.body, "answer")
    except MalformedToken:
        content = {}
    value = content.get(name)
    if isinstance(value, str):
        return value
    if response.status == 200:
        raise NotTheServer(f"malformed response: no '{name}' member")
    raise no_contact(response)
