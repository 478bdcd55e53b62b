"""The fleet of `license-stand fleet`: options as JSON in the argument, enrollment tokens on standard input.

A token makes a machine an agent, so no list of processes shows one.
"""

import asyncio
import json
import sys
from collections.abc import Sequence

import msgspec

from .enrolling import NotEnrolled, enroll, key_set
from .fleet import CONTACT_S, Fleet, Plan
from .machine import Machine, make
from .profiles import of_machine, read
from .summary import Summary
from .wire import NoAnswer, Target, Wire

ENROLLING = 16
"""Machines that are enrolled at the same time."""


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What the command is given.

    Attributes:
        url: of the server: `https://HOST:PORT`, or `unix:FILE`.
        root: PEM of its root certificate.
        devices: how many.
        seed: from which keys, profiles and times are derived.
        hours: of the machines' time.
        outage: minutes from the begin after which all machines are without a network for an hour; None for never.
        profiles: `NAME=SHARE`.
        connections: at once, at most.
        version: that all machines run at the begin.
        build: of it.
        hardware: the kind of machine.
        json: whether the summary is JSON.
    """

    url: str
    root: str = ""
    devices: int
    seed: int = 1
    hours: float = 2.0
    outage: int | None = None
    profiles: tuple[str, ...] = ()
    connections: int = 64
    version: str = "1.0"
    build: str = "b0"
    hardware: str = "stand"
    json: bool = False


def main() -> int:
    """Runs the fleet. Exit status 1: it could not be enrolled, or no contact worked."""
    try:
        options = msgspec.json.decode(sys.argv[1], type=Options)
        summary = asyncio.run(_run(options, sys.stdin.read().split()))
    except (NotEnrolled, NoAnswer, ValueError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    _progress("")
    sys.stdout.write(json.dumps(summary.told(), indent=2) + "\n" if options.json else "\n".join(summary.lines()) + "\n")
    return 0 if summary.contacts else 1


async def _run(options: Options, tokens: Sequence[str]) -> Summary:
    shares, running = read(options.profiles), (options.version, options.build)
    numbers = range(1, options.devices + 1)
    machines = [make(options.seed, n, of_machine(options.seed, n, shares), running, f"sim-{options.seed}") for n in numbers]
    for each in machines:
        each.hardware = options.hardware
    wire = Wire(Target(options.url, options.root), options.connections)
    try:
        await _enroll(wire, machines, tokens)
        fleet = Fleet(machines, wire, options.connections, say=_say)
        fleet.summary.enrolled = len(machines)
        outage = None if options.outage is None else (options.outage * 60.0, options.outage * 60.0 + 3600)
        return await fleet.run(Plan(options.hours * 3600, CONTACT_S, outage))
    finally:
        wire.close()


async def _enroll(wire: Wire, machines: Sequence[Machine], tokens: Sequence[str]) -> None:
    keys = await key_set(wire, machines[0])
    waiting = list(zip(machines, tokens, strict=True))[::-1]

    async def work() -> None:
        while waiting:
            await enroll(wire, keys, *waiting.pop())
            _progress(f"enrolled {len(machines) - len(waiting)} of {len(machines)} machines")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(ENROLLING, len(machines))):
                group.create_task(work())
    except* NotEnrolled as problems:
        raise problems.exceptions[0] from None


def _say(summary: Summary, part: float) -> None:
    _progress(
        f"{part:.0%}: {summary.contacts} contacts, {summary.ordered} updates ordered, {sum(summary.ended.values())} ended"
    )


def _progress(text: str) -> None:
    """One line that is written again and again, at a terminal only."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
