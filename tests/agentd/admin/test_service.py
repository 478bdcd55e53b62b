"""What the admin socket performs, for whom, and what it does with everything else: refuse, count, log, and answer late."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from agentd.admin.access import HINT
from agentd.admin.roles import RULES, Role
from agentd.base.config.config import AuditConfig
from agentd.base.errors import NoSuchLicense
from ipc.bounds import ADMIN_CHALLENGE_S, ADMIN_SESSION_S, ADMIN_SETBACK_S
from ipc.errors import ErrorCode
from ipc.messages import ClockChallenge, Contact, LicenseExplain
from tests.support.adminops import SIGNABLE, body_of, op_of, params_of
from tests.support.adminpki import Ca

from .world import ADMIN, CA, FRONT, KEEPER, OPERATOR, ROOT, VIEWER, AdminSocket, run

pytestmark = pytest.mark.system


def code(reply: dict[str, Any]) -> int | None:
    return reply["error"]["code"] if "error" in reply else None


@pytest.mark.parametrize("op", ["ping", "health", "status"])
def test_what_monitoring_asks_is_counted_in_one_record(tmp_path: Path, op: str) -> None:
    async def work(world: AdminSocket) -> None:
        root = await world.connect(ROOT)
        for _time in range(5):
            assert code(await root.ask(op)) is None
        (record,) = world.records("admin.request")
        assert (record["op"], record["count"], record["actor"]["uid"]) == (op, 5, 0)

    run(tmp_path, work)


def test_every_other_request_is_a_record_of_its_own(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        root = await world.connect(ROOT)
        for _time in range(3):
            assert code(await root.ask("license_explain", by="license", subject="x")) is None
        assert [record.get("count") for record in world.records("admin.request")] == [None] * 3

    run(tmp_path, work)


@pytest.mark.parametrize("request_", [{"op": "ping", "more": 1}, {"op": "shell"}], ids=["malformed", "unknown"])
def test_who_only_sends_nonsense_does_not_fill_the_log(tmp_path: Path, request_: dict[str, Any]) -> None:
    """Else a user who needs a certificate for everything could push the records of others out of the archives' budget."""

    async def work(world: AdminSocket) -> None:
        world.till.audit.reconfigure(AuditConfig(records_per_s=1, burst=3))
        someone = await world.connect()
        for _time in range(20):
            assert code(await someone.ask(**request_)) is not None
        records = world.records("request.refused")
        assert [record.get("count") for record in records] == [None, None, None, 17]
        assert {(record["socket"], record["actor"]["uid"]) for record in records} == {("admin", KEEPER)}
        assert world.till.counters.refused_requests == 20

    run(tmp_path, work)


@pytest.mark.parametrize("broken", [False, True], ids=["answered", "failed"])
def test_who_reads_without_end_does_not_fill_the_log(tmp_path: Path, broken: bool) -> None:
    """What a session reads is counted beyond the budget, by certificate; what changes something is always a record."""

    async def work(world: AdminSocket) -> None:
        async def fails(_request: Any, _peer: Any) -> dict[str, Any]:
            raise NoSuchLicense("this machine knows no such license")

        world.till.audit.reconfigure(AuditConfig(records_per_s=1, burst=3))
        if broken:
            world.handlers[LicenseExplain] = fails
        victor, ann = await world.connect(), await world.connect()
        assert code(await victor.sign(VIEWER, "session_begin")) is None
        for _time in range(20):
            wanted = ErrorCode.NOT_FOUND if broken else None
            assert code(await victor.ask("license_explain", by="license", subject="x")) == wanted
        for _time in range(5):
            assert code(await ann.sign(ADMIN, "reload")) is None
        records = world.records("admin.request")
        reads = [record for record in records if record["op"] == "license_explain"]
        # The session has one of the three.
        assert [record.get("count") for record in reads] == [None, None, 18]
        assert {record["actor"]["certificate"] for record in reads} == {VIEWER.digest}
        assert {record["outcome"] for record in reads} == {"failed" if broken else "ok"}
        assert [record.get("count") for record in records if record["op"] == "reload"] == [None] * 5

    run(tmp_path, work)


