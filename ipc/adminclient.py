"""Sends administrators' requests to the admin socket. A request may change something, so it is never sent twice."""

import array
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from .bounds import HEADER_BYTES
from .clientwire import encode_request
from .errors import ErrorCode
from .posclient.calls import Answer, Question
from .posclient.client import LicenseClient
from .posclient.policy import AgentRefused, AgentUnavailable, cause_text


@dataclass(frozen=True, slots=True)
class GivenChallenge:
    """What the agent gives to be signed.

    Attributes:
        agent_id: the agent's; empty for a device that is not an agent yet.
        boot_id: of its machine's kernel, 16 bytes.
        challenge: 32 bytes.
        required: whether the agent demands a signature.
    """

    agent_id: str
    boot_id: bytes
    challenge: bytes
    required: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """What an administrator's key has made.

    Attributes:
        certificates: the administrator's, then the one between it and the admin CA; DER.
        signature: ES256 in DER.
    """

    certificates: tuple[bytes, ...]
    signature: bytes


Sign = Callable[[GivenChallenge, str, dict[str, Any]], Proof]
"""Signs an operation with its fields."""


class AdminClient(LicenseClient):
    """Asks the agent as an administrator; arguments as for `LicenseClient`."""

    _repeats = False
    _retried_codes: frozenset[ErrorCode] = frozenset()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """One request and its reply, without `v` and `id`.

        Raises:
            AgentUnavailable: no answer; whether the request was carried out is not known then.
            AgentRefused: the agent answered with an error.
            UntrustedDaemon: something else than the agent answers at the path.
        """
        return self._call(op, lambda: dict(fields))

    def challenge(self) -> GivenChallenge | None:
        """A challenge for one signature; None from an agent of a release that knows no signatures. Raises as `call`."""
        try:
            given = self.call("challenge")
        except AgentRefused as error:
            if error.code is ErrorCode.UNKNOWN_OP:
                return None
            raise
        agent_id, boot_id, challenge = given.get("agent_id"), given.get("boot_id"), given.get("challenge")
        if not isinstance(agent_id, str) or not isinstance(boot_id, bytes) or not isinstance(challenge, bytes):
            raise AgentRefused(ErrorCode.BAD_MESSAGE, "the agent's reply is invalid: it gives no challenge")
        return GivenChallenge(agent_id, boot_id, challenge, given.get("authentication") == "required")

    def call_signed(self, given: GivenChallenge, sign: Sign, op: str, **fields: Any) -> dict[str, Any]:
        """As `call`, signed by an administrator.

        Args:
            given: from `challenge`, on the same connection.
            sign: makes the signature.
            op: the operation.
            fields: of the request.
        """
        proof = sign(given, op, fields)

        def signed() -> dict[str, Any]:
            # The request inside has the id of the one around it, which was drawn just now.
            inner = encode_request(op, self._connections.mine().last_id, fields)[HEADER_BYTES:]
            return {"certificates": list(proof.certificates), "signature": proof.signature, "request": inner}

        reply = self._call("signed", signed)
        reply.pop("next_challenge", None)
        return reply

    def hand_over(self, descriptor: int) -> None:
        """Hands the agent an open file; the next `ota_package` on this connection is about it. Raises as `call`.

        Args:
            descriptor: of the file; stays the caller's.
        """
        self.call("ota_hand_over")
        with self._connections.mine().lock:
            sock = self._connections.mine().socket
            try:
                if sock is None:
                    raise OSError("the connection was closed")
                sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])
            except OSError as error:
                raise AgentUnavailable(f"the agent does not take the file: {cause_text(error)}") from error

    def _call(self, op: str, fields: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        def conversation() -> Generator[Question, Answer, dict[str, Any]]:
            answer = yield Question(op, fields)
            return {name: value for name, value in answer.reply.items() if name not in ("v", "id")}

        return self._hold(conversation())
