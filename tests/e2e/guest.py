"""One virtual machine, whose disk and TPM outlive its reboots and power cuts, and commands in it as any of its users.

    python3 tests/e2e/guest.py --self-check DIRECTORY

Everything has a deadline; every failure shows the end of the guest's console, what QEMU said, and the room left on the disk.
QEMU emulates (no KVM), the TPM is swtpm.
Host packages: qemu-system-x86, qemu-utils, swtpm, e2fsprogs (mke2fs), util-linux (setpriv).
"""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

if __name__ == "__main__":  # run by its path, not as a module
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.e2e.guestagent import Ended, GuestAgent, NoAnswer, Refused
from tests.e2e.image import Image, make_ext4
from tests.e2e.room import DISK_MB, free_mb, shortage
from tests.support.waiting import READY_S

BOOT_SECONDS = REBOOT_SECONDS = 2 * READY_S
"""Where the processor is emulated, a boot takes a minute on a machine that does nothing else."""
POWEROFF_SECONDS = READY_S
BACKGROUND_FOLDER = "/var/log/e2e"
"""Where commands in the background leave their output, on the guest's disk."""

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_KERNEL_ARGUMENTS = (
    *("root=/dev/nvme0n1", "rw", "rootwait", "console=ttyS0,115200", "quiet", "loglevel=4", "net.ifnames=0"),
    # A unit that fails shows on the console, one that starts does not.
    "systemd.show_status=auto",
    # AppArmor as the one large security module.
    *("apparmor=1", "security=apparmor"),
    # An emulated processor has a steady clock and nothing to mitigate.
    *("mitigations=off", "tsc=reliable", "no_timer_check"),
)
_KERNEL_ARGUMENTS_OF = {"bookworm": ("secretmem.enable=1",)}
"""Memory that root cannot read has to be asked for before Linux 6.5."""
_CPUS = {"bookworm": 2, "trixie": 1}
"""With two emulated processors Linux 6.12 panics now and then while one of them patches code that the other one runs."""
_PROBE_SECONDS = 4.0
_KILL_SECONDS = 20.0
_PANIC = "Kernel panic - not syncing"
_CONSOLE_LINES = 40

_T = TypeVar("_T")


class GuestError(Exception):
    """The guest did not do what the tests take for granted. The text ends with its console's last lines and QEMU's own."""


class CommandFailed(Exception):
    """A command in the guest ended with a status other than 0; `result` has all of it."""

    def __init__(self, command: str, result: "Result") -> None:
        super().__init__(f"In the guest, status {result.status}: {command}\n{result.stdout[-4000:]}{result.stderr[-4000:]}")
        self.result = result


@dataclass(frozen=True)
class Result:
    """What became of a command in the guest.

    Attributes:
        status: the exit status; negative is the signal that ended it.
        stdout: as text, what is not UTF-8 replaced. Bytes come unharmed by `Guest.get`.
        stderr: likewise.
    """

    status: int
    stdout: str
    stderr: str


class Background:
    """A command that runs on in the guest. Its output (both streams) lies in the guest's file `path`."""

    def __init__(self, guest: "Guest", pid: int, command: str, path: str) -> None:
        self.pid = pid
        self.path = path
        self._guest = guest
        self._command = command
        self._boot = guest.boot_id
        self._status: int | None = None

    def poll(self) -> int | None:
        """The exit status (negative: the signal), or None while the command runs.

        Raises:
            GuestError: the guest was started anew meanwhile, and the command ended with the old boot.
        """
        if self._status is None:
            if self._guest.boot_id != self._boot:
                raise GuestError(f"The guest was started anew while this ran: {self._command}")
            with self._guest.explained(self._command):
                ended = self._guest.agent.ended(self.pid)
            self._status = None if ended is None else ended.status
        return self._status

    def wait(self, timeout: float) -> int:
        """The exit status, once the command ends.

        Args:
            timeout: seconds, after which the command runs on and GuestError is raised.
        """
        status = _until(self.poll, timeout)
        if status is None:
            raise self._guest.trouble(f"Still running after {timeout:g} s: {self._command}\n{self.output()[-2000:]}")
        return status

    def signal(self, number: int) -> None:
        """Sends a signal to the command and to all that it started (they share a session)."""
        self._guest.run(_kill(self.pid, number))

    def output(self) -> str:
        """What the command has printed so far."""
        return self._guest.get(self.path).decode(errors="replace")


