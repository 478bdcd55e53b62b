"""Says what to do about each reason why a license is not valid, with the commands for it. A table; performs no IO."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .moments import moment

Reply = dict[str, Any]

_CONTACT = "license-agent-cli contact"


@dataclass(frozen=True, slots=True)
class Next:
    """What to do next.

    Attributes:
        text: in a sentence.
        here: commands on this machine.
        server: commands on the license server.
    """

    text: str
    here: tuple[str, ...] = ()
    server: tuple[str, ...] = ()

    def view(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"text": self.text, "here": list(self.here), "server": list(self.server)}


def next_step(reply: Reply, asked: str) -> Next:
    """What to do after a reply to `license_explain`.

    Args:
        reply: the reply.
        asked: the words after 'license-agent-cli why' with which to ask again.
    """
    newest, again = reply["newest"], f"license-agent-cli why {asked}"
    if reply["reason"] != "ok" and newest is not None and newest["reason"] == "ok":
        text = "The agent has a newer token of this license, and it is valid: the till must take it (the client library does)."
        return Next(text, ("license-agent-client refresh @TOKEN-FILE",))
    return _STEPS.get(reply["reason"], _unknown_reason)(reply, again)


def _ok(reply: Reply, _again: str) -> Next:
    if reply["newest"] is not None:
        return Next("Nothing has to be done; the till should take the newer token that the agent has.",
                    ("license-agent-client refresh @TOKEN-FILE",))  # fmt: skip
    if reply["secret"] and reply["secret"]["state"] == "GRACE":
        return Next("The token must be replaced before then; a contact fetches a new one.", (_CONTACT,))
    return Next("Nothing has to be done.")


def _malformed(reply: Reply, again: str) -> Next:
    if reply["check"] != 1:
        return Next("Bring the agent up to the release of the license server.", ("license-agent-cli --version",))
    return Next("Look for a copy error (a cut end, line breaks, the wrong file), or load the token again.", (again,))


def _wrong_audience(reply: Reply, _again: str) -> Next:
    license_id, ours = reply["license"] or "LICENSE-ID", reply["agent_id"]
    text = "Give the till the token of this machine, or transfer the license to it."
    return Next(text, ("license-agent-client licenses",), (f"license-server licenses transfer {license_id} --agent {ours}",))


def _unknown_secret(reply: Reply, again: str) -> Next:
    if reply["secret"]["version"] > reply["secret"]["newest"]:
        return Next("A contact with the server fetches the secret, if the network works.", (_CONTACT, again))
    return _reissue(reply, again)


def _reissue(reply: Reply, again: str) -> Next:
    text = "The license must be issued again under the present secret; a contact fetches it if the license is this machine's."
    return Next(text, (_CONTACT, again), (f"license-server reissue --agent {reply['agent_id']}",))


def _rotate(_reply: Reply, again: str) -> Next:
    return Next("The machine needs a new secret: it comes by a rotation, once the server can be reached.",
                ("license-agent-cli rotate", again))  # fmt: skip


def _bad_signature(reply: Reply, _again: str) -> Next:
    text = "Do not use this token. Load it again from the license server, and find out who changed it if that happens again."
    return Next(text, (_CONTACT,), (f"license-server reissue --agent {reply['agent_id']}",))


def _revoked(reply: Reply, _again: str) -> Next:
    license_id, ours = reply["license"] or "LICENSE-ID", reply["agent_id"]
    if reply["revoked"]:
        return Next("A revocation is final: ask the vendor why, and for another license.", (),
                    (f"license-server licenses history {license_id}",))  # fmt: skip
    match reply["withheld"]:
        case "suspended":
            return Next("Ask the vendor to reinstate the license; the next contact brings it back.", (_CONTACT,),
                        (f"license-server licenses reinstate {license_id}",))  # fmt: skip
        case "given_back":
            return Next("The machine gets another seat at the next contact after a till asks for one.",
                        ("license-agent-client licenses", _CONTACT))  # fmt: skip
    return Next("Use it on the machine that has it now, or have it transferred back.", (),
                (f"license-server licenses transfer {license_id} --agent {ours}",))  # fmt: skip


def _not_yet(reply: Reply, _again: str) -> Next:
    if reply["clock"]["suspect"] or reply["clock"]["server_time"] is not None:
        return Next("First look at the clock: the agent does not trust it.", ("timedatectl", "license-agent-cli status"))
    return Next(f"Wait until {moment(reply['begins_at'])}, or set the clock if that is already past.", ("timedatectl",))


def _expired(reply: Reply, again: str) -> Next:
    if reply["clock"]["suspect"]:
        return Next("First look at the clock: the agent does not trust it.", ("timedatectl", "license-agent-cli status"))
    if reply["seat"] is not None:
        return Next("A contact renews the seat, if the server can be reached.", (_CONTACT, again))
    return Next("Have the license renewed; a contact fetches the new token.", (_CONTACT, again),
                (f"license-server licenses renew {reply['license'] or 'LICENSE-ID'}",))  # fmt: skip


def _stale(_reply: Reply, again: str) -> Next:
    return Next("A contact with the server fetches a new list, if the network works.", (_CONTACT, again))


def _no_seat(reply: Reply, again: str) -> Next:
    if not reply["seat"]["offered"]:
        return Next("The server offers no seat of it to this machine: the site's seats are used up, or the license ended.", (),
                    (f"license-server seats show {reply['license']}",))  # fmt: skip
    return Next("A contact takes a seat after a till has asked for the license, if one is free.", (_CONTACT, again),
                (f"license-server seats show {reply['license']}",))  # fmt: skip


def _no_license(reply: Reply, _again: str) -> Next:
    text = "Ask again with the till's token; if the license is this machine's, a contact fetches its token."
    return Next(text, ("license-agent-cli why @TOKEN-FILE", _CONTACT), (f"license-server licenses show {reply['license']}",))


def _unknown_reason(_reply: Reply, _again: str) -> Next:
    return Next("Use the command of the agent's release.", ("license-agent-cli --version",))


_STEPS: dict[str, Callable[[Reply, str], Next]] = {
    "ok": _ok,
    "malformed": _malformed,
    "wrong_audience": _wrong_audience,
    "unknown_secret": _unknown_secret,
    "secret_invalidated": _reissue,
    "degraded_expired": _rotate,
    "bad_signature": _bad_signature,
    "revoked": _revoked,
    "not_yet_valid": _not_yet,
    "expired": _expired,
    "revocations_stale": _stale,
    "no_seat": _no_seat,
    "no_license": _no_license,
}
