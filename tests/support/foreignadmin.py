"""An administrator's client as somebody else would write it from docs/protocol.md: no code of ours, `openssl` signs.

foreignadmin.py SOCKET KEY.pem CERTIFICATE.pem OP [NAME=NUMBER | NAME=TEXT] …; prints the reply's members, a line each.
"""

import base64
import hashlib
import json
import socket
import subprocess
import sys
from typing import Any


def pack(value: Any) -> bytes:
    """MessagePack, as far as requests need it."""
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xcf" + value.to_bytes(8, "big")
    if isinstance(value, str):
        data = value.encode()
        return b"\xda" + len(data).to_bytes(2, "big") + data
    if isinstance(value, bytes):
        return b"\xc5" + len(value).to_bytes(2, "big") + value
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(pack, value))
    return bytes([0x80 | len(value)]) + b"".join(pack(name) + pack(each) for name, each in value.items())


def unpack(data: bytes, at: int) -> tuple[Any, int]:
    """One value, and where the next begins."""
    tag = data[at]
    if tag < 0x80:
        return tag, at + 1
    if tag < 0x90 or tag in (0xDE, 0xDF):
        size = {0xDE: 2, 0xDF: 4}.get(tag, 0)
        count = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else tag & 15
        found, at = {}, at + 1 + size
        for _time in range(count):
            name, at = unpack(data, at)
            found[name], at = unpack(data, at)
        return found, at
    if tag < 0xA0 or tag in (0xDC, 0xDD):
        size = {0xDC: 2, 0xDD: 4}.get(tag, 0)
        count = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else tag & 15
        items, at = [], at + 1 + size
        for _time in range(count):
            item, at = unpack(data, at)
            items.append(item)
        return items, at
    if tag < 0xC0:
        return data[at + 1 : at + 1 + tag - 0xA0].decode(), at + 1 + tag - 0xA0
    if tag in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[tag], at + 1
    size = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}.get(tag, 0)
    if size:
        length = int.from_bytes(data[at + 1 : at + 1 + size], "big")
        part = data[at + 1 + size : at + 1 + size + length]
        return (part if tag < 0xD0 else part.decode()), at + 1 + size + length
    size = 1 << (tag & 3)
    return int.from_bytes(data[at + 1 : at + 1 + size], "big", signed=tag >= 0xD0), at + 1 + size


def ask(sock: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
    body = pack(message)
    sock.sendall(len(body).to_bytes(4, "big") + body)
    with sock.makefile("rb") as file:
        reply: dict[str, Any] = unpack(file.read(int.from_bytes(file.read(4), "big")), 0)[0]
    return reply


def main() -> None:
    path, key, certificate, op, *words = sys.argv[1:]
    params = {name: int(value) if value.isdigit() else value for name, _, value in (word.partition("=") for word in words)}
    with open(certificate, encoding="ascii") as file:
        der = base64.b64decode("".join(line for line in file if not line.startswith("-----")))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        given = ask(sock, {"v": 1, "id": 1, "op": "challenge"})
        act = json.dumps({"op": op, "params": params}, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
        agent = given["agent_id"].encode()
        text = b"license-agent-admin-v1\0" + bytes([len(agent)]) + agent + given["boot_id"] + given["challenge"]
        text += hashlib.sha256(act.encode()).digest()
        command = ["openssl", "dgst", "-sha256", "-sign", key]
        signature = subprocess.run(command, input=text, capture_output=True, check=True).stdout
        request = pack({"v": 1, "id": 2, "op": op, **params})
        order = {"v": 1, "id": 2, "op": "signed", "certificates": [der], "signature": signature, "request": request}
        reply = ask(sock, order)
    for name, value in reply.items():
        print(f"{name}={value.hex() if isinstance(value, bytes) else value}")


if __name__ == "__main__":
    main()
