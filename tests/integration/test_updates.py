"""Updates from the vendor's key to the POS that runs: every program as a process, with real TLS, sockets and files.

Only systemd is not real: standupdates/system.py does its part.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc.installermessages import INSTALLER_VERSION, Prepare, Refused, Switch
from tests.support.stand import running_stand, short_directory
from tests.support.updating import UpdatedStand, pos_bundle
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

SETTINGS = '\n[updates]\nnotice_h = 0\nconsent = "none"\ntrial_s = 1\n'


@pytest.fixture(scope="module")
def till() -> Iterator[UpdatedStand]:
    with running_stand("software") as stand, short_directory() as place:
        made = UpdatedStand(stand, place, SETTINGS)
        try:
            made.install_by_hand("1.0")
            yield made
        finally:
            made.close()


def said_by_server(till: UpdatedStand) -> tuple[str, str]:
    newest = till.ordered()["directives"][0]
    return newest["state"], newest["detail"]


def metric(till: UpdatedStand, name: str) -> float:
    lines = till.tool("license-agent-cli", "metrics").splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"license_agent_ota_{name} "))


def installed(till: UpdatedStand) -> dict[str, Any]:
    (found,) = till.cli("ota", "status")["running"]
    return dict(found)


def test_a_good_version_is_installed_and_proved_also_after_a_handover(till: UpdatedStand) -> None:
    till.hand_root_over()
    line = till.update("1.1", pos_bundle("1.1", till.data))
    order = till.journal()["order"]
    assert order["key_set"].count("\n") == 1, "the set of the former root leads to that of the next one"
    assert (line["outcome"], line["before"], line["operator"], line["reason"]) == ("installed", "1.0", "server", "")
    assert till.runs() == "1.1"
    assert installed(till) == {
        "product": "pos", "version": "1.1", "build_id": "b1.1", "in_trial": False, "previous": "1.0",
    }  # fmt: skip
    assert said_by_server(till) == ("proved", "")
    steps = [record["step"] for record in till.records("ota.progress") if record["number"] == line["number"]]
    assert steps == [
        "offered", "window", "backed-up", "downloaded", "staged", "switched", "proving", "committed", "idle",
    ]  # fmt: skip
    for event in ("ota.start", "ota.switch", "ota.success"):
        assert [record["version"] for record in till.records(event)] == ["1.1"], event
    log = Path(till.info["agent_log"]).read_text()
    assert "OTA_START pos 1.1" in log and "OTA_SUCCESS pos 1.1" in log
    assert metric(till, "failed_attempts") == 0 and metric(till, 'state{state="idle"}') == 1
    assert metric(till, "last_success_timestamp_seconds") == line["time"]
    saved = json.loads((Path(till.info["state_dir"]) / "ota-backup.json").read_bytes())
    for name in ("config.toml", "link.toml"):
        assert base64.b64decode(saved["files"][name]["data"]) == (till.etc / name).read_bytes(), name
    assert list((till.staged / "staged").iterdir()) == [], "the updater has made room"
    # An administrator may think otherwise, once.
    undone = till.cli("ota", "rollback", "pos", "--yes")
    assert (undone["version"], undone["outcome"], till.runs()) == ("1.0", "rolled-back", "1.0")
    assert installed(till)["previous"] is None
    refused = till.stand.run("license-agent-cli", "ota", "rollback", "pos", "--yes")
    assert refused.returncode == 4 and "no version of pos before 1.0" in refused.stderr, refused


def test_a_version_that_does_not_work_is_taken_back(till: UpdatedStand) -> None:
    before = installed(till)["version"]
    line = till.update("1.2", pos_bundle("1.2", till.data, works=False))
    assert line["outcome"] == "rolled-back"
    assert line["reason"].startswith("unproved: health: 'bin/check' failed"), line
    assert till.runs() == before == installed(till)["version"] and not installed(till)["in_trial"]
    state, detail = said_by_server(till)
    assert state == "rolled-back" and detail.startswith("unproved: ")
    assert "OTA_ROLLBACK pos 1.2" in Path(till.info["agent_log"]).read_text()
    assert "no printer" in (till.place / "system.log").read_text()
    assert till.records("alert.ota_rolled_back")
    assert till.records("ota.rollback")[-1]["version"] == "1.2"


def test_a_package_that_another_hand_made_changes_nothing_and_locks_nothing(till: UpdatedStand) -> None:
    before, log = till.runs(), (till.place / "installer.log").stat().st_size
    attempts = till.cli("ota", "status")["attempts"]
    forged = pos_bundle("1.3", till.data)[:-1] + b"!"
    till.forge = lambda path, data: forged if path.startswith("targets/") else data
    try:
        till.assign(till.vendor.publish("1.3", pos_bundle("1.3", till.data)))
        till.cli("ota", "check")
        wait_until(lambda: "(digest-differs)" in (till.cli("ota", "status")["problem"] or ""), till.logs)
    finally:
        till.forge = lambda _path, data: data
    found = till.cli("ota", "status")
    assert (found["attempts"], found["state"]) == (attempts, "window") and "vendor has signed" in found["action"], found
    assert till.runs() == before == installed(till)["version"]
    assert "switched" not in (till.place / "installer.log").read_text()[log:]
    assert till.cli("ota", "install")["outcome"] == "installed" and till.runs() == "1.3"
    till.cli("ota", "check")  # the server learns how it ended


def test_a_package_from_a_memory_stick_is_installed_without_the_repository(till: UpdatedStand) -> None:
    """The server's order waits for its notice; an administrator brings the same as a bundle, and does not wait (OT-09)."""
    target = till.vendor.publish("1.4", pos_bundle("1.4", till.data))
    till.assign(target, "--notice", "2d")
    till.cli("ota", "check")
    stick = till.place / "pos-1.4.bundle"
    till.bundle(target, stick)
    till.forge = lambda _path, _data: b"the repository is not read"
    try:
        found = till.cli("ota", "install", "--package", str(stick))
    finally:
        till.forge = lambda _path, data: data
    assert (found["version"], found["outcome"]) == ("1.4", "installed"), till.logs()
    assert till.runs() == "1.4" == installed(till)["version"]
    till.cli("ota", "check")  # the server learns how it ended


