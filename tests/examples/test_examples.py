"""The examples for other languages against a real stand: same line, same exit status, same identity check."""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from license_agent_client import LicenseClient

from tests.support.stand import Stand, running_stand, short_directory
from tests.support.waiting import READY_S

EXAMPLES = Path(__file__).parents[2] / "examples"
_VECTORS = json.loads((EXAMPLES.parent / "tests" / "vectors" / "frames.json").read_text("utf-8"))
DEBIAN_PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian's own tools, whatever else the caller has in the path."""
VERDICTS = [vector for vector in _VECTORS["replies"] if vector["op"] in ("validate_license", "require")]
REASONS = {
    "valid": "ok",
    "grace": "ok",
    "expired": "expired",
    "not_yet_valid": "not_yet_valid",
    "tampered": "bad_signature",
    "wrong_audience": "wrong_audience",
    "invalidated": "secret_invalidated",
}


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with running_stand("software") as running:
        yield running


# What each example is built with, in a directory that is the current one; and how it is called there.
TOOLS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "c": (("make", "cc", "pkg-config"), "make -C {source} BUILD={out}", "{out}/validate"),
    "node": (("node",), "cp {source}/validate.mjs {out}", "node {out}/validate.mjs"),
    "java": (("javac", "java"), "javac -Xlint:all,-serial -Werror -d {out} {source}/Validate.java", "java -cp {out} Validate"),
    "go": (("go",), "go build -o {out}/validate {source}/validate.go", "{out}/validate"),
    "rust": (("rustc",), "rustc --edition 2021 -D warnings -o {out}/validate {source}/validate.rs", "{out}/validate"),
    "csharp": (
        ("mcs", "mono"),
        "mcs -langversion:7 -warnaserror -out:{out}/Validate.exe {source}/Validate.cs",
        "mono {out}/Validate.exe",
    ),
}


