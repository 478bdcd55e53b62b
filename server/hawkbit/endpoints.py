"""Does what each endpoint is for, in a thread and in transactions of its own. It decides nothing: `server.fleet.ddi` does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from server.base.ddisettings import DdiPlace
from server.base.errors import Conflict, Invalid, NotFound
from server.fleet.ddi import digests
from server.fleet.ddi.action_states import SHOWN, State
from server.fleet.ddi.actions import Actions, Gone
from server.fleet.ddi.feedback import AutoConfirm, ConfigData, Confirmation, Feedback, Malformed, read
from server.registry.database import Database
from server.registry.models.ddi import DdiAction, DdiDevice
from server.registry.models.updates import UpdatePackage

from . import answers
from .answers import MD5SUM, Links
from .paths import Route
from .problems import RETRY_S, Refused

DOWNLOADS_FROM = (*SHOWN, State.CANCELING)
"""States of an action in which its package may be fetched: a download that began before it was taken back goes on until the
client has noticed."""
MAX_HISTORY = 50


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered. `kind` is the content type; None for one of JSON, as the client accepts it."""

    body: bytes = b""
    kind: str | None = None
    status: int = 200


@dataclass(frozen=True, slots=True)
class Download:
    """A file that a request gets, or a part of it.

    Attributes:
        file: open; whoever sends it closes it.
        length: of the whole file.
        sha256: of the whole file.
        name: for the client.
    """

    file: BinaryIO
    length: int
    sha256: str
    name: str


