"""Accounts: the last administrator stays, names are never given again, credentials end at once. On both databases."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select

from server.accounts import accounts, breakglass, certificates, signin, tokens
from server.accounts.accounts import AccountRow
from server.accounts.roles import INCLUDES, SCOPES, Role, admits
from server.base.errors import Conflict, Invalid, NotAllowed, NotFound
from server.keys.pki import fingerprint_of
from server.registry import audit
from server.registry.models.operators import AccountToken
from server.web.peers import OPERATOR_URI
from tests.server.devices import NOW, make_csr
from tests.support.serverside import ServerSide

KEY = ec.derive_private_key(77, ec.SECP256R1())
DAY = 86_400


def do(server: ServerSide, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    with server.database.write() as session:
        return act(session, *arguments, **named)


def person(server: ServerSide, name: str, role: Role = Role.ADMINISTRATOR) -> AccountRow:
    made: AccountRow = do(server, accounts.create, name, "person", role, "local", NOW)
    return made


def program(server: ServerSide, name: str = "shop", role: Role = Role.ISSUER) -> AccountRow:
    made: AccountRow = do(server, accounts.create, name, "program", role, "local", NOW)
    return made


def certified(server: ServerSide, name: str, now: int = NOW, lifetime: int = DAY) -> certificates.Issued:
    made: certificates.Issued = do(
        server, certificates.issue, server.keys, server.key_lifecycle, name, make_csr(KEY), lifetime, "local", now
    )
    return made


def who(server: ServerSide, find: Callable[..., Any], *arguments: Any) -> Any:
    with server.database.read() as session:
        return find(session, *arguments)


# Roles


def test_a_role_includes_itself_and_no_role_but_the_administrator_includes_the_security_officer() -> None:
    assert set(INCLUDES) == set(Role)
    assert all(role in INCLUDES[role] for role in Role)
    assert [role for role in Role if Role.SECURITY_OFFICER in INCLUDES[role]] == [Role.SECURITY_OFFICER, Role.ADMINISTRATOR]
    assert not admits(Role.SECURITY_OFFICER, frozenset({Role.ISSUER}))
    assert admits(Role.ISSUER, frozenset({Role.SUPPORT}))
    assert all(admits(Role.ADMINISTRATOR, frozenset({role})) for role in Role)


# Accounts


@pytest.mark.parametrize("name", ["", "local", "Alice", "-a", "a-", "a" * 65, "a b", "ä", "a\n"])
def test_a_name_has_a_form(server: ServerSide, name: str) -> None:
    with pytest.raises(Invalid, match="account's name"):
        person(server, name)


def test_a_name_is_never_given_to_another_account(server: ServerSide) -> None:
    person(server, "alice")
    person(server, "bob")
    do(server, accounts.change, "bob", "alice", NOW, state="removed")
    with pytest.raises(Conflict, match="exists, or has existed"):
        person(server, "bob", Role.VIEWER)
    with pytest.raises(Conflict, match="removed for good"):
        do(server, accounts.change, "bob", "alice", NOW, state="active")


def test_the_last_administrator_stays(server: ServerSide) -> None:
    person(server, "alice")
    for change in ({"role": Role.VIEWER}, {"state": "disabled"}, {"state": "removed"}):
        with pytest.raises(Conflict, match="last administrator"):
            do(server, accounts.change, "alice", "alice", NOW, **change)
    person(server, "bob")
    do(server, accounts.change, "alice", "bob", NOW, role=Role.VIEWER)
    with pytest.raises(Conflict, match="last administrator"):
        do(server, accounts.change, "bob", "alice", NOW, state="disabled")


def test_two_administrators_cannot_demote_each_other_at_once(server: ServerSide) -> None:
    """Whatever the order, one of them is left: the second transaction sees what the first has done."""
    person(server, "alice")
    person(server, "bob")
    start = threading.Barrier(2)
    refused: list[str] = []

    def demote(by: str, other: str) -> None:
        start.wait()
        try:
            do(server, accounts.change, other, by, NOW, role=Role.VIEWER)
        except Conflict:
            refused.append(other)

    threads = [threading.Thread(target=demote, args=pair) for pair in (("alice", "bob"), ("bob", "alice"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    assert who(server, accounts.count_administrators) == 1


def test_a_program_is_no_administrator(server: ServerSide) -> None:
    with pytest.raises(Invalid, match="a program cannot be administrator"):
        program(server, role=Role.ADMINISTRATOR)
    program(server)
    with pytest.raises(Invalid, match="a program cannot be administrator"):
        do(server, accounts.change, "shop", "alice", NOW, role=Role.ADMINISTRATOR)


def test_every_change_is_counted_and_recorded(server: ServerSide) -> None:
    person(server, "alice")
    person(server, "bob", Role.VIEWER)
    changed = do(server, accounts.change, "bob", "alice", NOW + 5, role=Role.SUPPORT)
    assert (changed.revision, changed.changed_by, changed.changed_at) == (2, "alice", NOW + 5)
    last = server.audit.tail(1)[0]
    assert last.event == "account.changed"
    assert last.fields == {
        "name": "bob", "role": "support", "state": "active", "was": ["viewer", "active"], "may_break_glass": False
    }  # fmt: skip


# Subjects


def test_a_subject_belongs_to_one_account(server: ServerSide) -> None:
    person(server, "alice")
    person(server, "bob", Role.VIEWER)
    do(server, accounts.set_subject, "alice", "https://id.example", "17", "local", NOW)
    with pytest.raises(Conflict, match="'alice' has this subject"):
        do(server, accounts.set_subject, "bob", "https://id.example", "17", "local", NOW)
    assert who(server, signin.by_subject, "https://id.example", "17", NOW).account == "alice"
    assert who(server, signin.by_subject, "https://other.example", "17", NOW) is None
    program(server)
    with pytest.raises(Invalid, match="programs sign in with tokens"):
        do(server, accounts.set_subject, "shop", "https://id.example", "18", "local", NOW)


# Certificates


def test_a_certificate_signs_in_until_it_ends_or_is_revoked(server: ServerSide) -> None:
    person(server, "alice", Role.SUPPORT)
    issued = certified(server, "alice")
    made = x509.load_pem_x509_certificate(issued.pem.encode())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"{OPERATOR_URI}alice"]
    authorities = x509.load_pem_x509_certificates(server.keys.operator_ca_pem().encode())
    made.verify_directly_issued_by(authorities[0])
    assert fingerprint_of(made) == issued.row.fingerprint
    found = who(server, signin.by_certificate, issued.row.fingerprint, NOW)
    assert (found.account, found.role, found.via, found.scopes) == ("alice", Role.SUPPORT, "certificate", None)
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW + DAY) is None
    do(server, certificates.revoke, issued.row.fingerprint, "local", NOW)
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW) is None


def test_the_operator_ca_is_no_ca_of_agents(server: ServerSide) -> None:
    person(server, "alice")
    certified(server, "alice")
    mine, theirs = server.keys.operator_ca_pem(), server.keys.client_ca_pem()
    assert mine.strip()
    assert mine.strip() not in theirs
    certified(server, "alice")
    assert server.keys.operator_ca_pem() == mine  # made once


@pytest.mark.parametrize("state", ["disabled", "removed"])
def test_who_is_disabled_or_removed_does_not_sign_in(server: ServerSide, state: str) -> None:
    person(server, "root")
    person(server, "alice")
    program(server)
    issued = certified(server, "alice")
    token = do(server, tokens.make, "shop", ["licenses:write"], DAY, "root", NOW)
    for name in ("alice", "shop"):
        do(server, accounts.change, name, "root", NOW, state=state)
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW) is None
    assert who(server, signin.by_token, token.text, NOW) is None


def test_a_program_gets_no_certificate_and_a_person_no_token(server: ServerSide) -> None:
    program(server)
    person(server, "alice")
    with pytest.raises(Invalid, match="make a token"):
        certified(server, "shop")
    with pytest.raises(Invalid, match="not with tokens"):
        do(server, tokens.make, "alice", ["licenses:read"], DAY, "local", NOW)


def test_a_certificate_has_bounds(server: ServerSide) -> None:
    person(server, "alice")
    for lifetime in (0, 401 * DAY):
        with pytest.raises(Invalid, match="lasts from"):
            certified(server, "alice", lifetime=lifetime)
    with pytest.raises(Invalid, match="PKCS #10"):
        do(server, certificates.issue, server.keys, server.key_lifecycle, "alice", "nonsense", DAY, "local", NOW)
    for _ in range(certificates.MAX_CERTIFICATES):
        certified(server, "alice")
    with pytest.raises(Conflict, match="which is the limit"):
        certified(server, "alice")
    certified(server, "alice", now=NOW + DAY)  # those before have ended


# Tokens


def test_a_token_is_kept_as_a_digest_only(server: ServerSide) -> None:
    program(server)
    made = do(server, tokens.make, "shop", ["licenses:write", "licenses:read"], DAY, "local", NOW)
    assert made.text.startswith(f"lsp_{made.row.token_id}_")
    with server.database.read() as session:
        row = session.scalars(select(AccountToken)).one()
        assert made.text.rpartition("_")[2] not in str(vars(row))
    found = who(server, signin.by_token, made.text, NOW)
    assert found.scopes == {"licenses:read", "licenses:write"}
    assert (found.account, found.role, found.credential) == ("shop", Role.ISSUER, made.row.token_id)
    assert made.text not in str([record.fields for record in server.audit.tail(20)])


def test_only_the_exact_text_of_a_token_counts(server: ServerSide) -> None:
    program(server)
    text = do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW).text
    last = "A" if text[-1] != "A" else "B"
    for wrong in ("", text[:-1], text[:-1] + last, text + "A", text.upper(), f" {text}", text + "\n", "lsp_" + "a" * 12):
        assert who(server, signin.by_token, wrong, NOW) is None, wrong
    assert who(server, signin.by_token, text, NOW + DAY - 1) is not None
    assert who(server, signin.by_token, text, NOW + DAY) is None


def test_a_token_is_replaced_with_an_overlap(server: ServerSide) -> None:
    program(server)
    old = do(server, tokens.make, "shop", ["licenses:read"], 10 * DAY, "local", NOW)
    new = do(server, tokens.rotate, old.row.token_id, 3600, "local", NOW + DAY)
    assert new.row.scopes == old.row.scopes
    assert new.row.expires_at == NOW + 11 * DAY
    for later, works in ((DAY, True), (DAY + 3599, True), (DAY + 3600, False)):
        assert (who(server, signin.by_token, old.text, NOW + later) is not None) is works
        assert who(server, signin.by_token, new.text, NOW + later) is not None
    with pytest.raises(Conflict, match="make a new one"):
        do(server, tokens.rotate, old.row.token_id, 3600, "local", NOW + 3 * DAY)


def test_a_revoked_token_is_refused_at_once(server: ServerSide) -> None:
    program(server)
    made = do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW)
    do(server, tokens.revoke, made.row.token_id, "local", NOW)
    assert who(server, signin.by_token, made.text, NOW) is None
    with pytest.raises(NotFound, match="no token"):
        do(server, tokens.revoke, "aaaaaaaaaaaa", "local", NOW)


def test_a_revoked_token_takes_those_with_it_that_were_made_from_it(server: ServerSide) -> None:
    program(server)
    stolen, other = (do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW) for _ in range(2))
    owners = do(server, tokens.rotate, stolen.row.token_id, 3600, "shop", NOW)
    copied = do(server, tokens.rotate, stolen.row.token_id, 3600, "shop", NOW)
    thiefs = do(server, tokens.rotate, copied.row.token_id, 0, "shop", NOW)
    assert {owners.row.origin, thiefs.row.origin} == {stolen.row.token_id}
    do(server, tokens.revoke, thiefs.row.token_id, "local", NOW)
    for each in (stolen, owners, copied, thiefs):
        assert who(server, signin.by_token, each.text, NOW) is None
    assert who(server, signin.by_token, other.text, NOW) is not None
    assert sorted(server.audit.tail(1)[0].fields["with_it"]) == sorted(each.row.token_id for each in (stolen, owners, copied))


def test_scopes_and_lifetimes_have_bounds(server: ServerSide) -> None:
    program(server)
    for scopes in ([], ["licenses"], ["licenses:read", "*"]):
        with pytest.raises(Invalid, match="at least one of the scopes"):
            do(server, tokens.make, "shop", scopes, DAY, "local", NOW)
    for lifetime in (0, 367 * DAY):
        with pytest.raises(Invalid, match="a token lasts"):
            do(server, tokens.make, "shop", ["licenses:read"], lifetime, "local", NOW)
    assert "audit:write" not in SCOPES
    for _ in range(tokens.MAX_TOKENS):
        do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW)
    with pytest.raises(Conflict, match="which is the limit"):
        do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW)
    token_id = do(server, tokens.listed, "shop")[0].token_id
    with pytest.raises(Conflict, match="which is the limit"):
        do(server, tokens.rotate, token_id, DAY, "shop", NOW)
    assert do(server, tokens.rotate, token_id, 0, "shop", NOW).text


def test_the_last_use_is_noted_once_a_minute(server: ServerSide) -> None:
    program(server)
    text = do(server, tokens.make, "shop", ["licenses:read"], DAY, "local", NOW).text
    seen = who(server, signin.by_token, text, NOW)
    assert seen.use_due
    do(server, signin.note_use, seen, NOW)
    assert not who(server, signin.by_token, text, NOW + 59).use_due
    assert who(server, signin.by_token, text, NOW + 60).use_due
    assert who(server, tokens.listed, "shop")[0].used_at == NOW


# Emergency access


def test_emergency_access_is_allowed_beforehand_and_ends(server: ServerSide) -> None:
    person(server, "root")
    person(server, "alice", Role.SUPPORT)
    issued = certified(server, "alice")
    with pytest.raises(NotAllowed, match="ask an administrator"):
        do(server, breakglass.begin, "alice", "the keys were stolen", 3600, NOW)
    do(server, accounts.change, "alice", "root", NOW, may_break_glass=True)
    with pytest.raises(Invalid, match="say why"):
        do(server, breakglass.begin, "alice", "now      ", 3600, NOW)
    with pytest.raises(Invalid, match="lasts from"):
        do(server, breakglass.begin, "alice", "the keys were stolen", 4 * 3600 + 1, NOW)
    begun = do(server, breakglass.begin, "alice", "the keys were stolen", 3600, NOW)
    record = server.audit.tail(1)[0]
    assert (record.event, record.outcome) == ("break_glass.begun", "alert")
    with pytest.raises(Conflict, match="already"):
        do(server, breakglass.begin, "alice", "the keys were stolen", 3600, NOW)
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW + 3599).break_glass == begun.break_glass_id
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW + 3600).break_glass is None
    do(server, breakglass.end, begun.break_glass_id, "root", NOW + 60)
    assert who(server, signin.by_certificate, issued.row.fingerprint, NOW + 60).break_glass is None
    assert server.audit.tail(1)[0].event == "break_glass.ended"
    assert who(server, audit.verify, server.cipher.audit_key())[1] is None
