"""The link has been taken over: it sees all, and alters, replays, withholds and makes up what it likes. It can only delay."""

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.enrollment.enrollment import NOBODY, Begun, Completed
from contracts.exchange import (
    REPLY_TYPE,
    ConfirmReply,
    Refusal,
    RefusalCode,
    ReissueReply,
    RotateReply,
    RotateSecret,
    SecretStatus,
    StatusReply,
)
from contracts.exchange import (
    Reply as Signed,
)
from contracts.jose import b64decode
from ipc.linkmessages import LINK_VERSION, FailCode, Head, encode_link
from ipc.posclient.policy import AgentRefused
from server.wiring import Plan, create_server
from tests.support.apiclient import PREFIX, Device, sign
from tests.support.chain import Chain, Till, running_chain
from tests.support.hostilelink import Asked, Behavior, Failure, Raw, Reply, Said, always, payload_of, with_payload
from tests.support.serverside import ServerSide, open_server

pytestmark = pytest.mark.slow

OVERSIZE = 2 * 1024 * 1024 + 1


class Liar:
    """What a hostile link may have at hand: a server of its own, and an agent of its own at the real server."""

    def __init__(self, chain: Chain, directory: Path) -> None:
        self.chain = chain
        create_server(directory / "other", Plan("license-server", ("127.0.0.1",), directory / "root", None), int(time.time()))
        self.other: ServerSide = open_server(directory / "other")
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._directory = directory
        self._device: Device | None = None

    @property
    def device(self) -> Device:
        """An agent of the attacker, known to the real server."""
        if self._device is None:
            self._device = Device(self.chain.server.base, self.chain.server.root, self._directory)
            self._device.provision(self.chain.server.claim(), self.chain.server.pins)
        return self._device

    def status(self, asked: Asked, **changes: Any) -> Signed:
        """What the server could say to this request, were it the server that says it."""
        request = asked.request
        head = {"agent_id": request["agent_id"], "request_id": request["request_id"], "issued_at": int(time.time())}
        if asked.purpose == "rotate-secret":
            return RotateReply(delivery="a.b.c", **head)
        if asked.purpose == "confirm-rotation":
            return ConfirmReply(secret_version=request["secret_version"], **head)
        if asked.purpose == "reissue-licenses":
            return ReissueReply(tokens=(), missing=tuple(request["licenses"]), **head)
        fields = {"secret_version": 7, "rotate_now": True, "revocations": 9, "key_set": 9, "next_contact_s": 30 * 86_400}
        return StatusReply(**(fields | head | changes))


Lie = Callable[[Liar, Asked], Said]


def reply(text: str, status: int = 200) -> Reply:
    return Reply(json.dumps({"reply": text}).encode(), status)


def honest_text(asked: Asked) -> str:
    answer = asked.forward()
    assert isinstance(answer, Reply), answer
    return str(answer.content["reply"])


def error(status: int, code: str, *headers: tuple[str, str]) -> Lie:
    body = json.dumps({"error": {"code": code, "text": "go away"}}).encode()
    return lambda _liar, _asked: Reply(body, status, (("content-type", "application/json"), *headers))


def flipped(_liar: Liar, asked: Asked) -> Said:
    header, payload, signature = honest_text(asked).split(".")
    return reply(f"{header}.{payload}.{'B' if signature[0] != 'B' else 'C'}{signature[1:]}")


def altered(_liar: Liar, asked: Asked) -> Said:
    return reply(with_payload(honest_text(asked), issued_at=4_000_000_000))


def replayed(liar: Liar, asked: Asked) -> Said:
    earlier = [
        each.said for each in liar.chain.bad.of(asked.purpose) if isinstance(each.said, Reply) and each.said.status == 200
    ]
    assert earlier
    return earlier[0]


def unsigned_refusal(_liar: Liar, asked: Asked) -> Said:
    request = asked.request
    content = Refusal(
        agent_id=request["agent_id"],
        request_id=request["request_id"],
        issued_at=1,
        code=RefusalCode.AGENT_REVOKED,
        text="this agent is revoked",
    )
    key = ec.generate_private_key(ec.SECP256R1())
    return reply(sign(content, REPLY_TYPE, _kid(honest_text(asked)), key), 403)


def _kid(jws: str) -> str:
    return str(json.loads(b64decode(jws.split(".")[0]))["kid"])


def forged(liar: Liar, asked: Asked) -> Said:
    """The name of the server's key, another key."""
    return reply(sign(liar.status(asked), REPLY_TYPE, _kid(honest_text(asked)), liar.key))


