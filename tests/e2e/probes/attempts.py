"""What an attacker in a service's place would try. Prints one JSON object: attempt -> "done", or the name of the errno.

attempts.py VICTIM_PID VICTIM_ADDRESS OTHER_HOST:PORT SERVER:PORT
"""

import ctypes
import errno
import json
import os
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
PTRACE_ATTACH, PTRACE_DETACH = 16, 17


def checked(result):
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def syscall(number, *arguments):
    return checked(libc.syscall(ctypes.c_long(number), *arguments))


def read_shadow():
    with open("/etc/shadow", "rb") as file:
        file.read(1)


def read_memory():
    with open(f"/proc/{VICTIM}/mem", "rb", buffering=0) as file:
        file.seek(ADDRESS)
        file.read(8)


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def process_vm_read():
    buffer = ctypes.create_string_buffer(8)
    local, remote = Iovec(ctypes.addressof(buffer), 8), Iovec(ADDRESS, 8)
    syscall(
        310,
        ctypes.c_int(VICTIM),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )


def trace():
    libc.ptrace.restype = ctypes.c_long
    checked(libc.ptrace(ctypes.c_long(PTRACE_ATTACH), ctypes.c_long(VICTIM), None, None))
    os.waitpid(VICTIM, 0)
    checked(libc.ptrace(ctypes.c_long(PTRACE_DETACH), ctypes.c_long(VICTIM), None, None))


def in_child(attempt):
    """Makes an attempt that would change this process for good in a child of it."""
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


def execute():
    in_child(lambda: os.execv("/bin/true", ["/bin/true"]))


def mount():
    checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
    libc.umount(b"/tmp")


def raw_socket():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


def packet_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


def connect(address):
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect((host, int(port)))
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "") from None


def speak_to(path):
    def attempt():
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(path)

    return attempt


def write_to(directory):
    def attempt():
        path = os.path.join(directory, "left-by-the-probe")
        with open(path, "w") as file:
            file.write("x")
        os.unlink(path)

    return attempt


def load_module():
    # No module at all: who may load one is told so (ENOEXEC), who may not is refused before that.
    syscall(175, ctypes.create_string_buffer(b"\x7fno module", 16), ctypes.c_ulong(16), b"")


def own_user_namespace():
    in_child(lambda: checked(libc.unshare(0x10000000)))


def write_and_execute_memory():
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
    if address in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def set_clock():
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.time())


def open_disk():
    os.close(os.open("/dev/nvme0n1", os.O_RDONLY))


def read(path):
    def attempt():
        with open(path, "rb") as file:
            file.read(1)

    return attempt


def main():
    attempts = {
        "read /etc/shadow": read_shadow,
        "read another process's memory (/proc)": read_memory,
        "read another process's memory (process_vm_readv)": process_vm_read,
        "trace another process": trace,
        "start a program": execute,
        "mount": mount,
        "open a raw socket": raw_socket,
        "open a packet socket": packet_socket,
        "connect to a host that is not the server": lambda: connect(OTHER),
        "give orders to systemd": speak_to("/run/systemd/private"),
        "speak on D-Bus": speak_to("/run/dbus/system_bus_socket"),
        "connect to the server": lambda: connect(SERVER),
        "write to /etc": write_to("/etc"),
        "write to /usr": write_to("/usr"),
        "write to /etc/license-agent": write_to("/etc/license-agent"),
        "write to /var/tmp": write_to("/var/tmp"),
        "write to /run": write_to("/run"),
        "write to /var/lib": write_to("/var/lib"),
        "load a module": load_module,
        "make a user namespace": own_user_namespace,
        "map memory that is writable and executable": write_and_execute_memory,
        "set the clock": set_clock,
        "read config.toml": read("/etc/license-agent/config.toml"),
        "read the sealed store": read("/var/lib/license-agent/secrets.store"),
        "read the audit log": read("/var/log/license-agent/audit.log"),
        "write to the state directory": write_to("/var/lib/license-agent"),
        "read the disk's device": open_disk,
    }
    told = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            told[name] = "done"
        except OSError as error:
            told[name] = errno.errorcode.get(error.errno, str(error.errno))
    print("ATTEMPTS " + json.dumps(told), flush=True)


VICTIM, ADDRESS, OTHER, SERVER = int(sys.argv[1]), int(sys.argv[2], 0), sys.argv[3], sys.argv[4]
main()
