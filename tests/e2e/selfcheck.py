"""What the end-to-end tests take for granted of their guest, shown on the guest alone.

    python3 tests/e2e/guest.py --self-check DIRECTORY

Each step prints how long it took. The first one that fails ends the run with status 1.
"""

import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tests.e2e.guest import CommandFailed, Guest, GuestError
from tests.e2e.image import USERS, ImageError, build

_CAGED = "/usr/local/bin/caged-cat"
_PROFILE = f"""abi <abi/3.0>,
include <tunables/global>
profile caged-cat {_CAGED} {{
  include <abstractions/base>
  {_CAGED} mr,
}}
"""
_KEPT = "/var/lib/kept"
_HANDLE = "0x81000001"

_T = TypeVar("_T")


def check(directory: Path) -> None:
    """Runs all steps; raises AssertionError, GuestError or CommandFailed at the first that fails."""
    image = _timed("image built or re-used", lambda: build(directory / "image"))
    payload = directory / "payload"
    payload.mkdir(parents=True, exist_ok=True)
    (payload / "greeting").write_text("from the host\n")
    with Guest(image, directory / "run", payload) as guest:
        _timed("boot", guest.boot)
        _timed("system state", lambda: _state(guest))
        _timed("AppArmor, Landlock, memfd_secret", lambda: _kernel(guest))
        _timed("a denial in the journal", lambda: _denial(guest))
        _timed("/dev/tpmrm0 answers, group tss", lambda: _tpm(guest))
        _timed("users", lambda: _users(guest))
        _timed("time limit, status, signal, stdin", lambda: _commands(guest))
        _timed("files in and out", lambda: _files(guest))
        _timed("command in the background", lambda: _background(guest))
        _timed("apt and dpkg without sources", lambda: guest.run("apt-get update && dpkg --audit && apt-get check"))
        _timed("node_exporter starts when told", lambda: _node_exporter(guest))
        _timed("file and handle to be kept", lambda: _leave(guest, "one"))
        _timed("reboot", guest.reboot)
        _timed("all kept over the reboot", lambda: _find(guest, "one", boots=2))
        _leave(guest, "two")
        _timed("power cut", guest.power_cut)
        _timed("boot after it", guest.boot)
        _timed("all kept over the power cut", lambda: _find(guest, "two", boots=3))
        _timed("power off", guest.poweroff)


def _timed(name: str, step: Callable[[], _T]) -> _T:
    began = time.monotonic()
    done = step()
    print(f"{time.monotonic() - began:7.2f} s  {name}", flush=True)
    return done


def _state(guest: Guest) -> None:
    failed = guest.run("systemctl --failed --plain --no-legend --no-pager").stdout
    assert guest.state == "running", f"{guest.state}; failed units:\n{failed}"
    assert not failed
    off = guest.run(["systemctl", "is-active", "prometheus-node-exporter"], check=False).stdout
    assert off.strip() == "inactive", off


def _kernel(guest: Guest) -> None:
    modules = guest.get("/sys/kernel/security/lsm").decode().strip().split(",")
    assert {"landlock", "apparmor"} <= set(modules), modules
    assert guest.run(["aa-enabled"]).stdout.strip() == "Yes"
    # memfd_secret is 447 on x86-64; before Linux 6.5 it is ENOSYS without secretmem.enable=1.
    assert int(guest.run(["python3", "-c", "import ctypes; print(ctypes.CDLL(None).syscall(447, 0))"]).stdout) > 2


def _denial(guest: Guest) -> None:
    guest.run(["cp", "/bin/cat", _CAGED])
    guest.put(_PROFILE.encode(), "/etc/apparmor.d/caged-cat")
    guest.run("apparmor_parser --replace /etc/apparmor.d/caged-cat")
    refused = guest.run([_CAGED, "/etc/passwd"], check=False)
    assert refused.status == 1, refused
    assert "Permission denied" in refused.stderr, refused
    lines = guest.run("journalctl --sync; journalctl --no-pager -b --grep 'apparmor=.DENIED.'").stdout
    assert 'profile="caged-cat" name="/etc/passwd"' in lines, lines