@pytest.fixture(scope="module", params=TOOLS)
def command(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The example, where every user may run it."""
    tools, build, run = TOOLS[request.param]
    for tool in tools:
        if shutil.which(tool, path=DEBIAN_PATH) is None:
            pytest.skip(f"{tool} is not installed")
    with short_directory() as directory:
        places = {"source": str(EXAMPLES / request.param), "out": str(directory)}
        # Compilers keep what they have built in the home directory, and mono wants one.
        environment = {**os.environ, "PATH": DEBIAN_PATH, "HOME": str(directory), "GOFLAGS": "-mod=mod"}
        done = subprocess.run(
            build.format(**places).split(), env=environment, capture_output=True, text=True, check=False, timeout=READY_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        for path in directory.iterdir():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        first, *rest = run.format(**places).split()
        yield [shutil.which(first, path=DEBIAN_PATH) or first, *rest]


def ask(
    command: list[str], path: object, token: str, user: int | None = None, stdin: str | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*command, token],
        env={**os.environ, "LICENSE_AGENT_SOCKET": str(path), "LC_ALL": "C.UTF-8"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=READY_S,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


@pytest.mark.parametrize("kind", REASONS)
def test_each_kind_of_token_is_judged(stand: Stand, command: list[str], kind: str) -> None:
    done = ask(command, stand.info["pos_socket"], stand.info["tokens"][kind])
    valid, reason, expires_at, *features = done.stdout.rstrip("\n").split("\t")
    assert (valid == "valid", reason) == (REASONS[kind] == "ok", REASONS[kind])
    assert done.returncode == (0 if valid == "valid" else 1) and not done.stderr
    assert features == (["sales", "fuel"] if valid == "valid" else [])
    assert expires_at == "-" or int(expires_at) > 1_700_000_000


def test_a_feature_is_asked_for_without_a_token(stand: Stand, command: list[str]) -> None:
    feature = f"fuel-ü-{os.urandom(4).hex()}"
    path = stand.info["pos_socket"]
    done = ask(command, path, f"require:{feature}")
    assert (done.stdout, done.stderr, done.returncode) == ("invalid\tno_license\t-\n", "", 1)
    delivered = stand.run("license-stand", "deliver", "--dir", str(stand.root), "--feature", feature, "--feature", "sales")
    assert delivered.returncode == 0, delivered.stderr
    done = ask(command, path, f"require:{feature}")
    valid, reason, expires_at, *features = done.stdout.rstrip("\n").split("\t")
    assert (valid, reason, sorted(features), done.returncode) == ("valid", "ok", sorted((feature, "sales")), 0)
    assert int(expires_at) > 1_700_000_000
    for refused in ("x" * 65, ""):
        assert ask(command, path, f"require:{refused}").returncode == 4
    assert ask(command, path, "-", stdin=f"require:{feature}").stdout == "invalid\tmalformed\t-\n"


@pytest.mark.parametrize("command", ["c", "node"], indirect=True)
def test_a_use_is_counted_once_however_often_it_is_sent(stand: Stand, command: list[str]) -> None:
    path, meter = stand.info["pos_socket"], f"washes-{os.urandom(4).hex()}"
    done = ask(command, path, f"count:{meter}")
    assert (done.stdout.split("\t")[:3], done.returncode) == (["not counted", "no_license", "-"], 1)
    assert stand.run("license-stand", "deliver", "--dir", str(stand.root), "--feature", f"meter:{meter}").returncode == 0
    first = ask(command, path, f"count:{meter}")
    counted, reason, license_id, count_id = first.stdout.rstrip("\n").split("\t")
    assert (counted, reason, first.returncode, len(count_id)) == ("counted", "ok", 0, 32) and license_id != "-"
    assert ask(command, path, f"count:{meter}:{count_id}").stdout == first.stdout
    other = ask(command, path, f"count:{meter}")
    assert other.returncode == 0 and other.stdout != first.stdout
    with LicenseClient(path) as client:
        assert client.count_usage(meter, 1, count_id=bytes.fromhex(count_id)).repeated
    for wrong in ("count:", f"count:{meter}:{count_id[:-1]}", f"count:{meter}:{count_id.upper()}"):
        assert ask(command, path, wrong).returncode == 2


def test_a_token_comes_by_standard_input_and_the_socket_as_an_argument(stand: Stand, command: list[str]) -> None:
    assert ask(command, stand.info["pos_socket"], "-", stdin=stand.info["tokens"]["valid"] + "\n").returncode == 0
    assert ask([*command, stand.info["tokens"]["valid"]], "/nowhere", stand.info["pos_socket"]).returncode == 0


def test_a_token_that_is_none_is_a_verdict(stand: Stand, command: list[str]) -> None:
    done = ask(command, stand.info["pos_socket"], "x.y.z")
    assert (done.stdout, done.returncode) == ("invalid\tmalformed\t-\n", 1)


def test_a_byte_order_mark_and_white_space_do_not_belong_to_a_token(stand: Stand, command: list[str]) -> None:
    token = stand.info["tokens"]["valid"]
    assert ask(command, stand.info["pos_socket"], "-", stdin=f"\ufeff \n{token}\r\n\n").returncode == 0


@pytest.mark.parametrize("content", ["", "\ufeff\n", "é", "\u3000x", "x\0y", "x" * 16_385, "a b"], ids=repr)
def test_what_a_file_holds_is_malformed_and_no_wrong_usage(stand: Stand, command: list[str], content: str) -> None:
    done = ask(command, stand.info["pos_socket"], "-", stdin=content)
    assert (done.stdout, done.returncode) == ("invalid\tmalformed\t-\n", 1)


@pytest.mark.parametrize("token", ["", "é", "x" * 16_385], ids=["empty", "not ASCII", "too long"])
def test_what_may_not_be_sent_is_wrong_usage(command: list[str], token: str) -> None:
    assert ask(command, "/nowhere", token).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_is_not_allowed_gets_the_error(stand: Stand, command: list[str]) -> None:
    done = ask(command, stand.info["pos_socket"], stand.info["tokens"]["valid"], user=4242)
    assert done.returncode == 4 and "error 7" in done.stderr and not done.stdout


def test_without_an_agent_it_gives_up_at_the_deadline(command: list[str], socket_dir: Path) -> None:
    began = time.monotonic()
    done = ask(command, socket_dir / "pos.sock", "x")
    assert done.returncode == 3 and not done.stdout
    assert time.monotonic() - began > 1.5


def test_a_directory_that_others_may_write_to_is_not_trusted(stand: Stand, command: list[str], socket_dir: Path) -> None:
    (socket_dir / "pos.sock").symlink_to(stand.info["pos_socket"])
    socket_dir.chmod(0o777)
    done = ask(command, socket_dir / "pos.sock", stand.info["tokens"]["valid"])
    assert done.returncode == 3 and "others" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_serves_the_socket_is_seen(command: list[str], socket_dir: Path) -> None:
    if command[0].endswith("node"):
        pytest.skip("Node cannot read SO_PEERCRED; the example says so")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(socket_dir / "pos.sock"))
        # Whoever calls listen is the peer that the kernel shows.
        os.seteuid(4242)
        try:
            server.listen()
        finally:
            os.seteuid(0)
        done = ask(command, socket_dir / "pos.sock", "x")
    assert done.returncode == 3 and "served" in done.stderr


def test_a_broken_connection_is_repeated_with_a_fresh_nonce_and_a_split_reply_is_read(
    stand: Stand, command: list[str], socket_dir: Path
) -> None:
    """Between client and agent stands a relay: it cuts the first two connections, and passes replies on byte by byte."""
    requests: list[bytes] = []

    def relay(server: socket.socket) -> None:
        for number in range(3):
            client, _ = server.accept()
            with client:
                requests.append(client.recv(65_536))
                if number < 2:
                    continue
                with socket.socket(socket.AF_UNIX) as agent:
                    agent.connect(stand.info["pos_socket"])
                    agent.sendall(requests[-1])
                    for byte in agent.recv(65_536):
                        client.sendall(bytes([byte]))

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(socket_dir / "pos.sock"))
        server.listen()
        server.settimeout(READY_S)
        thread = threading.Thread(target=relay, args=(server,))
        thread.start()
        done = ask(command, socket_dir / "pos.sock", stand.info["tokens"]["valid"])
        thread.join()
    assert done.returncode == 0 and done.stdout.startswith("valid\tok\t")
    assert len(requests) == len({request[-16:] for request in requests}) == 3


@pytest.mark.parametrize("vector", VERDICTS, ids=[vector["name"] for vector in VERDICTS])
def test_the_published_replies_have_their_outcome(command: list[str], socket_dir: Path, vector: dict[str, Any]) -> None:
    """The examples use id 1, and the nonce is theirs: both are put into the published reply."""

    def answer(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            nonce = client.recv(65_536)[-16:]
            reply = bytes.fromhex(vector["hex"]).replace(bytes.fromhex(vector["sent_nonce_hex"]), nonce)
            client.sendall(reply.replace(b"\xa2id\x07", b"\xa2id\x01"))

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(socket_dir / "pos.sock"))
        server.listen()
        server.settimeout(READY_S)
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        done = ask(command, socket_dir / "pos.sock", f"require:{vector['sent_feature']}" if vector["op"] == "require" else "x")
        thread.join()
    expected = vector["outcome"].get("reply")
    assert done.returncode == (4 if expected is None else 0 if expected["valid"] else 1)
    assert bool(done.stdout) == (expected is not None)
