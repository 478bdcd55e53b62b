"""What `ota_update --url` takes: files of this machine, and packages below the configured repository; nothing else."""

from pathlib import Path

import pytest

from cli.packageurl import InRepository, NoPackage, package_named, upstream_of

UPSTREAM = "https://updates.example/ota"
SHA256 = "ab" * 32


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("pos.bundle", "pos.bundle"),
        ("/media/usb/pos 2.bundle", "/media/usb/pos 2.bundle"),
        ("file:///media/usb/pos%202.bundle", "/media/usb/pos 2.bundle"),
        ("file://localhost/media/x.bundle", "/media/x.bundle"),
    ],
)
def test_a_file_is_named_by_its_path_or_its_url(text: str, path: str) -> None:
    assert package_named(text, None) == package_named(text, UPSTREAM) == Path(path)


@pytest.mark.parametrize("upstream", [UPSTREAM, f"{UPSTREAM}/"])
def test_a_package_of_the_repository_is_known_by_its_digest(upstream: str) -> None:
    assert package_named(f"{UPSTREAM}/targets/pos/{SHA256}.pos.bundle", upstream) == InRepository(SHA256)


@pytest.mark.parametrize(
    "text",
    [
        f"https://elsewhere.example/ota/targets/pos/{SHA256}.x",
        f"https://updates.example/targets/pos/{SHA256}.x",
        f"https://updates.example/ota.evil/targets/pos/{SHA256}.x",
        f"https://updates.example@elsewhere.example/ota/targets/pos/{SHA256}.x",
        f"http://updates.example/ota/targets/pos/{SHA256}.x",
        f"{UPSTREAM}/../targets/pos/{SHA256}.x",
        f"{UPSTREAM}/targets/../../pos/{SHA256}.x",
        f"{UPSTREAM}//targets/pos/{SHA256}.x",
        f"{UPSTREAM}/targets/pos/%2e%2e/{SHA256}.x",
        f"{UPSTREAM}/targets/pos/{SHA256}.x?y",
        f"{UPSTREAM}/targets/pos/{SHA256}.x#y",
        f"{UPSTREAM}/targets/pos/{SHA256}",
        f"{UPSTREAM}/targets/pos/{SHA256.upper()}.x",
        f"{UPSTREAM}/targets/pos/pos.bundle",
        f"{UPSTREAM}/metadata/1.root.json",
        f"ftp://updates.example/ota/targets/pos/{SHA256}.x",
        "https://[",
        "file://elsewhere.example/x.bundle",
        "file:///x.bundle?y",
    ],
)
def test_anything_else_is_no_package(text: str) -> None:
    with pytest.raises(NoPackage):
        package_named(text, UPSTREAM)


def test_without_a_repository_no_url_is_accepted() -> None:
    with pytest.raises(NoPackage, match=r"has no \[upstream\.ota\]"):
        package_named(f"{UPSTREAM}/targets/pos/{SHA256}.x", None)


@pytest.mark.parametrize("link", [{}, {"upstream": 1}, {"upstream": {"server": {}}}, {"upstream": {"ota": {"url": 1}}}])
def test_a_link_without_a_repository(link: dict[str, object]) -> None:
    assert upstream_of(link) is None
    assert upstream_of({"upstream": {"ota": {"url": UPSTREAM}}}) == UPSTREAM