def of_another_server(liar: Liar, asked: Asked) -> Said:
    return reply(liar.other.keys.sign_reply(liar.status(asked)))


def unsigned(liar: Liar, asked: Asked) -> Said:
    text = liar.other.keys.sign_reply(liar.status(asked))
    _, payload, _ = text.split(".")
    return reply(f"eyJhbGciOiJub25lIn0.{payload}.")


def of_another_agent(liar: Liar, asked: Asked) -> Said:
    """Signed by the server, in answer to a request with the same id, of the attacker's own agent."""
    kinds: dict[str, tuple[type, dict[str, Any]]] = {
        "secret-status": (SecretStatus, {}),
        "rotate-secret": (RotateSecret, {"cause": "due"}),
    }
    if asked.purpose not in kinds:
        return reply(liar.other.keys.sign_reply(liar.status(asked)))
    kind, fields = kinds[asked.purpose]
    fields = {"current_secret_version": 0, "key_check": None, "highest_version": 0, "serial": 1} | fields
    with liar.device.client() as client:
        challenge = liar.device.challenge(client)
        request = liar.device.request(kind, challenge, request_id=asked.request["request_id"], **fields)
        response = client.post(f"{PREFIX}/{asked.purpose}", json={"request": liar.device.sign(request)})
        assert response.status_code == 200, response.text
        return Reply(response.content)


def answer_to_another_question(liar: Liar, asked: Asked) -> Said:
    """A genuine answer of the server to this agent, of another kind."""
    wanted = "secret-status" if asked.purpose != "secret-status" else "rotate-secret"
    found = [each.said for each in liar.chain.bad.of(wanted) if isinstance(each.said, Reply)]
    assert found
    return found[-1]


def out_of_turn(_liar: Liar, asked: Asked) -> Said:
    head = Head(v=LINK_VERSION, id=asked.fetch.id, status=200, headers=())
    return Raw(encode_link(head) * 2)


LIES: dict[str, Lie] = {
    "closes": lambda _liar, _asked: None,
    "fails": lambda _liar, _asked: Failure(FailCode.UNREACHABLE),
    "pin": lambda _liar, _asked: Failure(FailCode.PIN_MISMATCH, "no pinned key"),
    "malformed": lambda _liar, _asked: Failure(FailCode.MALFORMED, "\x1b[2J\nALERT all is well"),
    "400": error(400, "bad_request"),
    "401": error(401, "unknown_agent"),
    "403": error(403, "agent_revoked"),
    "410": error(410, "agent_revoked"),
    "503": error(503, "unavailable", ("retry-after", "99999999999")),
    "no JSON": lambda _liar, _asked: Reply(os.urandom(3000)),
    "deep JSON": lambda _liar, _asked: Reply(b'{"reply":' + b"[" * 100_000),
    "another form": lambda _liar, _asked: Reply(b'{"reply": 7}'),
    "nothing": lambda _liar, _asked: Reply(b""),
    "oversize": lambda _liar, _asked: Reply(b" " * OVERSIZE),
    "garbage frame": lambda _liar, _asked: Raw(struct.pack(">I", 40) + os.urandom(40)),
    "endless frame": lambda _liar, _asked: Raw(struct.pack(">I", 2**32 - 1) + bytes(1000)),
    "half a frame": lambda _liar, _asked: Raw(struct.pack(">I", 100) + bytes(10)),
    "out of turn": out_of_turn,
    "a flipped bit": flipped,
    "altered content": altered,
    "an old answer": replayed,
    "another question's answer": answer_to_another_question,
    "a refusal of its own": unsigned_refusal,
    "a forged answer": forged,
    "another server's answer": of_another_server,
    "an unsigned answer": unsigned,
    "another agent's answer": of_another_agent,
}


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with running_chain() as made:
        made.first_token = made.issue("till-1")
        made.admin("rotate")
        yield made


@pytest.fixture(scope="module")
def liar(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Liar]:
    made = Liar(chain, tmp_path_factory.mktemp("liar"))
    yield made
    made.other.close()


def lying(liar: Liar, purpose: str, lie: Lie) -> Behavior:
    return always(purpose, lambda asked: lie(liar, asked))


def rotation_meets(chain: Chain, purpose: str) -> str:
    """A rotation that fails at a request with that purpose; what the administrator is told."""
    heard = len(chain.bad.of(purpose))
    while True:
        told = chain.rotate_fails()
        if len(chain.bad.of(purpose)) > heard:
            return told
        time.sleep(1)  # the server had enough of this agent's requests for the moment


