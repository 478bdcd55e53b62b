"""Measures, prints a table, and writes JSON on request. A missed target is told, not failed: machines differ."""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from tabulate import tabulate

from audittrail.chain import Chain
from hwsec.software import PBKDF2_ITERATIONS
from ipc.adminclient import AdminClient
from ipc.posclient.client import LicenseClient
from server.licensing.licenses.licenses import Order
from server.wiring import open_server
from stand.programs import READY_S

from .fleet import measure_fleet
from .load import frames, percentile, questions, round_trips, throughput
from .peers import flood, peer
from .postgresql import installed, postgresql
from .rollouts import measure_rollouts
from .scale import measure_scale
from .server_load import measure
from .updates import NGINX, measure_download

BIN = Path(sys.executable).parent
UNKNOWN_USER = 64993
"""A user whom no stand allows."""


@dataclass
class Row:
    """One measurement beside its floor."""

    what: str
    measured: str
    floor: str
    ratio: float
    target: str
    holds: bool


def timed(work: Callable[[], Any], count: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextlib.contextmanager
def stand(directory: Path, backend: str, *, raised: bool = True) -> Iterator[dict[str, Any]]:
    """A stand, with raised limits as a rule."""
    root = directory / backend
    process = subprocess.Popen(
        [str(BIN / "license-stand"), "up", "--dir", str(root), "--backend", backend, *(["--raise-limits"] if raised else [])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + READY_S
        while not (root / "stand.json").exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit("bench: the stand did not come up")
            time.sleep(0.05)
        yield json.loads((root / "stand.json").read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(READY_S)


def us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} µs"


@contextlib.contextmanager
def one_processor(pid: int) -> Iterator[None]:
    """Keeps the client, a peer that starts inside and the agent on one processor.

    A round trip between two processors takes two wake-ups of an idle one, which costs 10 to 40 µs on a virtual machine, more
    than all work that is measured; and the scheduler places the echo server and the agent differently from run to run.
    """
    before = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    one = {min(before)}
    for task in (0, *tasks):
        os.sched_setaffinity(task, one)
    try:
        yield
    finally:
        for task in (0, *tasks):
            os.sched_setaffinity(task, before)


def known_license(info: dict[str, Any], directory: Path, rounds: int, size: int) -> Row:
    """Round trip of a license that the agent has seen before."""
    token = info["tokens"]["valid"]
    reply = one_reply(info, token)
    echoes, ours = [], []
    with one_processor(info["agent_pid"]), peer(directory, "echo", reply) as echo:
        for _ in range(rounds):
            echoes.append(statistics.median(round_trips(echo, frames(token, size))))
            ours.append(statistics.median(round_trips(info["pos_socket"], frames(token, size))))
    floor, measured = statistics.median(echoes), statistics.median(ours)
    ratio = measured / floor
    return Row("validate, license seen before, p50", us(measured), f"echo {us(floor)}", ratio, "≤ 1.3", ratio <= 1.3)


def one_reply(info: dict[str, Any], token: str) -> bytes:
    return reply_to(info, frames(token, 1)[0])


def reply_to(info: dict[str, Any], frame: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(info["pos_socket"])
        sock.sendall(frame)
        return sock.recv(65_536)


def required_feature(info: dict[str, Any], directory: Path, rounds: int, size: int, licenses: int) -> list[Row]:
    """Round trip of a feature on a machine with several licenses, and of the first one, for which all are judged again."""
    server_side = open_server(Path(info["env"]["LICENSE_SERVER_DIR"]))
    now = int(time.time())
    agent_uid = os.stat(f"/proc/{info['agent_pid']}").st_uid
    admin = AdminClient(info["env"]["LICENSE_AGENT_ADMIN_SOCKET"], deadline=READY_S, agent_uid=agent_uid)
    with server_side.database.write() as session, admin:
        for number in range(licenses):
            order = Order(f"bench-{os.urandom(8).hex()}", "Bench", ("sales", f"f-{number % 10}"), {}, now, now + 9999 + number)
            admin.call("license_import", token=server_side.licenses.issue(session, info["agent_id"], order, now))
    (first,) = round_trips(info["pos_socket"], questions("f-1", 1))
    reply = reply_to(info, questions("f-1", 1)[0])
    echoes, ours = [], []
    with one_processor(info["agent_pid"]), peer(directory, "echo", reply) as echo:
        for _ in range(rounds):
            echoes.append(statistics.median(round_trips(echo, questions("f-1", size))))
            ours.append(statistics.median(round_trips(info["pos_socket"], questions("f-1", size))))
    floor, measured = statistics.median(echoes), statistics.median(ours)
    what = f"require, one of {licenses} licenses"
    ratio = measured / floor
    return [
        Row(f"{what}, p50", us(measured), f"echo {us(floor)}", ratio, "≤ 3", ratio <= 3),
        Row(f"{what}, the first", f"{first * 1e3:.1f} ms", "", 0, "≤ 100 ms", first <= 0.1),
    ]


def new_license(info: dict[str, Any], directory: Path, count: int) -> Row:
    """Round trip of a license that the agent has never seen."""
    server_side = open_server(Path(info["env"]["LICENSE_SERVER_DIR"]))
    now = int(time.time())
    orders = [
        Order(f"bench-{os.urandom(8).hex()}", "Bench", ("sales", "fuel"), {"shop": "7"}, now, now + 9999) for _ in range(count)
    ]
    with server_side.database.write() as session:
        requests = [frames(server_side.licenses.issue(session, info["agent_id"], order, now), 1)[0] for order in orders]
    ours, floors = [], []
    with one_processor(info["agent_pid"]), peer(directory, "crypto", one_reply(info, info["tokens"]["valid"])) as crypto:
        # Turn by turn, so that both meet the same machine.
        for start in range(0, count, 50):
            floors += round_trips(crypto, requests[start : start + 50])
            ours += round_trips(info["pos_socket"], requests[start : start + 50])
    floor, measured = statistics.median(floors), statistics.median(ours)
    ratio = measured / floor
    beside = f"echo with AES-GCM, ES256 {us(floor)}"
    return Row("validate, license new, p50", us(measured), beside, ratio, "≤ 1.8", ratio <= 1.8)


def many_connections(info: dict[str, Any], directory: Path, rounds: int, size: int) -> list[Row]:
    """Answers a second with 64 connections."""
    token = info["tokens"]["valid"]
    reply = one_reply(info, token)
    found: dict[str, list[float]] = {"echo": [], "codec": [], "agent": []}
    with peer(directory, "echo", reply) as echo, peer(directory, "codec") as codec:
        for _ in range(rounds):
            found["echo"].append(throughput(echo, frames(token, size)))
            found["codec"].append(throughput(codec, frames(token, size)))
            found["agent"].append(throughput(info["pos_socket"], frames(token, size)))
    echo_rate, codec_rate, ours = (statistics.median(found[name]) for name in ("echo", "codec", "agent"))
    what = "throughput, 64 connections"
    return [
        Row(what, f"{ours:.0f}/s", f"codec server {codec_rate:.0f}/s", ours / codec_rate, "≥ 0.7", ours >= 0.7 * codec_rate),
        Row(what, f"{ours:.0f}/s", f"echo server {echo_rate:.0f}/s", ours / echo_rate, "(reported)", True),
    ]


def _rotate_twice(root: str) -> None:
    rotate = [str(BIN / "license-stand"), "rotate", "--dir", root]
    for _ in range(2):
        # The measurements before may have used up what the server lets an agent ask at once.
        while (done := subprocess.run(rotate, capture_output=True, text=True, check=False)).returncode != 0:
            if "too many requests" not in done.stderr:
                raise SystemExit(f"bench: {done.stderr}")
            time.sleep(1)


def under_way(info: dict[str, Any], seconds: float) -> Row:
    """The slowest hundredth while rotations, with their commits and metrics writes, go on."""
    token, root = info["tokens"]["valid"], str(Path(info["state_dir"]).parent)

    def sample(stop: Callable[[], bool]) -> float:
        times: list[float] = []
        while not stop():
            times += round_trips(info["pos_socket"], frames(token, 500))
        return percentile(times, 0.99)

    ends = time.monotonic() + seconds
    idle = sample(lambda: time.monotonic() > ends)
    with ThreadPoolExecutor(1) as worker:
        rotations = worker.submit(_rotate_twice, root)
        busy = sample(rotations.done)
        rotations.result()  # raises what ended them early
    ratio = busy / idle
    return Row("p99 while two rotations run", us(busy), f"p99 idle {us(idle)}", ratio, "≤ 2", ratio <= 2)


def connect_floods(info: dict[str, Any], times: int) -> list[Row]:
    """A till that connects for each validation, while another process only connects and closes."""
    token, path = info["tokens"]["valid"], info["pos_socket"]
    agent_uid = os.stat(f"/proc/{info['agent_pid']}").st_uid

    def tills() -> list[float]:
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            with LicenseClient(path, deadline=READY_S, agent_uid=agent_uid) as client:
                client.validate(token)
            seconds.append(time.perf_counter() - began)
            time.sleep(0.02)  # 50 connections a second at the most: within the limit of a process
        return seconds

    calm, rows = tills(), []
    floods = {"its own user": 0} | ({"an unknown user": UNKNOWN_USER} if os.geteuid() == 0 else {})
    for who, uid in floods.items():
        with flood(path, uid):
            busy = tills()
        for name, share, most in (("p50", 0.5, 0.005), ("p99", 0.99, 0.05)):
            measured, floor = percentile(busy, share), percentile(calm, share)
            what = f"connect and validate, {who} floods, {name}"
            rows.append(
                Row(what, us(measured), f"calm {us(floor)}", measured / floor, f"≤ {most * 1e3:g} ms", measured <= most)
            )
    return rows


def memory(info: dict[str, Any], backend: str, wait: float) -> Row:
    """Resident memory after a rotation, 10,000 validations and a rest."""
    root = str(Path(info["state_dir"]).parent)
    subprocess.run([str(BIN / "license-stand"), "rotate", "--dir", root], stdout=subprocess.DEVNULL, check=True)
    round_trips(info["pos_socket"], frames(info["tokens"]["valid"], 10_000))
    time.sleep(wait)
    resident = rss(info["agent_pid"])
    modules = "uvloop, msgspec, msgpack, cryptography.hazmat.primitives.asymmetric.ec"
    modules += ", tpm2_pytss" if backend == "tpm" else ""
    code = f"import {modules}; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    floor = int(status.split("VmRSS:")[1].split()[0]) / 1024
    most = 56 if backend == "tpm" else 46
    return Row(
        f"memory of the core, {backend}", f"{resident:.1f} MiB", f"imports alone {floor:.1f} MiB", resident / floor,
        f"≤ {most} MiB", resident <= most,
    )  # fmt: skip


def rss(pid: int) -> float:
    """Resident memory in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def start_up(info: dict[str, Any], rounds: int) -> Row:
    """From the start of the process to READY=1, software backend; on a copy of the stand's agent, which is still running."""
    root = Path(info["state_dir"]).parent
    copy = root.with_name(root.name + "-copy")
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("run", "server", "lock", "stand.json"))
    config, notify, owner = copy / "etc" / "bench.toml", copy / "notify", os.stat(info["config"])
    config.write_text(Path(info["config"]).read_text().replace(f"{root}/", f"{copy}/"))
    config.chmod(0o600)
    (copy / "run").mkdir()
    for path in copy.rglob("*"):
        os.chown(path, owner.st_uid, owner.st_gid)
    times, floors = [], []
    for _ in range(rounds):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(notify))
            notify.chmod(0o666)
            notices.settimeout(READY_S)
            began = time.perf_counter()
            process = subprocess.Popen(
                [str(BIN / "license-agent"), "--config", str(config)],
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                stderr=subprocess.DEVNULL,
            )
            while b"READY=1" not in notices.recv(4096):
                pass
            times.append(time.perf_counter() - began)
            process.terminate()
            process.wait(READY_S)
        notify.unlink()
        floors.append(timed(lambda: subprocess.run([sys.executable, "-I", "-c", "pass"], check=True), 3))
    shutil.rmtree(copy)
    derive = timed(lambda: PBKDF2HMAC(hashes.SHA256(), 32, bytes(32), PBKDF2_ITERATIONS).derive(bytes(32)), 3)
    measured, floor = statistics.median(times), statistics.median(floors)
    text = f"python {floor * 1000:.0f} ms, PBKDF2 {derive * 1000:.0f} ms"
    return Row("start to READY=1, software", f"{measured:.2f} s", text, measured / (floor + derive), "≤ 0.4 s", measured <= 0.4)


def audit_verify(directory: Path, records: int) -> Row:
    """Checking an audit log, held against sha256sum over the same file."""
    log = directory / "audit.log"
    chain, now = Chain(), time.time()
    actor = {"uid": 1000, "gid": 1000, "pid": 4242}
    with log.open("wb") as file:
        for number in range(records):
            file.write(
                chain.append(
                    now, number / 50, "license.validated", "ok", {"actor": actor, "license": "demo", "secret_version": 3}
                )
            )
    cli = [str(BIN / "license-agent-cli"), "audit", "verify", "--file", str(log)]
    start = timed(lambda: subprocess.run([str(BIN / "license-agent-cli"), "--help"], stdout=subprocess.DEVNULL, check=True), 3)

    def verify() -> None:
        # Every line is checked; without a certificate the result is `incomplete`.
        done = subprocess.run(cli, stdout=subprocess.PIPE, check=False)
        if done.returncode != 5 or not done.stdout.startswith(b"incomplete"):
            raise RuntimeError(f"audit verify: {done.stdout!r}")

    ours = timed(verify, 3) - start
    floor = timed(lambda: subprocess.run(["sha256sum", str(log)], stdout=subprocess.DEVNULL, check=True), 3)
    size = log.stat().st_size / 1e6
    ratio = floor / ours
    return Row("audit verify", f"{size / ours:.0f} MB/s", f"sha256sum {size / floor:.0f} MB/s", ratio, "≥ 0.3", ratio >= 0.3)


def license_server(directory: Path, name: str, url: str | None, agents: int, requests: int) -> list[Row]:
    """Check-ins of many agents at the license server."""
    ours, floor = measure(directory / f"server-{name}-{agents}", url, agents, requests)
    most = 3.0 if url is None else 3.5
    kept, connecting = ours.cpu / floor.cpu, ours.cpu_connecting / floor.cpu_connecting
    what = f"license server, {name}, {agents} agents"
    rows = [
        Row(f"{what}, processor time of a check-in", us(ours.cpu), us(floor.cpu), kept, f"≤ {most:g}", kept <= most),
        Row(
            f"{what}, the same with a new connection", us(ours.cpu_connecting), us(floor.cpu_connecting), connecting,
            "≤ 1.8", connecting <= 1.8,
        ),
        Row(f"{what}, check-ins", f"{ours.rate:.0f}/s", f"{floor.rate:.0f}/s", ours.rate / floor.rate, "(reported)", True),
        Row(f"{what}, P95", us(ours.p95), us(floor.p95), ours.p95 / floor.p95, "< 2 s", ours.p95 < 2),
        Row(f"{what}, P99", us(ours.p99), us(floor.p99), ours.p99 / floor.p99, "≤ 0.5 s at 50 agents", ours.p99 <= 0.5),
        Row(
            f"{what}, memory of an open connection", f"{ours.connection / 1024:.0f} KiB",
            f"{floor.connection / 1024:.0f} KiB", ours.connection / max(floor.connection, 1), "(reported)", True,
        ),
    ]  # fmt: skip
    if url is not None:
        ratio = ours.database / floor.database
        rows.append(Row(f"{what}, PostgreSQL's own time", us(ours.database), us(floor.database), ratio, "(reported)", True))
    return rows


def license_servers(directory: Path, quick: bool) -> list[Row]:
    """The license server's rows, on SQLite and on Debian's PostgreSQL where that is installed."""
    agents, requests = 50, 35 if quick else 60
    rows = license_server(directory, "SQLite", None, agents, requests)
    if not installed():
        return rows
    with postgresql() as url:
        return rows + license_server(directory, "PostgreSQL", url, agents, requests)


def large_fleet(directory: Path, agents: int) -> list[Row]:
    """What an operator waits for at a registry with many agents on PostgreSQL, and what check-ins cost there."""
    found = measure_fleet(directory / "fleet", agents)
    what = f"registry of {agents:,} agents"
    rows = [Row(f"{what}: {name}", f"{seconds:.3f} s", "", 0, "(reported)", True) for name, seconds in found.times.items()]
    cpu, scanned = found.load.cpu, len(found.scanned)
    rows.append(Row(f"{what}: processor time of a check-in", us(cpu), "", 0, "(reported)", True))
    rows.append(Row(f"{what}: P99 of 50 agents at once", us(found.load.p99), "", 0, "≤ 0.5 s", found.load.p99 <= 0.5))
    rows.append(Row(f"{what}: plans that read a whole table", f"{scanned} of {found.plans}", "", scanned, "none", not scanned))
    for statement in found.scanned:
        sys.stderr.write(f"reads a whole table: {statement}\n")
    return rows


def updates(directory: Path, sizes: list[int], rounds: int) -> list[Row]:
    """Download, verification and staging of packages of these sizes, in MiB, against curl and sha256sum."""
    if not Path(NGINX).exists() or shutil.which("curl") is None:
        sys.stderr.write("bench: the rows of updates need nginx and curl\n")
        return []
    found = measure_download(directory / "updates", [size * 2**20 for size in sizes], rounds)
    rows = []
    least = found[sizes[0] * 2**20].memory
    for size in sizes[1:]:
        one = found[size * 2**20]
        what, ratio = f"download, verify and stage {size} MiB", one.curl / one.updater
        ours, floor = (f"{size * 1.048576 / seconds:.0f} MB/s" for seconds in (one.updater, one.curl))
        rows.append(Row(what, ours, f"curl and sha256sum {floor}", ratio, "≥ 0.8", ratio >= 0.8))
        growth = one.memory / least
        memory = f"memory of the updater, {size} MiB"
        rows.append(Row(memory, f"{one.memory:.1f} MiB", f"{sizes[0]} MiB {least:.1f} MiB", growth, "≤ 1.05", growth <= 1.05))
    return rows


def rollouts(directory: Path, devices: int, quick: bool) -> list[Row]:
    """A rollout of a large fleet on PostgreSQL, each figure beside the least that PostgreSQL does for it."""
    rows = []
    for each in measure_rollouts(directory / "rollouts", devices, 2 if quick else 10):
        faster = each.ours / each.floor if each.unit == "/s" else each.floor / each.ours
        ours, floor = (f"{value:,.3f} s" if each.unit == "s" else f"{value:,.0f}/s" for value in (each.ours, each.floor))
        rows.append(Row(each.name, ours, f"PostgreSQL alone {floor}", faster, "(reported)", True))
    return rows


def scale(directory: Path, devices: int) -> list[Row]:
    """A million devices: what a rollout does there, and what check-ins cost beside it."""
    found = measure_scale(directory / "scale", devices)
    what, middle, p99 = f"registry of {devices:,} devices", *found.asked
    ratio, scanned = found.beside.p99 / found.idle.p99, len(found.scanned)
    for statement in found.scanned:
        sys.stderr.write(f"reads a whole table: {statement}\n")
    return [
        Row(f"{what}: put all into groups", f"{found.filled:.2f} s", "", 0, "(reported)", True),
        Row(f"{what}: start a group of {found.group:,}", f"{found.started:.3f} s", "", 0, "≤ 2 s", found.started <= 2),
        Row(f"{what}: what is open for me, median", us(middle), us(p99) + " p99", p99 / middle, "≤ 1 ms", middle <= 0.001),
        Row(f"{what}: plans that read a whole table", f"{scanned} of {found.plans}", "", scanned, "none", not scanned),
        Row(
            f"{what}: P99 of check-ins beside {found.orders:.0f} orders and proofs a second", us(found.beside.p99),
            f"idle {us(found.idle.p99)}", ratio, "≤ 2", ratio <= 2,
        ),
    ]  # fmt: skip


def main() -> int:
    """Runs all rows."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter rests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    parser.add_argument("--fleet", type=int, metavar="AGENTS", help="also a registry with so many agents, on PostgreSQL")
    parser.add_argument("--only", choices=["server", "fleet", "updates", "rollouts", "scale"], help="leave the rest out")
    options = parser.parse_args()
    rounds, size = (3, 3000) if options.quick else (9, 10_000)
    directory = Path(tempfile.mkdtemp(prefix="license-bench-", dir="/tmp"))
    directory.chmod(0o755)
    (directory / "limited").mkdir(mode=0o755)
    rows: list[Row] = []
    try:
        if options.only is not None:
            rows += license_servers(directory, options.quick) if options.only == "server" else []
            rows += large_fleet(directory, options.fleet or 1_000_000) if options.only == "fleet" else []
            rows += updates(directory, [1, 64] if options.quick else [1, 256, 4096], 3) if options.only == "updates" else []
            rows += rollouts(directory, options.fleet or 1_000_000, options.quick) if options.only == "rollouts" else []
            rows += scale(directory, options.fleet or 1_000_000) if options.only == "scale" else []
            return finish(rows, options.json)
        with stand(directory, "software") as info:
            rows += [known_license(info, directory, rounds, size), new_license(info, directory, 200 if options.quick else 1000)]
            rows += required_feature(info, directory, rounds, size, 100)
            rows += many_connections(info, directory, rounds, size)
            rows.append(under_way(info, 1 if options.quick else 5))
        with stand(directory / "limited", "software", raised=False) as info:
            rows += connect_floods(info, 150 if options.quick else 500)
        with stand(directory, "software") as info:
            rows.append(memory(info, "software", 5 if options.quick else 60))
            rows.append(start_up(info, 5))
        with stand(directory, "tpm") as info:
            rows.append(memory(info, "tpm", 5 if options.quick else 60))
        rows.append(audit_verify(directory, 50_000 if options.quick else 200_000))
        rows += updates(directory, [1, 64] if options.quick else [1, 256], 3)
        rows += license_servers(directory, options.quick)
        if options.fleet:
            rows += large_fleet(directory, options.fleet)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return finish(rows, options.json)


def finish(rows: list[Row], file: Path | None) -> int:
    """Writes the rows."""
    table = [(row.what, row.measured, row.floor, f"{row.ratio:.2f}", row.target, "yes" if row.holds else "NO") for row in rows]
    sys.stdout.write(tabulate(table, headers=["what", "measured", "floor, same run", "ratio", "target", "holds"]) + "\n")
    if file is not None:
        file.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
