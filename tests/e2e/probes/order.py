"""Gives the installer one order, as the core would, and prints the answer. Run as the user license-agent, in the guest.

python3 order.py KIND PRODUCT [SHA256]
"""

import glob
import socket
import sys

sys.path[:0] = glob.glob("/usr/lib/license-agent/*/")

import msgspec  # noqa: E402

from ipc import installermessages as wire  # noqa: E402
from ipc.frames import FrameDecoder  # noqa: E402

KINDS = {
    "products": wire.Products, "prepare": wire.Prepare, "switch": wire.Switch, "prove": wire.Prove, "commit": wire.Commit,
    "roll_back": wire.RollBack,
}  # fmt: skip


def main(kind: str, product: str, sha256: str = "") -> None:
    fields = {} if kind == "products" else {"product": product}
    fields |= {"sha256": sha256} if sha256 else {}
    fields |= {"reason": "the test wants it"} if kind == "roll_back" else {}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(600)
        sock.connect("/run/license-agent/installer.sock")
        sock.sendall(wire.encode_installer(KINDS[kind](v=wire.INSTALLER_VERSION, id=1, **fields)))
        frames = FrameDecoder(wire.INSTALLER_MAX_FRAME_BYTES)
        while data := sock.recv(65536):
            for frame in frames.receive_data(data, 10):
                answer = wire.from_installer_decoder().decode(frame)
                if not isinstance(answer, wire.Progress):
                    print(msgspec.json.encode({"answer": type(answer).__name__, **msgspec.to_builtins(answer)}).decode())
                    return
    raise SystemExit("the installer broke off")


main(*sys.argv[1:])
