"""What attackers try: another device's path, tokens that do not count, headers of proxies, files, bodies, old feedback."""

import dataclasses
import json
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.base.limits import ADDRESS_RATE, AGENT_RATE, MAX_BODY_BYTES
from server.fleet.ddi import credentials
from server.fleet.devices import blocklist
from server.registry.models.fleets import FleetMember
from server.web.peers import Peer, peer_of
from tests.server.devices import NOW, make_csr
from tests.server.hawkbit.conftest import BASE, PACKAGE, World


def write(world: World, act: Any, *arguments: Any, **named: Any) -> Any:
    with world.server.database.write() as session:
        return act(session, *arguments, **named)


def gateway(world: World, fleet: str = "shops", **named: Any) -> tuple[tuple[str, str], ...]:
    made = write(world, credentials.make_gateway, fleet, int(world.now), **named)
    return (("Authorization", f"GatewayToken {made.text}"),)


def certificate(world: World, device: str, **changes: Any) -> Peer:
    """The certificate of a device as the TLS layer names it, known to the registry."""
    csr = make_csr(ec.generate_private_key(ec.SECP256R1()))
    pem = write(world, credentials.issue, world.server.keys, device, csr, NOW)[0]
    peer = peer_of(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
    return dataclasses.replace(peer, **changes)


# Who asks


def test_each_way_to_identify_a_device_counts_for_that_device(world: World) -> None:
    world.add("till-2", "shops")
    mine = certificate(world, "till-1")
    assert mine.device_id == "till-1"
    assert mine.agent_id == "", "no agent's endpoint takes it for an agent"
    assert world.ask("GET", "till-1", peer=mine).status == 200
    assert world.ask("GET", "till-1", "till-1").status == 200
    assert world.ask("GET", "till-1", headers=gateway(world)).status == 200
    # Another device's id in the path.
    assert world.ask("GET", "till-2", peer=mine).status == 401
    assert world.ask("GET", "till-2", "till-1").status == 401
    assert world.ask("GET", "till-2", headers=gateway(world)).status == 200


def test_a_gateway_token_is_for_the_devices_of_its_fleet_as_they_are_now(world: World) -> None:
    world.fleet("offices", 2)
    world.add("till-2", "offices")
    headers = gateway(world)
    assert world.ask("GET", "till-2", headers=headers).status == 401
    assert world.ask("GET", "nobody", headers=headers).status == 401, "it adds no devices"
    with world.server.database.write() as session:
        member = session.get(FleetMember, ("shops", "till-1"))
        session.delete(member)
    assert world.ask("GET", "till-1", headers=headers).status == 401


def test_a_gateway_token_is_replaced_with_an_overlap(world: World) -> None:
    former = gateway(world)
    present = gateway(world, overlap_s=100)
    assert world.ask("GET", "till-1", headers=former).status == 200
    world.now += 100
    assert world.ask("GET", "till-1", headers=former).status == 401
    assert world.ask("GET", "till-1", headers=present).status == 200


def test_what_was_blocked_or_revoked_counts_no_more_from_the_next_request_on(world: World) -> None:
    mine = certificate(world, "till-1")
    made = write(world, credentials.make_target, "till-1", NOW)
    token = (("Authorization", f"TargetToken {made.text}"),)
    assert world.ask("GET", "till-1", peer=mine).status == 200
    write(world, credentials.revoke, made.credential_id, NOW)
    assert world.ask("GET", "till-1", headers=token).status == 401
    assert world.ask("GET", "till-1", peer=mine).status == 200
    write(world, credentials.revoke, mine.fingerprint, NOW)
    assert world.ask("GET", "till-1", peer=mine).status == 401
    shared = gateway(world)
    write(world, blocklist.block, world.server.server.agents, "till-1", NOW)
    assert world.ask("GET", "till-1", headers=shared).status == 401
    write(world, blocklist.unblock, world.server.server.agents, "till-1", NOW)
    assert world.ask("GET", "till-1", headers=shared).status == 200


def test_only_a_certificate_that_the_registry_knows_as_this_devices_counts(world: World) -> None:
    mine = certificate(world, "till-1")
    for changes in (
        {"device_id": "till-2"},
        {"device_id": ""},
        {"device_id": "", "agent_id": "till-1"},
        {"fingerprint": "00" * 32},
        {"not_after": NOW - 1},
        {"not_before": NOW + 1},
    ):
        assert world.ask("GET", "till-1", peer=dataclasses.replace(mine, **changes)).status == 401, changes


COUNTING_NOTHING: tuple[tuple[tuple[str, str], ...], ...] = (
    (),
    (("X-Ssl-Client-Cn", "till-1"), ("X-Ssl-Issuer-Hash-1", "Hijacked")),
    (("Client-Certificate", "-----BEGIN CERTIFICATE-----"), ("Client-Address", "127.0.0.1")),
    (("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Client-Cert", "Subject=till-1")),
    (("Authorization", "TargetToken "),),
    (("Authorization", "TargetToken ddt_" + "A" * 43),),
    (("Authorization", "GatewayToken ddg_" + "A" * 43),),
    (("Authorization", "Basic dGlsbC0xOng="),),
    (("Authorization", "TargetToken " + "A" * 10_000),),
    (("Authorization", "TargetToken \xff\xfe"),),
)


def test_whoever_does_not_show_what_counts_is_refused_in_hawkbits_form(world: World) -> None:
    for headers in COUNTING_NOTHING:
        response = world.ask("GET", "till-1", headers=headers)
        assert response.status == 401, headers
        assert set(response.json) == {"exceptionClass", "errorCode", "message"}
        assert response.headers["connection"] == "close"


def test_a_token_counts_as_its_kind_only_and_once(world: World) -> None:
    target, shared = world.tokens["till-1"], gateway(world)[0][1].split()[1]
    assert world.ask("GET", "till-1", headers=(("Authorization", f"GatewayToken {target}"),)).status == 401
    assert world.ask("GET", "till-1", headers=(("Authorization", f"TargetToken {shared}"),)).status == 401
    both = (("Authorization", f"TargetToken {target}"),) * 2
    assert world.ask("GET", "till-1", headers=both).status == 401
    assert world.ask("GET", "till-1", "till-1", peer=certificate(world, "till-1")).status == 401


def test_the_registry_has_no_token(world: World) -> None:
    text = gateway(world)[0][1].split()[1]
    database = (world.server.place.directory / "server.db").read_bytes()
    log = (world.server.place.directory / "server.db-wal").read_bytes()
    for secret in (text, world.tokens["till-1"]):
        assert secret.encode() not in database + log
        assert credentials.digest_of(secret).encode() in database + log


def test_another_tenant_is_refused(world: World) -> None:
    assert world.ask("GET", "/other/controller/v1/till-1", "till-1").status == 401


# Paths and files


def offered(world: World) -> int:
    world.order("till-1")
    number = world.offered("till-1")
    world.ask("GET", f"till-1/deploymentBase/{number}", "till-1")
    return number


NAMES = (
    "../../../server/master.key",
    "..%2f..%2fserver%2fmaster.key",
    "%2e%2e/%2e%2e/master.key",
    "..",
    ".",
    "",
    "/etc/passwd",
    "pos-2.1.swu%00",
    "pos-2.1.swu/..",
    "other.swu",
    "pos-2.1.swu.MD5SUM.MD5SUM",
    "pos-2.1.swu\\..",
)


def test_no_name_leads_to_another_file(world: World) -> None:
    number = offered(world)
    for name in NAMES:
        response = world.ask("GET", f"till-1/softwaremodules/{number}/artifacts/{name}", "till-1")
        assert response.status == 404, name
        assert response.json["errorCode"] == "hawkbit.server.error.repo.entitiyNotFound"


def test_a_link_in_the_repository_is_not_followed(world: World) -> None:
    number = offered(world)
    file = next((world.repository / "targets" / "pos").iterdir())
    (world.repository / "secret").write_bytes(b"secret")
    file.unlink()
    file.symlink_to(world.repository / "secret")
    assert world.ask("GET", f"till-1/softwaremodules/{number}/artifacts/pos-2.1.swu", "till-1").status == 404


PATHS = (
    "/",
    "/default/controller/v1",
    "/default/controller/v1/",
    f"{BASE}/till-1/nothing",
    f"{BASE}/til%6c-1",
)


def test_other_paths_are_refused(world: World) -> None:
    for path in PATHS:
        assert world.ask("GET", path, "till-1").status == 404, path


def test_other_methods_are_refused(world: World) -> None:
    response = world.ask("DELETE", "till-1", "till-1")
    assert (response.status, response.headers["allow"]) == (405, "GET")
    assert world.ask("POST", "till-1", "till-1", {}).status == 405


def test_another_devices_action_is_none_of_this_ones(world: World) -> None:
    number = offered(world)
    world.add("till-2", "shops")
    for path in (
        f"deploymentBase/{number}", f"cancelAction/{number}", f"installedBase/{number}", f"confirmationBase/{number}",
        f"softwaremodules/{number}/artifacts", f"softwaremodules/{number}/artifacts/pos-2.1.swu",
        f"softwaremodules/{number}/artifacts/pos-2.1.swu.MD5SUM",
    ):  # fmt: skip
        assert world.ask("GET", f"till-2/{path}", "till-2").status == 404, path
    assert world.feedback("till-2", number, "closed", "success").status == 404
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    assert world.ask("POST", f"till-2/cancelAction/{number}/feedback", "till-2", body).status == 404
    confirmed = {"confirmation": "confirmed"}
    assert world.ask("POST", f"till-2/confirmationBase/{number}/feedback", "till-2", confirmed).status == 404
    assert world.state(number) == "fetched"


# Feedback


def test_feedback_that_is_sent_again_changes_nothing(world: World) -> None:
    number = offered(world)
    assert world.feedback("till-1", number, "closed", "success").status == 200
    reports = list(world.rollouts.reports)
    assert world.feedback("till-1", number, "closed", "success").status == 410
    assert world.state(number) == "installed"
    assert world.rollouts.reports == reports
    world.attributes("till-1", pos__version="2.1")
    assert world.feedback("till-1", number, "closed", "failure").status == 410
    assert world.state(number) == "proved"


def test_feedback_of_an_action_that_has_ended_does_not_reach_the_next_one(world: World) -> None:
    old = offered(world)
    world.feedback("till-1", old, "closed", "failure")
    world.publish("pos/pos-2.2.swu", "2.2", content=b"next")
    world.order("till-1", "pos/pos-2.2.swu", "2.2")
    new = world.offered("till-1")
    assert new != old
    assert world.feedback("till-1", old, "closed", "success").status == 410
    assert world.feedback("till-1", new, "closed", "success", id=str(old)).status == 404, "the body names the old one"
    assert (world.state(old), world.state(new)) == ("failed", "offered")


def test_numbers_that_are_none_are_refused(world: World) -> None:
    offered(world)
    for number in ("0", "-1", "999999", "1e3", "99999999999999999999", "1%00"):
        assert world.ask("GET", f"till-1/deploymentBase/{number}", "till-1").status == 404, number


MALFORMED = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"status":{}}',
    b'{"status":{"execution":"closed"}}',
    b'{"status":{"execution":"exploded","result":{"finished":"success"}}}',
    b'{"status":{"execution":"closed","result":{"finished":"success"},"details":"text"}}',
    b'{"status":{"execution":"closed","result":{"finished":"success"},"details":[1]}}',
    b'{"id":[],"status":{"execution":"closed","result":{"finished":"success"}}}',
    b"[" * 30_000,
    b'{"status":' * 5_000,
    b"\xff\xfe",
)


