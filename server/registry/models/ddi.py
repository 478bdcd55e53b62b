"""Declares the tables of hawkBit's DDI: devices with another update client than ours. Times are seconds since 1970 UTC."""

from sqlalchemy import BigInteger, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from .core import Base


class DdiDevice(Base):
    """A device (`Device.kind` is ddi) that speaks DDI. `Device` has what all devices have, and whether it is blocked.

    `configured_at` is when it last reported its attributes. With `auto_confirm`, JSON of who asked for that, it confirms each
    deployment at once.
    """

    __tablename__ = "ddi_device"
    device_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    configured_at: Mapped[int | None] = mapped_column(BigInteger)
    auto_confirm: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class DdiCredential(Base):
    """What devices identify themselves with. `kind`: certificate, target or gateway; `state`: active, revoked.

    `digest` is the SHA-256 of the certificate's DER or of the token, which the registry does not have. A certificate and a
    target token are of one device, a gateway token is for the devices of one fleet.
    """

    __tablename__ = "ddi_credential"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    device_id: Mapped[str | None] = mapped_column(String(64))
    fleet_id: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)


class DdiAction(Base):
    """What a device was offered to install. `state`: see `server.fleet.ddi.action_states`.

    Nothing refers to the package: one that is withdrawn from the repository stays in what was offered. `confirmed` is missing
    until the device, or somebody at it, has agreed; where nobody has to, it is when the action was made.
    """

    __tablename__ = "ddi_action"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    device_id: Mapped[str] = mapped_column(String(64))
    rollout_id: Mapped[str] = mapped_column(String(64))
    fleet_id: Mapped[str] = mapped_column(String(64))
    product: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(String(256))
    sha256: Mapped[str] = mapped_column(String(64))
    sha1: Mapped[str] = mapped_column(String(40))
    md5: Mapped[str] = mapped_column(String(32))
    length: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[str] = mapped_column(String(64))
    build_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    confirmed: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str] = mapped_column(Text)
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)


class DdiMessage(Base):
    """What a device said of an action: the newest ones."""

    __tablename__ = "ddi_message"
    action: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[str] = mapped_column(String(512))


class DdiDigest(Base):
    """SHA-1 and MD5 of a package, which clients of DDI compare; they are no protection."""

    __tablename__ = "ddi_digest"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha1: Mapped[str] = mapped_column(String(40))
    md5: Mapped[str] = mapped_column(String(32))


Index("ddi_action_of_device", DdiAction.device_id, DdiAction.number)
Index("ddi_credential_of_device", DdiCredential.device_id)
Index("ddi_credential_of_fleet", DdiCredential.fleet_id)
