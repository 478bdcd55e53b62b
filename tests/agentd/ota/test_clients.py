"""The clients of updater and installer against sockets that speak the two protocols, well and badly."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.ota.hindrances import BUSY
from agentd.ota.installerclient import InstallerClient
from agentd.ota.orderclient import OrderClient
from agentd.ota.sides import Declined, Hindered, Unreachable
from agentd.ota.table import Installed, Order
from agentd.ota.updaterclient import UpdaterClient
from ipc import installermessages as installer
from ipc import updatermessages as updater
from ipc.frames import FrameDecoder
from tests.support.stand import short_directory

pytestmark = pytest.mark.system

SHA = "ab" * 32
ORDER = Order(number=7, product="pos", version="2.0.0", build_id="b2", sha256=SHA, directive="d.d.d", key_set="k.k.k")


@contextmanager
def answering(answer: Callable[[bytes, int | None], Iterable[bytes]], name: str) -> Iterator[Path]:
    """A process on a socket that takes one order, with its descriptor, and sends these frames."""
    with short_directory() as directory:
        path = Path(directory) / name
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(30)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(30)
                decoder, given = FrameDecoder(1 << 20), None
                frames: list[bytes] = []
                while not frames:
                    data, passed, _, _ = socket.recv_fds(sock, 1 << 17, 1)
                    given = passed[0] if passed else given
                    frames = decoder.receive_data(data, 1)
                with suppress(BrokenPipeError, ConnectionResetError):  # the client may have enough
                    for frame in answer(frames[0], given):
                        sock.sendall(frame)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            thread.join(30)
            listener.close()


def say(*messages: Any) -> Callable[[bytes, int | None], Iterable[bytes]]:
    encode = updater.encode_updater if type(messages[0]).__module__ == updater.__name__ else installer.encode_installer
    return lambda _order, _descriptor: [encode(message) for message in messages]


def ask_updater(answer: Callable[[bytes, int | None], Iterable[bytes]], act: Callable[[UpdaterClient], Any]) -> Any:
    with answering(answer, "updater.sock") as path:
        return asyncio.run(act(UpdaterClient(path)))


def ask_installer(answer: Callable[[bytes, int | None], Iterable[bytes]], act: Callable[[InstallerClient], Any]) -> Any:
    with answering(answer, "installer.sock") as path:
        return asyncio.run(act(InstallerClient(path)))


STAGED = updater.Staged(v=1, id=1, name=SHA, sha256=SHA, length=9, product="pos", version="2.0.0", build_id="b2")


def test_an_offer_and_a_download_with_its_progress() -> None:
    offer = updater.Offer(
        v=1, id=1, product="pos", version="2.0.0", build_id="b2", kind="slots", notes="new", sha256=SHA, length=9,
        staged=False, metadata_expires=77, signed_until=88, signed_role="targets",
    )  # fmt: skip
    found = ask_updater(say(offer), lambda client: client.refresh(ORDER, 5))
    assert (found.product, found.length, found.notes, found.metadata_expires) == ("pos", 9, "new", 77)
    assert (found.signed_until, found.signed_role) == (88, "targets")
    seen: list[tuple[int, int]] = []
    steps = [updater.Progress(v=1, id=1, done=done, total=9) for done in (3, 9)]
    ask_updater(
        say(*steps, STAGED), lambda client: client.stage(ORDER, 5, 1024, lambda done, total: seen.append((done, total)))
    )
    assert seen == [(3, 9), (9, 9)]


def test_an_updater_that_says_the_same_for_ever_has_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OrderClient.order, "__defaults__", (0.2, None, None))
    frame = updater.encode_updater(updater.Progress(v=1, id=1, done=3, total=9))

    def same(_order: bytes, _descriptor: int | None) -> Iterator[bytes]:
        while True:
            yield frame

    with pytest.raises(Unreachable, match=r"the updater got no further for 0\.2 s"):
        ask_updater(same, lambda client: client.stage(ORDER, 5, None, lambda _done, _total: None))


@pytest.mark.parametrize(
    ("code", "network", "final"),
    [
        ("unreachable", True, None),
        ("digest-differs", True, None),
        ("metadata-not-signed", True, None),
        ("no-space", False, None),
        ("disk", False, None),
        ("digest-differs", False, True),
        ("metadata", False, True),
        ("internal", False, False),
    ],
)
def test_what_a_mirror_or_a_full_disk_brings_about_is_no_failed_attempt_and_a_bad_package_is(
    code: str, network: bool, final: bool | None
) -> None:
    failure = updater.Failure(v=1, id=1, code=code, text="why\x1b", network=network)
    with pytest.raises(Hindered if final is None else Declined) as error:
        ask_updater(say(failure), lambda client: client.refresh(ORDER, 5))
    assert "why?" in str(error.value) and error.value.code == code
    if isinstance(error.value, Declined):
        assert (error.value.final, error.value.counted) == (final, True)


@pytest.mark.parametrize(
    ("code", "counted"),
    [
        ("no-room", None),
        ("disk", None),
        ("metadata-rolled-back", False),
        ("directive-withdrawn", False),
        ("bundle-refused", True),
        ("below-floor", True),
    ],
)
def test_an_installer_without_room_hinders_and_one_that_refuses_the_package_is_a_failed_attempt(
    code: str, counted: bool | None
) -> None:
    refused = installer.Refused(v=1, id=1, code=code, text="why")
    with pytest.raises(Hindered if counted is None else Declined) as error:
        ask_installer(say(refused), lambda client: client.prepare("pos", SHA, lambda _done, _total: None))
    if isinstance(error.value, Declined):
        assert error.value.counted is counted


def test_a_package_goes_as_a_descriptor_and_never_as_a_path(tmp_path: Path) -> None:
    package = tmp_path / "bundle"
    package.write_bytes(b"the package")
    read: list[bytes] = []

    def answer(order: bytes, descriptor: int | None) -> list[bytes]:
        assert descriptor is not None and str(package).encode() not in order
        read.append(os.pread(descriptor, 100, 0))
        os.close(descriptor)
        return [updater.encode_updater(STAGED)]

    with package.open("rb") as file:
        found = ask_updater(answer, lambda client: client.take(file.fileno(), 5, lambda _done, _total: None))
    assert (read, found.sha256, found.version) == ([b"the package"], SHA, "2.0.0")


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "broke off"),
        ([b"\x00\x00\x00\x01\xc1"], "malformed"),
        ([b"\xff\xff\xff\xff"], "a frame of 4294967295 bytes"),
        ([updater.encode_updater(updater.Done(v=1, id=1))], "sent Done out of turn"),
    ],
)
def test_what_is_no_answer_is_tried_again_and_believed_by_nobody(frames: list[bytes], words: str) -> None:
    with pytest.raises(Unreachable, match=words):
        ask_updater(lambda _order, _descriptor: frames, lambda client: client.refresh(ORDER, 5))


def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no updater answers at"):
        asyncio.run(UpdaterClient(tmp_path / "updater.sock").discard(()))


def state(word: str) -> installer.ProductState:
    old, new = (installer.Installed(version=version, build_id=build) for version, build in (("1", "a"), ("2", "b")))
    pending = None if word == "idle" else new
    return installer.ProductState(
        product="pos",
        backend="slots",
        running=old,
        previous=new,
        state=word,
        pending=pending,
        number=0,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("idle", Installed(version="1", build_id="a", previous="2")),
        ("staged", Installed(version="1", build_id="a", previous="2", begun=True)),
        ("switched", Installed(version="2", build_id="b", previous="1", begun=True, in_trial=True)),
        ("proving", Installed(version="2", build_id="b", previous="1", begun=True, in_trial=True)),
    ],
)
def test_what_is_active_follows_from_the_installers_words(word: str, expected: Installed) -> None:
    listed = installer.ProductList(v=1, id=1, products=(state(word),))
    assert ask_installer(say(listed), lambda client: client.products()) == {"pos": expected}


def test_a_product_of_which_nothing_can_be_said_has_no_version_and_a_reason() -> None:
    broken = msgspec.structs.replace(
        state("idle"), running=None, previous=None, problem=installer.Problem(code="machine", text="RAUC is gone")
    )
    frame = installer.encode_installer(installer.ProductList(v=1, id=1, products=(state("idle"),)))
    assert b"problem" not in frame, "what an older core does not know is said only where it must be"
    listed = installer.ProductList(v=1, id=1, products=(broken, msgspec.structs.replace(state("idle"), product="other")))
    found = ask_installer(say(listed), lambda client: client.products())
    assert found["pos"] == Installed(version="", code="machine", problem="RAUC is gone")
    assert found["other"] == Installed(version="1", build_id="a", previous="2")


@pytest.mark.parametrize(
    ("checks", "ok"),
    [([], False), ([True], True), ([True, False], False)],
)
def test_a_proof_without_a_check_proves_nothing(checks: list[bool], ok: bool) -> None:
    made = tuple(installer.Check(name=f"c{number}", ok=each, text="t") for number, each in enumerate(checks))
    proved = installer.Proved(v=1, id=1, ok=all(checks), checks=made)
    found = ask_installer(say(proved), lambda client: client.prove("pos"))
    assert found.ok is ok and ("c1: t" in found.text) is (len(checks) == 2)


def test_a_withdrawal_is_handed_over_and_a_refused_one_is_no_withdrawal() -> None:
    orders: list[Any] = []

    def note(order: bytes, _descriptor: int | None) -> list[bytes]:
        orders.append(installer.to_installer_decoder().decode(order))
        return [installer.encode_installer(installer.Withdrawn(v=1, id=1, number=7))]

    key_sets = "k" * installer.MAX_KEY_SET_CHARS
    ask_installer(note, lambda client: client.withdraw("d" * installer.MAX_DIRECTIVE_CHARS, key_sets))
    assert [(len(each.directive), each.key_set == key_sets) for each in orders] == [(2048, True)]
    for message in (
        installer.Refused(v=1, id=1, code="signature", text="who is that?"),
        installer.Committed(v=1, id=1, version="", build_id=""),
    ):
        with pytest.raises((Declined, Unreachable)):
            ask_installer(say(message), lambda client: client.withdraw("d", "k"))


def test_an_installer_that_waits_for_dpkg_is_no_failed_attempt() -> None:
    busy = installer.Refused(v=1, id=1, code="busy", text="another program is installing packages")
    with pytest.raises(Hindered, match="the installer waits: another program") as error:
        ask_installer(say(busy), lambda client: client.switch("license-agent", SHA))
    assert error.value.code == BUSY


def test_the_installer_declines_with_its_code() -> None:
    refused = installer.Refused(v=1, id=1, code="below-floor", text="1.0.0 is below the floor")
    with pytest.raises(Declined) as error:
        ask_installer(say(refused), lambda client: client.switch("pos", SHA))
    assert (error.value.code, error.value.text) == ("below-floor", "1.0.0 is below the floor")
