"""What keeps a listener's certificates those of the registry: a change is taken, and a failure costs nothing but the look."""

import logging
from typing import Any

import pytest

from server.base.errors import RegistryError
from server.hawkbit.listener import DdiListener
from server.keys import listening
from server.keys.listening import Certificates


class Served:
    """A listener; the registry that it belongs to."""

    def __init__(self) -> None:
        self.contexts: list[Any] = []
        self.material: Any = ("chain", b"key", "ca")
        self.written = 0

    def use(self, context: Any) -> None:
        self.contexts.append(context)

    def read(self) -> Any:
        if isinstance(self.material, Exception):
            raise self.material
        return self.material

    def write(self) -> None:
        self.written += 1
        raise RegistryError("the disk is full")


@pytest.fixture(autouse=True)
def contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "server_context", lambda *material: material)


def test_another_certificate_is_taken_once_and_a_failure_leaves_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    certificates = Certificates("the listener", served.read)
    assert certificates.context() == ("chain", b"key", "ca")
    certificates.look(served)
    assert served.contexts == []
    served.material = RegistryError("no")
    certificates.look(served)
    assert served.contexts == [] and "the certificates of the listener could not be reloaded" in caplog.text
    served.material = ("new", b"key", "ca")
    certificates.look(served)
    certificates.look(served)
    assert served.contexts == [("new", b"key", "ca")]


def test_a_registry_that_takes_no_writes_keeps_no_old_certificate_in_use(caplog: pytest.LogCaptureFixture) -> None:
    served = Served()
    listener = object.__new__(DdiListener)
    listener._certificates = Certificates("the listener", served.read)
    listener._seen, listener.listener = served, served  # type: ignore[assignment]
    served.material = ("new", b"key", "ca")
    with caplog.at_level(logging.ERROR):
        listener.look()
    assert served.contexts == [("new", b"key", "ca")] and served.written == 1
    assert "could not write which devices were seen" in caplog.text
