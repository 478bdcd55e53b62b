"""Carries out one order of the core: which checks come in which order, and what is staged.

Nothing that is downloaded is given a place before directive, repository and machine agree on it. Root believes nothing of what
the updater says: the installer makes every check again, with what root keeps.
"""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from contracts.directive import Directive, verify_directive
from contracts.jose import BadSignature, MalformedToken
from contracts.keyset import verify_key_sets
from ipc.messages import Request
from ipc.updatermessages import (
    UPDATER_VERSION,
    Describe,
    Description,
    Discard,
    Done,
    Failure,
    Look,
    Offer,
    Refresh,
    Seen,
    Stage,
    Staged,
    TakeBundle,
    UpdaterCode,
)
from updatetrust.judgement import Code, Disagreement, agree
from updatetrust.metadata import KeptVersions, MetadataRefused, VerifiedTargets, verify_offline
from updatetrust.metadatafiles import BadMetadataFiles, MetadataFiles, parse_names
from updatetrust.target import MalformedTarget, Target
from updatetrust.trustfile import BadTrustFile, UpdateTrust, read_trust
from updatetrust.version import Version

from . import VERSION
from .bundle import Bundle, Papers
from .clock import Clock
from .download import Report, Reporter, Wanted, download
from .failures import CoreGone, UpdateFailed
from .linkclient import LinkSession, open_link
from .repository import package_path, read_repository, refused
from .staging import METADATA, Part, Staging, disk_failure

log = logging.getLogger("updater")

_OF_THE_STATE = frozenset(
    {Code.NOT_IN_REPOSITORY, Code.LENGTH_DIFFERS, Code.DIGEST_DIFFERS, Code.VERSION_DIFFERS, Code.BUILD_DIFFERS}
)
"""What a mirror can bring about that shows an older state of the repository, which is not out of date yet."""

