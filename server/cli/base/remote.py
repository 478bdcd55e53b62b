"""Asks the operator API of a server for acts, as the command line of an operator who is not on the server's machine.

One connection serves all requests of a command. A change carries an idempotency key of its own: when the connection is lost,
it is sent once more with the same key, and is done once.
"""

import http.client
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import TypeAdapter, ValidationError

from server.acts.act import Act, Form, Listed
from server.acts.tables import BadRow, RowsRefused
from server.base.errors import NotFound, RegistryError, SecondPersonNeeded

from .remotetls import SignIn, in_words

PREFIX = "/operator/v1"
TIMEOUT_S = 60.0
MAX_REPLY_BYTES = 64 * 1024 * 1024
MAX_WAITS = 20
"""How often one request waits because its account has sent too many."""
MAX_WAIT_S = 60
_SAID_IN_DETAIL = {"malformed", "not-found", "not-allowed", "conflict", "invalid"}
"""Kinds of problems whose `detail` says what to do; their `next` is for programs, and speaks of members of the reply."""
_ENDED = (http.client.RemoteDisconnected, http.client.CannotSendRequest, ConnectionResetError, BrokenPipeError)


@dataclass(frozen=True, slots=True)
class Where:
    """Which server to ask, and what to sign in with: a certificate and its key, or a token.

    Attributes:
        url: `https://HOST:PORT`.
        root: file with the certificate that the server's certificate is verified against; None for those of the system.
        certificate: file of the client certificate; None without one.
        key: file of its key; None if it is in the certificate's file.
        token: file of mode 0600 with a token; None without one.
    """

    url: str
    root: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: Path | None = None