def _tpm(guest: Guest) -> None:
    assert guest.run(["stat", "--format=%G %a", "/dev/tpmrm0"]).stdout == "tss 660\n"
    assert len(guest.run(["tpm2_getrandom", "--hex", "16", "-T", "device:/dev/tpmrm0"]).stdout) == 32


def _users(guest: Guest) -> None:
    for name, uid in USERS.items():
        assert guest.run(["id"], user=name).stdout == f"uid={uid}({name}) gid={uid}({name}) groups={uid}({name})\n"
        assert guest.run("grep CapEff /proc/self/status; pwd; echo $HOME", user=name).stdout == (
            f"CapEff:\t0000000000000000\n/\n/home/{name}\n"
        )
        assert guest.run(["cat", "/dev/tpmrm0"], user=name, check=False).status == 1


def _commands(guest: Guest) -> None:
    result = guest.run("cat; echo two >&2; exit 3", stdin=b"one", check=False)
    assert (result.status, result.stdout, result.stderr) == (3, "one", "two\n")
    assert guest.run("kill -9 $$", check=False).status == -9
    try:
        guest.run("sleep 1234 & sleep 1234", timeout=1)
    except GuestError as error:
        assert "No end within 1 s" in str(error)
    else:
        raise AssertionError("the time limit did not hold")
    # The leader is waited for; its child is init's to bury.
    guest.run("for i in $(seq 50); do ps -C sleep -o args= | grep -q 1234 || exit 0; sleep 0.1; done; exit 1")


def _files(guest: Guest) -> None:
    data = bytes(range(256)) * 4096
    guest.put(data, "/root/data", mode=0o600)
    assert guest.get("/root/data") == data
    assert guest.run(["stat", "--format=%U %a", "/root/data"]).stdout == "root 600\n"
    assert guest.get("/payload/greeting") == b"from the host\n"
    assert guest.run("touch /payload/new", check=False).status == 1


def _background(guest: Guest) -> None:
    guest.run("mkfifo -m 644 /run/go-on")
    told = guest.background("echo waiting; read -r word </run/go-on; echo $word; exit 5", "till")
    assert told.poll() is None
    guest.run("echo went on >/run/go-on")
    assert told.wait(20) == 5, told.output()
    assert told.output() == "waiting\nwent on\n"
    stopped = guest.background(["sleep", "1234"])
    stopped.signal(15)
    assert stopped.wait(20) == -15
    assert stopped.poll() == -15


def _node_exporter(guest: Guest) -> None:
    guest.run(["systemctl", "start", "prometheus-node-exporter"])
    guest.run("curl --fail --silent --show-error --retry 20 --retry-connrefused http://127.0.0.1:9100/metrics | grep -q ^node_")
    guest.run(["systemctl", "stop", "prometheus-node-exporter"])


def _leave(guest: Guest, word: str) -> None:
    # The file and its folder alone, not everything: that is what a program with care for its state does.
    guest.run(f"printf {word} >{_KEPT} && sync {_KEPT} /var/lib")
    if word == "one":
        guest.run(f"tpm2_createprimary -Q -c /run/primary && tpm2_evictcontrol -Q -c /run/primary {_HANDLE}")
    guest.run(["logger", f"self-check-{word}"])
    guest.run(["journalctl", "--sync"])


def _find(guest: Guest, word: str, *, boots: int) -> None:
    assert guest.get(_KEPT) == word.encode()
    assert _HANDLE in guest.run(["tpm2_getcap", "handles-persistent"]).stdout
    assert guest.run("journalctl --no-pager --quiet --list-boots | wc -l").stdout.strip() == str(boots)
    assert guest.run(f"journalctl --no-pager --quiet -b -1 --grep self-check-{word}").stdout.strip()
    _state(guest)


def main(arguments: Sequence[str]) -> int:
    """The command line of guest.py."""
    if len(arguments) != 2 or arguments[0] != "--self-check":
        print("Usage: guest.py --self-check DIRECTORY", file=sys.stderr)
        return 2
    try:
        check(Path(arguments[1]))
    except AssertionError:
        traceback.print_exc()
        return 1
    except (CommandFailed, GuestError, ImageError) as error:
        print(f"guest.py: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
