"""Declares the tables of the vendor's side: products, policies, customers, sites, the history of licenses, trials.

Personal fields are in columns named `sealed`, under a key for each customer, which `key` has, sealed as well; erasing destroys
the key. `revision` counts the changes of a row.
"""

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class Product(Base):
    """What a vendor sells. A retired one gets no new policies and licenses."""

    __tablename__ = "product"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    retired_at: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class EntitlementSet(Base):
    """Features under one name, for several policies. `features` is a JSON array."""

    __tablename__ = "entitlement_set"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    features: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class Policy(Base):
    """A template of licenses. `features` (behind those of the set) and `metadata` are JSON; `trial`: once for each machine.

    `floating` has the terms of seats as JSON, for licenses that the tills of a site share; NULL for others.
    """

    __tablename__ = "policy"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    product_id: Mapped[str] = mapped_column(ForeignKey("product.id"), index=True)
    entitlement_set_id: Mapped[str | None] = mapped_column(ForeignKey("entitlement_set.id"), index=True)
    name: Mapped[str] = mapped_column(String(128))
    features: Mapped[str] = mapped_column(Text)
    added_metadata: Mapped[str] = mapped_column("metadata", Text)
    duration_s: Mapped[int | None] = mapped_column(BigInteger)
    trial: Mapped[bool] = mapped_column()
    floating: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    retired_at: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class Customer(Base):
    """A customer. Without `key` and `sealed` it was erased, at `erased_at`."""

    __tablename__ = "customer"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[bytes | None] = mapped_column(LargeBinary)
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    erased_at: Mapped[int | None] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class Site(Base):
    """A place of a customer: a shop, a warehouse. Its fields are sealed under the customer's key."""

    __tablename__ = "site"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    customer_id: Mapped[str] = mapped_column(ForeignKey("customer.id"))
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)


class LicenseChange(Base):
    """A change in the life of a license; the first one is number 1. It outlives the license. `fields` is JSON: ids only."""

    __tablename__ = "license_change"
    license_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger)
    event: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    fields: Mapped[str] = mapped_column(Text)


class Trial(Base):
    """The one trial of a product that a machine has had. It refers to nothing: it is kept for ever."""

    __tablename__ = "trial"
    hw_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    product_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    license_id: Mapped[str] = mapped_column(String(128))
    begun_at: Mapped[int] = mapped_column(BigInteger)


Index("site_of_customer", Site.customer_id, Site.id)
