"""A set of metadata counts only if the vendor's keys say so, and nothing older than what was seen. threat-model T46.

Each attack is tried twice: brought to the installer as files, and served to the updater by the repository.
"""

import json
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import DelegatedRole, MetaFile, TargetFile

from tests.support.tufrepository import RELEASES, UpdateRepository, signer
from tests.updatetrust.facts import CUSTOM
from tests.vectors.make_directive import CONTENT, NOW, PACKAGE
from updatetrust.client import refresh
from updatetrust.metadata import (
    FLOORS,
    MAX_METADATA_VERSION,
    Fault,
    KeptVersions,
    MetadataRefused,
    VerifiedTargets,
    verify_offline,
)
from updatetrust.metadatafiles import MAX_ROLES, MAX_SNAPSHOT_BYTES, MAX_TIMESTAMP_BYTES, MetadataFiles
from updatetrust.target import MAX_TARGETS_PER_ROLE, MalformedTarget
from updatetrust.version import Version

DAY = 86_400
PATH = CONTENT["target"]


def published(floors: dict[str, str] | None = None) -> UpdateRepository:
    repository = UpdateRepository(NOW, floors)
    repository.publish(PATH, PACKAGE, CUSTOM)
    return repository


def offline(
    repository: UpdateRepository, kept: KeptVersions | None = None, at: int = NOW, files: MetadataFiles | None = None
) -> VerifiedTargets:
    return verify_offline(files or repository.files(), repository.bootstrap, kept or KeptVersions(), at)


def online(repository: UpdateRepository, directory: Path, at: int = NOW) -> VerifiedTargets:
    return refresh(directory, repository.source, repository.bootstrap, at, [PATH])[0]


def both_refuse(repository: UpdateRepository, directory: Path, kept: KeptVersions, fault: Fault, at: int = NOW) -> None:
    """Installer and updater refuse for the same reason."""
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, kept, at).find(PATH)
    assert caught.value.fault is fault, caught.value
    with pytest.raises(MetadataRefused) as caught:
        online(repository, directory, at)
    assert caught.value.fault is fault, caught.value


def test_what_the_vendor_published_is_found_in_both_ways(tmp_path: Path) -> None:
    repository = published()
    for verified in (offline(repository), online(repository, tmp_path)):
        found = verified.find(PATH)
        assert found is not None and found.sha256 == CONTENT["sha256"] and found.version == CUSTOM["version"]
        assert verified.find("pos/other") is None and verified.find("other") is None
        assert verified.floors == {"pos": Version.parse("3.0.0")}
        assert verified.kept.root == 1 and set(verified.kept.roles) == {"timestamp", "snapshot", "targets", RELEASES}
        assert verified.fresh_until == NOW + 2 * DAY and verified.root_expires == NOW + 365 * DAY
        assert verified.first_end() == (NOW + 90 * DAY, RELEASES)
        assert list(verified.paths()) == [PATH]


def test_what_is_kept_survives_a_file() -> None:
    kept = offline(published()).kept
    assert msgspec.json.decode(msgspec.json.encode(kept), type=KeptVersions) == kept


def test_the_same_again_and_the_next_are_fine(tmp_path: Path) -> None:
    repository = published()
    kept = offline(repository).kept
    online(repository, tmp_path)
    assert offline(repository, kept).kept == online(repository, tmp_path).kept == kept
    repository.publish("pos/pos-3.2.2.tar.zst", b"2", CUSTOM | {"version": "3.2.2"})
    later = offline(repository, kept).kept
    assert later == online(repository, tmp_path).kept and later.roles[RELEASES].version == kept.roles[RELEASES].version + 1


# Who may sign


@pytest.mark.parametrize("role", ["root", "targets", RELEASES, "snapshot", "timestamp"])
def test_other_keys_than_the_vendors_sign_nothing(tmp_path: Path, role: str) -> None:
    repository = published()
    kept = offline(repository).kept
    former = repository.signers[role]
    repository.signers[role] = [signer(f"attacker{number}") for number, _ in enumerate(former)]
    if role == "root":
        repository.new_root()
    else:
        repository.next("targets", RELEASES).sign()
    both_refuse(repository, tmp_path, kept, Fault.NOT_SIGNED)


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_threshold_that_is_not_met_is_refused(tmp_path: Path, role: str) -> None:
    """One stolen offline key is not enough."""
    repository = published()
    repository.signers[role] = [repository.signers[role][0], signer("attacker0"), signer("attacker1")]
    if role == "root":
        repository.new_root()
    else:
        repository.next("targets").sign()
    both_refuse(repository, tmp_path, KeptVersions(), Fault.NOT_SIGNED)


