"""Selects devices by a text (`syntax`): one device by lookups of its rows, or all of them by a statement.

The statement begins at an index wherever the selection requires one of its terms: in `tag=beta and not zone=UTC`, the devices
are read from the index of tags, and each of them is looked at more closely. Only a selection that requires no term, such as
`not tag=beta`, reads all devices.
"""

from sqlalchemy import ColumnElement, Select, and_, false, func, not_, or_, select, union
from sqlalchemy.orm import Session

from server.base.errors import Conflict
from server.registry.dialect import by_bytes, plan_each_time
from server.registry.models.fleets import Device, DeviceAttribute, DeviceTag, DeviceVersion, FleetMember

from .facts import facts_of, holds
from .syntax import All, Field, Node, Not, Selection, Some, Term
from .syntax import parse as parse  # the API of this room: a selection is parsed and used

MAX_VERSIONS = 5000
"""Different versions of a product that a selection looks at. Devices report them, so nothing else bounds their number."""
_COLUMNS = {Field.HARDWARE: Device.hardware, Field.SITE: Device.site_id, Field.KIND: Device.kind, Field.ZONE: Device.zone}
_AFTER_PRINTABLE = "\U0010ffff"


def matches(session: Session, selection: Selection, device_id: str) -> bool:
    """Whether a selection selects a device. False if there is no such device."""
    facts = facts_of(session, device_id, (selection,))
    return facts is not None and holds(selection.root, facts)


def selecting(session: Session, selection: Selection) -> Select[str]:
    """The query for the ids of the devices that a selection selects, each once, in no order.

    Args:
        session: of any transaction; the versions that devices report now are read from it.
        selection: a selection.

    Raises:
        Conflict: devices report more than `MAX_VERSIONS` versions of a product that the selection compares.
    """
    session.flush()
    plan_each_time(session)
    compiler = _Compiler(session, selection)
    found = compiler.required(selection.root)
    if found is None:
        return select(Device.id).where(compiler.condition(selection.root))
    required, exact = found
    return select(Device.id).where(*required, *(() if exact else (compiler.condition(selection.root),)))


class _Compiler:
    """Makes conditions on rows of `device`."""

    def __init__(self, session: Session, selection: Selection) -> None:
        self._session = session
        self._admitted = {
            term: [each for each in versions_of(session, term.name) if term.admits(each)]
            for term in selection.terms()
            if term.field is Field.VERSION
        }

    def required(self, node: Node) -> tuple[list[ColumnElement[bool]], bool] | None:
        """Conditions that an index serves and that each selected device meets, and whether only those meet them.

        None where the selection requires no such condition.
        """
        if isinstance(node, Term):
            return [self._listed(node)], True
        if isinstance(node, Not):
            return None
        found = [self.required(part) for part in node.parts]
        present = [each for each in found if each is not None]
        exact = len(present) == len(found) and all(each[1] for each in present)
        if isinstance(node, All):
            return ([one for each in present for one in each[0]], exact) if present else None
        if len(present) < len(found):
            return None
        # PostgreSQL uses an index for each part of a union, and for none of an OR of subqueries.
        return [Device.id.in_(union(*(select(Device.id).where(*each[0]) for each in present)))], exact

    def condition(self, node: Node) -> ColumnElement[bool]:
        """The whole condition. Each term is a lookup by the device's id."""
        if isinstance(node, Term):
            return self._looked_up(node)
        if isinstance(node, Not):
            return not_(self.condition(node.part))
        parts = [self.condition(part) for part in node.parts]
        return or_(*parts) if isinstance(node, Some) else and_(*parts)

    def _listed(self, term: Term) -> ColumnElement[bool]:
        """The term by the index that lists the devices for which it is true."""
        own = self._own(term)
        if own is not None:
            return own
        column, conditions = self._of_table(term)
        return Device.id.in_(select(column).where(*conditions))

    def _looked_up(self, term: Term) -> ColumnElement[bool]:
        own = self._own(term)
        if own is not None:
            # Unknown is not true, also behind a NOT.
            return func.coalesce(own, false())
        column, conditions = self._of_table(term)
        return select(column).where(column == Device.id, *conditions).correlate(Device).exists()

    def _own(self, term: Term) -> ColumnElement[bool] | None:
        """The term as a condition on the row of the device itself; None if it is about another table."""
        if term.field in _COLUMNS:
            return _COLUMNS[term.field] == term.value
        if term.field is not Field.ID:
            return None
        if not term.prefix:
            return Device.id == term.value
        device_id = by_bytes(self._session, Device.id)
        return and_(device_id >= term.value, device_id < term.value + _AFTER_PRINTABLE)

    def _of_table(self, term: Term) -> tuple[ColumnElement[str], tuple[ColumnElement[bool], ...]]:
        if term.field is Field.TAG:
            return DeviceTag.device_id.expression, (DeviceTag.tag == term.value,)
        if term.field is Field.FLEET:
            return FleetMember.device_id.expression, (FleetMember.fleet_id == term.value,)
        if term.field is Field.ATTRIBUTE:
            both = (DeviceAttribute.name == term.name, DeviceAttribute.value == term.value)
            return DeviceAttribute.device_id.expression, both
        admitted = DeviceVersion.version.in_(self._admitted[term])
        return DeviceVersion.device_id.expression, (DeviceVersion.product == term.name, admitted)


def versions_of(session: Session, product: str) -> list[str]:
    """The different versions of a product that devices report: one step in the index for each, however many devices there are.

    Raises:
        Conflict: there are more than `MAX_VERSIONS`.
    """
    of_product = DeviceVersion.product == product
    first = select(func.min(DeviceVersion.version).label("version")).where(of_product)
    step = first.cte("versions", recursive=True)
    following = select(func.min(DeviceVersion.version)).where(of_product, DeviceVersion.version > step.c.version)
    step = step.union_all(select(following.correlate(step).scalar_subquery()).where(step.c.version.is_not(None)))
    query = select(step.c.version).where(step.c.version.is_not(None)).limit(MAX_VERSIONS + 1)
    found = list(session.scalars(query))
    if len(found) > MAX_VERSIONS:
        raise Conflict(
            f"devices report more than {MAX_VERSIONS} different versions of {product!r}: some of them report what cannot be; "
            "select by tag or hardware instead, and look for them with 'license-server devices list'"
        )
    return found
