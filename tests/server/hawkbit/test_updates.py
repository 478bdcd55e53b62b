"""An update of a device over DDI, from the poll that offers it to the attributes that prove it."""

import hashlib
from typing import Any

import pytest
from sqlalchemy import select

from server.fleet.ddi import actions, digests
from server.fleet.ddi.queue import Report
from server.registry.models.ddi import DdiAction, DdiMessage
from server.registry.models.fleets import DeviceAttribute, DeviceVersion
from tests.server.hawkbit.conftest import BASE, PACKAGE, PLACE, World

ROOT = f"{PLACE.url}{BASE}/till-1"


def test_a_device_without_orders_is_told_when_to_come_again_and_asked_for_its_attributes(world: World) -> None:
    assert world.poll("till-1") == {
        "config": {"polling": {"sleep": "00:05:00"}},
        "_links": {"configData": {"href": f"{ROOT}/configData"}},
    }
    assert world.attributes("till-1", hw="x200").status == 200
    assert world.poll("till-1")["_links"] == {}
    world.now += 86_400
    assert "configData" in world.poll("till-1")["_links"], "attributes a day old are asked for again"
    assert world.seen[-1] == "till-1"


def test_a_fleets_policy_says_how_often_its_devices_ask(world: World) -> None:
    world.fleet("slow", 2, ddi={"poll_s": 3725})
    world.add("till-2", "slow")
    assert world.poll("till-2")["config"]["polling"]["sleep"] == "01:02:05"


def test_an_update_is_proved_by_attributes_that_come_after_the_success(world: World) -> None:
    world.order("till-1")
    assert world.attributes("till-1", pos__version="2.0").status == 200
    links = world.poll("till-1")["_links"]
    number = int(links["deploymentBase"]["href"].removeprefix(f"{ROOT}/deploymentBase/").partition("?c=")[0])
    assert set(links) == {"deploymentBase"}
    found = world.ask("GET", f"till-1/deploymentBase/{number}?c={number}", "till-1").json
    file = f"{ROOT}/softwaremodules/{number}/artifacts/pos-2.1.swu"
    hashes = {name: hashlib.new(name, PACKAGE).hexdigest() for name in ("sha1", "md5", "sha256")}
    artifact = {
        "filename": "pos-2.1.swu",
        "hashes": hashes,
        "size": len(PACKAGE),
        "_links": {"download": {"href": file}, "md5sum": {"href": f"{file}.MD5SUM"}},
    }
    chunk = {"part": "os", "name": "pos", "version": "2.1", "artifacts": [artifact]}
    assert found == {"id": str(number), "deployment": {"download": "forced", "update": "forced", "chunks": [chunk]}}
    assert world.state(number) == "fetched"

    assert world.feedback("till-1", number, "proceeding", id=number, time="20261130T101112").status == 200
    assert world.state(number) == "under-way"
    # rauc-hawkbit-updater: success before the restart, and its attributes name the old version until then.
    assert world.feedback("till-1", number, "closed", "success", id=str(number)).status == 200
    assert world.state(number) == "installed"
    links = world.poll("till-1")["_links"]
    assert set(links) == {"configData", "installedBase"}, "it is asked for its attributes until they name the version"
    assert world.attributes("till-1", pos__version="2.0").status == 200
    assert world.state(number) == "installed", "the version before the update proves nothing"
    assert world.attributes("till-1", pos__version="2.1.0").status == 200
    assert world.state(number) == "proved"
    whats = [what for _, what in world.rollouts.reports]
    assert whats == [Report.INSTALLED, Report.PROVED]
    with world.server.database.read() as session:
        version = session.get(DeviceVersion, ("till-1", "pos"))
        assert version is not None
        assert (version.version, version.build_id) == ("2.1.0", "ci-2.1")
    world.rollouts.orders.clear()
    assert world.poll("till-1")["_links"] == {"installedBase": {"href": f"{ROOT}/installedBase/{number}"}}
    assert world.ask("GET", f"till-1/installedBase/{number}", "till-1").json["deployment"]["chunks"] == [chunk]


