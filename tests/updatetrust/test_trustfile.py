"""update-trust.json: its form, and who may be able to change it."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.updatetrust.facts import TRUST
from updatetrust.trustfile import MAX_TRUST_BYTES, BadTrustFile, encode_trust_file, parse_trust_file, read_trust

CONTENT: dict[str, Any] = json.loads(encode_trust_file(TRUST))
ME = (os.geteuid(),)


def written(directory: Path, data: bytes = encode_trust_file(TRUST), mode: int = 0o644) -> Path:
    path = directory / "update-trust.json"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_trust(written(tmp_path), ME) == TRUST
    assert json.loads(TRUST.root_bytes()) == TRUST.tuf_root
    assert list(CONTENT) == ["v", "agent_id", "hardware", "license_roots", "tuf_root"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "'v'"),
        ({"agent_id": "a/b"}, "'agent_id'"),
        ({"hardware": "Till"}, "'hardware'"),
        ({"hardware": "any"}, "the hardware any is not allowed"),
        ({"license_roots": []}, "'license_roots'"),
        ({"license_roots": ["sha256:0"]}, r"'license_roots\[0\]'"),
        ({"tuf_root": {}}, "tuf_root must be"),
        ({"tuf_root": {"signed": {"_type": "targets"}, "signatures": []}}, "tuf_root must be"),
        ({"tuf_root": {"signed": [], "signatures": []}}, "tuf_root must be"),
        ({"tuf_root": "{}"}, "'tuf_root'"),
        ({"more": 1}, "unknown field 'more'"),
    ],
    ids=str,
)
def test_another_form_is_refused_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadTrustFile, match=says) as caught:
        parse_trust_file(json.dumps({**CONTENT, **change}).encode(), "/etc/x.json")
    assert str(caught.value).startswith("/etc/x.json: ")


@pytest.mark.parametrize("name", list(CONTENT))
def test_each_member_must_be_there(name: str) -> None:
    with pytest.raises(BadTrustFile, match=f"'{name}' is missing"):
        parse_trust_file(json.dumps({key: value for key, value in CONTENT.items() if key != name}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"v":1,"v":1}', b'{"v":1.0}', b"[" * 5000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BadTrustFile):
        parse_trust_file(data)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BadTrustFile, match="run: chmod go-w"):
        read_trust(written(tmp_path, mode=mode), ME)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrustFile, match=r"belongs to uid \d+"):
        read_trust(written(tmp_path), (os.geteuid() + 1,))


def test_a_link_a_pipe_and_a_directory_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    (link := tmp_path / "link").symlink_to(path)
    os.mkfifo(pipe := tmp_path / "pipe", 0o644)
    for wrong in (link, pipe, tmp_path, tmp_path / "missing"):
        with pytest.raises(BadTrustFile, match=str(wrong)):
            read_trust(wrong, ME)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTrustFile, match="more than"):
        read_trust(written(tmp_path, encode_trust_file(TRUST) + b" " * MAX_TRUST_BYTES), ME)


def test_the_content_is_all_that_decides() -> None:
    assert msgspec.structs.replace(TRUST, hardware="till-arm") == parse_trust_file(
        json.dumps({**CONTENT, "hardware": "till-arm"}).encode()
    )
