"""tests/vectors/adminauth.json and docs/protocol.md say the same, and the agent accepts what they say."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agentd.admin.authentication import Conversation, Grounds, authenticate
from agentd.admin.chain import Window
from contracts.admin.adminauth import act_digest, signed_text
from contracts.admin.adminca import read_admin_ca
from ipc.frames import FrameDecoder
from ipc.messages import AdminRequest, RequestDecoder, Signed
from ipc.peer import Peer
from tests.vectors import make_adminauth

VECTORS = Path(__file__).parents[2] / "vectors" / "adminauth.json"
PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
FOUND = json.loads(VECTORS.read_text("utf-8"))
each_vector = pytest.mark.parametrize("vector", FOUND["vectors"], ids=lambda each: each["description"])


def _parts(vector: dict[str, Any]) -> tuple[str, bytes, bytes]:
    return vector["agent_id"], bytes.fromhex(vector["boot_id_hex"]), bytes.fromhex(vector["challenge_hex"])


def _accepted(vector: dict[str, Any], signed: Signed) -> Any:
    agent_id, boot_id, challenge = _parts(vector)
    talk = Conversation()
    talk.ask(challenge, 0.0)
    grounds = Grounds(agent_id, boot_id, read_admin_ca(FOUND["ca_pem"].encode()), (), Window(1_800_000_000, 1_800_000_000))
    return authenticate(signed, talk, Peer(0, 0, 0), grounds, 1.0)


def test_the_file_is_what_its_maker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_adminauth, "HERE", tmp_path)
    make_adminauth.main()
    assert (tmp_path / "adminauth.json").read_bytes() == VECTORS.read_bytes()


@each_vector
def test_the_agent_accepts_the_frame_and_reads_the_same_act(vector: dict[str, Any]) -> None:
    digest = act_digest(vector["op"], vector["params"])
    assert digest.hex() == vector["digest_hex"]
    assert signed_text(*_parts(vector), digest).hex() == vector["signed_hex"]
    (body,) = FrameDecoder().receive_data(bytes.fromhex(vector["frame_hex"]))
    signed: Signed = RequestDecoder[AdminRequest](AdminRequest).decode(body)  # type: ignore[assignment]
    found = _accepted(vector, signed)
    assert found.request.__struct_config__.tag == vector["op"] and found.caller.name == "Ann Keeper"


@pytest.mark.system
@each_vector
def test_the_shell_lines_of_the_page_sign_what_the_agent_accepts(vector: dict[str, Any], tmp_path: Path) -> None:
    page = PAGE.read_text("utf-8").partition("\n## Signed requests of administrators\n")[2]
    match = re.search(r"^```sh\n(ACT=.*?\n)(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert match is not None
    (tmp_path / "key.pem").write_text(FOUND["key_pem"])
    bash = shutil.which("bash")
    assert bash is not None
    subprocess.run(
        [bash, "-euc", match[2]],
        cwd=tmp_path,
        check=True,
        env={
            "PATH": "/usr/bin:/bin",
            "LC_ALL": "C.UTF-8",
            "ACT": vector["act"],
            "AGENT_ID": vector["agent_id"],
            "BOOT_ID": vector["boot_id_hex"],
            "CHALLENGE": vector["challenge_hex"],
        },
    )
    assert (tmp_path / "text").read_bytes().hex() == vector["signed_hex"]
    (body,) = FrameDecoder().receive_data(bytes.fromhex(vector["frame_hex"]))
    signed: Signed = RequestDecoder[AdminRequest](AdminRequest).decode(body)  # type: ignore[assignment]
    by_openssl = Signed(
        v=1,
        id=signed.id,
        certificates=signed.certificates,
        signature=(tmp_path / "signature").read_bytes(),
        request=signed.request,
    )
    assert _accepted(vector, by_openssl).caller.role == "admin"
