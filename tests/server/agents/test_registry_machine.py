"""Hypothesis drives claims, provisioning, revocation and certificates in any order, against a model; on both databases."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import delete, update

from contracts.exchange import RefusalCode
from server.agents.activation import Activated
from server.agents.registry import ACTIVE, FACTORY_ONLY, REVOKED
from server.base.refused import RequestRefused
from server.registry.models.core import Base, Counter
from tests.server.devices import NOW, Device, fingerprint, make_csr
from tests.support.serverside import ServerSide

DEVICES = [Device(number) for number in range(4)]
LIFETIME_S = 100
KEPT = {"setting", "server_key", "key_set", "counter"}
"""What the server was made with."""

devices = st.integers(0, len(DEVICES) - 1)
claims = st.integers(0, 5)


class Claim:
    """What the model knows of a claim."""

    def __init__(self, text: str, ends: int, owner: int | None, factory_only: bool) -> None:
        self.text = text
        self.ends = ends
        self.owner = owner
        self.factory_only = factory_only
        self.revoked = False
        self.number: int | None = None


class Registry(RuleBasedStateMachine):
    """Acts on the registry, and what they should do by a model in memory."""

    server: ServerSide

    def __init__(self) -> None:
        super().__init__()
        with self.server.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name not in KEPT:
                    session.execute(delete(table))
            session.execute(update(Counter).where(Counter.name.in_(("serial", "audit"))).values(value=0))
        self.now = NOW
        self.claims: list[Claim] = []
        self.serials: dict[int, int] = {}
        self.status: dict[int, str] = {}
        self.good: dict[int, set[str]] = {}
        self.pending: dict[int, set[str]] = {}
        self.ended: set[str] = set()

    @rule(owner=st.none() | devices, factory_only=st.booleans())
    def make_a_claim(self, owner: int | None, factory_only: bool) -> None:
        hw_id = None if owner is None else DEVICES[owner].hw_id
        text = self.server.enrollment_tokens.create(hw_id, factory_only, LIFETIME_S, self.now)
        assert text not in {claim.text for claim in self.claims}
        self.claims.append(Claim(text, self.now + LIFETIME_S, owner, factory_only))

    def pick(self, number: int) -> Claim:
        return self.claims[number % len(self.claims)]

    @precondition(lambda self: self.claims)
    @rule(number=claims, device=devices)
    def use_a_claim(self, number: int, device: int) -> None:
        claim = self.pick(number)
        good = not claim.revoked and self.now < claim.ends and claim.owner in (None, device)
        try:
            claim.number = self.server.enrollment_tokens.use(claim.text, DEVICES[device].hw_id, self.now)
        except RequestRefused as refused:
            assert refused.code is RefusalCode.CLAIM_REFUSED
            assert not good
        else:
            assert good
            claim.owner = device

    @precondition(lambda self: any(claim.number for claim in self.claims))
    @rule(number=claims, device=devices)
    def activate(self, number: int, device: int) -> None:
        used = [claim for claim in self.claims if claim.number]
        claim = used[number % len(used)]
        good = not claim.revoked and self.now < claim.ends and claim.owner == device and self.status.get(device) != REVOKED
        try:
            activated = DEVICES[device].activate(self.server, claim.number or 0, now=self.now)
        except RequestRefused as refused:
            assert not good
            wanted = RefusalCode.AGENT_REVOKED if self.status.get(device) == REVOKED else RefusalCode.CLAIM_REFUSED
            assert refused.code is wanted
        else:
            assert good
            self.take(device, activated, FACTORY_ONLY if claim.factory_only else ACTIVE)

    def take(self, device: int, activated: Activated, status: str) -> None:
        assert activated.serial == self.serials.get(device, len(self.serials) + 1)
        assert activated.agent_id == f"pos-{activated.serial:06d}"
        self.serials[device] = activated.serial
        self.status[device] = status
        self.ended |= self.good.get(device, set())
        self.pending[device] = {fingerprint(activated.certificates[0])}
        self.good[device] = set(self.pending[device])

    @precondition(lambda self: self.claims)
    @rule(number=claims)
    def revoke_a_claim(self, number: int) -> None:
        claim = self.pick(number)
        if claim.number is not None:
            self.server.enrollment_tokens.revoke(claim.number, self.now)
            claim.revoked = True

    @precondition(lambda self: self.serials)
    @rule(device=devices, status=st.sampled_from((REVOKED, ACTIVE)))
    def change_a_status(self, device: int, status: str) -> None:
        if device not in self.serials:
            return
        self.server.agents.set_status(self.agent_id(device), status, self.now)
        self.status[device] = status
        if status == REVOKED:
            self.ended |= self.good[device]
            self.good[device], self.pending[device] = set(), set()

    @precondition(lambda self: self.serials)
    @rule(device=devices)
    def renew_a_certificate(self, device: int) -> None:
        if device in self.serials and self.status[device] != REVOKED:
            issued = self.server.certificates.renew(self.agent_id(device), make_csr(DEVICES[device].tls), self.now)
            self.ended |= self.pending.get(device, set())
            self.good[device] -= self.pending.get(device, set())
            self.pending[device] = {fingerprint(issued[0])}
            self.good[device] |= self.pending[device]

    @precondition(lambda self: self.serials)
    @rule(device=devices)
    def use_the_newest_certificate(self, device: int) -> None:
        if not (pending := self.pending.get(device, set())) or self.status[device] == REVOKED:
            return
        (newest,) = pending
        self.server.certificates.note_use(self.agent_id(device), newest, self.now)
        self.ended |= self.good[device] - pending
        self.good[device], self.pending[device] = set(pending), set()

    @rule(seconds=st.integers(1, LIFETIME_S))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    def agent_id(self, device: int) -> str:
        return f"pos-{self.serials[device]:06d}"

    @invariant()
    def serials_have_no_gap_and_rows_are_as_they_should_be(self) -> None:
        found = {row.hw_id: (row.serial, row.status) for row in self.server.agents.listed()}
        assert found == {DEVICES[d].hw_id: (serial, self.status[d]) for d, serial in self.serials.items()}
        assert sorted(self.serials.values()) == list(range(1, len(self.serials) + 1))

    @invariant()
    def only_good_certificates_count(self) -> None:
        for device, good in self.good.items():
            assert len(good) <= 2
            for certificate in good:
                row = self.server.agents.by_certificate(certificate, self.now)
                assert row is not None
                assert row.hw_id == DEVICES[device].hw_id
        for certificate in self.ended:
            row = self.server.agents.by_certificate(certificate, self.now)
            assert row is None or row.status == REVOKED

    def teardown(self) -> None:
        assert self.server.audit.verify(self.server.cipher.audit_key())[1] is None


def test_whatever_happens_serials_have_no_gap_and_no_certificate_outlives_its_agent(server: ServerSide) -> None:
    machine: Callable[[], Registry] = type("Bound", (Registry,), {"server": server})
    run_state_machine_as_test(machine, settings=settings(max_examples=settings().max_examples // 3, stateful_step_count=25))


def test_the_machine_reaches_what_it_is_about(server: ServerSide, tmp_path: Path) -> None:
    """A model that no rule moves would show nothing."""
    machine = type("Bound", (Registry,), {"server": server})()
    machine.make_a_claim(None, False)
    machine.use_a_claim(0, 1)
    machine.activate(0, 1)
    machine.renew_a_certificate(1)
    machine.change_a_status(1, REVOKED)
    machine.activate(0, 1)
    machine.serials_have_no_gap_and_rows_are_as_they_should_be()
    machine.only_good_certificates_count()
    assert (machine.serials, machine.status, len(machine.ended)) == ({1: 1}, {1: REVOKED}, 2)
