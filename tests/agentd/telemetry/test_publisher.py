"""A disk that does not answer makes nobody wait for long, and takes one thread, not more and more of them."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentd.telemetry import publisher as module
from agentd.telemetry.alertqueue import AlertQueue, Kept
from agentd.telemetry.publisher import Publisher
from agentd.telemetry.statefile import StateFile


def test_a_disk_that_does_not_answer_holds_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, begun = threading.Event(), []

    def write_atomic(path: Path, *_: Any, **__: Any) -> None:
        begun.append(path)
        answers.wait()
        path.write_bytes(b"metrics")

    async def save() -> None:
        pass

    monkeypatch.setattr(module, "write_atomic", write_atomic)
    monkeypatch.setattr(module, "state_view", lambda _parts: {})
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    parts: Any = SimpleNamespace(
        core=SimpleNamespace(counters=None, clock=SimpleNamespace(wall=lambda: 0.0)),
        validator=SimpleNamespace(inventory=SimpleNamespace(save=save)),
    )
    made = Publisher(parts, tmp_path / "metrics.prom", StateFile(tmp_path / "state.json"), AlertQueue(Kept(), str), None)  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_metrics", SimpleNamespace(render=lambda: b"metrics"))

    async def check() -> None:
        for _ in range(20):
            await made.write()
        assert len(begun) == 1
        assert caplog.text.count("the disk has not answered") == 1
        answers.set()
        monkeypatch.setattr(module, "PATIENCE_S", 60)
        await made.write()
        assert len(begun) == 2

    try:
        asyncio.run(check())
    finally:
        answers.set()
    assert (tmp_path / "metrics.prom").read_bytes() == b"metrics"