class Endpoints:
    """The endpoints.

    Args:
        database: of the registry.
        actions: decides.
        place: of the listener.
        repository: the directory of the repository of updates.
        wall: seconds since 1970 UTC.
    """

    def __init__(
        self, database: Database, actions: Actions, place: DdiPlace, repository: Path, wall: Callable[[], float]
    ) -> None:
        self._database = database
        self._actions = actions
        self._place = place
        self._repository = repository
        self._wall = wall
        self._do: dict[str, Callable[[Route, bytes, bytes], Answer | Download]] = {
            "poll": self._poll,
            "config": self._configure,
            "deployment": self._deployment,
            "deployment-feedback": self._feedback,
            "cancel": self._cancel,
            "cancel-feedback": self._stopped,
            "installed": self._installed,
            "confirmations": self._confirmations,
            "auto-confirm": self._auto_confirm,
            "no-auto-confirm": self._no_auto_confirm,
            "confirmation": self._confirmation,
            "confirmation-feedback": self._confirm,
            "artifacts": self._artifacts,
            "artifact": self._artifact,
        }

    def do(self, route: Route, query: bytes, body: bytes) -> Answer | Download:
        """Answers a request of a device that has identified itself.

        Args:
            route: what it asks for.
            query: behind the path.
            body: of the request.

        Raises:
            Refused: it cannot be answered.
        """
        try:
            return self._do[route.endpoint](route, query, body)
        except Malformed as problem:
            raise Refused("malformed", str(problem)) from None
        except NotFound as problem:
            raise Refused("not-found", str(problem)) from None
        except Gone as problem:
            raise Refused("gone", str(problem)) from None
        except Invalid as problem:
            raise Refused("attributes", str(problem)) from None
        except Conflict as problem:
            raise Refused("unavailable", str(problem), RETRY_S) from None

    def _now(self) -> int:
        return int(self._wall())

    def _links(self, route: Route) -> Links:
        return Links(self._place, route.device_id)

    # What a device asks

    def _poll(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        now, device_id = self._now(), route.device_id
        with self._database.read() as session:
            settles = self._actions.must_settle(session, device_id, now)
            shown = self._actions.shown(session, device_id, now)
        if settles:
            unread = self._settle(device_id, now)
            if unread is not None:
                digests.compute(self._database, self._repository, unread)
                self._settle(device_id, now)
            with self._database.read() as session:
                shown = self._actions.shown(session, device_id, now)
        return Answer(answers.encoded(answers.polled(self._links(route), shown)))

    def _settle(self, device_id: str, now: int) -> UpdatePackage | None:
        with self._database.write() as session:
            return self._actions.settle(session, device_id, now)

    def _deployment(self, route: Route, query: bytes, _body: bytes) -> Answer:
        most = _history(query)
        with self._database.write() as session:
            action = self._actions.fetched(session, route.device_id, route.number, self._now())
            said = None if most is None else self._actions.messages(session, route.number, most)
            return Answer(answers.encoded(answers.deployment(self._links(route), action, said)))

    def _installed(self, route: Route, query: bytes, _body: bytes) -> Answer:
        most = _history(query)
        with self._database.read() as session:
            action = self._own(session.get(DdiAction, route.number), route, (State.INSTALLED, State.PROVED))
            said = None if most is None else self._actions.messages(session, route.number, most)
            return Answer(answers.encoded(answers.deployment(self._links(route), action, said)))

    def _cancel(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        with self._database.write() as session:
            action = self._actions.canceling(session, route.device_id, route.number)
            return Answer(answers.encoded(answers.cancellation(action)))

    def _confirmations(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        with self._database.read() as session:
            device = session.get(DdiDevice, route.device_id)
            action = self._actions.present(session, route.device_id)
            waiting = action if action is not None and action.confirmed is None and action.state in SHOWN else None
            auto = None if device is None else device.auto_confirm
            return Answer(answers.encoded(answers.confirmations(self._links(route), auto, waiting)))

    def _confirmation(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        with self._database.write() as session:
            action = self._actions.to_confirm(session, route.device_id, route.number)
            return Answer(answers.encoded(answers.deployment(self._links(route), action, None, "confirmation")))

    # What a device reports

    def _configure(self, route: Route, _query: bytes, body: bytes) -> Answer:
        said = read(ConfigData, body)
        with self._database.write() as session:
            self._actions.configure(session, route.device_id, said, self._now())
        return Answer()

    def _feedback(self, route: Route, _query: bytes, body: bytes) -> Answer:
        said = read(Feedback, body)
        with self._database.write() as session:
            self._actions.report(session, route.device_id, route.number, said, self._now())
        return Answer()

    def _stopped(self, route: Route, _query: bytes, body: bytes) -> Answer:
        said = read(Feedback, body)
        with self._database.write() as session:
            self._actions.stopped(session, route.device_id, route.number, said, self._now())
        return Answer()

    def _confirm(self, route: Route, _query: bytes, body: bytes) -> Answer:
        said = read(Confirmation, body)
        with self._database.write() as session:
            self._actions.confirm(session, route.device_id, route.number, said, self._now())
        return Answer()

    def _auto_confirm(self, route: Route, _query: bytes, body: bytes) -> Answer:
        said = read(AutoConfirm, body or b"{}")
        with self._database.write() as session:
            who = {"initiator": said.initiator, "remark": said.remark}
            self._actions.auto_confirm(session, route.device_id, who, self._now())
        return Answer()

    def _no_auto_confirm(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        with self._database.write() as session:
            self._actions.auto_confirm(session, route.device_id, None, self._now())
        return Answer()

    # Files

    def _artifacts(self, route: Route, _query: bytes, _body: bytes) -> Answer:
        with self._database.read() as session:
            action = self._own(session.get(DdiAction, route.number), route, DOWNLOADS_FROM)
            return Answer(answers.encoded([answers.artifact(self._links(route), action)]))

    def _artifact(self, route: Route, _query: bytes, _body: bytes) -> Answer | Download:
        with self._database.read() as session:
            action = self._own(session.get(DdiAction, route.number), route, DOWNLOADS_FROM)
            if action.confirmed is None:
                raise Gone(f"action {route.number} was not confirmed yet")
            path, name = action.path, action.path.partition("/")[2]
            sha256, md5, length = action.sha256, action.md5, action.length
        if route.name == name + MD5SUM:
            return Answer(f"{md5}  {name}\n".encode(), "text/plain")
        # The name is compared, never joined to a path: the file's path comes from the registry (threat-model T66).
        if route.name != name:
            raise NotFound("the action has no file of that name")
        try:
            return Download(digests.open_package(self._repository, path, sha256), length, sha256, name)
        except OSError:
            raise NotFound("the package was withdrawn from the repository") from None

    @staticmethod
    def _own(action: DdiAction | None, route: Route, states: tuple[State, ...]) -> DdiAction:
        if action is None or action.device_id != route.device_id:
            raise NotFound(f"the device has no action {route.number}")
        if action.state not in states:
            raise Gone(f"action {route.number} is {action.state}")
        return action


def _history(query: bytes) -> int | None:
    """How many messages a device wants with its action: `actionHistory=N`, -1 for all. None if it does not ask."""
    for name, value in parse_qsl(query.decode("latin-1"), max_num_fields=16):
        if name == "actionHistory" and value.removeprefix("-").isdecimal() and len(value) < 6:
            number = int(value)
            return None if number == 0 else MAX_HISTORY if number < 0 else min(number, MAX_HISTORY)
    return None