@pytest.mark.parametrize("uid", [ROOT, KEEPER])
@pytest.mark.parametrize("request_type", SIGNABLE, ids=op_of)
def test_without_a_certificate_only_the_table_says_what_may_be_done(tmp_path: Path, request_type: Any, uid: int) -> None:
    async def work(world: AdminSocket) -> None:
        rule, op = RULES[request_type], op_of(request_type)
        someone = await world.connect(uid)
        reply = await someone.ask(op, **params_of(request_type))
        if rule.anyone or (uid == ROOT and rule.root):
            assert code(reply) is None and world.performed[0][0] == op
        else:
            assert (code(reply), reply["error"]["text"], world.performed) == (ErrorCode.UNAUTHENTICATED, HINT, [])

    run(tmp_path, work)


@pytest.mark.parametrize("uid", [ROOT, KEEPER])
def test_without_an_admin_ca_the_users_id_is_enough_as_before(tmp_path: Path, uid: int) -> None:
    async def work(world: AdminSocket) -> None:
        someone = await world.connect(uid)
        for request_type in SIGNABLE:
            assert code(await someone.ask(op_of(request_type), **params_of(request_type))) is None
        challenge = await someone.ask("challenge")
        assert challenge["authentication"] == "uid-only"
        assert code(await someone.sign(ADMIN, "rotate")) == ErrorCode.UNAUTHENTICATED

    run(tmp_path, work, pem=None)


@pytest.mark.parametrize("policy", [None, "uid-only", "required"])
@pytest.mark.parametrize("pem", [None, CA.pem], ids=["no CA", "a CA"])
def test_the_front_for_others_needs_a_signature_in_every_mode(tmp_path: Path, policy: str | None, pem: bytes | None) -> None:
    async def work(world: AdminSocket) -> None:
        front = await world.connect(FRONT)
        for request_type in SIGNABLE:
            reply = await front.ask(op_of(request_type), **params_of(request_type))
            wanted = None if RULES[request_type].anyone else ErrorCode.UNAUTHENTICATED
            assert code(reply) == wanted, request_type
        assert {op for op, _ in world.performed} <= {"ping", "health", "system_info", "certificate_check"}
        assert code(await front.sign(ADMIN, "rotate")) == (ErrorCode.UNAUTHENTICATED if pem is None else None)

    run(tmp_path, work, policy=policy, pem=pem)


@pytest.mark.parametrize(("holder", "role"), [(VIEWER, Role.VIEWER), (OPERATOR, Role.OPERATOR), (ADMIN, Role.ADMIN)])
def test_with_a_certificate_the_role_decides_for_root_too(tmp_path: Path, holder: Any, role: Role) -> None:
    async def work(world: AdminSocket) -> None:
        for uid in (ROOT, KEEPER):
            someone = await world.connect(uid)
            for request_type in SIGNABLE:
                reply = await someone.sign(holder, op_of(request_type), **params_of(request_type))
                allowed = role >= RULES[request_type].role
                assert code(reply) == (None if allowed else ErrorCode.REFUSED), request_type
                assert len(reply["next_challenge"]) == 32
        assert {who["role"] for _op, who in world.performed} == {role.name.lower()}
        assert {who["certificate"] for _op, who in world.performed} == {holder.digest}

    run(tmp_path, work)


