"""Asks the operator API of a server for an act, as the command line of an operator who is not on the server's machine."""

import http.client
import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from pydantic import TypeAdapter

from server.acts.act import Act, Form, Listed
from server.acts.tables import BadRow, RowsRefused
from server.base import privatefile
from server.base.errors import NotFound, RegistryError

PREFIX = "/operator/v1"
TIMEOUT_S = 60.0
MAX_REPLY_BYTES = 64 * 1024 * 1024


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

    Raises:
        RegistryError: a file cannot be used, or the URL is not one.
    """

    def __init__(self, where: Where) -> None:
        parts = urlsplit(where.url)
        if parts.scheme != "https" or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise RegistryError(f"{where.url!r} is not a server; write https://HOST:PORT")
        if (where.certificate is None) == (where.token is None):
            raise RegistryError("sign in with a certificate (--auth-cert and --auth-key) or a token (--auth-token)")
        self._url = where.url
        self._headers = {"accept": "application/json"}
        try:
            self._context = ssl.create_default_context(cafile=None if where.root is None else str(where.root))
            if where.certificate is not None:
                self._context.load_cert_chain(where.certificate, where.key, password=_no_passphrase)
        except (OSError, ValueError) as problem:
            raise RegistryError(f"the certificate, its key or the root cannot be loaded: {problem}") from None
        if where.token is not None:
            text = privatefile.read(where.token, "the token's file").decode("ascii", "replace").strip()
            self._headers["authorization"] = f"Bearer {text}"
        self._host, self._port = parts.hostname, parts.port or 443

    def perform(self, act: Act, body: Form, reason: str = "", approval: str | None = None) -> Any:
        """Asks for an act; returns its result. The `after` of a list is a cursor here.

        Raises:
            NotFound: what was named does not exist.
            RegistryError: the server cannot be reached, or refuses; the text says what to do.
        """
        values = {name: value for name, value in body.model_dump(mode="json").items() if name in body.model_fields_set}
        path = PREFIX + act.path.format_map({name: quote(str(value), safe="") for name, value in values.items()})
        rest = {name: value for name, value in values.items() if f"{{{name}}}" not in act.path}
        headers = dict(self._headers)
        content = None
        if act.reads:
            after = rest.pop("after", "")
            query = {name: _in_query(value) for name, value in rest.items() if value is not None}
            query |= {"cursor": after} if after else {}
            path += f"?{urlencode(query)}" if query else ""
        else:
            content = json.dumps(rest | ({"reason": reason} if reason else {})).encode()
            headers["content-type"] = "application/json"
            if act.match_required:
                headers["if-match"] = "*"
            if approval is not None:
                headers["approval-id"] = approval
        status, reply = self._ask(act.method, path, content, headers)
        if status == 202:
            asked = reply.get("approval_id")
            raise RegistryError(
                f"another person must approve this: let them run 'license-server approvals approve {asked}', then run this "
                f"command again with --approval {asked}"
            )
        if status != 200 and reply.get("rows"):
            rows = TypeAdapter(list[BadRow]).validate_json(json.dumps(reply["rows"]))
            raise RowsRefused(rows, len(rows), said=f"{self._url} refuses this: {reply.get('detail')}")
        if status != 200:
            kind = NotFound if status == 404 else RegistryError
            raise kind(f"{self._url} refuses this: {reply.get('detail', status)} (next: {reply.get('next', 'see its log')})")
        if isinstance(act.result, type) and issubclass(act.result, Listed):
            reply["after"] = reply.pop("next", None)
        return TypeAdapter(act.result).validate_json(json.dumps(reply))

    def _ask(self, method: str, path: str, content: bytes | None, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=self._context)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            reply = json.loads(response.read(MAX_REPLY_BYTES))
        except (OSError, http.client.HTTPException) as problem:
            raise RegistryError(f"{self._url} cannot be reached: {problem}; is 'serve --operators' running there?") from None
        except ValueError:
            raise RegistryError(f"{self._url} is not the operator API of a license server: its reply is not JSON") from None
        finally:
            connection.close()
        if not isinstance(reply, dict):
            raise RegistryError(f"{self._url} is not the operator API of a license server: its reply is not an object")
        return response.status, reply


def _in_query(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase; decrypt it to a file of mode 0600 first")
