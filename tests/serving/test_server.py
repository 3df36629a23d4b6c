"""`vlm serve` lets in whom it should, and survives whom it should not."""

import asyncio
import io
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from tests.support.serving import base64_of, png
from vlm.embedder import Embedder
from vlm.index.embedding_index import EmbeddingIndex
from vlm.serving.server import create_app, run
from vlm.serving.service import Service

SECRET = "こっそり-secret"


# ---- who may ask -----------------------------------------------------------------------------------------------


def test_with_a_token_only_those_who_send_it_are_answered(tiny_embedder: Embedder):
    with TestClient(create_app(Service(tiny_embedder), token="geheim")) as client:
        for given in (None, b"Bearer wrong", b"geheim", b"Bearer \xff"):
            answer = client.get("/health", headers={b"Authorization": given} if given else None)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "Authorization: Bearer TOKEN" in answer.json()["error"]
        assert client.get("/health", headers={"Authorization": "Bearer geheim"}).status_code == 200
        assert [client.get(path).status_code for path in ("/", "/openapi.json", "/search")] == [200, 200, 401]


# ---- hostile requests ------------------------------------------------------------------------------------------

JSON = {"Content-Type": "application/json"}


def hostile(secret: Path) -> dict[str, dict[str, Any]]:
    """Name -> arguments of `client.post`; none of them may be answered with 200."""
    path, a_dog = str(secret), {"text": "a dog"}
    traversal = f"../../../../../..{path}"
    return {
        "a path as image": {"url": "/search", "json": {"image": path}},
        "an address as image": {"url": "/search", "json": {"image": f"file://{path}"}},
        "a web address as image": {"url": "/search", "json": {"image": "http://127.0.0.1/a.png"}},
        "a path in a form": {"url": "/search", "data": {"image": path}, "files": {"other": b""}},
        "a path as index": {"url": "/search", "json": {**a_dog, "index": path}},
        "a path as model": {"url": "/search", "json": {**a_dog, "model": path}},
        "traversal in the address": {"url": f"/{traversal}"},
        "traversal, encoded": {"url": "/%2e%2e/%2e%2e/" + path.replace("/", "%2f")},
        "a NUL in the text": {"url": "/search", "json": {"text": "a\0b"}},
        "a NUL in the glob": {"url": "/search", "json": {**a_dog, "glob": "a\0b"}},
        "a NUL in a date": {"url": "/search", "json": {**a_dog, "since": "2020\0"}},
        "a NUL to embed": {"url": "/embed", "json": {"texts": ["a\0b"]}},
        "a NUL in a label": {"url": "/classify", "json": {"images": [base64_of(png())], "labels": ["a\0b"]}},
        "no JSON": {"url": "/search", "content": b"{text: a dog", "headers": JSON},
        "not UTF-8": {"url": "/search", "content": b'{"text": "\xff\xfe"}', "headers": JSON},
        "half a surrogate": {"url": "/search", "content": b'{"text": "\\ud800"}', "headers": JSON},
        "deep JSON": {"url": "/search", "content": b"[" * 1_000_000, "headers": JSON},
        "a huge number": {
            "url": "/search",
            "content": b'{"text": "a", "k": 1' + b"0" * 100_000 + b"}",
            "headers": JSON,
        },
        "not a number": {"url": "/search", "content": b'{"terms": [{"text": "a", "weight": NaN}]}', "headers": JSON},
        "an endless weight": {
            "url": "/search",
            "content": b'{"terms": [{"text": "a", "weight": 1e999}]}',
            "headers": JSON,
        },
        "a list": {"url": "/search", "json": [a_dog]},
        "nothing": {"url": "/search", "json": {}},
        "null": {"url": "/search", "content": b"null", "headers": JSON},
        "an empty body": {"url": "/search", "content": b"", "headers": JSON},
        "a negative k": {"url": "/search", "json": {**a_dog, "k": -3}},
        "no k": {"url": "/search", "json": {**a_dog, "k": 0}},
        "a huge k": {"url": "/search", "json": {**a_dog, "k": 10**30}},
        "k as text": {"url": "/search", "json": {**a_dog, "k": "5"}},
        "k as truth": {"url": "/search", "json": {**a_dog, "k": True}},
        "half a k": {"url": "/search", "json": {**a_dog, "k": 1.5}},
        "text as number": {"url": "/search", "json": {"text": 5}},
        "text as object": {"url": "/search", "json": {"text": {"$ne": ""}}},
        "a blank text": {"url": "/search", "json": {"text": " \t"}},
        "text and image": {"url": "/search", "json": {**a_dog, "image": base64_of(png())}},
        "terms that cancel out": {"url": "/search", "json": {"terms": [{"text": "a"}, {"text": "a", "weight": -1}]}},
        "a term of nothing": {"url": "/search", "json": {"terms": [{}]}},
        "a thousand terms": {"url": "/search", "json": {"terms": [{"text": "a"}] * 1000}},
        "no date": {"url": "/search", "json": {**a_dog, "since": "yesterday"}},
        "SQL as date": {"url": "/search", "json": {**a_dog, "until": "2020' OR 1=1 --"}},
        "a negative side": {"url": "/search", "json": {**a_dog, "min_side": -1}},
        "a long text": {"url": "/search", "json": {"text": "犬" * 10_001}},
        "100 MB of text": {"url": "/search", "content": b'{"text": "' + b"a" * 100_000_000, "headers": JSON},
        "10,000 labels": {
            "url": "/classify",
            "json": {"images": [base64_of(png())], "labels": [f"{n}" for n in range(10_000)]},
        },
        "too many sentences": {
            "url": "/classify",
            "json": {
                "images": [base64_of(png())],
                "labels": [f"{n}" for n in range(1000)],
                "templates": [f"{{}} {n}" for n in range(100)],
            },
        },
        "the same label twice": {"url": "/classify", "json": {"images": [base64_of(png())], "labels": ["a", "a "]}},
        "a template without a place": {
            "url": "/classify",
            "json": {"images": [base64_of(png())], "labels": ["a"], "templates": ["b"]},
        },
        "no labels": {"url": "/classify", "json": {"images": [base64_of(png())], "labels": []}},
        "1,000 images": {"url": "/embed", "json": {"images": [base64_of(png())] * 1000}},
        "1,000 files": {"url": "/embed", "files": [("images", ("a.png", png()))] * 1000},
        "nothing to embed": {"url": "/embed", "json": {"texts": []}},
        "no image": {"url": "/embed", "json": {"images": [base64_of(b"hello")]}},
        "an empty image": {"url": "/embed", "json": {"images": [""]}},
        "half an image": {"url": "/embed", "json": {"images": [base64_of(png(1, 90)[:4000])]}},
        "a bomb of 50 megapixels": {"url": "/embed", "json": {"images": [base64_of(black(10_000, 5_000))]}},
        "an SVG": {"url": "/embed", "files": {"images": ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")}},
        "an SVG that reads a file": {
            "url": "/embed",
            "files": {"images": ("a.png", f"<svg><image href='file://{path}'/></svg>".encode())},
        },
        "a form that ends early": {
            "url": "/search",
            "content": b'--x\r\nContent-Disposition: form-data; name="text"',
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        "a form without a boundary": {
            "url": "/search",
            "content": b"x",
            "headers": {"Content-Type": "multipart/form-data"},
        },
        "XML": {"url": "/search", "content": b"<a/>", "headers": {"Content-Type": "application/xml"}},
        "a simple form": {"url": "/search", "data": {"text": "a dog"}},
        "another method": {"url": "/health"},
        "the old field": {"url": "/search", "json": {"picture": base64_of(png())}},
        "the old list": {"url": "/embed", "json": {"pictures": [base64_of(png())]}},
        "the old file": {"url": "/embed", "files": {"pictures": ("a.png", png())}},
        "a weight of 39 zeros": {"url": "/search", "json": {"text": "1" + "0" * 39 + "*dog + cat"}},
        "only a minus": {"url": "/search", "json": {"text": " - people"}},
        "a minus of nothing": {"url": "/search", "json": {"text": "red -"}},
        "month 13": {"url": "/search", "json": {**a_dog, "since": "2024-13"}},
        "Shift-JIS in a form": {
            "url": "/classify",
            "content": b'--x\r\nContent-Disposition: form-data; name="labels"\r\n\r\n\x8c\xa2\r\n--x--\r\n',
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
    }


def black(width: int, height: int) -> bytes:
    """A few kB that would be many MB."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A sound image with words in it, outside of the folder that is indexed."""
    path = tmp_path / "private" / "secret.png"
    path.parent.mkdir()
    path.write_bytes(png(5) + SECRET.encode())
    return path


def test_hostile_requests_get_one_clear_line_and_the_server_goes_on(
    client: TestClient, secret: Path, monkeypatch: pytest.MonkeyPatch
):
    opened: list[str] = []
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
    cases = hostile(secret)
    assert len(cases) >= 60
    for name, request in cases.items():
        answer = client.post(**request)
        assert 400 <= answer.status_code < 500, (name, answer.status_code, answer.text)
        assert list(answer.json()) == ["error"], name
        line = answer.json()["error"]
        assert 10 < len(line) <= 1000, name
        assert "\n" not in line, name
        assert "Traceback" not in line, name
        assert "site-packages" not in line, name
        assert SECRET not in answer.text, name
    assert client.post("/search", json={"text": "a dog"}).status_code == 200
    assert client.get("/health").status_code == 200
    assert not [path for path in opened if "secret.png" in path]


def test_names_of_uploads_are_names_and_never_opened(client: TestClient, secret: Path):
    """The name of a file of this machine, on another file's bytes."""
    files = {"images": (str(secret), png(1))}
    (row,) = client.post("/classify", files=files, data={"labels": ["犬"]}).json()
    assert row["label"] == "犬"
    uploaded = client.post("/embed", files=files).json()["images"]
    assert uploaded == client.post("/embed", json={"images": [base64_of(png(1))]}).json()["images"]


def test_links_that_lead_out_of_the_folder_are_never_found(
    client: TestClient, photos: Path, tiny_embedder: Embedder, image_folder: Path, secret: Path
):
    (image_folder / "link.png").symlink_to(secret)
    (image_folder / "linked").symlink_to(secret.parent)
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        index.add_folder(image_folder, workers=1)
    for asked in ({"image": base64_of(secret.read_bytes())}, {"text": "a", "glob": "*"}, {"text": "a", "glob": "/*"}):
        found = client.post("/search", json={**asked, "k": 100}).json()
        assert len(found) == 6
        assert all(Path(row["path"]).resolve().is_relative_to(image_folder) for row in found)


def test_names_that_are_not_utf_8_stay_valid_json(
    client: TestClient, photos: Path, tiny_embedder: Embedder, image_folder: Path
):
    name = os.fsdecode(os.fsencode(image_folder) + b"/\xff.png")
    Path(name).write_bytes(png(7))
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        index.add_folder(image_folder, workers=1)
    answer = client.post("/search", json={"image": base64_of(png(7)), "k": 1})
    assert json.loads(answer.content.decode("utf-8"))[0]["path"] == name


def test_a_failure_of_ours_tells_nothing_of_the_inside(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    def fail(self: EmbeddingIndex, *given: Any, **named: Any) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(EmbeddingIndex, "search", fail)
    answer = client.post("/search", json={"text": "a dog"})
    assert answer.status_code == 500
    assert list(answer.json()) == ["error"]
    assert SECRET not in answer.text


TOO_FEW = "Input should be greater than or equal to 1"


REFUSED: list[tuple[dict[str, Any], int, str | None]] = [
    (
        {"content": "{}", "headers": {"Content-Type": "Text/Plain; charset=utf-8"}},
        415,
        "The content type is 'text/plain'. Send application/json or multipart/form-data.",
    ),
    ({"url": "/nowhere", "json": {}}, 404, "There is nothing at this address. See / for what there is."),
    ({"method": "GET"}, 405, "This address takes another method."),
    ({"json": {"text": "a", "k": 0}}, 400, f"k: {TOO_FEW}. See / for what is taken."),
    (
        {"json": {"text": "a", "k": 0, "min_side": 0, "size": 3}},
        400,
        f"k: {TOO_FEW}. (2 more like this.) See / for what is taken.",
    ),
    (
        {"json": {"terms": [{"text": "a"}, {"text": "b"}, {}]}},
        400,
        "terms.2: a term is either a text or an image. See / for what is taken.",
    ),
    (
        {"json": {}},
        400,
        "The request: wanted exactly one of text, image and terms, got none. See / for what is taken.",
    ),
    ({"json": {"text": "a", "since": "May\n"}}, 400, None),
    (
        {"data": {"text": ["a", "b"]}, "files": {"other": b""}},
        400,
        "The form has 'text' more than once, wanted one.",
    ),
    ({"url": "/embed", "json": {"images": [base64_of(png()), "aGVsbG8="]}}, 400, None),
]


def test_each_kind_of_refusal_has_its_own_status_and_words(client: TestClient):
    schema = client.get("/openapi.json").json()["paths"]
    for operation in (
        schema["/health"]["get"],
        schema["/ready"]["get"],
        *(schema[path]["post"] for path in ("/search", "/classify", "/embed")),
    ):
        assert [*operation["responses"]] == [
            "200",
            "400",
            "401",
            "403",
            "408",
            "413",
            "415",
            "500",
            "503",
        ]  # docs/server.md
    for request, status, line in REFUSED:
        answer = client.request(**{"method": "POST", "url": "/search", **request})
        assert answer.status_code == status
        if line:
            assert answer.json() == {"error": line}
        else:
            assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(("old", "new"), [("picture", "image"), ("pictures", "images")])
def test_a_renamed_field_is_named_with_its_new_name(client: TestClient, old: str, new: str):
    requests: list[dict[str, Any]] = [{"json": {old: base64_of(png())}}, {"files": {old: ("a.png", png())}}]
    for request in requests:
        line = client.post("/search", **request).json()["error"]
        assert repr(old) in line and repr(new) in line


def test_an_index_that_is_damaged_meanwhile_is_said_everywhere_and_told_to_the_log(
    client: TestClient, photos: Path, caplog: pytest.LogCaptureFixture
):
    (vectors,) = photos.glob("*.f16")
    vectors.unlink()
    for answer in (client.get("/health"), client.get("/ready"), client.post("/search", json={"text": "a dog"})):
        assert answer.status_code == 503
        assert "index" in answer.json()["error"] and str(photos) not in answer.text
    assert len(caplog.records) == 3
    assert all(str(vectors) in record.message and "delete the index" in record.message for record in caplog.records)


def test_health_computes_nothing_and_answers_head(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Embedder, "embed_pixels", None)  # whoever calls it fails
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["model"]) == (200, "ok", "tiny")
    for path in ("/health", "/ready"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200 if path == "/health" else 500, b"")


def test_a_content_type_may_be_written_in_any_way(client: TestClient):
    for kind in ("application/json", "Application/JSON; charset=utf-8", " application/json ;x"):
        assert client.post("/search", content='{"text": "a dog"}', headers={"Content-Type": kind}).status_code == 200


def test_a_form_may_hold_as_much_as_json(client: TestClient):
    for texts, images, status in [(1000, 1, 200), (1001, 1, 400), (1, 32, 200), (1, 33, 400)]:  # docs/server.md
        files = [("images", (f"{n}.png", png())) for n in range(images)]
        answer = client.post("/embed", data={"texts": ["a"] * texts}, files=files)
        assert answer.status_code == status, answer.text


def test_the_server_is_told_to_end_in_30_seconds_and_to_write_no_log_of_requests(
    tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    started: list[tuple[uvicorn.Config, list[socket.socket]]] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: started.append((self.config, sockets)))
    service = Service(tiny_embedder)
    with socket.socket() as listener:
        app = create_app(service)
        run(app, listener)
        ((config, sockets),) = started
        assert sockets == [listener]
    service.close()
    assert config.app is app
    assert config.timeout_graceful_shutdown == 30  # docs/server.md
    assert (config.access_log, config.log_level) == (False, "warning")


def test_the_end_of_the_server_is_the_end_of_its_service(tiny_embedder: Embedder, photos: Path):
    service = Service(tiny_embedder, photos)
    with TestClient(create_app(service)) as client:
        assert client.get("/health").status_code == 200
    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(service.embed_texts(["a dog"]))
