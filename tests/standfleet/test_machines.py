"""A virtual machine: the same from the same seed, and failing as its profile says."""

from collections import Counter

import msgspec
import pytest

from contracts.contact.updates import OutcomeState, UpdatesReply, UpdatesRequest
from contracts.directive import Directive
from contracts.jose import b64decode, b64encode, verify_es256
from standfleet.machine import Machine, key_of, make, point_of
from standfleet.profiles import Profile, of_machine, read

NOW = 1_800_000_000.0
OLD, NEW = ("1.0", "b0"), ("1.1", "b1")


def reply(number: int, *acknowledged: int, **changed: object) -> UpdatesReply:
    members = {
        "number": number, "agent_id": "sim-0000001", "product": "pos", "target": "pos/p", "sha256": "0" * 64, "length": 1,
        "version": NEW[0], "build_id": NEW[1], "rollout": "r1", "not_before": int(NOW) - 10, "not_after": int(NOW) + 900,
        "window": None, "notice_until": int(NOW) - 5, "downgrade": False, "withdraws": None,
    }  # fmt: skip
    order = Directive(**(members | changed))  # type: ignore[arg-type]
    text = f"h.{b64encode(msgspec.json.encode(order))}.s"
    return UpdatesReply(
        agent_id="sim-0000001", request_id="0" * 32, issued_at=int(NOW), directive=text, acknowledged=acknowledged, paused=False
    )


def machine(profile: Profile = Profile.SOUND, number: int = 1) -> Machine:
    return make(3, number, profile, OLD)


def contact(one: Machine, at: float = NOW) -> UpdatesRequest:
    one.work(at)
    return one.ask("c" * 16, at)[0]


def test_the_same_seed_makes_the_same_machines_and_another_one_others() -> None:
    shares = read(["slow=10", "cloned=5", "clock=5%"])

    def fleet(seed: int) -> list[tuple[str, bytes, Profile]]:
        return [
            (make(seed, n, Profile.SOUND, OLD).hw_id, point_of(key_of(seed, n, "identity")), of_machine(seed, n, shares))
            for n in range(1, 40)
        ]

    assert fleet(1) == fleet(1) and not set(fleet(1)) & set(fleet(2))
    counts = Counter(of_machine(1, n, shares) for n in range(5000))
    assert 400 < counts[Profile.SLOW] < 600 and 180 < counts[Profile.CLONED] < 320 and counts[Profile.LIES] == 0
    assert {key_of(1, 1, purpose).private_numbers().private_value for purpose in ("identity", "tls")}.__len__() == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (["broken=3"], "'broken=3' is not NAME=SHARE; the names are outage, slow"),
        (["slow"], "is not NAME=SHARE"),
        (["slow=x"], "is not NAME=SHARE"),
        (["slow=101"], "must be from 0 to 100 percent"),
        (["slow=nan"], "must be from 0 to 100 percent"),
        (["slow=1", "slow=2"], "is there twice"),
        (["sound=5"], "is what remains"),
        (["slow=60", "lies=60"], "more than 100 percent together"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(text: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(text)


def test_a_request_is_signed_by_the_machines_own_key() -> None:
    one = machine()
    _content, text = one.ask("c" * 16, NOW)
    protected, payload, signature = text.split(".")
    verify_es256(one.identity.public_key(), b64decode(signature), f"{protected}.{payload}".encode())
    assert one.ask("d" * 16, NOW)[0].request_id != _content.request_id


def test_a_sound_machine_installs_reports_and_is_done_when_the_server_knows() -> None:
    one = machine()
    assert contact(one).running[0].version == "1.0"
    one.answered(reply(5))
    said = contact(one)
    assert said.running[0].version == "1.1" and said.directive == 5
    assert [each.state for each in said.outcomes] == [OutcomeState.COMMITTED]
    one.answered(reply(5, 5))
    assert contact(one).outcomes == () and one.had == [5]


def test_an_order_waits_for_its_notice_and_a_withdrawal_ends_it() -> None:
    one = machine()
    one.answered(reply(5, notice_until=int(NOW) + 600))
    assert contact(one).outcomes == () and contact(one, NOW + 700).outcomes[0].state is OutcomeState.COMMITTED
    two = machine()
    two.answered(reply(5))
    two.answered(reply(6, withdraws=5))
    assert contact(two).outcomes == () and two.runs == OLD and two.known == 6 and two.had == [5]


def test_each_profile_fails_in_its_way() -> None:
    def said(profile: Profile, contacts: int = 1) -> tuple[list[str], str]:
        one = machine(profile)
        one.answered(reply(5))
        states = [each.state.value for _ in range(contacts) for each in contact(one).outcomes]
        return states, one.runs[0]

    assert said(Profile.ROLLS_BACK) == (["rolled-back"], "1.0")
    assert said(Profile.LIES) == (["committed"], "1.0"), "it says so, and goes on running what it ran"
    assert said(Profile.SLOW, 4) == (["progress", "progress", "progress", "committed"], "1.1")
    back = machine(Profile.ROLLS_BACK)
    back.answered(reply(5, downgrade=True))
    assert contact(back).outcomes[0].state is OutcomeState.COMMITTED, "what it ran before is sound"
    for number in (1, 2):
        assert abs(machine(Profile.CLOCK, number).clock(NOW) - NOW) >= 366 * 86_400
    out = machine(Profile.OUTAGE)
    hours = [at for at in range(0, 12_000, 60) if out.is_out(at)]
    assert len(hours) == 60 and hours[-1] - hours[0] == 59 * 60 and not machine().is_out(hours[0])
    twin = machine(Profile.CLONED).clone()
    twin.answered(reply(5))
    assert twin.ask("c" * 16, NOW)[1] and twin.twin and machine(Profile.CLONED).had == []