class Remote:
    """The operator API of one server.

    Args:
        where: of it.
        wall: seconds since 1970 UTC.
        sleep: waits for so many seconds.

    Raises:
        RegistryError: a file cannot be used, or the URL is not one.
    """

    def __init__(
        self, where: Where, wall: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        try:
            parts = urlsplit(where.url)
            port = parts.port or 443
        except ValueError:
            raise RegistryError(f"{where.url!r} is not a server; write https://HOST:PORT") from None
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
            raise RegistryError(f"{where.url!r} is not a server; write https://HOST:PORT")
        self._url, self._where, self._sleep = where.url, where, sleep
        self._sign_in = SignIn(where.root, where.certificate, where.key, where.token, int(wall()))
        self._connection = http.client.HTTPSConnection(
            parts.hostname, port, timeout=TIMEOUT_S, context=self._sign_in.context
        )  # fmt: skip
        self._reused = False

    def __enter__(self) -> "Remote":
        """Returns itself; the connection is closed at the end of the block."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Closes the connection."""
        self._connection.close()

    def perform(
        self,
        act: Act,
        body: Form,
        reason: str = "",
        approval: str | None = None,
        if_match: str | None = None,
        cursor: str | None = None,
    ) -> Any:
        """Asks for an act; returns its result. The `after` of a list that it returns is the cursor of the next page.

        Args:
            act: of the catalog.
            body: of its form.
            reason: why, for the audit.
            approval: the id of a second person's approval.
            if_match: the tag of the state that is to be changed; None for whatever it is.
            cursor: of a page of a list; None for the first one.

        Raises:
            SecondPersonNeeded: the act needs an approval, which is asked for now.
            NotFound: what was named does not exist.
            RegistryError: the server cannot be reached, or refuses; the text says what to do.
        """
        values = {name: value for name, value in body.model_dump(mode="json").items() if name in body.model_fields_set}
        path = PREFIX + act.path.format_map({name: quote(str(value), safe="") for name, value in values.items()})
        rest = {name: value for name, value in values.items() if f"{{{name}}}" not in act.path}
        headers = {"accept": "application/json", **self._sign_in.headers}
        content = None
        if act.reads:
            query = {name: _in_query(value) for name, value in rest.items() if value is not None}
            query |= {"cursor": cursor} if cursor else {}
            path += f"?{urlencode(query)}" if query else ""
        else:
            content = json.dumps(rest | ({"reason": reason} if reason else {})).encode()
            headers |= {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
            if act.present is not None and act.etag is not None and (if_match is not None or act.match_required):
                headers["if-match"] = "*" if if_match is None else f'"{if_match}"'
            if approval is not None and act.approval:
                headers["approval-id"] = approval
        status, reply = self._answered(act.method, path, content, headers)
        if status == 202:
            raise SecondPersonNeeded(_needed(reply))
        if status != 200 and reply.get("rows"):
            rows = TypeAdapter(list[BadRow]).validate_json(json.dumps(reply["rows"]))
            raise RowsRefused(rows, len(rows), said=f"{self._url} refuses this: {reply.get('detail')}")
        if status != 200:
            self._refused(status, reply)
        if isinstance(act.result, type) and issubclass(act.result, Listed):
            reply["after"] = reply.pop("next", None)
        try:
            # A newer server may say more than this program knows.
            return TypeAdapter(act.result).validate_json(json.dumps(reply), extra="ignore")
        except ValidationError:
            raise RegistryError(
                f"{self._url} answers in another form than this program knows: use the same release on both sides"
            ) from None

    def _refused(self, status: int, reply: dict[str, Any]) -> None:
        detail, following = reply.get("detail", f"status {status}"), reply.get("next")
        if str(reply.get("type", "")).endswith((":no-such-path", ":method-not-allowed")):
            detail = "it does not have what this command asks for: it is older or newer than this program"
            following = "use the same release on both sides"
        elif str(reply.get("type", "")).rpartition(":")[2] in _SAID_IN_DETAIL:
            following = None
        kind = NotFound if status == 404 else RegistryError
        raise kind(f"{self._url} refuses this: {detail}" + (f" (next: {following})" if following else ""))

    def _answered(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """The reply; waits when this account has sent too many requests."""
        for _ in range(MAX_WAITS):
            status, retry_after, reply = self._ask(method, path, content, headers)
            if status != 429:
                break
            self._sleep(min(max(retry_after, 1), MAX_WAIT_S))
        return status, reply

    def _ask(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[int, int, dict[str, Any]]:  # fmt: skip
        """Status, seconds of Retry-After, and the object of a reply."""
        try:
            try:
                return self._exchange(method, path, content, headers)
            except _ENDED:
                if not self._reused:
                    raise
                # The server has closed a connection that waited. The key makes a change that arrived twice one change.
                self._connection.close()
                return self._exchange(method, path, content, headers)
        except (OSError, http.client.HTTPException) as problem:
            self._connection.close()
            raise RegistryError(in_words(self._url, self._where.root, problem, changes=content is not None)) from None
        except ValueError:
            self._connection.close()
            raise RegistryError(f"{self._url} is not the operator API of a license server: its reply is not JSON") from None

    def _exchange(
        self, method: str, path: str, content: bytes | None, headers: dict[str, str]
    ) -> tuple[int, int, dict[str, Any]]:  # fmt: skip
        self._connection.request(method, path, content, headers)
        response = self._connection.getresponse()
        text = response.read(MAX_REPLY_BYTES + 1)
        self._reused = True
        if response.status >= 500 and not response.headers.get("content-type", "").endswith("json"):
            return response.status, 0, {"detail": "the server failed", "next": "look into its log"}
        reply = json.loads(text)
        if len(text) > MAX_REPLY_BYTES or not isinstance(reply, dict):
            raise ValueError
        wait = response.headers.get("retry-after", "")
        return response.status, int(wait) if wait.isascii() and wait.isdigit() else 0, reply


def _needed(reply: dict[str, Any]) -> str:
    """What to do after a reply that says that a second person must approve."""
    asked = reply.get("approval_id")
    ends = reply.get("expires_at")
    until = time.strftime(" until %Y-%m-%d %H:%M:%SZ", time.gmtime(ends)) if isinstance(ends, int) else ""
    return (
        f"another person must approve this{until}: let them run 'license-server approvals approve {asked}', then run this "
        f"command again with --approval {asked}"
    )


def _in_query(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
