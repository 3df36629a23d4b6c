"""Hostile requests, most against one running server: it stays up, says one line, opens and fetches nothing."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.support.demo_server import Server, serving
from tests.support.odd_images import ODD_IMAGES, write_odd_images
from vlm.demo.search.samples import SAMPLES

DOG = SAMPLES / "fxemoji" / "dog.webp"
pytestmark = pytest.mark.long

SECRET = "the secret of this machine"


class Running:
    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = Client(server.address, verbose=False, download_files=False)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urlopen(f"{self.server.address}{path}", timeout=60) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        request = Request(f"{self.server.address}{path}", body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def call(self, name: str, values: list[Any]) -> tuple[int, bytes]:
        """Without gradio_client, which uploads or refuses on its own."""
        status, body = self.post(f"/gradio_api/call/{name}", json.dumps({"data": values}).encode())
        if status != 200:
            return status, body
        return self.get(f"/gradio_api/call/{name}/{json.loads(body)['event_id']}")

    def refused(self, name: str, *values: Any) -> str:
        """The one line."""
        with pytest.raises(AppError) as error:
            self.client.predict(*values, api_name=name)
        line = str(error.value)
        assert SECRET not in line
        assert len(line) < 500
        return line


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.txt").write_text(SECRET)
    Image.new("RGB", (40, 40), "red").save(folder / "secret.png", pnginfo=None)
    with serving("mini", folder) as server:
        one = Running(server, folder)
        yield one
        ranking = one.client.predict(handle_file(str(DOG)), "a, b", api_name="/classify")  # still up, and right
        assert sum(ranked["probability"] for ranked in ranking) == pytest.approx(1, abs=1e-5)
    log = server.log.read_text()
    assert "DIALLED OUT" not in log
    assert "Traceback" not in log


TRAVERSALS = [
    "/file=/etc/passwd",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/file=../../../../etc/passwd",
    "/gradio_api/file=%2Fetc%2Fpasswd",
    "/gradio_api/file=%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/gradio_api/file=file:///etc/passwd",
    "/gradio_api/file={folder}/secret.txt",
    "/gradio_api/file={folder}/secret.png",
    "/gradio_api/file={folder}/uploads/../secret.txt",
    "/gradio_api/file={samples}/../../vlm/assets/mini/config.json",
    "/gradio_api/file={folder}/demo.log",
    "/gradio_api/file={samples}/../app.py",
    "/gradio_api/file={samples}/../../pyproject.toml",
    "/gradio_api/file=C:%5CWindows%5Cwin.ini",
    "/gradio_api/file=http://192.0.2.1/a.png",
    "/gradio_api/proxy=http://192.0.2.1/a.png",
    "/static/../../../../etc/passwd",
    "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/assets/..%2f..%2f..%2fetc%2fpasswd",
    "/gradio_api/custom_component/x/y/../../../etc/passwd",
    "/gradio_api/stream/../../etc/passwd",
]


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_address_reads_a_file_of_the_machine(running: Running, path: str) -> None:
    status, body = running.get(path.format(folder=running.folder, samples=SAMPLES))
    assert status >= 400
    assert b"root:" not in body
    assert SECRET.encode() not in body


FORGED = [
    "/etc/passwd",
    {"path": "/etc/passwd"},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "../../etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "http://192.0.2.1/a.png", "meta": {"_type": "gradio.FileData"}},
    {"path": "https://example.invalid/a.png", "meta": {"_type": "gradio.FileData"}},
    {"path": "HTTP://example.invalid/a.png", "meta": {"_type": "gradio.FileData"}},
    {"path": "file:///etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "ftp://example.invalid/a.png", "meta": {"_type": "gradio.FileData"}},
    {"path": "http://127.0.0.1:1/", "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}},
    "http://192.0.2.1/a.png",
    "data:image/png;base64,AAAA",
    {"path": "", "meta": {"_type": "gradio.FileData"}},
    {"path": "/dev/zero", "meta": {"_type": "gradio.FileData"}},
    {"path": "a\0b", "meta": {"_type": "gradio.FileData"}},
    {"path": None, "meta": {"_type": "gradio.FileData"}},
    {"path": "/", "meta": {"_type": "gradio.FileData"}},
    7,
    [],
    None,
    True,
]


@pytest.mark.parametrize("image", FORGED)
def test_an_image_is_an_upload_and_nothing_else(running: Running, image: Any) -> None:
    before = len(running.server.log.read_text().splitlines())
    status, answer = running.call("classify", [image, "a, b"])
    assert 400 <= status < 500 or (image is None and b"event: error" in answer)  # an empty box is a visitor's mistake
    assert len(running.server.log.read_text().splitlines()) - before == (status >= 400)
    assert SECRET.encode() not in answer
    assert b"root:" not in answer


@pytest.mark.parametrize("name", [name for name, reason in ODD_IMAGES.items() if reason])
def test_a_broken_upload_is_one_line(running: Running, name: str) -> None:
    path = write_odd_images(running.folder)[name]
    line = running.refused("/classify", handle_file(str(path)), "a, b")
    assert "\n" not in line
    assert str(running.folder) not in line


LABELS = [
    [str(number) for number in range(10_000)],
    ",".join(map(str, range(10_000))),
    "x" * 1_000_000,
    "",
    "\n,、",
    ["", " "],
    {"a": 1},
    [1, 2],
    [["a"]],
    None,
    3.5,
]


@pytest.mark.parametrize("labels", LABELS, ids=range(len(LABELS)))
def test_labels_that_cannot_be_are_one_line(running: Running, labels: Any) -> None:
    assert "\n" not in running.refused("/classify", handle_file(str(DOG)), labels)


def test_templates_without_a_place_and_too_many_are_one_line(running: Running) -> None:
    running.refused("/classify", handle_file(str(DOG)), "a, b", "no place")
    running.refused("/classify", handle_file(str(DOG)), "a, b", ["{}"] * 10_000)


def test_html_in_labels_comes_back_as_the_same_text(running: Running) -> None:
    labels = ["<script>alert(1)</script>", "${x}", "{{x}}", "'; DROP TABLE file; --", "%s%n"]
    ranking = running.client.predict(handle_file(str(DOG)), labels, api_name="/classify")
    assert sorted(ranked["label"] for ranked in ranking) == sorted(labels)


def test_searches_that_cannot_be_are_one_line(running: Running) -> None:
    for text in ("", " ", "x" * 100_000, "a - a", 7, None, ["a"], {"a": 1}):
        running.refused("/search", text)
    running.refused("/search", "a", None, "noto")
    running.refused("/search", "a", None, [1])
    for key in ("/etc/passwd", "../app.py", "", 7, None, ["a"]):
        running.refused("/similar", key)


def test_a_hundred_and_one_images_are_one_line(running: Running) -> None:
    dog = handle_file(str(DOG))
    for images in ([], None, "x", [dog, "x"], [None]):
        running.refused("/classify_all", images, "a, b")


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"data": 1}',
    b'{"data": []}',
    b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"data": ["' + b"x" * 5_000_000 + b'", "a"]}',
    b'{"data": [1e999, NaN]}',
    json.dumps({"data": list(range(100_000))}).encode(),
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_odd_bodies_do_not_end_the_server(running: Running, body: bytes) -> None:
    status, answer = running.post("/gradio_api/call/classify", body)
    assert b"Traceback" not in answer
    assert b"site-packages" not in answer
    assert status < 600
    assert running.get("/")[0] == 200


def from_address(server: Server, address: str) -> httpx.Client:
    """A client with a loopback address of its own."""
    return httpx.Client(base_url=server.address, transport=httpx.HTTPTransport(local_address=address), timeout=120)


def test_a_page_of_another_origin_uploads_nothing_and_reads_nothing(running: Running) -> None:
    image = {"files": ("dog.webp", DOG.read_bytes())}
    uploads = running.folder / "uploads"
    with from_address(running.server, "127.0.0.1") as client:
        assert client.post("/gradio_api/upload", files=image).status_code == 200
        before = sorted(uploads.rglob("*"))
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example", "Origin": "http://evil.example"}):
            answers = [client.post("/gradio_api/upload", files=image, headers=headers)]
            answers += [client.options("/gradio_api/upload", headers=headers)]
            if "Host" in headers:  # its name was made to lead here: the browser would let it read
                answers += [client.get(path, headers=headers) for path in ("/", "/config", "/gradio_api/info")]
                answers += [client.get(f"/gradio_api/file={DOG}", headers=headers)]
            for answer in answers:
                assert answer.status_code == 403
                assert not [name for name in answer.headers if name.startswith("access-control")]
        assert sorted(uploads.rglob("*")) == before


def test_five_hundred_calls_of_one_client_keep_nobody_waiting(running: Running) -> None:
    def search(client: httpx.Client) -> float:
        start = time.monotonic()
        asked = client.post("/gradio_api/call/search", json={"data": ["a red apple"]})
        answer = client.get(f"/gradio_api/call/search/{asked.json()['event_id']}")
        assert "event: complete" in answer.text
        return time.monotonic() - start

    def flood(number: int) -> int:
        return greedy.post("/gradio_api/call/search", json={"data": [f"caller {number}"]}).status_code

    def honest(number: int) -> list[float]:
        with from_address(running.server, f"127.0.0.{10 + number}") as client:
            return [search(client) for _ in range(4)]

    with from_address(running.server, "127.0.0.2") as greedy, ThreadPoolExecutor(25) as threads:
        statuses = threads.map(flood, range(500))
        waits = [wait for times in threads.map(honest, range(5)) for wait in times]
        answered = list(statuses)
    assert set(answered) == {200, 429}
    assert max(waits) < 5
