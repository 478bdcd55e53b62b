"""What an attacker tries: tokens that nobody issued, a request sent twice, a user who is not allowed."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from joserfc import jwe, jws
from joserfc.jwk import ECKey, OctKey
from license_agent_client.clientwire import decode_reply, encode_request
from license_agent_client.errors import RemoteProtocolError
from license_agent_client.frames import FrameDecoder

from server.wiring import open_server
from stand.programs import READY_S

from .scenario import Scenario

STRANGER_UID = 54321


def forged(scenario: Scenario) -> str:
    """What a thief makes who has stolen the agent's secret, but not the issuer's key."""
    server_side = open_server(Path(scenario.info["env"]["LICENSE_SERVER_DIR"]))
    with server_side.database.read() as session:
        opened = server_side.secrets.open(session, "pos-001", 3)
    kid = next(iter(server_side.keys.license_public_keys()))
    server_side.close()
    if opened is None:
        raise RuntimeError("there is no secret to steal")
    now = int(time.time())
    claims = {
        "iss": "license-server",
        "sub": "Thief",
        "aud": "pos-001",
        "iat": now,
        "nbf": now - 10,
        "exp": now + 10**6,
        "jti": "forged",
        "features": ["everything"],
        "metadata": {},
    }
    header = {"alg": "ES256", "typ": "license+jwt", "kid": kid}
    signed = jws.serialize_compact(header, json.dumps(claims), ECKey.generate_key("P-256"), algorithms=["ES256"])
    envelope = {"alg": "dir", "enc": "A256GCM", "cty": "JWT", "kid": "pos-001/3"}
    token: str = jwe.encrypt_compact(envelope, signed.encode(), OctKey.import_key(opened[1]), algorithms=["dir", "A256GCM"])
    return token


def unsigned(scenario: Scenario) -> str:
    """A token whose header claims an algorithm that is never issued."""
    header = base64.urlsafe_b64encode(b'{"alg":"none","cty":"JWT","enc":"A256GCM","kid":"pos-001/3"}').rstrip(b"=").decode()
    return header + scenario.tokens["valid"][scenario.tokens["valid"].index(".") :]


def replay(scenario: Scenario) -> str:
    """Sends the same request, nonce and all, twice."""
    fields = {"token": scenario.tokens["valid"], "nonce": os.urandom(16)}
    answers = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(READY_S)
        sock.connect(scenario.info["pos_socket"])
        decoder = FrameDecoder()
        for number in (1, 2):
            sock.sendall(encode_request("validate_license", number, fields))
            bodies: list[bytes] = []
            while not bodies:
                bodies = decoder.receive_data(sock.recv(65536))
            try:
                answers.append("valid" if decode_reply(bodies[0], number)["valid"] else "refused")
            except RemoteProtocolError as error:
                answers.append(f"refused: {error.code.name}")
    return ", then ".join(answers)


def stranger(scenario: Scenario) -> str:
    """Asks as a user who is not on the allow-list."""
    # All is imported before the user changes: the stranger could not read a checkout in root's home.
    code = (
        "import os, sys, json, encodings.idna, license_agent_client.posclient.shell as shell\n"
        f"os.setgroups([]); os.setgid({STRANGER_UID}); os.setuid({STRANGER_UID})\n"
        "sys.exit(shell.main(['validate', sys.argv[1]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, scenario.tokens["valid"]],
        env=scenario.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_S,
        cwd="/",
    )
    return "refused: FORBIDDEN" if done.returncode == 4 and "FORBIDDEN" in done.stderr else f"{done.stdout}{done.stderr}"


def unknown_version(scenario: Scenario) -> str:
    """A token under a secret that the server has made and never delivered."""
    scenario.tool("license-server", "rotate", "--agent", "pos-001", "--out", os.devnull)
    return scenario.tool("license-server", "issue", "--agent", "pos-001", "--feature", "x", "--expires", "+1d").strip()


def invalidate(scenario: Scenario) -> str:
    """An administrator invalidates version 2; the license that it carried a moment ago is refused."""
    scenario.tool("license-agent-cli", "secrets", "invalidate", "2", "--yes")
    return scenario.verdict(scenario.tokens["grace"])