@pytest.mark.parametrize("role", ["root", "targets"])
def test_one_offline_key_may_be_lost(tmp_path: Path, role: str) -> None:
    repository = published()
    repository.signers[role] = repository.signers[role][1:]
    if role == "root":
        repository.new_root()
    else:
        repository.next("targets").sign()
    assert offline(repository).kept == online(repository, tmp_path).kept


def test_a_key_of_one_role_does_not_sign_for_another(tmp_path: Path) -> None:
    repository = published()
    repository.signers["targets"] = [*repository.signers["snapshot"], *repository.signers[RELEASES]]
    repository.next("targets").sign()
    both_refuse(repository, tmp_path, KeptVersions(), Fault.NOT_SIGNED)


@pytest.mark.parametrize("role", ["root", "targets", RELEASES, "snapshot", "timestamp"])
def test_changed_content_is_refused(tmp_path: Path, role: str) -> None:
    repository = published()
    name = "metadata/timestamp.json" if role == "timestamp" else f"metadata/{getattr(repository, role).version}.{role}.json"
    content = json.loads(repository.history[name])
    content["signed"]["expires"] = "2099-01-01T00:00:00Z"
    repository.history[name] = json.dumps(content, separators=(",", ":")).encode()
    if role == "root":
        repository.bootstrap = repository.history[name]
    hashed = role in ("targets", RELEASES, "snapshot")
    both_refuse(repository, tmp_path, KeptVersions(), Fault.MISMATCHED if hashed else Fault.NOT_SIGNED)


# Replacing keys


def test_a_root_is_followed_through_all_its_successors(tmp_path: Path) -> None:
    repository = published()
    for number in range(3):
        former = repository.replace_keys("root", f"root-{number}-a", f"root-{number}-b", f"ecdsa-{number}")
        repository.new_root(former)
    assert offline(repository).kept.root == online(repository, tmp_path).kept.root == 4
    without = {number: data for number, data in repository.files().roots.items() if number != 3}
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, files=replace(repository.files(), roots=without))
    assert caught.value.fault in (Fault.NOT_SIGNED, Fault.ROLLED_BACK)


def test_a_root_that_only_the_former_or_only_the_new_keys_signed_is_refused(tmp_path: Path) -> None:
    repository = published()
    repository.replace_keys("root", "new0", "new1", "new2")
    repository.new_root()
    both_refuse(repository, tmp_path / "a", KeptVersions(), Fault.NOT_SIGNED)
    repository = published()
    repository.replace_keys("root", "new0", "new1", "new2")
    repository.signers["root"] = [signer("root0"), signer("root1")]
    repository.new_root()
    both_refuse(repository, tmp_path / "b", KeptVersions(), Fault.NOT_SIGNED)


@pytest.mark.parametrize("role", ["root", "targets", RELEASES, "snapshot", "timestamp"])
def test_a_replaced_key_signs_no_more(tmp_path: Path, role: str) -> None:
    """After a theft the vendor replaces the key: what the thief signs then is refused, what the vendor signs counts."""
    repository = published()
    kept = offline(repository).kept
    former = repository.replace_keys(role, "fresh0", "fresh1", "fresh2")
    if role == RELEASES:
        repository.releases.version += 1
        repository.next("targets").sign()
    else:
        repository.targets.version += 1
        repository.new_root(former if role == "root" else [])
    assert offline(repository, kept).find(PATH) == online(repository, tmp_path).find(PATH) is not None
    repository.signers[role] = former
    if role == "root":
        repository.new_root()
    else:
        repository.next("targets", RELEASES).sign()
    both_refuse(repository, tmp_path, kept, Fault.NOT_SIGNED)


def test_a_very_high_version_is_recovered_from_by_replacing_the_key(tmp_path: Path) -> None:
    """Fast-forward attack (TUF 5.3.11): a stolen online key signs a version that nothing could follow."""
    repository = published()
    low = repository.snapshot.version, repository.timestamp.version
    repository.snapshot.version = repository.timestamp.version = MAX_METADATA_VERSION
    repository.sign_online()
    kept = offline(repository).kept
    online(repository, tmp_path)
    assert kept.roles["timestamp"].version == MAX_METADATA_VERSION
    repository.snapshot.version, repository.timestamp.version = low
    repository.next().sign_online()
    both_refuse(repository, tmp_path, kept, Fault.ROLLED_BACK)
    for role in ("snapshot", "timestamp"):
        repository.replace_keys(role, f"fresh-{role}")
    repository.new_root()
    recovered = offline(repository, kept)
    assert recovered.kept == online(repository, tmp_path).kept and recovered.kept.roles["timestamp"].version < 10
    # The other roles' versions were not forgotten on the way.
    assert recovered.kept.roles["targets"] == kept.roles["targets"]