USUAL_S = 3 * 86_400
"""How long the repository's metadata is fresh at most; that of a bundle may be signed for longer."""
ORDERS = ("refresh", "look", "stage", "take_bundle", "discard")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are.

    Attributes:
        trust: root's file of what this machine trusts.
        state: the updater's own directory.
        link: the link's socket.
        owners: who may own the file of trust.
    """

    trust: Path
    state: Path
    link: Path
    owners: frozenset[int] = frozenset({0})


@dataclass(frozen=True, slots=True)
class _Ordered:
    """What the server orders, with its signatures verified.

    Attributes:
        directive: what is to be installed.
        texts: directive and key set as they came, by the names that they are staged under.
        trust: root's file.
    """

    directive: Directive
    texts: dict[str, bytes]
    trust: UpdateTrust


class Updater:
    """Carries out orders, one after another.

    Args:
        places: where things are.
        trusted_uids: who may serve the link's socket.
        clock: seconds that pass.
    """

    def __init__(self, places: Places, trusted_uids: frozenset[int], clock: Clock) -> None:
        self._places = places
        self._trusted_uids = trusted_uids
        self._clock = clock

    def carry_out(self, order: Request, descriptor: int | None, report: Report) -> Request:
        """Returns the answer to an order.

        Args:
            order: as it was decoded.
            descriptor: that came with it.
            report: takes the progress; what it raises ends the work and is raised.
        """
        try:
            staging = Staging(self._places.state)
            try:
                return self._answer(order, descriptor, report, staging)
            finally:
                staging.close()
        except UpdateFailed as failed:
            log.warning("%s: %s", failed.code, failed.text)
            return _failure(order, failed)
        except CoreGone:
            raise
        except Exception:  # the next order, of another package or none, may well be carried out
            log.exception("an error in the updater ended an order")
            return _failure(order, UpdateFailed(UpdaterCode.INTERNAL, "the updater failed; its journal has the details"))

    def _answer(self, order: Request, descriptor: int | None, report: Report, staging: Staging) -> Request:
        if isinstance(order, Refresh):
            return self._refresh(order, staging)
        if isinstance(order, Look):
            return self._look(order, staging)
        if isinstance(order, Stage):
            return self._stage(order, staging, report)
        if isinstance(order, TakeBundle) and descriptor is not None:
            return self._take_bundle(order, descriptor, staging, report)
        try:
            if isinstance(order, Discard):
                staging.discard(frozenset(order.keep))
                return Done(v=UPDATER_VERSION, id=order.id)
            if isinstance(order, Describe):
                staged = tuple(staging.names())
                return Description(v=UPDATER_VERSION, id=order.id, program=VERSION, orders=ORDERS, staged=staged)
        except OSError as error:
            raise disk_failure(error, "the staging directory cannot be used") from None
        raise TypeError(f"an order without an answer: {type(order).__name__}")

    def _read(
        self, session: LinkSession, trust: UpdateTrust, target: str | None, now: int, staging: Staging
    ) -> tuple[VerifiedTargets, MetadataFiles]:
        """The newest metadata of the repository, by the root of this machine."""
        metadata, root = self._places.state / METADATA, trust.root_bytes()
        try:
            staging.tidy_metadata()
        except OSError as error:
            raise disk_failure(error, "the repository's metadata cannot be kept") from None
        return read_repository(session, metadata, root, now, target, self._clock)

    def _refresh(self, order: Refresh, staging: Staging) -> Offer:
        ordered = self._ordered(order.directive, order.key_set)
        with open_link(self._places.link, order.now, self._clock, self._trusted_uids) as session:
            verified, _ = self._read(session, ordered.trust, ordered.directive.target, order.now, staging)
        target = _agreed(ordered, verified, order.now, network=True)
        signed_until, signed_role = verified.first_end()
        return Offer(
            v=UPDATER_VERSION,
            id=order.id,
            product=target.product,
            version=target.version,
            build_id=target.build_id,
            kind=target.kind.value,
            notes=target.notes,
            sha256=target.sha256,
            length=target.length,
            staged=staging.has(target.sha256),
            metadata_expires=verified.fresh_until,
            signed_until=signed_until,
            signed_role=signed_role[:64],
        )

    def _look(self, order: Look, staging: Staging) -> Seen:
        try:
            trust = read_trust(self._places.trust, self._places.owners)
        except BadTrustFile as error:
            raise UpdateFailed(UpdaterCode.TRUST, str(error)) from None
        with open_link(self._places.link, order.now, self._clock, self._trusted_uids) as session:
            verified, _ = self._read(session, trust, None, order.now, staging)
        until, role = verified.first_end()
        expires = verified.fresh_until
        return Seen(v=UPDATER_VERSION, id=order.id, metadata_expires=expires, signed_until=until, signed_role=role[:64])

    def _stage(self, order: Stage, staging: Staging, report: Report) -> Staged:
        ordered = self._ordered(order.directive, order.key_set)
        with open_link(self._places.link, order.now, self._clock, self._trusted_uids) as session:
            verified, files = self._read(session, ordered.trust, ordered.directive.target, order.now, staging)
            target = _agreed(ordered, verified, order.now, network=True)
            part = None
            if not _holds(staging, target):
                wanted = Wanted(package_path(target.path, target.sha256), target.length, target.sha256)
                part = download(session, wanted, staging, self._clock, report, order.rate)
        return _place(order, staging, part, target, ordered, files)

    def _take_bundle(self, order: TakeBundle, descriptor: int, staging: Staging, report: Report) -> Staged:
        try:
            bundle = Bundle(descriptor)
            papers = bundle.papers()
        except OSError as error:
            raise disk_failure(error, "the bundle cannot be read") from None
        directive, key_set = order.directive or papers.directive, order.key_set or papers.key_set
        if directive is None or key_set is None:
            missing = "directive" if directive is None else "key set"
            raise UpdateFailed(UpdaterCode.BUNDLE, f"the bundle has no {missing}, and the agent has none for it")
        ordered = self._ordered(directive, key_set)
        try:
            files = parse_names(papers.metadata)
            verified = verify_offline(files, ordered.trust.root_bytes(), KeptVersions(), order.now)
        except BadMetadataFiles as error:
            raise UpdateFailed(UpdaterCode.BUNDLE, f"the bundle's metadata is not whole: {error}") from None
        except MetadataRefused as error:
            raise refused(error, network=False) from None
        if verified.fresh_until <= order.now:
            text = "the bundle's metadata is out of date; make the bundle again"
            raise UpdateFailed(UpdaterCode.EXPIRED, text, network=False)
        if verified.fresh_until - order.now > USUAL_S:
            days = (verified.fresh_until - order.now) // 86_400
            log.info("the bundle's metadata was signed for a machine without a network: it is valid for %d more days", days)
        target = _agreed(ordered, verified, order.now, network=False)
        if papers.package_size != target.length:
            text = f"the bundle's package has {papers.package_size} bytes instead of {target.length}"
            raise UpdateFailed(UpdaterCode.LENGTH, text, network=False)
        part = None
        if not _holds(staging, target):
            part = self._copy(bundle, papers, target, staging, report)
        return _place(order, staging, part, target, ordered, files)

    def _copy(self, bundle: Bundle, papers: Papers, target: Target, staging: Staging, report: Report) -> Part:
        """Copies and hashes the package in one pass: the file may change meanwhile."""
        part = None
        try:
            staging.check_space(target.length)
            part = staging.part(target.sha256)
            part.empty()
            digest, reporter = hashlib.sha256(), Reporter(report, target.length, self._clock)
            for data in bundle.package(papers):
                part.write(data)
                digest.update(data)
                reporter.at(part.size)
            if digest.hexdigest() != target.sha256:
                text = f"the bundle's package has the SHA-256 {digest.hexdigest()}, not {target.sha256}"
                raise UpdateFailed(UpdaterCode.DIGEST, text, network=False)
            return part
        except BaseException as error:  # raised again below
            if part is not None:
                part.empty()
                part.close()
            if isinstance(error, OSError):
                raise disk_failure(error, "the package cannot be copied") from None
            raise

    def _ordered(self, directive: str, key_set: str) -> _Ordered:
        """Verifies the server's signatures, from the roots that root trusts down to the directive."""
        try:
            trust = read_trust(self._places.trust, self._places.owners)
            keys = verify_key_sets(key_set, trust.license_roots).content.trust()
            texts = {"directive.jws": directive.encode(), "key-set.jws": key_set.encode()}
            return _Ordered(verify_directive(directive, keys), texts, trust)
        except BadTrustFile as error:
            raise UpdateFailed(UpdaterCode.TRUST, str(error)) from None
        except (BadSignature, MalformedToken) as error:
            raise UpdateFailed(UpdaterCode.SIGNATURE, str(error)) from None