def rotate_when_served(chain: Chain) -> None:
    """The tests before may have used up what the server allows an agent in a second."""
    for _ in range(10):
        try:
            chain.admin("rotate")
        except AgentRefused as error:
            if "too many requests" not in str(error):
                raise
            time.sleep(1)
        else:
            return
    raise AssertionError("the server refused for its rate limit ten times")


def _without(snapshot: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in snapshot.items() if name not in names}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("purpose", ["secret-status", "rotate-secret"])
def test_nothing_changes_and_the_honest_link_is_enough(
    chain: Chain, liar: Liar, tmp_path: Path, purpose: str, lie: str
) -> None:
    chain.let_old_versions_end()
    till = Till(chain, chain.first_token, tmp_path / "token")
    with till.working():
        chain.wait_until(lambda: till.rounds > 0)
        before = chain.snapshot()
        with chain.bad.behaving(lying(liar, purpose, LIES[lie])):
            told = rotation_meets(chain, purpose)
            assert "\x1b" not in told and "\n" not in told
            # Where somebody says that its certificate does not count, the agent gets another from the server itself.
            renewed = {"certificate_ends", "generation"} if lie == "401" else set()
            assert _without(chain.snapshot(), renewed) == _without(before, renewed)
            status = chain.admin("status")["server"]
            assert status["failures"] >= 1 and status["problem"]
            assert status["next_contact_s"] <= 900, "a link cannot silence an agent"
        newest = chain.newest()
        chain.settle()
        if chain.newest() == newest:
            rotate_when_served(chain)
        chain.assert_agreed()
        assert chain.newest() == newest + 1
    chain.first_token = till.kept
    assert not chain.records("alert.server_refuses"), "nobody but the server can have refused this agent"


@pytest.mark.parametrize("lie", ["closes", "403", "no JSON", "a forged answer", "another server's answer", "an old answer"])
@pytest.mark.parametrize("purpose", ["confirm-rotation", "reissue-licenses"])
def test_a_rotation_that_is_held_up_later_goes_on_later(
    chain: Chain, liar: Liar, tmp_path: Path, purpose: str, lie: str
) -> None:
    chain.let_old_versions_end()
    till = Till(chain, chain.first_token, tmp_path / "token")
    with till.working():
        chain.wait_until(lambda: till.rounds > 0)
        newest = chain.newest()
        with chain.bad.behaving(lying(liar, purpose, LIES[lie])):
            rotation_meets(chain, purpose)
            step = chain.admin("status")["server"]["rotation"]
            assert step == {"confirm-rotation": "sealed", "reissue-licenses": "confirmed"}[purpose]
            # What is sealed is good for both: the server makes licenses with the old one as long as it has heard nothing.
            before = chain.snapshot()
            assert chain.asks("contact")
            assert chain.snapshot() == before
        chain.settle()
        assert chain.newest() == newest + 1
    chain.first_token = till.kept


CHALLENGES: dict[str, Said] = {
    "none": Reply(b"{}"),
    "too short": Reply(b'{"challenge": "a"}'),
    "too long": Reply(json.dumps({"challenge": "a" * 300}).encode()),
    "no text": Reply(b'{"challenge": ["a"]}'),
    "made up": Reply(json.dumps({"challenge": "A" * 75}).encode()),
    "half a character": Reply(json.dumps({"challenge": "\ud800" * 20}).encode()),
}


@pytest.mark.parametrize("name", CHALLENGES)
def test_a_made_up_challenge_gets_nothing_signed_that_the_server_takes(chain: Chain, liar: Liar, name: str) -> None:
    chain.kill_agent()  # it holds no challenge now
    chain.settle()
    chain.kill_agent()
    before = chain.snapshot()
    with chain.bad.behaving(always("challenge", lambda _asked: CHALLENGES[name])):
        chain.rotate_fails()
        assert chain.snapshot() == before
    chain.settle()


KEY_SETS: dict[str, Lie] = {
    "garbage": lambda _liar, _asked: Reply(os.urandom(500)),
    "another root": lambda liar, _asked: Reply(liar.other.keys.key_set().encode()),
    "altered": lambda _liar, asked: Reply(with_payload(key_set_of(asked), number=99).encode()),
    "the same again": lambda _liar, asked: Reply(key_set_of(asked).encode()),
    "404": error(404, "bad_request"),
    "oversize": lambda _liar, _asked: Reply(b"A" * OVERSIZE),
}


