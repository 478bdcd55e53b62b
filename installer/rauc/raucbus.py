"""Asks RAUC's service over D-Bus. Every wait is bounded, and each failure is a `RaucFailed` that says what to do.

Only jeepney's parts without IO, and its login, are used: its connections wait for the bus's first reply without a bound.
"""

import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, Properties, new_method_call
from jeepney.auth import AuthenticationError
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import prep_socket

from common.files import os_problem

SYSTEM_BUS = "/run/dbus/system_bus_socket"
NAME, INTERFACE = "de.pengutronix.rauc", "de.pengutronix.rauc.Installer"
CONNECT_S = 5.0
CALL_S = 30.0
"""How long a call may take. Behind most of them is the bootloader's tool, or a handler of root's."""
INSTALL_S = 3600.0
"""How long an installation may take."""
SILENCE_S = 1200.0
"""How long an installation may make no progress. RAUC reports nothing while it copies one image."""
READ_BYTES = 64 * 1024


class RaucFailed(Exception):
    """RAUC cannot be asked, or did not do it. The text says why, and what to do."""


class RaucBusy(RaucFailed):
    """RAUC is installing something already."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A slot that the bootloader can start.

    Attributes:
        name: as in system.conf, such as "rootfs.0".
        booted: the machine runs from it.
        good: the bootloader may start it.
        version, build: of the bundle that was installed in it; empty where RAUC does not know.
    """

    name: str
    booted: bool
    good: bool
    version: str
    build: str


