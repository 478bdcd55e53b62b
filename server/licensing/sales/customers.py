"""Keeps customers and their sites. What is personal is encrypted under a key of the customer's own; erasing destroys the key.

Audit, events and licenses have the customer's id and nothing else of it, so that nothing else has to be erased. An id should
therefore be a number or a code, not a name.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from server.base.errors import Conflict, Invalid
from server.registry.cipher import KEY_BYTES, Cipher
from server.registry.models.licensing import Customer, Site

from .rows import checked_text, expect, found, new_id, record, require_new, touch

FIELDS = ("name", "contact", "email", "phone", "address", "note")
"""What is known of a customer; `SITE_FIELDS` of a site. All of it may be personal."""
SITE_FIELDS = ("name", "address", "note")
MAX_FIELD = 1000


@dataclass(frozen=True, slots=True)
class CustomerRow:
    """A customer; times are seconds since 1970 UTC.

    Attributes:
        customer: its id.
        fields: what is known of it, by the names in `FIELDS`; empty once it was erased.
        created_at: when it was created.
        updated_at: when it was last changed.
        erased_at: when it was erased; None if it was not.
        revision: how often it was changed, plus one.
    """

    customer: str
    fields: dict[str, str]
    created_at: int
    updated_at: int
    erased_at: int | None
    revision: int


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site of a customer, as `CustomerRow`."""

    site: str
    customer: str
    fields: dict[str, str]
    created_at: int
    updated_at: int
    revision: int


class Customers:
    """Customers and sites. Every method works in the transaction of the session that it is given.

    Args:
        cipher: seals the customers' keys.
        random: returns this many random bytes.
    """

    def __init__(self, cipher: Cipher, random: Callable[[int], bytes] = os.urandom) -> None:
        self._cipher = cipher
        self._random = random

    def create(self, session: Session, customer_id: str | None, fields: Mapping[str, str], now: int) -> CustomerRow:
        """Creates a customer; without an id it gets a new one. Raises Invalid and Conflict."""
        made = new_id(customer_id, "customer")
        require_new(session, Customer, made, "customer")
        key = self._random(KEY_BYTES)
        row = Customer(
            id=made,
            key=self._cipher.seal("customer", made, "key", key),
            sealed=_seal(key, "customer", made, _checked(fields, FIELDS)),
            created_at=now,
            updated_at=now,
            revision=1,
        )
        session.add(row)
        record(session, "customer.created", now, customer=made)
        return self._row(row)

    def change(
        self, session: Session, customer_id: str, fields: Mapping[str, str], now: int, revision: int | None = None
    ) -> CustomerRow:
        """Changes the given fields of a customer; an empty text removes one.

        Raises:
            Invalid: a field is unknown or out of bounds.
            NotFound: there is no such customer.
            Conflict: it was erased, or has another revision.
        """
        row = self._customer(session, customer_id, lock=True)
        expect(row, revision, f"customer {customer_id!r}")
        key = self._key(row)
        row.sealed = _seal(key, "customer", row.id, {**_open(key, "customer", row.id, row.sealed), **_checked(fields, FIELDS)})
        touch(row, now)
        record(session, "customer.changed", now, customer=customer_id)
        return self._row(row)

    def erase(self, session: Session, customer_id: str, now: int) -> CustomerRow:
        """Destroys the customer's key, and with it what was known of the customer and its sites. Licenses stay.

        Backups that were made before still have the key: they have to be erased, or run out, as well. Raises NotFound.
        """
        row = self._customer(session, customer_id, lock=True)
        if row.erased_at is None:
            row.key, row.sealed, row.erased_at = None, None, now
            touch(row, now)
            # The key is gone; these bytes only look like something.
            session.execute(update(Site).where(Site.customer_id == customer_id).values(sealed=None))
            record(session, "customer.erased", now, customer=customer_id)
        return self._row(row)

    def show(self, session: Session, customer_id: str) -> CustomerRow:
        """A customer with what is known of it. Raises NotFound."""
        return self._row(self._customer(session, customer_id))

    def listed(self, session: Session, after: str = "", limit: int | None = None) -> list[CustomerRow]:
        """Customers by id, at most so many, behind one."""
        query = select(Customer).where(Customer.id > after).order_by(Customer.id).limit(limit)
        return [self._row(row) for row in session.scalars(query)]

    # Sites

    def create_site(
        self, session: Session, site_id: str | None, customer_id: str, fields: Mapping[str, str], now: int
    ) -> SiteRow:
        """Creates a site of a customer; without an id it gets a new one. Raises Invalid, NotFound and Conflict."""
        made = new_id(site_id, "site")
        require_new(session, Site, made, "site")
        # Locked: an erasure that is under way must not miss this site.
        key = self._key(self._customer(session, customer_id, lock=True))
        sealed = _seal(key, "site", made, _checked(fields, SITE_FIELDS))
        row = Site(id=made, customer_id=customer_id, sealed=sealed, created_at=now, updated_at=now, revision=1)
        session.add(row)
        record(session, "site.created", now, site=made, customer=customer_id)
        return _site(row, key)

    def change_site(
        self, session: Session, site_id: str, fields: Mapping[str, str], now: int, revision: int | None = None
    ) -> SiteRow:
        """Changes the given fields of a site; an empty text removes one. Raises Invalid, NotFound and Conflict."""
        owner = site(session, site_id).customer_id
        key = self._key(self._customer(session, owner, lock=True))
        row = site(session, site_id, lock=True)
        expect(row, revision, f"site {site_id!r}")
        row.sealed = _seal(key, "site", row.id, {**_open(key, "site", row.id, row.sealed), **_checked(fields, SITE_FIELDS)})
        touch(row, now)
        record(session, "site.changed", now, site=site_id, customer=owner)
        return _site(row, key)

    def show_site(self, session: Session, site_id: str) -> SiteRow:
        """A site with what is known of it. Raises NotFound."""
        row = site(session, site_id)
        return _site(row, self._key_if_any(self._customer(session, row.customer_id)))

    def sites(
        self, session: Session, customer_id: str | None = None, after: str = "", limit: int | None = None
    ) -> list[SiteRow]:
        """Sites by id, at most so many, behind one, those of a customer or all. Raises NotFound."""
        query = select(Site, Customer).join(Customer, Customer.id == Site.customer_id).where(Site.id > after)
        if customer_id is not None:
            self._customer(session, customer_id)
            query = query.where(Site.customer_id == customer_id)
        rows = session.execute(query.order_by(Site.id).limit(limit))
        return [_site(row, self._key_if_any(owner)) for row, owner in rows]

    def _customer(self, session: Session, customer_id: str, *, lock: bool = False) -> Customer:
        return customer(session, customer_id, lock=lock)

    def _key_if_any(self, row: Customer) -> bytes | None:
        return None if row.key is None else self._cipher.open("customer", row.id, "key", row.key)

    def _key(self, row: Customer) -> bytes:
        key = self._key_if_any(row)
        if key is None:
            raise Conflict(f"customer {row.id!r} was erased: nothing more is stored of it; create another customer")
        return key

    def _row(self, row: Customer) -> CustomerRow:
        key = self._key_if_any(row)
        fields = {} if key is None else _open(key, "customer", row.id, row.sealed)
        return CustomerRow(row.id, fields, row.created_at, row.updated_at, row.erased_at, row.revision)