def test_a_very_high_version_of_releases_is_recovered_from_by_the_offline_key(tmp_path: Path) -> None:
    repository = published()
    repository.releases.version = MAX_METADATA_VERSION
    repository.next().sign()
    kept = offline(repository).kept
    repository.replace_keys(RELEASES, "fresh")
    # The snapshot named the high version, so its key is replaced with it.
    repository.replace_keys("snapshot", "fresh-snapshot")
    repository.releases.version = 3
    repository.targets.version += 1
    repository.new_root()
    assert offline(repository, kept).kept.roles[RELEASES].version == 3
    assert online(repository, tmp_path).find(PATH) is not None


@pytest.mark.parametrize("pem", [False, True])
@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", RELEASES])
def test_a_key_that_is_named_under_two_ids_does_not_count_twice(tmp_path: Path, role: str, pem: bool) -> None:
    """TUF leaves ids to the signer; a threshold of two must be two people's."""
    repository = published()
    former = repository.replace_keys(role, "ecdsa-one" if pem else "one")
    delegator = repository.root if role != RELEASES else repository.targets
    delegator.get_delegated_role(role).threshold = 1
    publish = repository.sign if role == RELEASES else lambda: repository.new_root(former if role == "root" else [])
    publish()
    offline(repository).find(PATH)  # as long as it is named once
    mine = repository.signers[role][0]
    again = deepcopy(mine)
    again.public_key.keyid = "e" * 64
    if pem:
        again.public_key.keyval["public"] = again.public_key.keyval["public"].replace("\n", "\r\n")
    delegator.add_key(again.public_key, role)
    delegator.get_delegated_role(role).threshold = 2
    repository.signers[role] = [mine, again]
    publish()
    both_refuse(repository, tmp_path, KeptVersions(), Fault.MALFORMED)
    with pytest.raises(MetadataRefused, match="one key is named for"):
        offline(repository)


def test_an_id_without_a_key_signs_nothing_and_harms_nothing(tmp_path: Path) -> None:
    repository = published()
    repository.root.roles["timestamp"].keyids.append("0" * 64)
    roles = repository.targets.delegations.roles if repository.targets.delegations else None
    assert roles is not None
    roles[RELEASES].keyids.append("1" * 64)
    repository.targets.version += 1
    repository.new_root()
    assert offline(repository).find(PATH) == online(repository, tmp_path).find(PATH) is not None


# Old metadata


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", RELEASES])
def test_an_older_version_is_refused(tmp_path: Path, role: str) -> None:
    """Rollback: everything is signed by the right keys, but was seen in a newer version."""
    old, repository = published(), published()
    repository.next("targets", RELEASES).sign()
    kept = offline(repository).kept
    online(repository, tmp_path)
    for name in {"timestamp", "snapshot", "targets", RELEASES} - {role}:
        getattr(old, name).version = getattr(repository, name).version + 1
    old.sign()
    both_refuse(old, tmp_path, kept, Fault.ROLLED_BACK)


def test_an_older_root_is_refused(tmp_path: Path) -> None:
    repository = published()
    repository.new_root()
    kept = offline(repository).kept
    files = replace(repository.files(), roots={1: repository.history["metadata/1.root.json"]})
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, kept, files=files)
    assert caught.value.fault is Fault.ROLLED_BACK


def test_a_role_that_is_not_brought_keeps_its_version() -> None:
    repository = published()
    kept = offline(repository).kept
    without = offline(repository, kept, files=replace(repository.files(), roles={}))
    assert without.kept == kept
    with pytest.raises(MetadataRefused) as caught:
        without.find(PATH)
    assert caught.value.fault is Fault.MISSING
    assert without.find("none") is None


@pytest.mark.parametrize(
    ("role", "days", "offline_too"),
    [("root", 365, True), ("targets", 365, True), (RELEASES, 90, True), ("snapshot", 2, False), ("timestamp", 2, False)],
)
def test_expired_metadata_is_refused(tmp_path: Path, role: str, days: int, offline_too: bool) -> None:
    """Freeze: somebody serves the same old state for ever. The updater notices by timestamp and snapshot, root by the rest."""
    repository = published()
    for name in {"root", "targets", RELEASES, "snapshot", "timestamp"} - {role}:
        getattr(repository, name).expires = datetime.fromtimestamp(NOW + 999 * DAY, UTC)
    repository.sign()
    repository.bootstrap = repository.history["metadata/1.root.json"]
    at = NOW + days * DAY
    assert offline(repository, at=at - 1).find(PATH) == online(repository, tmp_path, at - 1).find(PATH) is not None
    with pytest.raises(MetadataRefused) as caught:
        online(repository, tmp_path, at)
    assert caught.value.fault is Fault.EXPIRED
    if offline_too:
        with pytest.raises(MetadataRefused) as caught:
            offline(repository, at=at)
        assert caught.value.fault is Fault.EXPIRED
    else:
        assert offline(repository, at=at).fresh_until == at