def test_a_malformed_body_is_refused_and_not_repeated(world: World) -> None:
    number = offered(world)
    for raw in MALFORMED:
        response = world.ask("POST", f"till-1/deploymentBase/{number}/feedback", "till-1", raw=raw)
        assert (response.status, response.json["errorCode"]) == (400, "hawkbit.server.error.rest.body.notReadable"), raw[:40]
        assert "exploded" not in response.json["message"]
    assert world.state(number) == "fetched"


def test_a_body_that_is_too_large_is_refused_unread(world: World) -> None:
    number = offered(world)
    raw = json.dumps({"status": {"execution": "closed", "result": {"finished": "success"}}, "x": "y" * MAX_BODY_BYTES}).encode()
    response = world.ask("POST", f"till-1/deploymentBase/{number}/feedback", "till-1", raw=raw)
    assert (response.status, response.headers["connection"]) == (413, "close")
    length = (("Content-Length", "999999999999"),)
    assert world.ask("POST", f"till-1/deploymentBase/{number}/feedback", "till-1", raw=b"{}", headers=length).status == 413
    assert world.state(number) == "fetched"


def test_a_body_that_is_no_json_by_its_type_is_refused(world: World) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        headers = (("Content-Type", kind),)
        assert world.ask("PUT", "till-1/configData", "till-1", {"data": {}}, headers=headers).status == 415
    for kind in ("application/json;charset=UTF-8", "application/hal+json", "Application/JSON"):
        headers = (("Content-Type", kind),)
        assert world.ask("PUT", "till-1/configData", "till-1", {"data": {}}, headers=headers).status == 200