def key_set_of(asked: Asked) -> str:
    answer = asked.forward()
    assert isinstance(answer, Reply)
    return answer.body.decode()


@pytest.mark.parametrize("name", KEY_SETS)
def test_a_key_set_that_the_root_has_not_signed_anew_is_not_taken(chain: Chain, liar: Liar, name: str) -> None:
    """A foreign signature makes the agent ask for the key set: what it gets then need not be one."""
    chain.settle()
    before = chain.snapshot()

    def behave(asked: Asked) -> Said:
        if asked.purpose == "key-set":
            return KEY_SETS[name](liar, asked)
        return of_another_server(liar, asked) if asked.purpose == "secret-status" else asked.forward()

    with chain.bad.behaving(behave):
        assert chain.asks("contact")
        assert chain.bad.of("key-set")
        assert chain.snapshot() == before
    chain.settle()


# Provisioning


def begun_replayed(liar: Liar, asked: Asked) -> Said:
    earlier = [each.said for each in liar.chain.bad.of("provision") if isinstance(each.said, Reply)]
    assert earlier and isinstance(asked.forward(), Reply)
    return earlier[0]


def begun_altered(_liar: Liar, asked: Asked) -> Said:
    text = honest_text(asked)
    return reply(with_payload(text, nonce=payload_of(text)["nonce"][::-1]))


def begun_with_a_credential(_liar: Liar, asked: Asked) -> Said:
    return reply(with_payload(honest_text(asked), credential_blob="AAAA", encrypted_secret="AAAA"))


def begun_of_its_own(liar: Liar, asked: Asked) -> Said:
    content = Begun(
        agent_id=NOBODY, request_id=asked.body["request_id"], issued_at=1, session=os.urandom(16).hex(), nonce="A" * 43
    )
    return reply(liar.other.keys.sign_reply(content))


def completed_of_its_own(liar: Liar, asked: Asked) -> Said:
    content = Completed(
        agent_id="pos-666",
        request_id=asked.request["request_id"],
        issued_at=1,
        serial=1,
        attestation="attested",
        certificates=liar.device.certificates,
        key_set=liar.other.keys.key_set(),
    )
    return reply(liar.other.keys.sign_reply(content))


def completed_altered(liar: Liar, asked: Asked) -> Said:
    return reply(with_payload(honest_text(asked), agent_id="pos-666", key_set=liar.other.keys.key_set()))


def lost(_liar: Liar, asked: Asked) -> Said:
    assert isinstance(asked.forward(), Reply)
    return None


PROVISIONING: dict[str, tuple[str, Lie]] = {
    "withholds the key set": ("key-set", lambda _liar, _asked: None),
    "alters the key set": ("key-set", KEY_SETS["altered"]),
    "shows another root": ("key-set", KEY_SETS["another root"]),
    "swaps the nonce": ("provision", begun_altered),
    "adds a credential": ("provision", begun_with_a_credential),
    "replays Begun": ("provision", begun_replayed),
    "makes up Begun": ("provision", begun_of_its_own),
    "refuses the claim": ("provision", error(403, "claim_refused")),
    "loses Begun": ("provision", lost),
    "makes up Completed": ("provision/complete", completed_of_its_own),
    "alters Completed": ("provision/complete", completed_altered),
    "loses Completed": ("provision/complete", lost),
}


def test_a_lie_leaves_the_device_unprovisioned_and_the_claim_good(tmp_path: Path) -> None:
    with running_chain(provisioned=False) as chain:
        liar = Liar(chain, tmp_path)
        claim = chain.server.claim()
        for name, (purpose, lie) in PROVISIONING.items():
            with chain.bad.behaving(lying(liar, purpose, lie)):
                told = chain.asks("provision", **chain.wish(claim))
            assert told, f"a link that {name} has the device provisioned"
            assert chain.bad.of(purpose), name
            assert chain.mode() == "unprovisioned", name
            assert not (chain.agent.state / "secret.enc").exists(), name
        # What the link saw of the claim is of no use to another device: it is encrypted, and bound to this one's hardware.
        assert claim.encode() not in b"".join(asked.fetch.body for asked in chain.bad.asked)
        chain.agent_id = chain.admin("provision", **chain.wish(claim))["agent_id"]
        chain.wait_until(lambda: chain.mode() == "online")
        chain.settle()
        with chain.server_side() as server_side:
            agents = [row.agent_id for row in server_side.agents.listed()]
        liar.other.close()
        assert chain.agent_id in agents and len(agents) == 2, "one device has become one agent, besides the attacker's"
