"""Downloads: whole, in part, resumed, and bounded."""

import asyncio
import hashlib
import io
from typing import Any

import pytest

from server.hawkbit import downloads
from server.hawkbit.downloads import Downloads
from server.hawkbit.endpoints import Download
from server.hawkbit.problems import Refused
from tests.server.hawkbit.conftest import PACKAGE, Response, World

SIZE = len(PACKAGE)
ETAG = f'"{hashlib.sha256(PACKAGE).hexdigest()}"'


@pytest.fixture
def file(world: World) -> str:
    world.order("till-1")
    return f"till-1/softwaremodules/{world.offered('till-1')}/artifacts/pos-2.1.swu"


def get(world: World, file: str, method: str = "GET", **headers: str) -> Response:
    return world.ask(method, file, "till-1", headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def test_a_whole_file(world: World, file: str) -> None:
    response = get(world, file)
    assert (response.status, response.body) == (200, PACKAGE)
    assert response.headers["content-length"] == str(SIZE)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["etag"] == ETAG
    assert response.headers["content-disposition"] == 'attachment; filename="pos-2.1.swu"'
    head = get(world, file, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert {**head.headers} == {**response.headers}


def test_the_files_of_an_action_and_their_md5(world: World, file: str) -> None:
    name, md5 = "pos-2.1.swu", hashlib.md5(PACKAGE).hexdigest()
    listed = world.ask("GET", file.rpartition("/")[0], "till-1").json
    assert [(each["filename"], each["hashes"]["md5"]) for each in listed] == [(name, md5)]
    response = get(world, f"{file}.MD5SUM")
    assert (response.body, response.headers["content-type"]) == (f"{md5}  {name}\n".encode(), "text/plain;charset=UTF-8")


PARTS = (
    ("bytes=0-0", 0, 0),
    ("bytes=100-199", 100, 199),
    ("bytes=100-", 100, SIZE - 1),
    (f"bytes=100-{SIZE * 2}", 100, SIZE - 1),
    ("bytes=-10", SIZE - 10, SIZE - 1),
    (f"bytes=-{SIZE * 2}", 0, SIZE - 1),
)


def test_a_part_of_a_file(world: World, file: str) -> None:
    for asked, first, last in PARTS:
        response = get(world, file, Range=asked)
        assert (response.status, response.body) == (206, PACKAGE[first : last + 1]), asked
        assert response.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
        assert response.headers["content-length"] == str(last - first + 1)
    assert get(world, file, Range="bytes=5-", If_Range=ETAG).status == 206
    changed = get(world, file, Range="bytes=5-", If_Range='"another file"')
    assert (changed.status, changed.body) == (200, PACKAGE), "a range of another file is answered with the whole one"


def test_a_range_that_is_none_gets_the_whole_file(world: World, file: str) -> None:
    for asked in ("bytes=5-4", "bytes=-", "bytes=0-1,3-4", "bytes=a-b", "lines=0-1", "bytes=" + "9" * 20 + "-"):
        assert get(world, file, Range=asked).body == PACKAGE, asked


def test_a_range_behind_the_end_is_refused(world: World, file: str) -> None:
    for asked in (f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"):
        response = get(world, file, Range=asked)
        assert (response.status, response.headers["content-range"]) == (416, f"bytes */{SIZE}"), asked


def test_a_download_goes_on_until_the_device_knows_that_it_was_taken_back(world: World, file: str) -> None:
    number = int(file.split("/")[2])
    world.feedback("till-1", number, "proceeding")
    world.rollouts.taken_back.add("till-1")
    world.poll("till-1")
    assert world.state(number) == "canceling"
    assert get(world, file, Range="bytes=100-").status == 206
    stop = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    world.ask("POST", f"till-1/cancelAction/{number}/feedback", "till-1", stop)
    assert get(world, file).status == 410


def test_a_package_that_was_withdrawn_is_gone(world: World, file: str) -> None:
    next((world.repository / "targets" / "pos").iterdir()).unlink()
    assert get(world, file).status == 404


class Client:
    """A client that takes a file, or stops."""

    def __init__(self, *, stops: bool = False, leaves: bool = False) -> None:
        self.stops, self.leaves, self.taken = stops, leaves, 0

    async def receive(self) -> dict[str, Any]:
        if not self.leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.taken += len(message.get("body", b""))
        if self.stops and self.taken:
            await asyncio.Event().wait()


def download(size: int = 4 * downloads.CHUNK) -> Download:
    return Download(io.BytesIO(b"x" * size), size, "ab" * 32, "x.swu")


SCOPE = {"method": "GET", "headers": []}


def test_a_client_that_stops_reading_loses_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "STALL_S", 0.01)
    client, file = Client(stops=True), download()
    with pytest.raises(TimeoutError):
        asyncio.run(Downloads().send("till-1", file, SCOPE, client.receive, client.send))
    assert file.file.closed


def test_nothing_more_is_read_for_a_client_that_is_gone() -> None:
    client, file = Client(leaves=True), download(100 * downloads.CHUNK)
    asyncio.run(Downloads().send("till-1", file, SCOPE, client.receive, client.send))
    assert client.taken < 50 * downloads.CHUNK


def test_downloads_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_DOWNLOADS", 3)

    async def run() -> list[str]:
        under_way = Downloads()
        tasks = []
        for device in ("till-1", "till-1", "till-2"):
            client = Client(stops=True)
            tasks.append(asyncio.create_task(under_way.send(device, download(), SCOPE, client.receive, client.send)))
        while not all(under_way._of[device] == count for device, count in (("till-1", 2), ("till-2", 1))):
            await asyncio.sleep(0)
        found = []
        for device in ("till-1", "till-3"):
            client = Client()
            try:
                await under_way.send(device, download(), SCOPE, client.receive, client.send)
            except Refused as refused:
                found.append(refused.kind)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client = Client()
        await under_way.send("till-1", download(), SCOPE, client.receive, client.send)
        assert client.taken == 4 * downloads.CHUNK
        assert not under_way._of
        return found

    assert asyncio.run(run()) == ["rate-limited", "rate-limited"]
