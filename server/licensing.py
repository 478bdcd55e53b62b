"""The server's acts: enroll, rotate, issue, re-issue. Time and randomness come from the caller; the registry does the IO."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from contracts.claims import AGENT_ID, Claims, check_claims
from contracts.jose import MalformedToken, public_key_from_jwk
from contracts.licensetoken import MAX_TOKEN_CHARS
from contracts.servertime import CHALLENGE
from contracts.trust import encode_trust

from .minting import mint_delivery, mint_server_time, mint_token, new_signing_key, public_jwk
from .registry import Registry, RegistryError, SecretRow

DEFAULT_INTERVAL_S = 86_400
DEFAULT_GRACE_S = 604_800
SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Order:
    """A license to be issued. Times are seconds since 1970 UTC."""

    jti: str
    subject: str
    features: tuple[str, ...]
    metadata: dict[str, str]
    not_before: int
    expires: int


def new_server_settings(issuer: str, key: Callable[[], dict[str, str]] = new_signing_key) -> dict[str, str]:
    """The settings of a new server: its name and two private keys."""
    return {"issuer": issuer, "license_key": json.dumps(key()), "delivery_key": json.dumps(key())}


class Licensing:
    """Acts on a registry.

    Args:
        registry: the server's file.
        random: gives that many random bytes.
    """

    def __init__(self, registry: Registry, random: Callable[[int], bytes]) -> None:
        self._registry = registry
        self._random = random
        self._issuer = registry.setting("issuer")
        self._license_key: dict[str, str] = json.loads(registry.setting("license_key"))
        self._delivery_key: dict[str, str] = json.loads(registry.setting("delivery_key"))

    def trust(self) -> bytes:
        """The trust file for agents."""
        return encode_trust(self._issuer, [public_jwk(self._license_key)], [public_jwk(self._delivery_key)])

    def enroll(self, request: dict[str, Any], now: int) -> str:
        """Registers the agent of an enrolment request and returns its id.

        Raises:
            RegistryError: the request is not what `license-agent init` writes.
        """
        agent_id, key, backend = request.get("agent_id"), request.get("agreement_key"), request.get("backend")
        if not isinstance(agent_id, str) or not AGENT_ID.fullmatch(agent_id):
            raise RegistryError("the enrolment request has no valid agent_id")
        if not isinstance(key, dict) or backend not in ("tpm", "software"):
            raise RegistryError("the enrolment request needs agreement_key and backend")
        try:
            public_key_from_jwk(key)
        except MalformedToken as error:
            raise RegistryError(f"the enrolment request's agreement_key is unusable: {error}") from None
        self._registry.add_agent(agent_id, {name: key[name] for name in ("kty", "crv", "x", "y")}, backend, now)
        return agent_id

    def rotate(self, agent_id: str, now: int, interval: int = DEFAULT_INTERVAL_S, grace: int = DEFAULT_GRACE_S) -> str:
        """Makes the agent's next secret version and returns its delivery.

        Args:
            agent_id: an enrolled agent.
            now: the version is valid from then on.
            interval: seconds until its successor is due.
            grace: seconds after that for which licenses under it still pass.
        """
        key = self._registry.agreement_key(agent_id)
        with self._registry.transaction():
            present = self._registry.secrets(agent_id)
            version = present[-1].version + 1 if present else 1
            row = SecretRow(version, self._random(SECRET_BYTES), now, now + interval, now + interval + grace)
            self._registry.add_secret(agent_id, row)
        dates = {
            "valid_from": row.valid_from,
            "valid_until": row.valid_until,
            "grace_until": row.grace_until,
            "issued_at": now,
        }
        return mint_delivery(agent_id, version, dates, row.secret, key, self._delivery_key)

    def sign_time(self, agent_id: str, challenge: str, now: int) -> str:
        """The server's time, in answer to an agent's challenge.

        Raises:
            RegistryError: no such agent, or that is no challenge.
        """
        self._registry.agreement_key(agent_id)
        if not CHALLENGE.fullmatch(challenge):
            raise RegistryError("a challenge has 32 characters 0-9 and a-f, as 'license-agent-cli clock challenge' prints it")
        return mint_server_time(agent_id, challenge, now, self._delivery_key)

    def issue(self, agent_id: str, order: Order, now: int, version: int | None = None) -> str:
        """A token for a new license.

        Args:
            agent_id: an enrolled agent.
            order: what is licensed.
            now: becomes `iat`.
            version: the secret version to use; the newest if None.

        Raises:
            RegistryError: no such agent or version, or the order is out of bounds.
        """
        claims = Claims(
            iss=self._issuer,
            sub=order.subject,
            aud=agent_id,
            iat=now,
            nbf=order.not_before,
            exp=order.expires,
            jti=order.jti,
            features=order.features,
            metadata=order.metadata,
        )
        try:
            check_claims(claims.as_json())
        except MalformedToken as error:
            raise RegistryError(f"such a license would be refused: {error}") from None
        return self._mint(agent_id, claims, version)

    def reissue(self, agent_id: str, now: int) -> list[str]:
        """New tokens under the newest secret for all of the agent's licenses that have not ended."""
        tokens = []
        for content in self._registry.licenses(agent_id):
            claims = check_claims(content)
            if claims.exp > now:
                tokens.append(self._mint(agent_id, replace(claims, iat=now), None))
        return tokens

    def _mint(self, agent_id: str, claims: Claims, version: int | None) -> str:
        secrets = {row.version: row for row in self._registry.secrets(agent_id)}
        if not secrets:
            raise RegistryError(f"agent {agent_id!r} has no secret yet: run 'license-server rotate --agent {agent_id}' first")
        chosen = max(secrets) if version is None else version
        if chosen not in secrets:
            raise RegistryError(f"agent {agent_id!r} has no secret version {chosen}")
        owner = self._registry.owner_of(claims.jti)
        if owner not in (None, agent_id):
            raise RegistryError(f"license {claims.jti!r} belongs to agent {owner!r}: choose another id")
        token = mint_token(claims, secrets[chosen].secret, chosen, self._license_key)
        if len(token) > MAX_TOKEN_CHARS:
            raise RegistryError(f"such a license would be refused: its token has more than {MAX_TOKEN_CHARS} characters")
        self._registry.put_license(claims.jti, agent_id, claims.as_json(), chosen)
        return token