def test_a_clock_that_is_behind_lets_nothing_older_in(tmp_path: Path) -> None:
    repository = published()
    repository.next("targets", RELEASES).sign()
    kept = offline(repository).kept
    online(repository, tmp_path)
    both_refuse(published(), tmp_path, kept, Fault.ROLLED_BACK, at=0)


# Mix and match


@pytest.mark.parametrize("role", ["snapshot", "targets", RELEASES])
def test_files_of_different_states_are_refused_together(tmp_path: Path, role: str) -> None:
    """Each file has a valid signature of the vendor; together they were never published."""
    repository = published()
    old = repository.files()
    repository.next("targets", RELEASES).sign()
    files = repository.files()
    mixed = replace(files, roles=old.roles) if role == RELEASES else replace(files, **{role: getattr(old, role)})
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, files=mixed)
    assert caught.value.fault is Fault.MISMATCHED
    version = getattr(repository, role).version
    repository.history[f"metadata/{version}.{role}.json"] = repository.history[f"metadata/{version - 1}.{role}.json"]
    with pytest.raises(MetadataRefused) as caught:
        online(repository, tmp_path)
    assert caught.value.fault is Fault.MISMATCHED


def test_a_snapshot_without_hashes_still_fixes_the_versions(tmp_path: Path) -> None:
    repository = published()
    repository.next("targets").sign()
    repository.snapshot.meta = {name: MetaFile(file.version) for name, file in repository.snapshot.meta.items()}
    repository.sign_online()
    assert offline(repository).find(PATH) is not None
    older = repository.history[f"metadata/{repository.targets.version - 1}.targets.json"]
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, files=replace(repository.files(), targets=older))
    assert caught.value.fault is Fault.MISMATCHED


def test_a_role_that_nobody_delegates_to_is_refused() -> None:
    repository = published()
    files = repository.files()
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, files=replace(files, roles={**files.roles, "more": files.roles[RELEASES]}))
    assert caught.value.fault is Fault.MISMATCHED


# What a role may say


def test_the_offline_key_is_asked_first_and_decides(tmp_path: Path) -> None:
    repository = published()
    withdrawn = TargetFile.from_data(PATH, b"another", ["sha256"])
    withdrawn.unrecognized_fields["custom"] = CUSTOM
    repository.targets.targets[PATH] = withdrawn
    repository.next("targets").sign()
    for verified in (offline(repository), online(repository, tmp_path)):
        found = verified.find(PATH)
        assert found is not None and found.sha256 != CONTENT["sha256"]


def test_a_role_says_nothing_of_paths_that_were_not_delegated_to_it(tmp_path: Path) -> None:
    repository = published()
    assert repository.targets.delegations is not None and repository.targets.delegations.roles is not None
    repository.targets.delegations.roles[RELEASES].paths = ["license-agent/*"]
    repository.next("targets").sign()
    assert offline(repository).find(PATH) is None and online(repository, tmp_path).find(PATH) is None


def test_a_terminating_role_is_the_last(tmp_path: Path) -> None:
    repository = published()
    roles = repository.targets.delegations.roles if repository.targets.delegations else None
    assert roles is not None
    del roles[RELEASES]
    roles["first"] = DelegatedRole("first", [signer("first").public_key.keyid], 1, terminating=True, paths=["pos/*"])
    roles[RELEASES] = DelegatedRole(RELEASES, [signer(f"{RELEASES}0").public_key.keyid], 1, terminating=True, paths=["*/*"])
    repository.targets.add_key(signer("first").public_key, "first")
    repository.targets.version += 1
    first = deepcopy_without_targets(repository)
    repository.snapshot.meta["first.json"] = MetaFile.from_data(1, first, ["sha256"])
    repository.next().sign()
    files = replace(repository.files(), roles={**repository.files().roles, "first": first})
    assert offline(repository, files=files).find(PATH) is None and online(repository, tmp_path).find(PATH) is None
    with pytest.raises(MetadataRefused) as caught:
        offline(repository).find(PATH)
    assert caught.value.fault is Fault.MISSING