def test_each_reply_to_a_signed_request_carries_the_next_challenge(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        ann = await world.connect()
        challenge = await ann.ask("challenge")
        assert {**challenge, "challenge": 0, "v": 0, "id": 0} == {
            "v": 0, "id": 0, "agent_id": "till-1", "boot_id": bytes(range(16)), "challenge": 0, "authentication": "required",
        }  # fmt: skip
        for op in ("rotate", "contact", "rotate"):
            reply = await ann.sign(ADMIN, op, challenge=challenge)
            assert reply["done"] is True
            challenge = {**challenge, "challenge": reply["next_challenge"]}
        assert [record["actor"]["name"] for record in world.records("admin.request") if record["op"] != "challenge"] == [
            "ann"
        ] * 3

    run(tmp_path, work)


def test_a_handlers_members_and_those_of_every_reply_never_take_each_others_place(tmp_path: Path) -> None:
    """A clock's challenge is one of the handler's; a member named as one of every reply is a fault of ours."""

    async def work(world: AdminSocket) -> None:
        async def clock(_request: Any, _peer: Any) -> dict[str, Any]:
            return {"challenge": "for the server's clock"}

        async def wrong(_request: Any, _peer: Any) -> dict[str, Any]:
            return {"id": 7}

        world.handlers[ClockChallenge], world.handlers[Contact] = clock, wrong
        ann = await world.connect()
        reply = await ann.sign(ADMIN, "clock_challenge")
        assert reply["challenge"] == "for the server's clock" and len(reply["next_challenge"]) == 32
        assert code(await ann.sign(ADMIN, "contact")) == ErrorCode.INTERNAL

    run(tmp_path, work)


def test_a_challenge_is_worth_nothing_on_another_connection_or_twice_or_late(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        one, other = await world.connect(), await world.connect()
        challenge = await one.ask("challenge")
        assert code(await other.sign(ADMIN, "rotate", challenge=challenge)) == ErrorCode.UNAUTHENTICATED
        await other.ask("challenge")
        assert code(await other.sign(ADMIN, "rotate", challenge=challenge)) == ErrorCode.UNAUTHENTICATED
        assert code(await one.sign(ADMIN, "rotate", challenge=challenge)) is None
        assert code(await one.sign(ADMIN, "rotate", challenge=challenge)) == ErrorCode.UNAUTHENTICATED
        late = await one.ask("challenge")
        world.till.mono += ADMIN_CHALLENGE_S + 1
        assert code(await one.sign(ADMIN, "rotate", challenge=late)) == ErrorCode.UNAUTHENTICATED
        assert [op for op, _who in world.performed].count("rotate") == 1

    run(tmp_path, work)


def test_two_requests_at_once_share_no_challenge(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        ann = await world.connect()
        challenge = await ann.ask("challenge")
        signature = ADMIN.sign(challenge, "rotate")
        order = {"v": 1, "op": "signed", "certificates": [ADMIN.der], "signature": signature}
        await world.till.send(
            ann.sock, *({**order, "id": number, "request": body_of("rotate", {}, number)} for number in range(2, 8))
        )
        replies = await world.till.receive(ann.sock, 6)
        assert [code(reply) for reply in replies] == [None] + [ErrorCode.UNAUTHENTICATED] * 5
        assert [op for op, _who in world.performed].count("rotate") == 1

    run(tmp_path, work)


def test_a_session_is_of_its_connection_and_reads_only(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        ann, other = await world.connect(), await world.connect()
        assert code(await ann.ask("session_begin")) == ErrorCode.UNAUTHENTICATED
        begun = await ann.sign(OPERATOR, "session_begin")
        assert (begun["role"], begun["seconds"]) == ("viewer", ADMIN_SESSION_S)
        assert code(await ann.ask("secrets")) is None
        assert world.performed[-1][1]["name"] == "olga" and world.performed[-1][1]["role"] == "viewer"
        assert code(await ann.ask("rotate")) == ErrorCode.UNAUTHENTICATED
        assert code(await other.ask("secrets")) == ErrorCode.UNAUTHENTICATED
        world.till.mono += ADMIN_SESSION_S
        assert code(await ann.ask("secrets")) == ErrorCode.UNAUTHENTICATED
        assert [record["outcome"] for record in world.records("admin.session")] == ["begun"]

    run(tmp_path, work)


def test_another_ca_ends_the_sessions_of_the_former(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        ann = await world.connect()
        await ann.sign(VIEWER, "session_begin")
        world.access.look()
        assert code(await ann.ask("secrets")) is None  # the same file again
        world.pem = Ca().pem
        world.access.look()
        assert code(await ann.ask("secrets")) == ErrorCode.UNAUTHENTICATED
        assert code(await ann.sign(ADMIN, "rotate")) == ErrorCode.UNAUTHENTICATED

    run(tmp_path, work)


def test_failures_are_answered_later_and_later_but_nobody_is_locked_out(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        thief, stranger = await world.connect(), Ca().issue("stranger")
        for _time in range(12):
            assert code(await thief.sign(stranger, "rotate")) == ErrorCode.UNAUTHENTICATED
        assert world.pauses == sorted(world.pauses) and world.pauses[0] < 1 and world.pauses[-1] == ADMIN_SETBACK_S
        # The same user with a certificate that counts, on another connection: no wait beyond the bound, and it is done.
        ann = await world.connect()
        assert code(await ann.sign(ADMIN, "rotate")) is None
        # Another user, with the same certificate: no wait at all.
        world.pauses.clear()
        root = await world.connect(ROOT)
        assert code(await root.sign(ADMIN, "rotate")) is None
        assert world.pauses == []
        # A minute later the first failure is the first again.
        world.till.mono += 61
        assert code(await thief.sign(stranger, "rotate")) == ErrorCode.UNAUTHENTICATED
        assert world.pauses[0] < 1

    run(tmp_path, work)


def test_refusals_are_counted_logged_and_alerted_within_limits(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        thief, stranger = await world.connect(), Ca().issue("stranger")
        for _time in range(8):
            await thief.sign(stranger, "rotate")
        await thief.ask("secrets")
        alerts = world.records("access.certificate_refused")
        assert 3 <= len(alerts) < 8 and {record["outcome"] for record in alerts} == {"other_ca"}
        assert alerts[0]["actor"] == {"uid": KEEPER, "gid": KEEPER, "pid": 77} and alerts[0]["class"] == "security"
        counted = world.records("admin.refused")
        assert {record["outcome"] for record in counted} == {"other_ca", "no_certificate"}
        assert len(alerts) + sum(record["count"] for record in counted) == 9 == world.till.counters.refused_administrators
        # Nothing of it is taken for something that was performed.
        assert {record["op"] for record in world.records("admin.request")} == {"challenge"}

    run(tmp_path, work)


def test_a_refusal_names_the_certificate_that_was_shown_and_what_was_wanted(tmp_path: Path) -> None:
    """Who finds a stolen key at work must know whose it is; and what an operator tried is not only that they tried."""

    async def work(world: AdminSocket) -> None:
        thief, olga = await world.connect(), await world.connect(ROOT)
        assert code(await thief.ask("challenge")) is None
        assert code(await olga.sign(ADMIN, "admin_revoke", digests=[VIEWER.digest])) is None
        await world.access.revoke((VIEWER.digest,), {})
        for _time in range(5):
            assert code(await thief.sign(VIEWER, "status")) == ErrorCode.UNAUTHENTICATED
        assert code(await olga.sign(OPERATOR, "secret_invalidate", version=1)) == ErrorCode.REFUSED
        challenge = await olga.ask("challenge")
        assert code(await olga.sign(ADMIN, "rotate", challenge={**challenge, "boot_id": bytes(16)})) is not None
        found = [*world.records("access.certificate_refused"), *world.records("admin.refused")]
        revoked = [record for record in found if record["outcome"] == "revoked"]
        assert {(record["shown"]["certificate"], record["shown"]["name"]) for record in revoked} == {(VIEWER.digest, "victor")}
        assert any("count" in record for record in revoked), "those beyond the alerts too"
        # What is inside counts as wanted only once the signature has been found right.
        assert not any("wanted" in record for record in revoked)
        (role,) = [record for record in found if record["outcome"] == "role"]
        assert (role["shown"]["name"], role["shown"]["certificate"], role["wanted"]) == (
            "olga",
            OPERATOR.digest,
            "secret_invalidate",
        )
        (forged,) = [record for record in found if record["outcome"] == "bad_signature"]
        assert forged["shown"]["certificate"] == ADMIN.digest and "wanted" not in forged

    run(tmp_path, work)


def test_the_required_mode_needs_a_ca_and_leaves_recovery_without_one(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        keeper, root = await world.connect(), await world.connect(ROOT)
        assert code(await keeper.ask("status")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.sign(ADMIN, "status")) == ErrorCode.UNAUTHENTICATED
        assert code(await root.ask("status")) is None and code(await root.ask("clock_confirm")) is None
        assert code(await root.ask("rotate")) == ErrorCode.UNAUTHENTICATED
        assert code(await keeper.ask("health")) is None
        assert len(world.records("alert.admin_ca_unusable")) == 1

    run(tmp_path, work, policy="required", pem=None)


def test_a_file_that_cannot_be_used_is_not_taken_for_none(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        world.problem = "it must be a file that belongs to root"
        world.access.look()
        keeper = await world.connect()
        assert code(await keeper.ask("status")) == ErrorCode.UNAUTHENTICATED
        assert world.access.view()["mode"] == "required" and world.access.view()["ca_problem"] == world.problem

    run(tmp_path, work)


def test_a_user_who_is_not_on_the_list_gets_no_challenge(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        stranger = await world.connect(4711)
        (reply,) = await world.till.to_the_end(stranger.sock)
        assert code(reply) == ErrorCode.FORBIDDEN

    run(tmp_path, work)


def test_what_a_connection_has_begun_is_forgotten_with_it(tmp_path: Path) -> None:
    async def work(world: AdminSocket) -> None:
        ann = await world.connect()
        await ann.ask("challenge")
        assert len(world.service._talks) == 1
        ann.sock.close()
        for _time in range(20):
            await asyncio.sleep(0)
        gc.collect()
        assert len(world.service._talks) == 0

    run(tmp_path, work)
