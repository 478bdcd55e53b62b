"""Keeps which OpenID provider people may sign in with: one at most, and none until the server's machine says so.

It is in the registry, so that every process of the server has the same one from the next request on.
"""

import ipaddress
import json
import re
from dataclasses import asdict, dataclass, replace
from urllib.parse import urlsplit

from sqlalchemy.orm import Session

from server.base.errors import Invalid
from server.registry import audit
from server.registry.models.core import Setting

NAME = "openid_provider"
MAX_ISSUER_CHARS = 256
MAX_AUDIENCE_CHARS = 256
MAX_CA_CHARS = 256 * 1024
MAX_NETWORKS = 32
DEFAULT_AGE_S = 7200
MIN_AGE_S, MAX_AGE_S = 60, 86_400
SUBJECT = r"[ -~]{1,255}"
"""The form of a subject: OpenID Connect Core, section 2, allows 255 ASCII characters."""


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenID provider.

    Attributes:
        issuer: its URL, exactly as its tokens have it in `iss`.
        audience: what tokens for this server have in `aud`: the client id, or the name of the API.
        max_age_s: seconds after which a token does not count any more, whenever it expires.
        networks: networks where it may be although they are not public.
        ca: certificates that it is verified against, in PEM; None for those of the system.
    """

    issuer: str
    audience: str
    max_age_s: int = DEFAULT_AGE_S
    networks: tuple[str, ...] = ()
    ca: str | None = None


def present(session: Session) -> Provider | None:
    """The provider that is in use; None without one."""
    row = session.get(Setting, NAME)
    if row is None:
        return None
    found = Provider(**json.loads(row.value))
    return replace(found, networks=tuple(found.networks))


def checked(provider: Provider) -> Provider:
    """The provider, if it may be used.

    Raises:
        Invalid: the text says what is wrong.
    """
    check_issuer(provider.issuer)
    if len(provider.audience) > MAX_AUDIENCE_CHARS or not re.fullmatch("[!-~]+", provider.audience):
        raise Invalid(f"an audience has 1 to {MAX_AUDIENCE_CHARS} ASCII characters and no blanks")
    if not MIN_AGE_S <= provider.max_age_s <= MAX_AGE_S:
        raise Invalid(f"tokens may be from {MIN_AGE_S} to {MAX_AGE_S} s old, not {provider.max_age_s} s")
    if len(provider.networks) > MAX_NETWORKS:
        raise Invalid(f"give at most {MAX_NETWORKS} networks")
    for each in provider.networks:
        try:
            ipaddress.ip_network(each)
        except ValueError:
            raise Invalid(f"{each[:64]!r} is not a network such as 10.20.0.0/16") from None
    if provider.ca is not None and len(provider.ca) > MAX_CA_CHARS:
        raise Invalid(f"the file of the provider's CAs has more than {MAX_CA_CHARS} characters: give only those that it needs")
    return provider


def check_issuer(issuer: str) -> None:
    """Returns if this can be an issuer.

    Raises:
        Invalid: it cannot; the text says what is wrong.
    """
    try:
        parts = urlsplit(issuer)
        port = parts.port
    except ValueError:
        raise Invalid(f"{issuer[:100]!r} is not a URL") from None
    if len(issuer) > MAX_ISSUER_CHARS or not re.fullmatch("[!-~]+", issuer):
        raise Invalid(f"an issuer has 1 to {MAX_ISSUER_CHARS} ASCII characters and no blanks")
    if parts.scheme != "https" or not parts.hostname or port == 0 or "@" in parts.netloc or "?" in issuer or "#" in issuer:
        raise Invalid(
            "an issuer is an https URL without user, query or fragment, exactly as the provider's tokens have it in 'iss': "
            "https://id.example/realms/shop"
        )


def use(session: Session, provider: Provider, now: int) -> None:
    """Lets people sign in with this provider, and with no other.

    Args:
        session: of a writing transaction.
        provider: it was read with success a moment ago.
        now: seconds since 1970 UTC.

    Raises:
        Invalid: it may not be used.
    """
    value = json.dumps(asdict(checked(provider)), separators=(",", ":"), sort_keys=True)
    session.merge(Setting(name=NAME, value=value))
    fields = {"issuer": provider.issuer, "audience": provider.audience, "max_age_s": provider.max_age_s}
    audit.record(session, audit.ADMIN, "openid_provider.set", "ok", now, **fields)


def end(session: Session, now: int) -> bool:
    """Ends signing in with a provider, at once. Returns False if there was none."""
    row = session.get(Setting, NAME)
    if row is None:
        return False
    session.delete(row)
    audit.record(session, audit.ADMIN, "openid_provider.ended", "ok", now)
    return True
