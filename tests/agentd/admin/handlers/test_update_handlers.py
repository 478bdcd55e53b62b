"""Requests about updates: what they do, what they are refused with, and that commands print what the schemas say."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentd.admin.handlers.update_handlers import UpdateHandlers, name_of
from agentd.base.config.config import parse_config
from agentd.base.errors import Refused
from agentd.ota.consent import Mode
from agentd.ota.settings import Settings
from agentd.ota.sides import Declined
from agentd.ota.table import Step
from agentd.telemetry.updateview import updates_view
from cli.doctor.agent.update_checks import _judge_waiting
from cli.ota import _history_text, _line, _status_text
from cli.outputs.state import Updates
from cli.status.statustext import _updates
from ipc.messages import OtaCheck, OtaHistory, OtaInstall, OtaPause, OtaRollback, OtaStatus, OtaUnlock, Request
from ipc.peer import Peer
from tests.agentd.ota.machine import NEW, NOW, UpdatedMachine
from tests.support.outputs import assert_fits

ROOT = Peer(0, 0, 1)


class Desk:
    def __init__(self, directory: Path) -> None:
        self.machine = UpdatedMachine(directory, Settings(consent=Mode.NONE))
        self.runner = self.machine.start()
        self.contacts = 0

        async def contact() -> None:
            self.contacts += 1
            await self.runner.hear(NEW, None, paused=False)

        self.parts = SimpleNamespace(updates=self.runner, core=self.machine.core, cycle=SimpleNamespace(contact=contact))
        self.handlers = UpdateHandlers(self.parts, (self.machine.acts, self.machine.register)).table()  # type: ignore[arg-type]

    async def ask(self, make: type[Request], **fields: Any) -> dict[str, Any]:
        return await self.handlers[make](make(v=1, id=1, **fields), ROOT)

    async def end(self) -> None:
        await self.runner.stop()
        await self.machine.settle(self.runner)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(os, "fsync", lambda _fd: None)
    made = Desk(tmp_path)
    yield made
    made.machine.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()

    asyncio.run(whole())


def structured(command: str, document: dict[str, Any]) -> dict[str, Any]:
    assert_fits(command, document)
    return document


@pytest.mark.parametrize(
    ("written", "trust", "next_step"),
    [
        ("", False, "root writes {trust} first"),
        ("[updates]\nenabled = false\n", True, r"\[updates\] in {config} says enabled = false"),
        ("", True, "the agent has to be started again"),
    ],
)
def test_a_machine_without_updates_says_so_and_refuses_everything_else(
    tmp_path: Path, written: str, trust: bool, next_step: str
) -> None:
    file, root_file = tmp_path / "config.toml", tmp_path / "update-trust.json"
    config = parse_config(f'[agent]\nid = "pos-001"\n{written}', str(file))
    if trust:
        root_file.touch()
    status = SimpleNamespace(config=config)
    parts: Any = SimpleNamespace(updates=None, core=SimpleNamespace(clock=None), config=status)
    handlers = UpdateHandlers(parts, None).table()

    async def story() -> None:
        found = await handlers[OtaStatus](OtaStatus(v=1, id=1), ROOT)
        assert structured("ota status", found) == {"enabled": False}
        assert _status_text(found) == "updates are not enabled on this machine"
        for request in (OtaCheck(v=1, id=1), OtaInstall(v=1, id=1, rehearse=False), OtaPause(v=1, id=1, end=False)):
            with pytest.raises(Refused, match=next_step.format(trust=root_file, config=file)):
                await handlers[type(request)](request, ROOT)

    play(story)


def test_an_update_from_the_check_to_the_register(desk: Desk) -> None:
    async def story() -> None:
        structured("ota status", await desk.ask(OtaStatus))
        found = structured("ota check", await desk.ask(OtaCheck))
        assert desk.contacts == 1 and found["update"]["version"] == "2.0.0"
        await desk.runner.run()
        waiting = structured("ota status", await desk.ask(OtaStatus))
        assert (waiting["state"], waiting["waits"]["code"], waiting["waits"]["until"]) == ("window", "notice", NOW + 48 * 3600)
        shown = _status_text(waiting)
        assert "2.0.0 (build b2), by server" in shown and "notice period" in shown and "what is new" in shown
        assert _line(waiting).startswith("window  [##########..........] 50 %  the notice period")
        begun = await desk.ask(OtaInstall, rehearse=False)
        structured("ota install", {**begun, "outcome": None, "reason": None})
        structured("ota_update", {**begun, "outcome": None, "reason": None})
        await desk.end()
        after = structured("ota status", await desk.ask(OtaStatus))
        assert after["running"][0] == {
            "product": "pos", "version": "2.0.0", "build_id": "b2", "in_trial": False, "previous": "1.0.0",
        }  # fmt: skip
        back = await desk.ask(OtaRollback, product="pos")
        structured("ota rollback", {**back, "outcome": "rolled-back", "reason": "operator: uid 0 went back"})
        await desk.end()
        register = await desk.ask(OtaHistory, skip=0, count=50)
        assert register.pop("total") == 2
        entries = structured("ota history", register)["entries"]
        assert [(each["outcome"], each["operator"]) for each in entries] == [("rolled-back", "uid 0"), ("installed", "uid 0")]
        assert "operator: uid 0 went back" in _history_text(entries)
        assert (await desk.ask(OtaHistory, skip=1, count=1))["entries"] == entries[1:]

    play(story)


def test_the_view_of_the_state_has_updates_in_short(desk: Desk) -> None:
    async def story() -> None:
        nothing = short(desk)
        assert (nothing["state"], nothing["update"], nothing["running"]) == ("idle", None, [])
        await desk.ask(OtaCheck)
        await desk.runner.run()
        await desk.ask(OtaStatus)
        found = short(desk)
        assert (found["state"], found["waits"]["code"], found["waits"]["until"]) == ("window", "notice", NOW + 48 * 3600)
        assert found["update"] == {"product": "pos", "version": "2.0.0", "build_id": "b2"}
        assert found["running"][0]["version"] == "1.0.0" and found["rehearsal_overdue"] is False
        # Section and check of the command line take what the agent says.
        assert "2.0.0" in str(_updates(found)) and _judge_waiting((found, NOW)) == []

    play(story)


def short(desk: Desk) -> dict[str, Any]:
    found = updates_view(desk.runner)
    assert found is not None and msgspec.to_builtins(msgspec.convert(found, Updates)) == found
    return found


def test_a_rehearsal(desk: Desk) -> None:
    async def story() -> None:
        await desk.ask(OtaCheck)
        await desk.runner.run()
        begun = await desk.ask(OtaInstall, rehearse=True)
        structured("ota rehearse", {**begun, "outcome": "rehearsed", "reason": "rehearsal: on purpose"})
        await desk.end()
        assert (await desk.ask(OtaHistory, skip=0, count=1))["entries"][0]["outcome"] == "rehearsed"

    play(story)


def test_locked_updates_and_a_pause(desk: Desk) -> None:
    desk.machine.calls.before["prepare"] = [Declined("unpack", "the bundle is damaged") for _ in range(3)]

    async def story() -> None:
        structured("ota pause", await desk.ask(OtaPause, end=False))
        await desk.ask(OtaCheck)
        with pytest.raises(Refused, match="uid 0 has paused updates on this machine"):
            await desk.ask(OtaInstall, rehearse=False)
        structured("ota pause", await desk.ask(OtaPause, end=True))
        with pytest.raises(Refused, match="updates are not locked"):
            await desk.ask(OtaUnlock, why="to see")
        for _ in range(3):
            await desk.runner.run()
            await desk.ask(OtaInstall, rehearse=False)
            await desk.end()
        found = structured("ota status", await desk.ask(OtaStatus))
        assert (found["state"], found["attempts"]) == ("locked", 3)
        state = short(desk)
        assert state["update"] is None and state["failure"]["text"] == "the bundle is damaged"
        assert "LOCKED" in str(_updates(state)) and _judge_waiting((state, NOW))[0].cause.startswith(
            "updates are locked after 3"
        )
        assert "ota unlock --why TEXT" in _status_text(found)
        assert structured("ota unlock", await desk.ask(OtaUnlock, why="another disk")) == {"attempts": 3}
        assert desk.runner.update.step is Step.IDLE

    play(story)


def test_the_register_names_who_wanted_it() -> None:
    assert name_of(ROOT) == "uid 0"


def test_an_agent_without_a_license_server_is_led_to_one(desk: Desk) -> None:
    desk.parts.cycle = None

    async def story() -> None:
        with pytest.raises(Refused, match="no license server, which orders updates; 'license-agent-cli provision'"):
            await desk.ask(OtaCheck)

    play(story)
