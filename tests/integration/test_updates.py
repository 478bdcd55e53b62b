"""Updates from the vendor's key to the POS that runs: every program as a process, with real TLS, sockets and files.

Only systemd is not real: standupdates/system.py does its part.
"""

import base64
import hashlib
import json
import shutil
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
        till.honest()
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
        till.honest()
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


def test_what_the_server_takes_back_is_not_installed_and_root_remembers_it(till: UpdatedStand) -> None:
    before = till.runs()
    till.assign(till.vendor.publish("1.6", pos_bundle("1.6", till.data)), "--notice", "2d", "--replace")
    till.cli("ota", "check")
    order = till.journal()["order"]
    wait_until((till.staged / "staged" / order["sha256"]).exists, till.logs)
    papers = till.place / "papers"
    shutil.copytree(till.staged / "staged" / order["sha256"], papers)
    till.withdraw()
    till.cli("ota", "check")
    (line,) = till.cli("ota", "history", "--count", "1")["entries"]
    assert (line["version"], line["outcome"], line["number"]) == ("1.6", "withdrawn", order["number"])
    assert till.cli("ota", "status")["state"] == "idle" and not any((till.staged / "staged").iterdir())
    till.cli("ota", "check")  # the server learns that the agent knows
    withdrawal, withdrawn = till.ordered()["directives"][:2]
    assert (withdrawal["withdraws"], withdrawal["state"], withdrawal["detail"]) == (
        order["number"],
        "expired",
        "the agent knows",
    )
    assert (withdrawn["number"], withdrawn["state"]) == (order["number"], "withdrawn")
    assert json.loads((till.own / "state.json").read_bytes())["withdrawn"] == order["number"]
    # While nothing is to be installed, the agent looks at the repository all the same.
    looked = till.cli("ota", "status")["checked"]
    till.cli("ota", "check")
    wait_until(lambda: till.cli("ota", "status")["checked"] > looked, till.logs)
    # A core and an updater that are captured later have kept everything that was signed.
    shutil.copytree(papers, till.staged / "staged" / order["sha256"])
    found = till.as_core(Prepare(v=INSTALLER_VERSION, id=1, product="pos", sha256=order["sha256"]))
    assert isinstance(found, Refused) and found.code == "directive-withdrawn", found
    assert till.runs() == before == installed(till)["version"]


def test_a_server_and_a_repository_that_lie_change_nothing_that_the_agent_says(till: UpdatedStand) -> None:
    before, since = till.runs(), metric(till, "last_success_timestamp_seconds")
    attempts = till.cli("ota", "status")["attempts"]

    def waits_for(code: str) -> None:
        till.cli("ota", "check")
        wait_until(lambda: f"({code})" in (till.cli("ota", "status")["problem"] or ""), till.logs)
        assert till.runs() == before == installed(till)["version"]

    # It says that a version is proved, and has nothing more to order, while that version fails its trial.
    till.assign(till.vendor.publish("1.7", pos_bundle("1.7", till.data, works=False, check_s=2)))
    till.cli("ota", "check")
    wait_until(lambda: till.journal()["step"] == "proving", till.logs)
    number = till.journal()["order"]["number"]
    till.have_server_say(number, state="proved")
    till.cli("ota", "check")
    wait_until(lambda: till.journal()["done"] >= number, till.logs)
    (line,) = till.cli("ota", "history", "--count", "1")["entries"]
    assert (line["version"], line["outcome"]) == ("1.7", "rolled-back") and line["reason"].startswith("unproved: ")
    assert till.runs() == before == installed(till)["version"]
    till.cli("ota", "check")
    assert [each["version"] for each in till.ordered()["running"]] == [before], "the agent's signed report says what runs"
    assert till.records("ota.rollback")[-1]["version"] == "1.7"

    # It orders the package under another version, signed with its own key.
    old = (till.vendor.repository / "metadata" / "timestamp.json").read_bytes()
    path = till.vendor.publish("1.8", pos_bundle("1.8", till.data))
    till.assign(path)
    till.have_server_say(till.ordered()["directives"][0]["number"], version="9.9")
    waits_for("version-differs")

    # The repository answers with an older state, and with a part of a file that nobody asked for.
    till.assign(path, "--replace")
    till.forge = lambda path, data: old if path == "metadata/timestamp.json" else data
    waits_for("metadata-rolled-back")
    till.honest()
    till.head = lambda path: (
        f"206 Partial Content\r\nContent-Range: bytes 0-9/{10**6}" if path.startswith("targets/") else "200 OK"
    )
    assert till.cli("ota", "install", "--no-wait")["version"] == "1.8"
    wait_until(lambda: "not the part that was asked for" in (till.cli("ota", "status")["problem"] or ""), till.logs)

    assert metric(till, "last_success_timestamp_seconds") == since, "nothing was installed"
    assert till.cli("ota", "status")["attempts"] == attempts + 1, "only the version that ran has failed"
    assert till.runs() == before == installed(till)["version"]
    till.honest()
    number = till.journal()["order"]["number"]
    till.cli("ota", "install", "--no-wait", fine=(0, 4))  # or it has gone on by itself
    wait_until(lambda: till.journal()["done"] >= number, till.logs)
    assert till.runs() == "1.8" == installed(till)["version"]
    till.cli("ota", "check")
    assert said_by_server(till) == ("proved", "")

    # What runs is ordered again: the server sees from the report that there is nothing to do, and so does the agent.
    register, since = till.cli("ota", "history")["entries"], metric(till, "last_success_timestamp_seconds")
    till.assign(path)
    till.cli("ota", "check")
    assert said_by_server(till) == ("proved", "") and till.cli("ota", "history")["entries"] == register
    assert metric(till, "last_success_timestamp_seconds") == since
