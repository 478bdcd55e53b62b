"""Two tills, and fleets that configure them; for tests on both databases."""

from collections.abc import Mapping
from typing import Any

from contracts.contact.configuration import (
    Configuration,
    ConfigurationReply,
    ConfigurationRequest,
    ConfigurationResult,
    ResultState,
    digest_of,
    values_of,
    verify_configuration,
)
from server.agents import device_rows
from server.agents.registry import enrolled
from server.fleet.configuration import settings
from server.registry.models.fleets import DeviceConfiguration, Fleet, FleetMember
from tests.server.devices import NOW
from tests.server.licensing.states.test_changes import Till, make_till
from tests.support.serverside import ServerSide


class Shop:
    """The tills, by number."""

    def __init__(self, server: ServerSide) -> None:
        self.server = server
        self.tills: dict[int, Till] = {}
        self.known: dict[int, int] = {}

    def till(self, number: int = 1) -> Till:
        if number not in self.tills:
            self.tills[number] = make_till(self.server, number)
            with self.server.database.write() as session:
                device_rows.keep(session, enrolled(session, self.id_of(number)), NOW)
        return self.tills[number]

    def id_of(self, number: int = 1) -> str:
        return self.tills[number].agent.agent_id if number in self.tills else self.till(number).agent.agent_id

    def fleet(self, fleet_id: str, rank: int, *numbers: int, selection: str | None = None) -> None:
        devices = [self.id_of(number) for number in numbers]
        with self.server.database.write() as session:
            session.add(
                Fleet(
                    id=fleet_id, name=fleet_id, tags="[]", selection=selection, rank=rank, policy="{}", configuration=None,
                    created_at=NOW, updated_at=NOW, revision=1,
                )
            )  # fmt: skip
            session.add_all(FleetMember(fleet_id=fleet_id, device_id=device_id) for device_id in devices)

    def join(self, fleet_id: str, number: int, *, leaves: bool = False) -> None:
        device_id = self.id_of(number)
        with self.server.database.write() as session:
            if leaves:
                session.delete(session.get_one(FleetMember, (fleet_id, device_id)))
            else:
                session.merge(FleetMember(fleet_id=fleet_id, device_id=device_id))

    def configure(self, fleet_id: str, members: Mapping[str, Any] | None = None, **options: Any) -> int:
        change, unset = options.pop("change", {}), frozenset(options.pop("unset", ()))
        with self.server.database.write() as session:
            return settings.configure(session, fleet_id, members, change, unset, "sam", NOW, **options).number

    def end(self, fleet_id: str) -> None:
        with self.server.database.write() as session:
            settings.end(session, fleet_id, NOW)

    def ask(self, known: int = 0, result: ConfigurationResult | None = None, number: int = 1) -> Configuration | None:
        till = self.till(number)
        reply: ConfigurationReply = till.ask(ConfigurationRequest, ConfigurationReply, known=known, result=result)
        assert till.agent.trust is not None
        return None if reply.document is None else verify_configuration(reply.document, till.agent.trust)

    def contact(self, state: ResultState = ResultState.APPLIED, number: int = 1, **other: Any) -> Configuration | None:
        """A contact of an agent that takes in what it gets and confirms it at once."""
        found = self.ask(self.known.get(number, 0), number=number)
        if found is not None:
            self.known[number] = found.number
            assert self.ask(found.number, answer(found, state, **other), number) is None
        return found

    def row(self, number: int = 1) -> DeviceConfiguration | None:
        device_id = self.id_of(number)
        with self.server.database.read() as session:
            found = session.get(DeviceConfiguration, device_id)
            if found is not None:
                session.expunge(found)
            return found


def answer(
    document: Configuration, state: ResultState = ResultState.APPLIED, details: tuple[str, ...] = (), digest: str = ""
) -> ConfigurationResult:
    """What an agent says of a document."""
    said = None if state is ResultState.REFUSED else digest or digest_of(values_of(document.members))
    return ConfigurationResult(number=document.number, state=state, details=details, digest=said)