def customer(session: Session, customer_id: str, *, lock: bool = False) -> Customer:
    """A customer. Raises NotFound."""
    return found(session, Customer, customer_id, "customer", "customers list", lock=lock)


def site(session: Session, site_id: str, *, lock: bool = False) -> Site:
    """A site. Raises NotFound."""
    return found(session, Site, site_id, "site", "sites list", lock=lock)


def owner_of(session: Session, customer_id: str | None, site_id: str | None) -> tuple[str | None, str | None]:
    """The customer and site of a license: a site names its customer.

    Raises:
        NotFound: there is no such customer or site.
        Conflict: the site belongs to another customer, or the customer was erased.
    """
    if site_id is not None:
        owner = site(session, site_id).customer_id
        if customer_id not in (None, owner):
            raise Conflict(f"site {site_id!r} belongs to another customer: name customer {owner!r}, or none")
        customer_id = owner
    if customer_id is not None and customer(session, customer_id).erased_at is not None:
        raise Conflict(f"customer {customer_id!r} was erased, and gets no licenses; create another customer")
    return customer_id, site_id


def _checked(fields: Mapping[str, str], known: tuple[str, ...]) -> dict[str, str]:
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise Invalid(f"unknown field {unknown[0]!r}: use {', '.join(known)}")
    return {name: checked_text(value, f"the field {name}", MAX_FIELD, 0) for name, value in fields.items()}


def _seal(key: bytes, table: str, row: str, fields: dict[str, str]) -> bytes:
    held = {name: value for name, value in fields.items() if value}
    return Cipher(key).seal(table, row, "sealed", json.dumps(held, ensure_ascii=False, sort_keys=True).encode())


def _open(key: bytes, table: str, row: str, sealed: bytes | None) -> dict[str, str]:
    held: dict[str, Any] = {} if sealed is None else json.loads(Cipher(key).open(table, row, "sealed", sealed))
    return {str(name): str(value) for name, value in held.items()}


def _site(row: Site, key: bytes | None) -> SiteRow:
    fields = {} if key is None else _open(key, "site", row.id, row.sealed)
    return SiteRow(row.id, row.customer_id, fields, row.created_at, row.updated_at, row.revision)
