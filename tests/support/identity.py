"""An OpenID provider that is not ours, as a process on loopback, and people who sign in there as their browsers would."""

import hashlib
import json
import secrets
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.jose import b64encode
from tests.support.pki import Entity
from tests.support.waiting import READY_S

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("openidprovider") / "provider.mjs"
MODULES = ROOT / "build" / "openid-provider"
CLIENT, API = "desk", "urn:license-server"
"""The client that people sign in with, and the API that their access tokens are for."""
_SECRET = "of a test " * 4
_BACK = "https://desk.example/back"
_RESOURCE = "https://license.example/operator"


def private_key(kid: str) -> dict[str, str]:
    """A P-256 key as a private JWK."""
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    public = numbers.public_numbers
    values = {"x": public.x, "y": public.y, "d": numbers.private_value}
    members = {name: b64encode(value.to_bytes(32)) for name, value in values.items()}
    return {"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", **members}


class IdentityProvider:
    """The npm package `oidc-provider`; in `with`, it runs.

    Args:
        directory: for its files.
        entity: its TLS certificate, for 127.0.0.1.
        authority: who has issued that.
    """

    def __init__(self, directory: Path, entity: Entity, authority: Entity) -> None:
        self.ca = directory / "provider-ca.pem"
        self.ca.write_text(authority.chain_pem)
        self._directory = directory
        (directory / "provider.pem").write_text(entity.chain_pem)
        (directory / "provider.key").write_bytes(entity.key_pem)
        self._process: subprocess.Popen[str] | None = None
        self.issuer = ""

    def __enter__(self) -> "IdentityProvider":
        self.start([private_key("first")])
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, keys: Sequence[dict[str, str]]) -> None:
        """Starts it with these keys, where it was before. The first one signs."""
        client = {
            "client_id": CLIENT, "client_secret": _SECRET, "redirect_uris": [_BACK], "response_types": ["code"],
            "grant_types": ["authorization_code", "client_credentials"], "id_token_signed_response_alg": "ES256",
        }  # fmt: skip
        settings = {
            "modules": str(MODULES), "port": httpx.URL(self.issuer).port or 0,
            "jwks": {"keys": list(keys)}, "clients": [client],
            "certificate": str(self._directory / "provider.pem"), "key": str(self._directory / "provider.key"),
            "resource": API, "alg": "ES256",
        }  # fmt: skip
        path = self._directory / "provider.json"
        path.write_text(json.dumps(settings))
        with (self._directory / "provider.log").open("ab") as log:
            command = ["node", str(SCRIPT), str(path)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        self.issuer = self._process.stdout.readline().strip()
        assert self.issuer.startswith("https://"), (self._directory / "provider.log").read_text()

    def stop(self) -> None:
        """Ends it; `start` starts it again."""
        if self._process is not None:
            self._process.communicate(timeout=READY_S)
            self._process = None

    def sign_in(self, name: str) -> dict[str, str]:
        """Somebody signs in with a browser (authorization code with PKCE): `id_token` and `access_token`."""
        verifier = secrets.token_urlsafe(40)
        asked = {
            "client_id": CLIENT, "response_type": "code", "scope": "openid operate", "resource": _RESOURCE,
            "redirect_uri": _BACK, "code_challenge": b64encode(hashlib.sha256(verifier.encode()).digest()),
            "code_challenge_method": "S256",
        }  # fmt: skip
        with self._browser() as browser:
            page = browser.get("/auth", params=asked)
            while not page.headers.get("location", "").startswith(_BACK):
                if "location" in page.headers:
                    page = browser.get(page.headers["location"])
                else:
                    prompt = "login" if 'value="login"' in page.text else "consent"
                    page = browser.post(page.url, data={"prompt": prompt, "login": name, "password": "any"})
                assert page.status_code in (200, 302, 303), page.text
            code = httpx.URL(page.headers["location"]).params["code"]
            given = {"code": code, "code_verifier": verifier, "redirect_uri": _BACK}
            return self._token(browser, "authorization_code", **given)

    def client_token(self) -> str:
        """The access token of the client itself."""
        with self._browser() as browser:
            return self._token(browser, "client_credentials", scope="operate")["access_token"]

    def _browser(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        return httpx.Client(base_url=self.issuer, verify=context, timeout=READY_S)

    def _token(self, browser: httpx.Client, grant: str, **given: str) -> dict[str, str]:
        data = {"grant_type": grant, "resource": _RESOURCE, **given}
        answer = browser.post("/token", data=data, auth=(CLIENT, _SECRET))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found
