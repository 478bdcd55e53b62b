"""Bundles for slots: good ones, and any member that a hostile maker could write."""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

import zstandard

BLOCK = 512
MTIME = 1_700_000_000


@dataclass(frozen=True)
class Made:
    """A member as it is written. Every field can be anything."""

    name: bytes
    data: bytes = b""
    flag: bytes = b"0"
    mode: bytes = b"0000644\0"
    uid: bytes = b"0000000\0"
    gid: bytes = b"0000000\0"
    size: bytes | None = None
    mtime: bytes = b"%011o\0" % MTIME
    target: bytes = b""
    magic: bytes = b"ustar\x0000"
    uname: bytes = b""
    gname: bytes = b""
    major: bytes = b"0000000\0"
    minor: bytes = b"0000000\0"
    prefix: bytes = b""
    rest: bytes = bytes(12)
    checksum: bytes | None = None
    padding: bytes = b"\0"

    def block(self) -> bytes:
        size = b"%011o\0" % len(self.data) if self.size is None else self.size
        fields = [
            self.name.ljust(100, b"\0"), self.mode, self.uid, self.gid, size, self.mtime, b" " * 8, self.flag,
            self.target.ljust(100, b"\0"), self.magic, self.uname.ljust(32, b"\0"), self.gname.ljust(32, b"\0"),
            self.major, self.minor, self.prefix.ljust(155, b"\0"), self.rest,
        ]  # fmt: skip
        whole = b"".join(fields)
        assert len(whole) == BLOCK
        checksum = b"%06o\0 " % sum(whole) if self.checksum is None else self.checksum
        return whole[:148] + checksum + whole[156:]

    def written(self) -> bytes:
        return self.block() + self.data + self.padding * (-len(self.data) % BLOCK)


def directory(name: str) -> Made:
    return Made(name.encode() + b"/", flag=b"5", mode=b"0000755\0")


def program(name: str, data: bytes = b"#!/bin/sh\n") -> Made:
    return Made(name.encode(), data, mode=b"0000755\0")


def link(name: str, target: str) -> Made:
    return Made(name.encode(), flag=b"2", mode=b"0000777\0", target=target.encode())


GOOD = (directory("bin"), program("bin/check"), Made(b"data.txt", b"hello" * 1000), link("bin/again", "../data.txt"))


def manifest(members: Iterable[Made], **other: object) -> Made:
    members = list(members)
    says = {"v": 1, "product": "pos", "version": "1.0", "build_id": "b1", "entries": len(members)}
    says["bytes"] = sum(len(member.data) for member in members)
    return Made(b"manifest.json", json.dumps(says | other).encode())


def archive(members: Iterable[Made], end: bytes = bytes(2 * BLOCK)) -> bytes:
    return b"".join(member.written() for member in members) + end


def compressed(data: bytes, window_log: int | None = None) -> bytes:
    if window_log is None:
        return zstandard.ZstdCompressor(level=3).compress(data)
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=window_log)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def bundle(members: Iterable[Made] = GOOD, **says: object) -> bytes:
    members = list(members)
    return compressed(archive([manifest(members, **says), *members]))


def version(number: str, payload: bytes = b"") -> bytes:
    """A good bundle of a version; each has other content."""
    members = [*GOOD, Made(b"version", number.encode() + payload)]
    return bundle(members, version=number, build_id=f"b{number}")


def opened(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


def changed(made: Made, **fields: object) -> Made:
    return replace(made, **fields)  # type: ignore[arg-type]
