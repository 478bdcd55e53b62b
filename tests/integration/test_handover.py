"""`ota install --package` against a real agent's process: the open file passes its sandbox and reaches the updater's socket."""

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from ipc.frames import FrameDecoder
from ipc.messages import RequestDecoder
from ipc.updatermessages import UPDATER_VERSION, Failure, TakeBundle, encode_updater
from tests.support.daemon import furnished
from tests.support.stand import BIN
from tests.support.waiting import READY_S

pytestmark = pytest.mark.system


def answer_once(listener: socket.socket, found: list[bytes]) -> None:
    """An updater's end of one order: reads the file that came with it, and refuses it."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(READY_S)
        data, numbers, _flags, _address = socket.recv_fds(connection, 65_536, 2)
        (body,) = FrameDecoder().receive_data(data)
        order = RequestDecoder[TakeBundle](TakeBundle).decode(body)
        (number,) = numbers
        found.append(os.pread(number, 1 << 20, 0))
        os.close(number)
        refusal = Failure(v=UPDATER_VERSION, id=order.id, code="bundle", text="this one is for a test", network=False)
        connection.sendall(encode_updater(refusal))
        connection.recv(1)


def test_an_administrators_file_reaches_the_updater_and_its_answer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "pos.bundle"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as made:
        info = tarfile.TarInfo("package")
        info.size = 7
        made.addfile(info, io.BytesIO(b"content"))
    path.chmod(0o600)  # the agent's own user could not open it
    found: list[bytes] = []
    with furnished() as bench:
        bench.write_config("[updates]\nenabled = true\n")
        command = [str(BIN / "license-agent-cli"), "--agent-uid", str(bench.uid), "ota", "install", "--package", str(path)]
        with bench.running(), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(bench.run_dir / "updater.sock"))
            os.chown(bench.run_dir / "updater.sock", bench.uid, bench.uid)
            listener.listen()
            listener.settimeout(READY_S)
            asking = subprocess.Popen(command, env=bench.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            answer_once(listener, found)
            out, error = asking.communicate(timeout=READY_S)
            assert (asking.returncode, out) == (4, ""), error
            assert "the package is not accepted: bundle: this one is for a test" in error
        assert found == [path.read_bytes()]
        assert [each["outcome"] for each in bench.records() if each["event"] == "ota.wanted"] == ["package"]