def _holds(staging: Staging, target: Target) -> bool:
    try:
        return staging.holds(target.sha256, target.length)
    except OSError as error:
        raise disk_failure(error, "what is staged cannot be used") from None


def _failure(order: Request, failed: UpdateFailed) -> Failure:
    return Failure(v=UPDATER_VERSION, id=order.id, code=failed.code, text=failed.text[:500], network=failed.network)


def _agreed(ordered: _Ordered, verified: VerifiedTargets, now: int, *, network: bool) -> Target:
    """The target on which directive, repository and machine agree; `network`: the metadata comes from the repository."""
    try:
        target = verified.find(ordered.directive.target)
        return agree(ordered.directive, target, ordered.trust, verified.floors, Version.parse(VERSION), now)
    except Disagreement as error:
        raise UpdateFailed(error.code.value, error.text, network and error.code in _OF_THE_STATE) from None
    except MalformedTarget as error:
        raise UpdateFailed(UpdaterCode.METADATA, str(error)) from None
    except MetadataRefused as error:
        raise refused(error, network=network) from None


def _place(
    order: Request, staging: Staging, part: Part | None, target: Target, ordered: _Ordered, files: MetadataFiles
) -> Staged:
    papers = {**ordered.texts, **{f"metadata/{name}": data for name, data in files.by_name().items()}}
    try:
        staging.stage(target.sha256, part, papers)
    except OSError as error:
        raise disk_failure(error, "the package cannot be staged") from None
    finally:
        if part is not None:
            part.close()
    return Staged(
        v=UPDATER_VERSION,
        id=order.id,
        name=target.sha256,
        sha256=target.sha256,
        length=target.length,
        product=target.product,
        version=target.version,
        build_id=target.build_id,
    )