class RaucService:
    """A connection to the service, which D-Bus starts if it does not run.

    Args:
        address: path of the bus's socket.
        clock: seconds, of a clock that never goes back.

    Raises:
        RaucFailed: there is no bus, or no service on it.
    """

    def __init__(self, address: str = SYSTEM_BUS, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._serial = 0
        self._parser = Parser()
        self._signals: deque[Message] = deque(maxlen=1000)
        try:
            self._sock: socket.socket = prep_socket(address, timeout=CONNECT_S)
        except (OSError, AuthenticationError) as error:
            why = os_problem(error, address) if isinstance(error, OSError) else f"{address} refused the login"
            raise RaucFailed(f"D-Bus does not answer: {why}; see: systemctl status dbus.socket") from None
        try:
            self._call(message_bus.Hello(), "the login")
            if not self._call(message_bus.NameHasOwner(NAME), "whether RAUC runs")[0]:
                self._call(message_bus.StartServiceByName(NAME), "to start RAUC")
            # From here on only this process is asked: one that comes after it knows nothing of what was ordered.
            self._owner = str(self._call(message_bus.GetNameOwner(NAME), "which process RAUC is")[0])
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sock.close()

    def compatible(self) -> str:
        """What bundles for this machine name as `compatible`."""
        return str(self._property("Compatible"))

    def primary(self) -> str:
        """Name of the slot that the bootloader starts next."""
        return str(self._rauc("GetPrimary")[0])

    def slots(self) -> tuple[Slot, ...]:
        """The slots that have a `bootname`, by name."""
        found = []
        try:
            for name, members in self._rauc("GetSlotStatus")[0]:
                says = {key: str(value) for key, (_, value) in members.items()}
                if says.get("bootname"):
                    # What was interrupted is not what its status says: RAUC writes "update" before, "ok" after.
                    whole = says.get("status") == "ok"
                    found.append(
                        Slot(
                            name=str(name),
                            booted=says.get("state") == "booted",
                            good=says.get("boot-status") == "good",
                            version=says.get("bundle.version", "") if whole else "",
                            build=says.get("bundle.build", "") if whole else "",
                        )
                    )
        except (TypeError, ValueError, AttributeError):
            raise RaucFailed("RAUC describes its slots in a form that is not known here") from None
        return tuple(sorted(found, key=lambda slot: slot.name))

    def mark(self, state: str, slot: str) -> None:
        """Marks a slot as "good", "bad" or "active"."""
        self._rauc("Mark", "ss", (state, slot))

    def install(
        self, bundle: str, progress: Callable[[int, str], None], within_s: float = INSTALL_S, silence_s: float = SILENCE_S
    ) -> None:
        """Installs a bundle in the slots that the machine does not run from, and waits for the end.

        Args:
            bundle: path of the file.
            progress: called with each change: percent, and what RAUC does.
            within_s: seconds that it may take.
            silence_s: seconds that no progress may be made.

        Raises:
            RaucBusy: it installs something already.
            RaucFailed: it did not install the bundle, or nobody knows whether it did.
        """
        self._require_idle()
        for rule in (
            f"type='signal',sender='{NAME}'",
            f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{NAME}'",
        ):
            self._call(message_bus.AddMatch(rule), "for RAUC's reports")
        self._rauc("InstallBundle", "sa{sv}", (bundle, {}))
        now = self._clock()
        ends, silent, last = now + within_s, now + silence_s, "it did not begin"
        while (now := self._clock()) < min(ends, silent):
            message = self._signal(min(ends, silent) - now)
            if message is None:
                continue
            member, sender = message.header.fields.get(HeaderFields.member), message.header.fields.get(HeaderFields.sender)
            if member == "NameOwnerChanged" and sender == "org.freedesktop.DBus":
                raise RaucFailed(f"RAUC ended during the installation ({last}); see: journalctl -u rauc")
            if sender != self._owner:
                continue
            if member == "Completed":
                if message.body != (0,):
                    raise RaucFailed(f"RAUC did not install it: {self._property('LastError') or 'it does not say why'}")
                return
            if (found := _progress(message)) is not None:
                silent, last = self._clock() + silence_s, f"{found[0]} %, {found[1]}"
                progress(*found)
        raise RaucFailed(f"RAUC made no progress or came to no end in time ({last}); see: journalctl -u rauc")

    def _property(self, name: str) -> Any:
        properties = Properties(DBusAddress("/", self._owner, INTERFACE))
        return self._call(properties.get(name), f"for {name}")[0][1]

    def _rauc(self, method: str, signature: str | None = None, body: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        try:
            return self._call(
                new_method_call(DBusAddress("/", self._owner, INTERFACE), method, signature, body), f"for {method}"
            )
        except RaucFailed:
            self._require_idle()  # while it installs, RAUC says no to everything
            raise

    def _require_idle(self) -> None:
        if self._property("Operation") != "idle":
            raise RaucBusy("RAUC is installing something already; the update goes on after that")

    def _call(self, message: Message, what: str) -> tuple[Any, ...]:
        self._serial += 1
        serial, ends = self._serial, self._clock() + CALL_S
        try:
            self._sock.settimeout(CALL_S)
            self._sock.sendall(message.serialise(serial=serial))
            while True:
                reply = self._next(ends)
                if reply.header.fields.get(HeaderFields.reply_serial) == serial:
                    break
                self._keep(reply)
        except TimeoutError:
            raise RaucFailed(f"RAUC was asked {what} and did not answer within {CALL_S:g} s; see: journalctl -u rauc") from None
        except OSError as error:
            raise RaucFailed(f"D-Bus broke off when RAUC was asked {what}: {error.strerror or error}") from None
        if reply.header.message_type is MessageType.error:
            name = str(reply.header.fields.get(HeaderFields.error_name, ""))
            text = str(reply.body[0]) if reply.body else name
            if name == "org.freedesktop.DBus.Error.ServiceUnknown":
                text = "there is no such service; install the package rauc-service, or restart RAUC"
            raise RaucFailed(f"RAUC was asked {what}: {text}")
        return tuple(reply.body)

    def _signal(self, within_s: float) -> Message | None:
        """The next signal; None if none came in that time."""
        if self._signals:
            return self._signals.popleft()
        try:
            self._keep(self._next(self._clock() + within_s))
        except TimeoutError:
            return None
        except OSError as error:
            raise RaucFailed(f"D-Bus broke off during the installation: {error.strerror or error}") from None
        return self._signals.popleft() if self._signals else None

    def _keep(self, message: Message) -> None:
        if message.header.message_type is MessageType.signal:
            self._signals.append(message)

    def _next(self, ends: float) -> Message:
        while True:
            message = self._parser.get_next_message()
            if message is not None:
                return message
            left = ends - self._clock()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            data = self._sock.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._parser.add_data(data)


def _progress(message: Message) -> tuple[int, str] | None:
    """The progress that a signal reports; None if it reports something else."""
    if message.header.fields.get(HeaderFields.member) != "PropertiesChanged":
        return None
    try:
        _, changed, _ = message.body
        _, (percent, text, _) = changed["Progress"]
        return int(percent), str(text)
    except (KeyError, TypeError, ValueError):
        return None