def deepcopy_without_targets(repository: UpdateRepository) -> bytes:
    """A role `first` with no target, as its own key signs it."""
    role = type(repository.releases)(expires=repository.releases.expires)
    return repository._write("first", role, [signer("first")])


def test_the_floors_are_the_offline_keys(tmp_path: Path) -> None:
    repository = published({})
    repository.releases.unrecognized_fields[FLOORS] = {"pos": "0"}
    repository.next(RELEASES).sign()
    assert offline(repository).floors == online(repository, tmp_path).floors == {}


@pytest.mark.parametrize(
    "floors", [{"pos": "new"}, {"POS": "1"}, {"pos": 1}, [], None, {f"p{n}": "1" for n in range(65)}], ids=str
)
def test_malformed_floors_are_refused(floors: Any) -> None:
    repository = published()
    repository.targets.unrecognized_fields[FLOORS] = floors
    repository.next("targets").sign()
    with pytest.raises(MetadataRefused, match="floors are malformed"):
        offline(repository)


def test_a_malformed_custom_is_an_error_and_not_another_target() -> None:
    repository = UpdateRepository(NOW)
    repository.publish(PATH, PACKAGE, CUSTOM | {"hardware": ["any"]})
    with pytest.raises(MalformedTarget, match="hardware any"):
        offline(repository).find(PATH)


# Endless data


def test_more_targets_than_allowed_are_refused(tmp_path: Path) -> None:
    repository = published()
    many = {f"pos/{number}": TargetFile(1, {"sha256": "0" * 64}, f"pos/{number}") for number in range(MAX_TARGETS_PER_ROLE)}
    repository.releases.targets = many
    repository.next(RELEASES).sign()
    assert offline(repository).find(PATH) is None
    repository.releases.targets = {**many, PATH: many["pos/0"]}
    repository.next(RELEASES).sign()
    both_refuse(repository, tmp_path, KeptVersions(), Fault.TOO_LARGE)


def test_more_roles_than_allowed_are_refused(tmp_path: Path) -> None:
    repository = published()
    roles = repository.targets.delegations.roles if repository.targets.delegations else None
    assert roles is not None
    roles |= {f"r{n}": DelegatedRole(f"r{n}", [], 1, terminating=False, paths=["x/*"]) for n in range(MAX_ROLES)}
    repository.next("targets").sign()
    both_refuse(repository, tmp_path, KeptVersions(), Fault.TOO_LARGE)


@pytest.mark.parametrize("size", [MAX_TIMESTAMP_BYTES + 1, MAX_TIMESTAMP_BYTES * 4])
def test_a_timestamp_that_does_not_end_is_refused(tmp_path: Path, size: int) -> None:
    repository = published()
    repository.history["metadata/timestamp.json"] = repository.history["metadata/timestamp.json"].ljust(size)
    both_refuse(repository, tmp_path, KeptVersions(), Fault.TOO_LARGE)


def test_a_snapshot_that_does_not_end_is_refused(tmp_path: Path) -> None:
    repository = published()
    repository.snapshot.unrecognized_fields["more"] = "x" * MAX_SNAPSHOT_BYTES
    repository.sign_online()
    repository.timestamp.snapshot_meta.length = None
    repository._write("timestamp", repository.timestamp, repository.signers["timestamp"])
    both_refuse(repository, tmp_path, KeptVersions(), Fault.TOO_LARGE)


# Malformed


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b"[" * 5000, b'{"signed": {"_type": "timestamp"}, "signatures": []}', b'{"signed": 1}'],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_metadata_is_refused(tmp_path: Path, data: bytes) -> None:
    repository = published()
    repository.history["metadata/timestamp.json"] = data
    both_refuse(repository, tmp_path, KeptVersions(), Fault.MALFORMED)


@pytest.mark.parametrize("role", ["snapshot", "targets", "timestamp"])
def test_one_role_is_not_another(role: str) -> None:
    repository = published()
    files = repository.files()
    other = files.targets if role != "targets" else files.snapshot
    with pytest.raises(MetadataRefused) as caught:
        offline(repository, files=replace(files, **{role: other}))
    assert caught.value.fault in (Fault.MALFORMED, Fault.MISMATCHED)


@pytest.mark.parametrize("version", [MAX_METADATA_VERSION + 1, True, 2.5])
def test_a_version_that_could_not_be_kept_is_refused(version: Any) -> None:
    repository = published()
    repository.timestamp.version = version
    with pytest.raises(Exception) as caught:  # python-tuf does not even sign a fraction
        repository.sign_online()
        offline(repository)
    assert version == 2.5 or (isinstance(caught.value, MetadataRefused) and caught.value.fault is Fault.MALFORMED)
