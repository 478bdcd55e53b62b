"""Keeps the attributes that a device reports, and what they say of the versions that it runs."""

import re

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from contracts.directive import PRODUCT_PATTERN
from server.base.errors import Invalid
from server.fleet.devices.labels import DEVICE, OPERATOR
from server.registry.models.fleets import DeviceAttribute, DeviceVersion
from updatetrust.version import MalformedVersion, Version

from .feedback import MAX_ATTRIBUTES, MAX_VALUE_CHARS, ConfigData, Mode
from .policy import ATTRIBUTE_PATTERN, DdiPolicy

_NAME, _PRODUCT = re.compile(ATTRIBUTE_PATTERN), re.compile(PRODUCT_PATTERN)
_SUFFIX = ".version"


def texts_of(reported: ConfigData) -> dict[str, str]:
    """The attributes as texts.

    Raises:
        Invalid: a name or a value is out of bounds, or there are too many.
    """
    if len(reported.data) > MAX_ATTRIBUTES:
        raise Invalid(f"a device has at most {MAX_ATTRIBUTES} attributes")
    found = {}
    for name, value in reported.data.items():
        if not _NAME.match(name):
            raise Invalid(
                "an attribute's name has 1 to 64 letters, digits, '.', '_' and '-', and begins with a letter or digit"
            )
        text = ("true" if value else "false") if isinstance(value, bool) else str(value)
        if len(text) > MAX_VALUE_CHARS or not text.isprintable():
            raise Invalid(f"the value of {name} must have at most {MAX_VALUE_CHARS} characters, all printable")
        found[name] = text
    return found


def keep(session: Session, device_id: str, mode: Mode, given: dict[str, str], now: int) -> dict[str, str]:
    """Keeps what a device reports, and returns all that it has reported. What an operator has set stays as it is.

    Raises:
        Invalid: the device would have too many attributes.
    """
    rows = list(session.scalars(select(DeviceAttribute).where(DeviceAttribute.device_id == device_id)))
    held = {row.name for row in rows if row.source == OPERATOR}
    own = {row.name: row for row in rows if row.source == DEVICE}
    wanted = {name: value for name, value in given.items() if name not in held}
    gone = {Mode.MERGE: set[str](), Mode.REPLACE: own.keys() - wanted.keys(), Mode.REMOVE: own.keys() & given.keys()}[mode]
    if gone:
        session.execute(
            delete(DeviceAttribute).where(
                DeviceAttribute.device_id == device_id, DeviceAttribute.source == DEVICE, DeviceAttribute.name.in_(sorted(gone))
            )
        )
    result = {name: row.value for name, row in own.items() if name not in gone}
    if mode is Mode.REMOVE:
        return result
    if len(result.keys() | wanted.keys()) > MAX_ATTRIBUTES:
        raise Invalid(f"a device has at most {MAX_ATTRIBUTES} attributes")
    for name, value in wanted.items():
        row = own.get(name)
        if row is None:
            session.add(DeviceAttribute(device_id=device_id, name=name, value=value, source=DEVICE, updated_at=now))
        elif row.value != value:
            row.value, row.updated_at = value, now
    return result | wanted


def versions_in(policy: DdiPolicy, attributes: dict[str, str]) -> dict[str, str]:
    """The version of each product that attributes name; a value that is no version names none."""
    named = {product: attributes[attribute] for product, attribute in policy.versions.items() if attribute in attributes}
    for name, value in attributes.items():
        product = name.removesuffix(_SUFFIX)
        if name.endswith(_SUFFIX) and _PRODUCT.match(product) and product not in policy.versions:
            named[product] = value
    return {product: value for product, value in named.items() if _parsed(value) is not None}


def is_version(named: str | None, wanted: str) -> bool:
    """Whether a device names a version: `3.2` is `3.2.0`."""
    return named is not None and (named == wanted or (_parsed(named) is not None and _parsed(named) == _parsed(wanted)))


def _parsed(text: str) -> Version | None:
    try:
        return Version.parse(text)
    except MalformedVersion:
        return None


def note_versions(session: Session, device_id: str, versions: dict[str, str], builds: dict[str, str], now: int) -> None:
    """Writes which versions a device runs, where they have changed.

    Args:
        session: of a writing transaction.
        device_id: the device.
        versions: by product.
        builds: the build id by product, where it is known: DDI has none.
        now: seconds since 1970 UTC.
    """
    for product, version in versions.items():
        row = session.get(DeviceVersion, (device_id, product))
        if row is None:
            session.add(
                DeviceVersion(
                    device_id=device_id, product=product, version=version, build_id=builds.get(product, ""), reported_at=now
                )
            )
        elif row.version != version or (builds.get(product) and row.build_id != builds[product]):
            row.version, row.build_id, row.reported_at = version, builds.get(product, ""), now