def test_a_captured_core_and_updater_cannot_install_what_they_forge(till: UpdatedStand) -> None:
    """What is staged has the form that it must have, and is signed by other keys, or by none."""
    before = till.runs()
    till.assign(till.vendor.publish("1.5", pos_bundle("1.5", till.data)), "--notice", "2d")
    till.cli("ota", "check")
    genuine = till.journal()["order"]
    evil = pos_bundle("9.0", till.data)
    header, body, signature = genuine["directive"].split(".")
    content = json.loads(base64.urlsafe_b64decode(body + "=="))
    content |= {"sha256": hashlib.sha256(evil).hexdigest(), "length": len(evil), "number": content["number"] + 1}
    changed = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
    forged = f"{header}.{changed}.{signature}"
    for directive, code in ((forged, "signature"), (genuine["directive"], "digest-differs")):
        place = till.staged / "staged" / content["sha256"]
        (place / "metadata").mkdir(parents=True, exist_ok=True)
        for name, data in (("directive.jws", directive), ("key-set.jws", genuine["key_set"])):
            (place / name).write_text(data)
        (place / "package").write_bytes(evil)
        order = Prepare(v=INSTALLER_VERSION, id=1, product="pos", sha256=content["sha256"])
        found = till.as_core(order)
        assert isinstance(found, Refused) and found.code == code, found
    found = till.as_core(Switch(v=INSTALLER_VERSION, id=1, product="pos", sha256=content["sha256"]))
    assert isinstance(found, Refused) and found.code == "wrong-phase", found
    assert till.runs() == before == installed(till)["version"]
