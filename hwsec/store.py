"""Loads the copy of the sealed store that the anchor names, and commits new ones so that a power cut at any point leaves one.

Commit: new file, fsync -> anchor -> counter -> rename -> twin. At start only the copy whose digest the anchor holds is
accepted, in whichever of the three files it lies; the other two are then brought up to it.
"""

import contextlib
import errno
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.files import fsync_directory, no_trace, write_atomic, write_temporary

from .backend import Anchor, Backend
from .errors import StoreCorrupt, StoreMissing, StoreRollback, StoreTooLarge
from .secretmem import SecretBuffer
from .storeformat import (
    MAX_STORE_BYTES,
    AnchorCase,
    Copies,
    StoreBody,
    VersionMeta,
    choose_copy,
    decode_store,
    encode_store,
    judge_anchor,
    seal_record,
    unseal_record,
)
from .vault import SECRET_BYTES, Vault, WrappedSecret


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A secret version in memory; `secret` is None once it has been destroyed."""

    meta: VersionMeta
    secret: WrappedSecret | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store holds, in memory.

    Attributes:
        versions: oldest first.
        sections: further authenticated content, by name.
    """

    versions: tuple[StoredVersion, ...] = ()
    sections: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A store that has been read.

    Attributes:
        contents: what it holds.
        generation: number of its commit.
        repairs: what was repaired on the way, or could not be, a sentence each; for the audit log.
    """

    contents: Contents
    generation: int
    repairs: tuple[str, ...]


class SealedStore:
    """Reads and commits one store. Not for two threads at once.

    Args:
        path: the file; its twin and its pending copy are beside it.
        backend: guards the key and the anchor; open.
        vault: where the secrets rest in memory.
        agent_id: whose store it is.
        state_number: turns a state word into the anchor's number.
        trace: called after each step of a commit; tests pass one that stops there.
    """

    def __init__(
        self,
        path: Path,
        backend: Backend,
        vault: Vault,
        agent_id: str,
        state_number: Callable[[str], int],
        trace: Callable[[str], None] = no_trace,
    ) -> None:
        self._path = path
        self._twin = path.with_name(path.name + ".twin")
        self._pending = path.with_name(path.name + ".pending")
        self._backend = backend
        self._vault = vault
        self._agent_id = agent_id
        self._state_number = state_number
        self._trace = trace

    def load(self) -> Loaded:
        """Reads the newest committed store, finishing or repairing what a power cut or a bad block left.

        Raises:
            StoreMissing: nothing has been committed, or all copies are gone.
            StoreRollback: what is there is older than the anchor.
            StoreCorrupt: no copy is whole.
        """
        anchor, counter = self._backend.read_anchor()
        case = judge_anchor(anchor, counter)
        if anchor is None:
            raise StoreMissing(f"no store has been committed for {self._path}")
        if case is AnchorCase.TORN:
            raise StoreRollback(
                f"the anchor names generation {anchor.generation}, the counter is at {counter}: "
                "somebody else wrote to them; recover with new secrets from the server"
            )
        copies = self._read_copies()
        with self._backend.kek() as kek:
            data = choose_copy(copies, anchor.digest)
            if data is None:
                raise self._refusal(kek, copies, anchor.generation)
            body = decode_store(kek, data)
            if body.agent_id != self._agent_id:
                raise StoreCorrupt(
                    f"{self._path} belongs to the agent {body.agent_id!r}, the configuration says {self._agent_id!r}"
                )
            contents = self._open(kek, body)
        return Loaded(contents, body.generation, self._settle(anchor, case, copies, data))

    def _settle(self, anchor: Anchor, case: AnchorCase, copies: Copies, data: bytes) -> tuple[str, ...]:
        """Finishes the commit that stopped after its anchor was written, and makes main file and twin alike."""
        repairs = []
        if case is AnchorCase.HALF:
            self._backend.increment()
            repairs.append(f"finished the commit of generation {anchor.generation}, which had stopped half-way")
        found = {self._path: copies.main, self._twin: copies.twin}
        if copies.main != data and copies.pending == data:
            # As the commit would have done it, which needs no room on the disk.
            self._pending.replace(self._path)
            fsync_directory(self._path.parent)
            found[self._path] = data
            repairs.append(f"moved the newest copy to {self._path}")
        for path, there in found.items():
            if there != data:
                try:
                    write_atomic(path, data)
                except OSError as error:  # one whole copy is enough to go on with
                    repairs.append(f"could not restore {path} from its other copy: {error.strerror}")
                else:
                    repairs.append(f"restored {path} from its other copy")
        self._pending.unlink(missing_ok=True)
        return tuple(repairs)

    def _read_copies(self) -> Copies:
        return Copies(_read(self._path), _read(self._twin), _read(self._pending))

    def _open(self, kek: SecretBuffer, body: StoreBody) -> Contents:
        versions = []
        for record in body.records:
            wrapped = None
            if record.sealed:
                with SecretBuffer(SECRET_BYTES) as secret:
                    unseal_record(kek, self._agent_id, record, secret)
                    wrapped = self._vault.wrap(secret)
            versions.append(StoredVersion(record.meta, wrapped))
        return Contents(tuple(versions), dict(body.sections))

    def _refusal(self, kek: SecretBuffer, copies: Copies, generation: int) -> Exception:
        present = [data for data in (copies.main, copies.twin, copies.pending) if data is not None]
        if not present:
            return StoreMissing(f"{self._path} and its twin are gone; recover with new secrets from the server")
        for data in present:
            with contextlib.suppress(StoreCorrupt):
                old = decode_store(kek, data)
                return StoreRollback(
                    f"{self._path} is of generation {old.generation}, the newest commit is {generation}: an older or "
                    "foreign copy was put in its place; restore the newest copy, or recover with new secrets from the server"
                )
        return StoreCorrupt(f"neither {self._path} nor its twin is whole; recover with new secrets from the server")

    def commit(self, contents: Contents) -> int:
        """Makes `contents` the newest store and returns its generation. When this returns, it is durable.

        Raises:
            StoreTooLarge: it does not fit; nothing has changed.
            BackendUnavailable: the hardware does not answer.
            OSError: the disk does not take it.

        After one of the last two, the old store or the new one is the newest: the next `commit` or `load` finds out which.
        """
        anchor, counter = self._backend.read_anchor()
        case = judge_anchor(anchor, counter)
        if anchor is not None and case is not AnchorCase.TORN:
            # The copy that the anchor names may still lie in the pending file, which this commit is going to replace.
            copies = self._read_copies()
            newest = choose_copy(copies, anchor.digest)
            if newest is not None:
                self._settle(anchor, case, copies, newest)
            elif case is AnchorCase.HALF:
                self._backend.increment()
            counter = anchor.generation
        generation = counter + 1
        data = self._encode(contents, generation)
        write_temporary(self._pending, data)
        fsync_directory(self._path.parent)
        self._trace("pending written")
        self._backend.write_anchor(self._anchor(contents, generation, data))
        self._trace("anchor written")
        self._backend.increment()
        self._trace("counter incremented")
        self._pending.replace(self._path)
        self._trace("renamed")
        fsync_directory(self._path.parent)
        write_atomic(self._twin, data, trace=self._trace)
        return generation

    def _encode(self, contents: Contents, generation: int) -> bytes:
        with self._backend.kek() as kek:
            records = []
            for stored in contents.versions:
                if stored.secret is None:
                    records.append(seal_record(kek, self._agent_id, stored.meta, None))
                else:
                    with self._vault.open(stored.secret) as secret:
                        records.append(seal_record(kek, self._agent_id, stored.meta, secret))
            body = StoreBody(self._agent_id, generation, self._backend.name, tuple(records), dict(contents.sections))
            data = encode_store(kek, body)
        if len(data) > MAX_STORE_BYTES:
            raise StoreTooLarge(f"the store would have {len(data)} bytes, more than {MAX_STORE_BYTES}; nothing was changed")
        return data

    def _anchor(self, contents: Contents, generation: int, data: bytes) -> Anchor:
        digest = hashlib.sha256(data).digest()
        if not contents.versions:
            return Anchor(generation, digest)
        newest = contents.versions[-1].meta
        return Anchor(
            generation,
            digest,
            newest.version,
            newest.valid_from,
            newest.valid_until,
            newest.grace_until,
            self._state_number(newest.state),
        )


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_STORE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return b""  # a broken block: its twin may be whole