# Rates


def test_who_guesses_tokens_is_limited_and_devices_at_the_same_address_are_not(world: World) -> None:
    statuses = [world.ask("GET", "till-1").status for _ in range(ADDRESS_RATE.burst + 5)]
    assert statuses == [401] * ADDRESS_RATE.burst + [429] * 5
    world.now += 10
    assert all(world.ask("GET", "till-1", "till-1").status == 200 for _ in range(AGENT_RATE.burst))
    refused = world.ask("GET", "till-1", "till-1")
    assert (refused.status, refused.headers["retry-after"]) == (429, "1")
    world.add("till-2", "shops")
    assert world.ask("GET", "till-2", "till-2").status == 200, "another device has an allowance of its own"


def test_answers_are_of_the_type_that_the_client_takes(world: World) -> None:
    def kind(*accepted: str) -> str:
        headers = tuple(("Accept", value) for value in accepted)
        return world.ask("GET", "till-1", "till-1", headers=headers).headers["content-type"]

    assert kind() == kind("application/hal+json") == kind("*/*") == "application/hal+json;charset=UTF-8"
    assert kind("application/json") == "application/json;charset=UTF-8"
    assert kind("application/json", "application/hal+json") == "application/hal+json;charset=UTF-8"


def test_a_package_is_the_one_that_was_published(world: World) -> None:
    number = offered(world)
    assert world.ask("GET", f"till-1/softwaremodules/{number}/artifacts/pos-2.1.swu", "till-1").body == PACKAGE
