"""Decides by root's own trust whether a package may be installed, and what root remembers from then on. Pure.

The order of the judgement itself is in `updatetrust.judgement`; here it is given what only root keeps.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from contracts.directive import Directive, verify_directive
from contracts.keyset import KeySet, verify_key_sets
from updatetrust.judgement import (
    Code,
    Disagreement,
    Installed,
    MachineState,
    effective_floors,
    judge,
    require_not_withdrawn,
    require_plausible,
)
from updatetrust.metadata import verify_offline
from updatetrust.metadatafiles import parse_names
from updatetrust.target import Kind, Target
from updatetrust.trustfile import UpdateTrust
from updatetrust.version import Version

from .contract import Place
from .staged import Papers
from .state import Pending, State

Backends = Mapping[str, str]
"""The products of root's configuration, each with its backend."""


@dataclass(frozen=True, slots=True)
class Assessed:
    """A package that may be installed.

    Attributes:
        target: what the vendor signed.
        directive: what the server ordered.
        floor: the lowest version of the product by now.
        state: what root remembers from now on; nothing older counts any more.
    """

    target: Target
    directive: Directive
    floor: Version
    state: State

    def pending(self, place: Place) -> Pending:
        """The update that begins with it."""
        return Pending(place=place, number=self.directive.number, not_after=self.directive.not_after, floor=self.floor.text)


def assess(
    papers: Papers, product: str, sha256: str, trust: UpdateTrust, state: State, backends: Backends, agent: Version
) -> Assessed:
    """Verifies every signature and judges.

    Args:
        papers: what came with the package.
        product: that the core names.
        sha256: of the package that the core names.
        trust: root's file.
        state: what root remembers.
        backends: the machine's products.
        agent: version of the license agent.

    Raises:
        contracts.jose.MalformedToken, contracts.jose.BadSignature: key set or directive.
        updatetrust.metadatafiles.BadMetadataFiles, updatetrust.metadata.MetadataRefused, updatetrust.target.MalformedTarget,
        updatetrust.version.MalformedVersion: the repository's metadata.
        Disagreement: the package may not be installed.
    """
    key_set = _accepted(papers.key_set, trust, state)
    directive = verify_directive(papers.directive, key_set.trust())
    digest = hashlib.sha256(papers.directive.encode()).hexdigest()
    if directive.product != product:
        raise Disagreement(Code.OTHER_PRODUCT, f"directive {directive.number} is for {directive.product}, not for {product}")
    if directive.sha256 != sha256:
        raise Disagreement(Code.DIGEST_DIFFERS, f"directive {directive.number} orders the package {directive.sha256}")
    floor_time = max(state.floor_time, key_set.issued_at)
    verified = verify_offline(parse_names(papers.metadata), trust.root_bytes(), state.metadata, floor_time)
    floors = effective_floors({name: Version.parse(text) for name, text in state.floors.items()}, verified.floors)
    # A directive counts again after a rollback, as long as no other was accepted since, and it was not committed.
    same = (directive.number, digest) == (state.directive, state.directive_sha256)
    target = judge(
        directive,
        verified.find(directive.target),
        trust,
        floors,
        agent,
        MachineState(
            executed=state.executed if same else max(state.executed, state.directive),
            products={name: Installed(Kind(backend), running_version(state, name)) for name, backend in backends.items()},
            withdrawn=state.withdrawn,
        ),
        floor_time,
    )
    remembered = msgspec.structs.replace(
        _knowing(state, key_set, trust),
        directive=directive.number,
        directive_sha256=digest,
        floor_time=max(floor_time, target.released_at),
        metadata=verified.kept,
    )
    return Assessed(target, directive, floors[product], remembered)


def withdraw(text: str, key_set: str, trust: UpdateTrust, state: State) -> State | None:
    """Returns what root remembers of a directive that withdraws another one; None of one that withdraws none.

    It counts whatever the time is, and again: what it says stays true.

    Args:
        text: the directive.
        key_set: key sets, one a line.
        trust: root's file.
        state: what root remembers.

    Raises:
        contracts.jose.MalformedToken, contracts.jose.BadSignature: key set or directive.
        Disagreement: it is for another agent, or its number is far ahead.
    """
    found = _accepted(key_set, trust, state)
    directive = verify_directive(text, found.trust())
    if directive.agent_id != trust.agent_id:
        raise Disagreement(Code.OTHER_AGENT, f"directive {directive.number} is for the agent {directive.agent_id}")
    if directive.withdraws is None:
        return None
    require_plausible(directive, max(state.floor_time, found.issued_at))
    known = _knowing(state, found, trust)
    return msgspec.structs.replace(known, withdrawn=max(state.withdrawn, directive.withdraws))


def _accepted(text: str, trust: UpdateTrust, state: State) -> KeySet:
    # The root of a later key set is one that the set before it named, as in the core; another file of root's begins again.
    roots = state.roots if state.pins == trust.license_roots else trust.license_roots
    return verify_key_sets(text, roots, state.key_set - 1).content


def _knowing(state: State, key_set: KeySet, trust: UpdateTrust) -> State:
    return msgspec.structs.replace(state, key_set=key_set.number, pins=trust.license_roots, roots=key_set.roots)


def running_version(state: State, product: str) -> Version | None:
    """The version of a product that was committed last; None before the first."""
    found = state.products.get(product)
    if found is None or found.good is None:
        return None
    return Version.parse(found.places[found.good].version)


def recheck(state: State, product: str, pending: Pending, version: str) -> None:
    """Judges again what may have changed since a package was prepared: the directive, the floor, the time.

    Raises:
        Disagreement: the version may no longer be switched to.
    """
    require_not_withdrawn(pending.number, state.withdrawn)
    if pending.number != state.directive:
        raise Disagreement(
            Code.DIRECTIVE_REPLAYED, f"directive {state.directive} was accepted since directive {pending.number}; roll back"
        )
    if state.floor_time > pending.not_after:
        raise Disagreement(Code.DIRECTIVE_EXPIRED, f"directive {pending.number} has expired; assign the update again")
    floor = state.floors.get(product)
    if floor is not None and Version.parse(version) < Version.parse(floor):
        raise Disagreement(Code.BELOW_FLOOR, f"{product} {version} is below the lowest version allowed, {floor}")
