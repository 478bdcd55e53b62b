"""`ota install --package`: what is a bundle, and what is signed of it; the file itself reaches a real agent's socket."""

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.agent import Agent
from cli.main import main
from cli.ota import package_digest


def bundle(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def test_the_digest_is_of_the_package_in_the_bundle(tmp_path: Path) -> None:
    content = b"x" * 3_000_000
    with bundle(tmp_path / "a.bundle", directive=b"d", package=content).open("rb") as file:
        assert package_digest(file) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 1024])
def test_what_is_no_bundle_is_wrong_usage_and_is_not_sent(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.bundle"
    path.write_bytes(content)
    done = CliRunner().invoke(main, ["ota", "install", "--package", str(path)])
    assert done.exit_code == 2 and "is no update bundle" in done.output


def test_a_bundle_without_a_package_or_of_another_name_is_wrong_usage(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["ota", "install", "--package", str(bundle(tmp_path / "a.bundle", directive=b"d"))])
    assert done.exit_code == 2 and "it has no member 'package'" in done.output
    done = CliRunner().invoke(main, ["ota", "install", "--package", str(bundle(tmp_path / "a.tar", package=b"p"))])
    assert done.exit_code == 2 and "ends in .bundle; rename a.tar" in done.output


@pytest.fixture
def link(tmp_path: Path) -> Path:
    path = tmp_path / "link.toml"
    path.write_text('[upstream.ota]\nurl = "https://updates.example/ota"\n')
    return path


def test_the_links_configuration_is_looked_for_beside_the_agents(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICENSE_AGENT_CONFIG", str(link.with_name("config.toml")))
    done = CliRunner().invoke(main, ["ota_update", "--url", f"https://x.example/targets/pos/{'ab' * 32}.p"])
    assert done.exit_code == 2 and "of this machine, https://updates.example/ota/" in done.output


@pytest.mark.parametrize("ordered", [None, "cd" * 32])
def test_a_url_is_installed_only_if_the_server_orders_just_that_package(
    link: Path, monkeypatch: pytest.MonkeyPatch, ordered: str | None
) -> None:
    asked: list[str] = []

    def ask(_agent: Agent, op: str, **_fields: Any) -> dict[str, Any]:
        asked.append(op)
        update = {"product": "pos", "version": "2.0", "build_id": "b2", "sha256": ordered}
        return {"update": None if ordered is None else update, **update}

    monkeypatch.setattr(Agent, "ask", ask)
    command = ["ota_update", "--link", str(link), "--no-wait", "--url"]
    done = CliRunner().invoke(main, [*command, f"https://updates.example/ota/targets/pos/{'ab' * 32}.pos"])
    assert done.exit_code == 1 and "the license server orders" in done.output and asked == ["ota_check"]
    if ordered is not None:
        done = CliRunner().invoke(main, [*command, f"https://updates.example/ota/targets/pos/{ordered}.pos"])
        assert (done.exit_code, asked[1:]) == (0, ["ota_check", "ota_install"])
        assert "installing pos 2.0 (build b2)" in done.output


def test_another_url_is_wrong_usage_and_nobody_is_asked(link: Path) -> None:
    done = CliRunner().invoke(
        main, ["ota_update", "--link", str(link), "--url", f"https://x.example/targets/pos/{'ab' * 32}.p"]
    )
    assert done.exit_code == 2 and "is not below the update repository of this machine" in done.output