class Guest:
    """A machine made of `image`; off until `boot`. To be used in a `with` block, which ends its processes whatever happens.

    Args:
        image: of image.build. It is only read.
        directory: receives the disk, the TPM's state and the console's text; what an earlier machine left there is replaced.
        payload: a folder that the guest sees as /payload, read-only, as it was at the first boot.
        memory: MiB.
        cpus: virtual processors; by default what the image's kernel can stand.
        reach: the only addresses that its network has, each with the port of the host's loopback that stands for it:
            {"10.0.2.100:8443": 45678}. They are in 10.0.2.0/24; see `join_network`.
    """

    def __init__(
        self,
        image: Image,
        directory: Path,
        payload: Path | None,
        *,
        memory: int = 2048,
        cpus: int | None = None,
        reach: Mapping[str, int] | None = None,
    ) -> None:
        self._image = image
        self.suite = image.suite
        """The Debian release."""
        self._directory = directory.resolve()
        self.payload = payload
        self._reach = dict(reach or {})
        self._size = ("-m", str(memory), "-smp", str(cpus or _CPUS[image.suite]))
        self._qemu: subprocess.Popen[bytes] | None = None
        self._swtpm: subprocess.Popen[bytes] | None = None
        self._console = self._directory / "console.log"
        self._made = False
        self._backgrounds = 0
        # The address of a Unix socket has 107 bytes at most (unix(7)); the directory's own path may be longer.
        self._sockets = Path(tempfile.mkdtemp(prefix="guest-"))
        self.agent = GuestAgent(self._sockets / "agent")
        self.boot_id = ""
        """/proc/sys/kernel/random/boot_id of the present boot; empty while the machine is off."""
        self.state = ""
        """What `systemctl is-system-running` said at the end of the present boot: running or degraded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.power_cut()
        finally:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def boot(self, timeout: float = BOOT_SECONDS) -> None:
        """Switches the machine on and waits until the boot is complete: running, or degraded when a unit failed (see `state`).

        The machine dies with the thread that calls this.

        Raises:
            GuestError: too little room for the disk, no complete boot within `timeout` seconds, a kernel panic, or QEMU or
            swtpm did not start.
        """
        if self._qemu is not None:
            raise GuestError("The guest is on already.")
        disk = self._directory / "disk.qcow2"
        taken = disk.stat().st_blocks * 512 // 1_000_000 if disk.exists() else 0
        # QEMU answers a write that the host has no room for with an error of the medium, and the guest then blames its disk.
        if missing := shortage(self._directory, DISK_MB - taken, "The guest's disk"):
            raise GuestError(missing)
        if not self._made:
            self._make_disks()
            self._made = True
        try:
            self._start_swtpm()
            self._start_qemu()
            self._await_boot("", timeout)
        except BaseException:
            self.power_cut()
            raise

    def run(
        self, command: str | list[str], *, user: str | None = None, timeout: float = 120, check: bool = True, stdin: bytes = b""
    ) -> Result:
        """Runs a command to its end.

        Args:
            command: text for `sh -c`, or a program and its arguments.
            user: who runs it, with their groups and without any capability; root by default.
            timeout: seconds, after which the command and all that it started are killed.
            check: whether a status other than 0 is an error.
            stdin: what the command reads; then its input ends.

        Raises:
            CommandFailed: `check`, and the status was not 0.
            GuestError: the time was up, or the guest does not answer.
        """
        shown = command if isinstance(command, str) else " ".join(command)
        with self.explained(shown):
            pid = self.agent.start(_as_user(command, user), _environment(user), stdin=stdin)
            ended: Ended | None = _until(lambda: self.agent.ended(pid), timeout)
            if ended is None:
                self.agent.start(_kill(pid, 9), _ENVIRONMENT, capture=False)
                _until(lambda: self.agent.ended(pid), _KILL_SECONDS)
                raise self.trouble(f"No end within {timeout:g} s, killed: {shown}")
        result = Result(ended.status, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"))
        if check and result.status:
            raise CommandFailed(shown, result)
        return result

    def background(self, command: str | list[str], user: str | None = None) -> Background:
        """Starts a command and lets it run; arguments as for `run`. It ends with the present boot at the latest."""
        shown = command if isinstance(command, str) else " ".join(command)
        self._backgrounds += 1
        path = f"{BACKGROUND_FOLDER}/{self._backgrounds}.log"
        # root opens the file, so that it does not matter where the user may write.
        script = f'mkdir -p {BACKGROUND_FOLDER} && exec "$@" >{path} 2>&1'
        with self.explained(shown):
            pid = self.agent.start(["/bin/sh", "-c", script, "sh", *_as_user(command, user)], _environment(user), capture=False)
        return Background(self, pid, shown, path)

    def put(self, content: bytes | Path, remote: str, mode: int = 0o644) -> None:
        """Writes a file of the guest as root, with the mode `mode`.

        Args:
            content: the bytes, or a file of the host.
            remote: absolute path in a folder that is there.
            mode: set before the content is written.
        """
        data = content.read_bytes() if isinstance(content, Path) else content
        self.run(["install", "-m", f"{mode:o}", "/dev/null", remote])
        with self.explained(f"writing {remote}"):
            self.agent.write(remote, data)

    def get(self, remote: str) -> bytes:
        """The content of a file of the guest, read as root."""
        with self.explained(f"reading {remote}"):
            return self.agent.read(remote)

    def reboot(self, timeout: float = REBOOT_SECONDS) -> None:
        """Reboots from within and waits until the new boot is complete, as `boot` does."""
        before = self.boot_id
        self._tell_systemd("reboot")
        self._await_boot(before, timeout)

    def await_restart(self, before: str, timeout: float = REBOOT_SECONDS) -> None:
        """Waits until the guest, which restarts on its own, has completed another boot than `before`."""
        self._await_boot(before, timeout)

    def power_cut(self) -> None:
        """Ends the machine as if its plug were pulled: what was in memory only, the guest's or the TPM's, is lost.

        What the guest asked its disk to write is there at the next `boot`. Nothing happens if the machine is off.
        """
        self.agent.close()
        _end(self._qemu)
        _end(self._swtpm)
        self._forget_processes()

    def poweroff(self, timeout: float = POWEROFF_SECONDS) -> None:
        """Shuts the guest down in order and waits until the machine is off.

        Raises:
            GuestError: it is not off after `timeout` seconds.
        """
        qemu = self._qemu
        if qemu is None:
            raise GuestError("The guest is off already.")
        self._tell_systemd("poweroff")
        try:
            qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self.trouble(f"The guest is not off {timeout:g} s after it was told so.") from None
        if self._swtpm is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._swtpm.wait(10)  # it saves its state and leaves with QEMU
        self.power_cut()

    def console(self) -> str:
        """All that the guest's console has shown, over all boots: kernel messages from warnings up, and units that failed."""
        return self._console.read_text(errors="replace") if self._console.exists() else ""

    def trouble(self, what: str) -> GuestError:
        """`what`, and below it what is known of the reasons."""
        return GuestError("\n".join([what, *self.evidence()]))

    def evidence(self) -> list[str]:
        """The end of the console, what QEMU said, and the room that the host's disk has left."""
        said = self._directory / "qemu.err"
        complaints = said.read_text(errors="replace") if said.exists() else ""
        return [
            *("The end of the guest's console:", *_end_of(self.console())),
            *("What QEMU said:", *_end_of(complaints)),
            f"Free in {self._directory}: {free_mb(self._directory) / 1000:.1f} GB",
        ]

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turns what the agent raises into a GuestError that names `what` was wanted; refuses when the machine is off."""
        if self._qemu is None:
            raise GuestError(f"The guest is off: {what}")
        try:
            yield
        except NoAnswer as error:
            raise self.trouble(f"{error}\nIt was asked for: {what}") from error
        except Refused as error:
            raise GuestError(f"The guest refused: {what}\n{error}") from error

    def _make_disks(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._console.unlink(missing_ok=True)
        shutil.rmtree(self._directory / "tpm", ignore_errors=True)
        (self._directory / "tpm").mkdir(mode=0o700)
        _host(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            str(self._image.rootfs),
            str(self._directory / "disk.qcow2"),
        )
        with tempfile.TemporaryDirectory() as empty:
            tree = self.payload or Path(empty)
            # Whole blocks and an inode for each file, and room for the file system's own tables.
            files = list(tree.rglob("*"))
            used = sum(-(-file.lstat().st_size // 4096) * 4 + 1 for file in files if not file.is_dir())
            make_ext4(
                tree,
                self._directory / "payload.ext4",
                f"{used * 11 // 10 + len(files) * 5 + 8192}k",
                label="payload",
                journal=False,
            )

    def _start_swtpm(self) -> None:
        control = self._sockets / "tpm"
        control.unlink(missing_ok=True)
        self._swtpm = self._spawn(
            "swtpm",
            *(
                "socket",
                "--tpm2",
                "--terminate",
                "--tpmstate",
                f"dir={self._directory / 'tpm'}",
                "--ctrl",
                f"type=unixio,path={control}",
            ),
            *("--log", f"file={self._directory / 'swtpm.log'},level=1"),
        )
        swtpm = self._swtpm
        _until(lambda: control.exists() or swtpm.poll() is not None or None, 20)
        if not control.exists() or swtpm.poll() is not None:
            raise GuestError(f"swtpm did not start; see {self._directory / 'swtpm.log'} and {self._directory / 'swtpm.err'}.")

    def _start_qemu(self) -> None:
        # cache=unsafe spares the host's fsync alone: what the guest flushes reaches the host's page cache, which outlives QEMU.
        drive = "if=none,cache=unsafe,id={},format={},file={}"
        (self._sockets / "agent").unlink(missing_ok=True)
        self._qemu = self._spawn(
            "qemu-system-x86_64",
            *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem", *self._size),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-kernel", str(self._image.vmlinuz)),
            *("-append", " ".join((*_KERNEL_ARGUMENTS, *_KERNEL_ARGUMENTS_OF.get(self._image.suite, ())))),
            *("-device", "nvme,id=disks,serial=guest"),
            *(
                "-drive",
                drive.format("root", "qcow2", self._directory / "disk.qcow2"),
                "-device",
                "nvme-ns,drive=root,bus=disks,nsid=1",
            ),
            *("-drive", drive.format("payload", "raw", self._directory / "payload.ext4") + ",readonly=on"),
            # Not a second name space beside the root's: Linux 6.11 and later number them in the order in which they answer.
            *("-device", "virtio-blk-pci,drive=payload"),
            *self._network(),
            *("-object", "rng-random,id=chance,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=chance"),
            *("-chardev", f"socket,id=tpm,path={self._sockets / 'tpm'}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"),
            *("-device", "tpm-crb,tpmdev=tpm0"),
            *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self._sockets / 'agent'},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-chardev", f"file,id=console,append=on,path={self._console}", "-serial", "chardev:console"),
        )

    def join_network(self) -> None:
        """Gives the guest its address, 10.0.2.15; to be done after each boot."""
        self.run("modprobe virtio_net && ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up")

    def _network(self) -> list[str]:
        if not self._reach:
            return []
        relay = f"{sys.executable} {Path(__file__).with_name('relay.py')}"
        forwards = "".join(f",guestfwd=tcp:{address}-cmd:{relay} {port}" for address, port in self._reach.items())
        # restrict: nothing else of the host, or behind it, is to be reached.
        return ["-netdev", f"user,id=net,restrict=on{forwards}", "-device", "virtio-net-pci,netdev=net"]

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        # They die with this process too, even when it is killed; and an interrupt from the keyboard is for __exit__ to act on.
        name = command[0].partition("-")[0]
        with (self._directory / f"{name}.err").open("wb") as errors:
            return subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def _await_boot(self, before: str, timeout: float) -> None:
        """Waits for a boot other than `before`, then until systemd has nothing left to start."""
        deadline = time.monotonic() + timeout
        already = len(self.console())
        while True:
            assert self._qemu is not None
            if self._qemu.poll() is not None:
                raise self.trouble(f"QEMU ended with status {self._qemu.returncode} during the boot.")
            if _PANIC in self.console()[already:]:
                raise self.trouble("The guest's kernel panicked.")
            if time.monotonic() > deadline:
                raise self.trouble(f"No new boot answered within {timeout:g} s.")
            try:
                boot_id = self._boot_id()
            except (NoAnswer, Refused):
                boot_id = ""
            if boot_id and boot_id != before:
                break
            time.sleep(0.2)
        self.boot_id = boot_id
        state = self.run(
            ["systemctl", "is-system-running", "--wait"], check=False, timeout=max(deadline - time.monotonic(), 10)
        )
        self.state = state.stdout.strip()
        if self.state not in ("running", "degraded"):
            jobs = self.run("systemctl --no-pager list-jobs; systemctl --no-pager --failed", check=False).stdout
            raise self.trouble(f"The boot ended in the state {self.state!r}: {state.stderr}\n{jobs}")

    def _boot_id(self) -> str:
        return self.agent.read("/proc/sys/kernel/random/boot_id", timeout=_PROBE_SECONDS).decode().strip()

    def _tell_systemd(self, verb: str) -> None:
        # Nobody asks how this command ended: its end and the agent's own are a race.
        with self.explained(verb):
            self.agent.start(["/bin/systemctl", "--no-block", verb], _ENVIRONMENT, capture=False)

    def _forget_processes(self) -> None:
        self._qemu = self._swtpm = None
        self.boot_id = self.state = ""


def _as_user(command: str | list[str], user: str | None) -> list[str]:
    """The whole command: in a session of its own, for one kill to reach all of it, and with the user's groups and no more."""
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    identity = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
    return ["/usr/bin/setsid", *identity, *argv]


def _end_of(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()[-_CONSOLE_LINES:] or ["(nothing)"]]


def _kill(pid: int, number: int) -> list[str]:
    # Right after the start the program has no session of its own yet, and is all there is to hit.
    return ["/bin/sh", "-c", f"kill -{number} -{pid} 2>/dev/null || kill -{number} {pid}"]


def _environment(user: str | None) -> dict[str, str]:
    name = user or "root"
    return {**_ENVIRONMENT, "USER": name, "LOGNAME": name, "HOME": f"/home/{user}" if user else "/root"}


def _until(attempt: Callable[[], _T | None], timeout: float) -> _T | None:
    """The first answer of `attempt` that is not None, or None after `timeout` seconds."""
    deadline, pause = time.monotonic() + timeout, 0.01
    while True:
        answer = attempt()
        if answer is not None or time.monotonic() > deadline:
            return answer
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.kill()
        process.wait(30)


def _host(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise GuestError(f"{command[0]} failed: {done.stderr.decode(errors='replace')}")


if __name__ == "__main__":
    from tests.e2e.selfcheck import main

    sys.exit(main(sys.argv[1:]))
