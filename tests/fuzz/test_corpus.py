"""Every fuzz target passes over its seed corpus, and the corpus is what its maker writes."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.fuzz import fuzz_audit, fuzz_frames, fuzz_token, fuzz_updates, make_corpus

CORPUS = Path(__file__).parent / "corpus"
TARGETS = {"frames": fuzz_frames, "token": fuzz_token, "audit": fuzz_audit, "updates": fuzz_updates}


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_passes_over_its_corpus(name: str) -> None:
    target: ModuleType = TARGETS[name]
    files = sorted((CORPUS / name).iterdir())
    assert len(files) >= 5
    for file in files:
        target.check(file.read_bytes())
    target.check(b"")


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_corpus_is_what_its_maker_writes(name: str) -> None:
    for file, data in getattr(make_corpus, name)().items():
        assert (CORPUS / name / file).read_bytes() == data


def test_a_target_fails_when_its_law_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: object, _data: bytes) -> list[bytes]:
        raise KeyError

    monkeypatch.setattr(fuzz_frames.FrameDecoder, "receive_data", broken)
    with pytest.raises(KeyError):
        fuzz_frames.check(b"x")
