"""The repository of updates behind Debian's nginx, with the site that we ship: whole files, parts of them, and copies of it."""

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.test_nginx import MAIN, NGINX
from tests.server.ota.vendor import NOW, Machine, Vendor
from tests.support.swtpm import free_port_pair
from tests.support.waiting import READY_S, answers, wait_until

pytestmark = pytest.mark.system

SITE = Path(__file__).parents[2] / "examples" / "updates" / "nginx.conf"
PACKAGE = b"".join(number.to_bytes(4, "big") for number in range(50_000))


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Vendor:
    """A repository with a package of 200 kB, and a copy of it that is served."""
    made = Vendor(tmp_path_factory.mktemp("vendor"))
    made.publish(made.first())
    source = made.directory / "b1.bundle"
    made.release("1.0.0", "b1", content=PACKAGE)
    assert source.read_bytes() == PACKAGE
    made.repository.export(made.directory / "served")
    return made


@pytest.fixture(scope="module")
def client(vendor: Vendor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory, port = tmp_path_factory.mktemp("nginx"), free_port_pair()
    site = re.sub(r"(?m)^\s*ssl_\w+ .*\n", "", SITE.read_text())
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port}"),
        ("/var/lib/license-updates", str(vendor.directory / "served")),
    ):
        assert old in site
        site = site.replace(old, new)
    (directory / "site.conf").write_text(site)
    user = f"user {pwd.getpwuid(os.geteuid()).pw_name};" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(MAIN.format(dir=directory, user=user))
    process = subprocess.Popen([NGINX, "-p", str(directory), "-e", "stderr", "-c", str(directory / "nginx.conf")])
    try:
        wait_until(lambda: answers(port), "nginx does not listen", lives=lambda: process.poll() is None)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=READY_S) as made:
            yield made
    finally:
        process.terminate()
        process.wait(READY_S)


def package_url(vendor: Vendor) -> str:
    (path,) = (vendor.directory / "served" / "targets" / "pos").iterdir()
    return f"/targets/pos/{path.name}"


def test_a_download_goes_on_where_it_was_and_begins_again_where_the_file_is_another(
    vendor: Vendor, client: httpx.Client
) -> None:
    url = package_url(vendor)
    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, PACKAGE)
    etag = whole.headers["ETag"]
    assert not etag.startswith("W/"), "a weak ETag is no If-Range"
    half = len(PACKAGE) // 2
    rest = client.get(url, headers={"Range": f"bytes={half}-", "If-Range": etag})
    assert (rest.status_code, rest.content) == (206, PACKAGE[half:])
    assert rest.headers["Content-Range"] == f"bytes {half}-{len(PACKAGE) - 1}/{len(PACKAGE)}"
    changed = client.get(url, headers={"Range": f"bytes={half}-", "If-Range": '"another"'})
    assert (changed.status_code, changed.content) == (200, PACKAGE)
    assert client.get(url, headers={"Range": f"bytes={len(PACKAGE)}-"}).status_code == 416


def test_caches_keep_all_but_the_timestamp(vendor: Vendor, client: httpx.Client) -> None:
    names = [path.name for path in (vendor.directory / "served" / "metadata").iterdir()]
    kept = {name: client.get(f"/metadata/{name}").headers["Cache-Control"] for name in names}
    assert kept.pop("timestamp.json") == "max-age=60"
    assert set(kept.values()) == {"max-age=31536000, immutable"} and "1.root.json" in kept


@pytest.mark.parametrize("path", ["/", "/metadata/", "/targets/", "/targets/pos/", "/.lock", "/metadata/2.root.json", "/x"])
def test_nothing_else_is_served_and_nothing_is_listed(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code in (403, 404)


def test_only_reading_is_allowed(vendor: Vendor, client: httpx.Client) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "/metadata/timestamp.json").status_code == 403
        assert client.request(method, package_url(vendor)).status_code in (403, 405)


def test_a_machine_accepts_what_nginx_serves(vendor: Vendor, client: httpx.Client, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    for path in (vendor.directory / "served").rglob("*"):
        if path.is_file() and path.name != ".lock":
            name = path.relative_to(vendor.directory / "served")
            (mirror / name).parent.mkdir(parents=True, exist_ok=True)
            (mirror / name).write_bytes(client.get(f"/{name}").content)
    root = (mirror / "metadata" / "1.root.json").read_bytes()
    assert Machine(tmp_path / "machine", root).look(mirror, NOW, "pos/pos-1.0.0-b1") == PACKAGE
    shutil.rmtree(mirror)
