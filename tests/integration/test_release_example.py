"""The release pipeline among the examples: what it builds is signed, published, and accepted by the installer's own reader."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from installer.bundle.stream import read_bundle
from server.ota import packages
from server.ota.repository import Repository
from server.ota.submission import Submission
from tests.server.ota.vendor import Machine, Vendor, key_file
from tests.support.stand import BIN

pytestmark = pytest.mark.system

SCRIPT = Path(__file__).parents[2] / "examples" / "release" / "release"


def release(vendor: Vendor, directory: Path, out: Path, *, key: Path) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), str(directory), "pos", "1.4.0", str(vendor.repository.directory), str(key), str(out)]
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "ROLE": "releases", "SOURCE_DATE_EPOCH": "1700000000"}
    return subprocess.run([*command, "till-mk1", "till-mk2"], capture_output=True, text=True, check=False, env=env)


def test_a_directory_becomes_a_package_that_a_machine_takes(tmp_path: Path) -> None:
    program = tmp_path / "program"
    (program / "bin").mkdir(parents=True)
    (program / "bin" / "check").write_text("#!/bin/sh\nexit 0\n")
    (program / "bin" / "check").chmod(0o755)
    (program / "-a file with spaces").write_text("text")
    (program / "current").symlink_to("bin")
    vendor = Vendor.of_today(tmp_path / "vendor")
    vendor.publish(vendor.first())
    key = key_file(tmp_path / "ci.key", vendor.holders["releases"][0])
    done = release(vendor, program, tmp_path / "out", key=key)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    submission = Submission(tmp_path / "out")
    vendor.publish(submission.change(), submission.sources())
    (package,) = packages.packages_in(vendor.present().roles)
    assert package.target.hardware == ("till-mk1", "till-mk2") and package.target.build_id.startswith("1.4.0-")
    root = vendor.repository.read("1.root.json") or b""
    got = Machine(tmp_path / "machine", root).look(vendor.repository.directory, vendor.now, package.path)
    assert got is not None
    names: list[str] = []
    with (tmp_path / "machine" / "package").open("rb") as file:
        manifest = read_bundle(file, lambda entry, _content: names.append("/".join(entry.parts))).manifest
    assert sorted(names) == ["-a file with spaces", "bin", "bin/check", "current", "manifest.json"]
    assert manifest is not None and (manifest.product, manifest.version) == ("pos", "1.4.0")
    assert manifest.build_id == package.target.build_id
    # The same content is the same package.
    again = release(vendor, program, tmp_path / "again", key=key)
    assert "has a package" in again.stderr and again.returncode == 1
    assert json.loads((tmp_path / "out" / "metadata" / "2.releases.json").read_text())["signed"]["version"] == 2
    assert Repository(vendor.repository.directory).present()
