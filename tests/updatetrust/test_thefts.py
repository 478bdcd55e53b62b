"""What a stolen key is worth: the table in docs/explanation/updates.md, line by line. threat-model T46 to T48.

The machine has seen the vendor's newest state and runs 3.2.0 at a floor of 3.1.0; the vendor has also signed 3.0.9 and 3.1.0.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.directive import verify_directive
from contracts.jose import BadSignature
from contracts.keyset import KEY_SET_TYPE, pin_of_jwk, verify_key_set
from tests.support.tufrepository import RELEASES, UpdateRepository, signer
from tests.updatetrust.facts import AGENT, CUSTOM, STATE, TRUST
from tests.vectors.make_directive import CONTENT, NOW, ROTATION, compact, jwk, jws, kid, signed_by
from updatetrust.judgement import Code, Disagreement, effective_floors, judge
from updatetrust.metadata import FLOORS, Fault, KeptVersions, MetadataRefused, verify_offline
from updatetrust.target import Target
from updatetrust.version import Version

LICENSE_ROOT, THIEF = (ec.derive_private_key(number, ec.SECP256R1()) for number in (8101, 8102))
MALWARE = b"malware"
KEPT_FLOORS = {"pos": Version.parse("3.1.0")}
OUR_TRUST = msgspec.structs.replace(TRUST, license_roots=(pin_of_jwk(jwk(LICENSE_ROOT)),))
SIGNED = ("3.0.9", "3.1.0", "3.2.0", "3.2.1")


def path_of(version: str) -> str:
    return f"pos/pos-{version}.tar.zst"


def key_set(rotation: ec.EllipticCurvePrivateKey = ROTATION, root: ec.EllipticCurvePrivateKey = LICENSE_ROOT) -> str:
    named = [{**jwk(rotation), "kid": kid(rotation)}]
    content = {
        "v": 1, "number": 1, "issuer": "i", "issued_at": NOW, "expires": NOW + 1, "license_keys": named, "rotation_keys": named,
        "enrollment_keys": named, "certificates": ["c"], "roots": list(OUR_TRUST.license_roots),
    }  # fmt: skip
    return signed_by(root, {"alg": "ES256", "typ": KEY_SET_TYPE, "jwk": jwk(root)}, compact(content))


def vendor() -> UpdateRepository:
    repository = UpdateRepository(NOW, {"pos": "3.1.0"})
    for version in SIGNED:
        repository.publish(path_of(version), version.encode(), CUSTOM | {"version": version})
    return repository


@dataclass
class World:
    """What the machine is given. A thief changes it with the keys that they have, and no others."""

    repository: UpdateRepository = field(default_factory=vendor)
    kept: KeptVersions | None = None
    key_set: str = field(default_factory=key_set)
    directive: str = ""

    def order(
        self, version: str, data: bytes | None = None, key: ec.EllipticCurvePrivateKey = ROTATION, **changes: Any
    ) -> "World":
        """A directive for a version of the product, signed by a key."""
        package = version.encode() if data is None else data
        facts = {"target": path_of(version), "version": version, "length": len(package)}
        content = {**CONTENT, **facts, "sha256": hashlib.sha256(package).hexdigest(), **changes}
        self.directive = jws(compact(content), key, kid=kid(key))
        return self

    def add(self, version: str, product: str = "pos") -> "World":
        """A package of the thief's, published with the pipeline's key; the online keys sign whatever the pipeline publishes."""
        self.repository.publish(
            f"{product}/{product}-{version}.tar.zst", MALWARE, CUSTOM | {"product": product, "version": version}
        )
        return self

    def installed(self) -> Target:
        """All that an installer does before it unpacks."""
        kept = verify_offline(vendor().files(), self.repository.bootstrap, KeptVersions(), NOW).kept
        keys = verify_key_set(self.key_set, OUR_TRUST.license_roots).content.trust()
        directive = verify_directive(self.directive, keys)
        verified = verify_offline(self.repository.files(), self.repository.bootstrap, self.kept or kept, NOW)
        floors = effective_floors(KEPT_FLOORS, verified.floors)
        return judge(directive, verified.find(directive.target), OUR_TRUST, floors, AGENT, STATE, NOW)


def lower_floor(world: World) -> World:
    world.repository.targets.unrecognized_fields[FLOORS] = {"pos": "0"}
    world.repository.next("targets").sign()
    return world


def only_one_offline_key(world: World) -> World:
    world.repository.signers["targets"] = [signer("targets0"), signer("thief0"), signer("thief1")]
    return lower_floor(world)


def unsigned_pipeline(world: World) -> World:
    world.repository.signers[RELEASES] = [signer("thief0")]
    return world.add("3.2.1")


def old_state(world: World, seen: bool) -> World:
    """A thief of snapshot and timestamp signs an old state of targets and releases as the newest."""
    world.kept = None if seen else KeptVersions()
    repository = world.repository
    repository.releases.version -= 1
    del repository.releases.targets[path_of("3.2.1")]
    repository.sign()
    repository.snapshot.version = repository.timestamp.version = 99
    repository.sign_online()
    return world


ALLOWED: dict[str, tuple[Callable[[], World], str]] = {
    "nobody stole anything": (lambda: World().order("3.2.1"), "3.2.1"),
    "rotation key: any signed version at or above the floor": (lambda: World().order("3.1.0", downgrade=True), "3.1.0"),
    "license root: the same": (
        lambda: World(key_set=key_set(THIEF)).order("3.1.0", key=THIEF, downgrade=True), "3.1.0"),
    "snapshot and timestamp: a state that this machine has not seen to be old": (
        lambda: old_state(World(), seen=False).order("3.2.0"), "3.2.0"),
    "pipeline and rotation key together: a package of their own": (
        lambda: World().add("3.9.0").order("3.9.0", MALWARE), "3.9.0"),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], World], Code | Fault | type[Exception]]] = {
    "no key: a directive": (lambda: World().order("3.2.1", key=THIEF), BadSignature),
    "no key: a key set": (lambda: World(key_set=key_set(THIEF, THIEF)).order("3.2.1", key=THIEF), BadSignature),
    "no key: a package": (lambda: unsigned_pipeline(World()).order("3.2.1", MALWARE), Fault.NOT_SIGNED),
    "rotation key: a package of their own": (lambda: World().order("3.9.0", MALWARE), Code.NOT_IN_REPOSITORY),
    "rotation key: their own content under a signed name": (
        lambda: World().order("3.2.1", b"3.2.x"), Code.DIGEST_DIFFERS),
    "rotation key: an old version under a new name": (
        lambda: World().order("3.2.1", b"3.1.0", target=path_of("3.1.0")), Code.VERSION_DIFFERS),
    "rotation key: below the floor": (lambda: World().order("3.0.9", downgrade=True), Code.BELOW_FLOOR),
    "rotation key: back without the mark": (lambda: World().order("3.1.0"), Code.DOWNGRADE_NOT_ALLOWED),
    "rotation key: another machine's directive": (lambda: World().order("3.2.1", agent_id="pos-2"), Code.OTHER_AGENT),
    "license root: below the floor": (
        lambda: World(key_set=key_set(THIEF)).order("3.0.9", key=THIEF, downgrade=True), Code.BELOW_FLOOR),
    "pipeline: other content under the name that is ordered": (
        lambda: World().add("3.2.1").order("3.2.1"), Code.LENGTH_DIFFERS),
    "pipeline and rotation key: another product": (
        lambda: World().add("1", "evil").order("1", MALWARE, product="evil", target="evil/evil-1.tar.zst"), Code.NO_FLOOR),
    "pipeline and rotation key: below the floor": (
        lambda: World().add("3.0.8").order("3.0.8", MALWARE, downgrade=True), Code.BELOW_FLOOR),
    "one offline key of a threshold of two": (
        lambda: only_one_offline_key(World()).order("3.0.9", downgrade=True), Fault.NOT_SIGNED),
    "the threshold of targets, and the rotation key: a floor that this machine has reached": (
        lambda: lower_floor(World()).order("3.0.9", downgrade=True), Code.BELOW_FLOOR),
    "snapshot and timestamp: a state that this machine has seen in a newer version": (
        lambda: old_state(World(), seen=True).order("3.2.0"), Fault.ROLLED_BACK),
    "captured core: a directive that was executed": (lambda: World().order("3.2.1", number=6), Code.DIRECTIVE_REPLAYED),
    "captured core: a directive that has ended": (
        lambda: World().order("3.2.1", not_before=1, not_after=NOW - 1, notice_until=0), Code.DIRECTIVE_EXPIRED),
    "captured core: a withdrawal in the place of an order": (
        lambda: World().order("3.2.1", number=8, withdraws=7), Code.ORDERS_NOTHING),
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_this_is_not_prevented(name: str) -> None:
    world, version = ALLOWED[name]
    assert world().installed().version == version


@pytest.mark.parametrize("name", REFUSED)
def test_this_is_refused(name: str) -> None:
    world, reason = REFUSED[name]
    with pytest.raises((Disagreement, MetadataRefused, BadSignature)) as caught:
        world().installed()
    error = caught.value
    found = (
        error.code if isinstance(error, Disagreement) else error.fault if isinstance(error, MetadataRefused) else type(error)
    )
    assert found is reason, error