def test_the_policy_names_the_attribute_that_has_the_version(world: World) -> None:
    world.fleet("named", 2, ddi={"versions": {"pos": "version"}})
    world.add("till-2", "named")
    world.order("till-2", fleet="named")
    number = world.offered("till-2")
    world.feedback("till-2", number, "closed", "success")
    world.attributes("till-2", pos__version="2.1")
    assert world.state(number) == "installed", "another attribute counts here"
    world.attributes("till-2", version="2.1")
    assert world.state(number) == "proved"


def test_attributes_from_before_the_restart_prove_nothing_later(world: World) -> None:
    """What an earlier request named is kept with the device, and a later one that names something else is no proof."""
    world.order("till-1")
    number = world.offered("till-1")
    world.attributes("till-1", pos__version="2.1")
    assert world.state(number) == "offered", "what a device names before it has begun is no proof of the update"
    world.feedback("till-1", number, "closed", "success")
    world.attributes("till-1", site="berlin")
    assert world.state(number) == "installed"
    world.attributes("till-1", "remove", pos__version="2.1")
    assert world.state(number) == "installed"


def test_what_feedback_means(world: World) -> None:
    meanings = (
        ("rejected", "none", "offered"),
        ("scheduled", "none", "under-way"),
        ("download", "none", "under-way"),
        ("downloaded", "success", "under-way"),
        ("resumed", "none", "under-way"),
        ("canceled", "success", "failed"),
        ("closed", "failure", "failed"),
        ("closed", "none", "failed"),
        ("closed", "success", "installed"),
    )
    world.order("till-1")
    number = world.offered("till-1")
    for execution, finished, state in meanings:
        if world.state(number) == "failed":
            number = world.offered("till-1")
        assert world.feedback("till-1", number, execution, finished).status == 200
        assert world.state(number) == state, execution


def test_a_deployment_is_left_out_while_its_window_is_closed_unless_the_device_has_begun(world: World) -> None:
    world.order("till-1")
    number = world.offered("till-1")
    world.rollouts.closed.add("till-1")
    assert "deploymentBase" not in world.poll("till-1")["_links"]
    assert world.state(number) == "offered", "a window that closes takes nothing back"
    world.rollouts.closed.clear()
    world.feedback("till-1", number, "proceeding")
    world.rollouts.closed.add("till-1")
    assert world.offered("till-1") == number, "SWUpdate reports its success only on a deployment that it is shown"


def test_no_action_is_made_while_the_window_is_closed(world: World) -> None:
    world.order("till-1")
    world.rollouts.closed.add("till-1")
    assert set(world.poll("till-1")["_links"]) == {"configData"}
    world.rollouts.closed.clear()
    assert world.offered("till-1")


def test_what_the_device_said_is_given_back_with_the_action(world: World) -> None:
    world.order("till-1")
    number = world.offered("till-1")
    for text in ("one", "two", "three\nlines"):
        world.feedback("till-1", number, "proceeding", details=[text])
    path = f"till-1/deploymentBase/{number}?c=1&actionHistory="
    assert world.ask("GET", f"{path}2", "till-1").json["actionHistory"] == {
        "status": "RUNNING",
        "messages": ["three lines", "two"],
    }
    assert len(world.ask("GET", f"{path}-1", "till-1").json["actionHistory"]["messages"]) == 3
    assert "actionHistory" not in world.ask("GET", f"{path}0", "till-1").json
    world.feedback("till-1", number, "proceeding", details=[f"line {count}" for count in range(60)])
    world.feedback("till-1", number, "proceeding", details=["last"])
    kept = world.ask("GET", f"{path}-1", "till-1").json["actionHistory"]["messages"]
    assert len(kept) == 50
    assert kept[0] == "last"


# Taking back


def begun(world: World) -> int:
    world.order("till-1")
    number = world.offered("till-1")
    world.ask("GET", f"till-1/deploymentBase/{number}", "till-1")
    world.feedback("till-1", number, "proceeding")
    world.rollouts.taken_back.add("till-1")
    return number


