"""What an administrator signs is fixed to the byte, and each part of it matters."""

import hashlib

import pytest

from contracts.admin.adminauth import act_digest, signed_text

BOOT, CHALLENGE = bytes(range(16)), bytes(range(32))


def test_an_act_is_hashed_in_the_form_of_rfc_8785() -> None:
    digest = act_digest("policy_bind", {"pcrs": (7, 11), "kind": "custom", "key": 'é"\n\x01/'})
    form = '{"op":"policy_bind","params":{"key":"é\\"\\n\\u0001/","kind":"custom","pcrs":[7,11]}}'
    assert digest == hashlib.sha256(form.encode()).digest()


def test_what_is_signed_names_agent_boot_challenge_and_act() -> None:
    digest = act_digest("rotate", {})
    text = signed_text("till-1", BOOT, CHALLENGE, digest)
    assert text == b"license-agent-admin-v1\0\x06till-1" + BOOT + CHALLENGE + digest
    others = {
        signed_text("till-2", BOOT, CHALLENGE, digest),
        signed_text("till-1", bytes(16), CHALLENGE, digest),
        signed_text("till-1", BOOT, bytes(32), digest),
        signed_text("till-1", BOOT, CHALLENGE, act_digest("contact", {})),
        signed_text("", BOOT, CHALLENGE, digest),
    }
    assert len(others | {text}) == 6


@pytest.mark.parametrize("value", [1.5, b"x", 2**53, -(2**53), {"a": 1}, [b"x"]], ids=repr)
def test_a_member_that_has_no_one_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="type"):
        act_digest("x", {"member": value})


@pytest.mark.parametrize("part", range(3))
def test_a_part_of_the_wrong_size_is_refused(part: int) -> None:
    parts = [BOOT, CHALLENGE, bytes(32)]
    parts[part] += b"x"
    with pytest.raises(ValueError, match="size"):
        signed_text("till-1", *parts)
