"""A package, the directive that orders it, and the machine that it is for: all three agree."""

from typing import Any

from contracts.directive import Directive
from contracts.exchange import convert
from tests.vectors.make_directive import CONTENT, NOW
from updatetrust.judgement import Installed, MachineState
from updatetrust.target import Kind, Target, read_target
from updatetrust.trustfile import UpdateTrust
from updatetrust.version import Version

HARDWARE = "till-x86"
CUSTOM: dict[str, Any] = {
    "product": "pos",
    "version": CONTENT["version"],
    "build_id": CONTENT["build_id"],
    "hardware": [HARDWARE, "till-arm"],
    "kind": "slots",
    "min_agent": "0.1.0",
    "notes": "Faster start.\nKnown problem: none.",
    "released_at": NOW - 86_400,
}
AGENT = Version.parse("0.1.0")
FLOORS = {"pos": Version.parse("3.0.0")}
STATE = MachineState(executed=6, products={"pos": Installed(Kind.SLOTS, Version.parse("3.2.0"))})
TRUST = UpdateTrust(
    v=1,
    agent_id=CONTENT["agent_id"],
    hardware=HARDWARE,
    license_roots=("sha256:" + "0" * 64,),
    tuf_root={"signed": {"_type": "root"}, "signatures": []},
)


def directive(**changes: Any) -> Directive:
    made: Directive = convert({**CONTENT, **changes}, Directive, "directive")
    return made


def target(**changes: Any) -> Target:
    """The package; `path`, `length` and `sha256` are TUF's, all else is its `custom`."""
    path, length = changes.pop("path", CONTENT["target"]), changes.pop("length", CONTENT["length"])
    sha256 = changes.pop("sha256", CONTENT["sha256"])
    return read_target(path, length, {"sha256": sha256}, {**CUSTOM, **changes})