def stop(world: World, number: int, execution: str, finished: str) -> int:
    body: Any = {"id": str(number), "status": {"execution": execution, "result": {"finished": finished}}}
    return world.ask("POST", f"till-1/cancelAction/{number}/feedback", "till-1", body).status


def test_what_a_rollout_takes_back_is_canceled_at_the_device(world: World) -> None:
    number = begun(world)
    links = world.poll("till-1")["_links"]
    assert links["cancelAction"] == {"href": f"{ROOT}/cancelAction/{number}"}
    assert "deploymentBase" not in links
    assert world.ask("GET", f"till-1/cancelAction/{number}", "till-1").json == {
        "id": str(number),
        "cancelAction": {"stopId": str(number)},
    }
    assert stop(world, number, "closed", "success") == 200
    assert world.state(number) == "canceled"
    assert world.rollouts.reports[-1] == ("till-1", Report.STOPPED)
    assert "cancelAction" not in world.poll("till-1")["_links"]
    assert stop(world, number, "closed", "success") == 410


def test_a_device_that_cannot_stop_goes_on_and_its_success_counts(world: World) -> None:
    number = begun(world)
    world.poll("till-1")
    assert stop(world, number, "rejected", "success") == 200
    assert world.state(number) == "unstoppable"
    assert world.offered("till-1") == number, "it is not asked to stop again"
    assert world.feedback("till-1", number, "closed", "success").status == 200
    assert world.state(number) == "installed"


def test_what_nobody_has_fetched_is_taken_back_without_asking(world: World) -> None:
    world.order("till-1")
    number = world.offered("till-1")
    world.rollouts.taken_back.add("till-1")
    assert "cancelAction" not in world.poll("till-1")["_links"]
    assert world.state(number) == "canceled"


def test_the_next_order_waits_until_the_present_action_has_ended(world: World) -> None:
    world.publish("pos/pos-2.2.swu", "2.2", content=b"other")
    number = begun(world)
    world.poll("till-1")
    world.rollouts.taken_back.clear()
    world.order("till-1", "pos/pos-2.2.swu", "2.2")
    assert "cancelAction" in world.poll("till-1")["_links"]
    stop(world, number, "closed", "success")
    assert world.offered("till-1") > number


# Confirmation


def test_a_deployment_is_given_to_a_device_when_it_has_confirmed_it(world: World) -> None:
    world.fleet("careful", 2, ddi={"confirm": True})
    world.add("till-2", "careful")
    world.order("till-2", fleet="careful")
    links = world.poll("till-2")["_links"]
    assert "deploymentBase" not in links
    path = links["confirmationBase"]["href"].removeprefix(PLACE.url)
    number = int(path.rpartition("/")[2].partition("?")[0])
    found = world.ask("GET", path, "till-2").json
    assert found["confirmation"]["chunks"][0]["version"] == "2.1"
    file = f"till-2/softwaremodules/{number}/artifacts/pos-2.1.swu"
    assert world.ask("GET", f"till-2/deploymentBase/{number}", "till-2").status == 410
    assert world.ask("GET", file, "till-2").status == 410
    assert world.feedback("till-2", number, "closed", "success").status == 410
    answer = f"till-2/confirmationBase/{number}/feedback"
    assert world.ask("POST", answer, "till-2", {"confirmation": "denied", "details": ["not now"]}).status == 200
    assert "confirmationBase" in world.poll("till-2")["_links"], "it may be asked again"
    assert world.ask("POST", answer, "till-2", {"confirmation": "confirmed", "code": 200}).status == 200
    assert world.offered("till-2") == number
    assert world.ask("GET", file, "till-2").body == PACKAGE
    assert world.ask("POST", answer, "till-2", {"confirmation": "confirmed"}).status == 410


def test_a_device_may_confirm_once_and_for_all(world: World) -> None:
    world.fleet("careful", 2, ddi={"confirm": True})
    world.add("till-2", "careful")
    world.order("till-2", fleet="careful")
    assert "confirmationBase" in world.poll("till-2")["_links"]
    base = world.ask("GET", "till-2/confirmationBase", "till-2").json
    assert base["autoConfirm"] == {"active": False}
    assert set(base["_links"]) == {"activateAutoConfirm", "confirmationBase"}
    who = {"initiator": "shop", "remark": "always"}
    assert world.ask("POST", "till-2/confirmationBase/activateAutoConfirm", "till-2", who).status == 200
    assert world.offered("till-2"), "the one that waited is confirmed too"
    base = world.ask("GET", "till-2/confirmationBase", "till-2").json
    assert base["autoConfirm"] == {"active": True, **who}
    assert set(base["_links"]) == {"deactivateAutoConfirm"}
    assert world.ask("POST", "till-2/confirmationBase/deactivateAutoConfirm", "till-2").status == 200
    assert world.ask("GET", "till-2/confirmationBase", "till-2").json["autoConfirm"] == {"active": False}


# Attributes


def test_attributes_are_merged_replaced_and_removed_and_operators_ones_stay(world: World) -> None:
    with world.server.database.write() as session:
        session.add(DeviceAttribute(device_id="till-1", name="lane", value="express", source="operator", updated_at=1))

    def kept() -> dict[str, str]:
        with world.server.database.read() as session:
            return {row.name: row.value for row in session.query(DeviceAttribute) if row.device_id == "till-1"}

    world.attributes("till-1", a="1", b="2", lane="slow")
    assert kept() == {"a": "1", "b": "2", "lane": "express"}
    world.attributes("till-1", "merge", b="3", c="4")
    assert kept() == {"a": "1", "b": "3", "c": "4", "lane": "express"}
    world.attributes("till-1", "remove", a="", lane="")
    assert kept() == {"b": "3", "c": "4", "lane": "express"}
    world.attributes("till-1", "replace", d="5")
    assert kept() == {"d": "5", "lane": "express"}


def test_attributes_out_of_bounds_are_refused(world: World) -> None:
    many = {f"n{count}": "x" for count in range(101)}
    for data in ({"a" * 65: "x"}, {"": "x"}, {"a b": "x"}, {"a": "x" * 257}, {"a": "x\x00"}, many):
        response = world.ask("PUT", "till-1/configData", "till-1", {"data": data})
        assert (response.status, response.json["errorCode"]) == (400, "hawkbit.server.error.repo.invalidTargetAttributes")
    with world.server.database.read() as session:
        assert session.query(DeviceAttribute).count() == 0


def test_a_package_that_was_changed_in_the_repository_is_offered_to_nobody(world: World) -> None:
    next((world.repository / "targets" / "pos").iterdir()).write_bytes(PACKAGE[:-1] + b"!")
    world.order("till-1")
    world.now += 60
    assert world.ask("GET", "till-1", "till-1").status == 503


def test_a_package_for_another_installer_is_offered_to_nobody(world: World) -> None:
    world.publish("pos/pos-2.2.deb", "2.2", "deb", b"x")
    world.order("till-1", "pos/pos-2.2.deb", "2.2")
    assert "deploymentBase" not in world.poll("till-1")["_links"]
    assert world.rollouts.reports == [("till-1", Report.REFUSED)]


def test_the_newest_actions_of_a_device_are_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "MAX_ACTIONS", 3)
    world.order("till-1")
    numbers = []
    for _ in range(5):
        numbers.append(world.offered("till-1"))
        world.feedback("till-1", numbers[-1], "closed", "failure", details=["no space"])
    with world.server.database.read() as session:
        assert sorted(session.scalars(select(DdiAction.number))) == numbers[-3:]
        assert {row.action for row in session.query(DdiMessage)} == set(numbers[-3:])


def test_nobody_waits_for_who_reads_a_package(world: World) -> None:
    world.order("till-1")
    with digests._one_at_a_time:
        assert "deploymentBase" not in world.poll("till-1")["_links"]
    assert world.offered("till-1")
