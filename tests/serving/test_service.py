"""`vlm serve` gives the commands' answers, to many at once."""

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.serving import base64_of, png
from vlm.calibration import Calibration
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.errors import ImageError
from vlm.index.embedding_index import EmbeddingIndex
from vlm.serving.api_types import UploadedImage
from vlm.serving.server import create_app
from vlm.serving.service import Service


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def same_rows(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Equal keys and values; numbers within the rounding of a batch of another size."""
    return len(found) == len(wanted) and all(
        list(ours) == list(theirs) and all(ours[key] == pytest.approx(theirs[key], abs=1e-6) for key in ours)
        for ours, theirs in zip(found, wanted, strict=True)
    )


def test_search_answers_what_the_command_answers(
    client: TestClient, photos: Path, tiny_embedder: Embedder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    save(tiny_embedder, tmp_path / "model")
    same = ["--index", photos, "--model", tmp_path / "model"]
    cases: list[tuple[dict[str, Any], list[str | Path]]] = [
        ({"text": "赤いりんご", "k": 4}, ["赤いりんご", "-k", "4"]),
        ({"text": "赤い + 車 - dog"}, ["赤い + 車 - dog"]),
        ({"text": "a cat", "glob": "deeper/*"}, ["a cat", "--glob", "deeper/*"]),
        (
            {"text": "a cat", "since": "2020", "until": "2100-01-01"},
            ["a cat", "--since", "2020", "--until", "2100-01-01"],
        ),
        ({"text": "a cat", "min_side": 30}, ["a cat", "--min-side", "30"]),
    ]
    for asked, words in cases:
        answer = client.post("/search", json=asked)
        assert answer.status_code == 200, answer.text
        assert same_rows(answer.json(), command(capsys, "search", *words, *same)), asked
        assert answer.headers["No-Good-Match"] == "false"


def test_a_image_comes_as_a_file_or_in_base64_and_finds_itself(client: TestClient, image_folder: Path):
    path = image_folder / "c.jpg"
    uploaded = client.post("/search", files={"image": ("c.jpg", path.read_bytes())}, data={"k": "3"}).json()
    sent = client.post("/search", json={"image": base64_of(path.read_bytes()), "k": 3}).json()
    assert uploaded == sent
    assert len(sent) == 3
    assert sent[0]["path"] == str(path)
    assert sent[0]["score"] == pytest.approx(1, abs=1e-3)


def test_terms_are_a_weighted_sum(client: TestClient, photos: Path, tiny_embedder: Embedder):
    terms = [{"text": "a dog"}, {"image": base64_of(png(3)), "weight": -0.5}]
    found = client.post("/search", json={"terms": terms}).json()
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        hits = index.search([(1.0, "a dog"), (-0.5, png(3))])
    assert [row["path"] for row in found] == [str(hit.path) for hit in hits]
    assert [row["score"] for row in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)


def test_classify_answers_what_the_command_answers(
    client: TestClient,
    tiny_embedder: Embedder,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save(tiny_embedder, tmp_path / "model")
    monkeypatch.chdir(image_folder)
    names, labels = ["a.png", "c.jpg"], ["犬", "cat", "鳥"]
    files = [("images", (name, Path(name).read_bytes())) for name in names]
    wanted = command(capsys, "classify", *names, "--labels", *labels, "--model", tmp_path / "model")
    assert same_rows(client.post("/classify", files=files, data={"labels": labels}).json(), wanted)
    wanted = command(
        capsys,
        *["classify", *names, "--labels", *labels, "--model", tmp_path / "model"],
        *["--templates", "the {}", "-k", "2"],
    )
    asked = {"labels": labels, "templates": ["the {}"], "k": 2}
    images = [base64_of(Path(name).read_bytes()) for name in names]
    found = client.post("/classify", json={**asked, "images": images}).json()
    numbered = [{**row, "path": f"images[{names.index(row['path'])}]"} for row in wanted]
    assert same_rows(found, numbered)


def test_embed_gives_the_embedders_vectors(client: TestClient, tiny_embedder: Embedder):
    found = client.post("/embed", json={"texts": ["犬", "a dog"], "images": [base64_of(png(1))]}).json()
    assert found["texts"] == [pytest.approx(v, abs=1e-6) for v in tiny_embedder.embed_texts(["犬", "a dog"]).tolist()]
    assert found["images"] == [pytest.approx(v, abs=1e-6) for v in tiny_embedder.embed_images([png(1)]).tolist()]
    assert (found["model"], found["fingerprint"]) == ("tiny", tiny_embedder.fingerprint)


def test_readiness_embeds_a_new_image_each_time(
    client: TestClient, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    inner = Embedder.embed_pixels
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, pixels: sizes.append(len(pixels)) or inner(self, pixels))
    start = time.perf_counter()
    answers = [client.get("/ready").json() for _ in range(2)]
    assert sizes == [1, 1]
    assert 0 < sum(answer["milliseconds"] for answer in answers) < 1000 * (time.perf_counter() - start)
    for answer in answers:
        assert (answer["status"], answer["model"], answer["indexed"]) == ("ok", "tiny", 6)
        assert (answer["embed_dim"], answer["device"]) == (24, "cpu")
        assert answer["fingerprint"] == tiny_embedder.fingerprint


@pytest.mark.parametrize("factor", [float("nan"), 2.0, 0.5])
def test_readiness_fails_when_the_model_does(client: TestClient, monkeypatch: pytest.MonkeyPatch, factor: float):
    inner = Embedder.embed_pixels
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, pixels: inner(self, pixels) * factor)
    answer = client.get("/ready")
    assert answer.status_code == 500
    assert str(factor) not in answer.text


def test_a_search_that_finds_nothing_says_whether_there_was_anything(
    client: TestClient, tiny_embedder: Embedder, tmp_path: Path
):
    answer = client.post("/search", json={"text": "a dog", "glob": "nowhere/*"})
    assert (answer.status_code, answer.json(), answer.headers["No-Good-Match"]) == (200, [], "false")
    with TestClient(create_app(Service(tiny_embedder, tmp_path / "empty.index"))) as empty:
        line = "The index has no images for this model. Run vlm index with it first."
        assert empty.post("/search", json={"text": "a dog"}).json() == {"error": line}


@pytest.mark.parametrize(("bias", "none_is_good"), [(-30, "true"), (30, "false")])
def test_the_header_says_when_even_the_best_is_no_good_match(
    tiny_embedder: Embedder, photos: Path, bias: float, none_is_good: str
):
    tiny_embedder.calibration = Calibration(scale=20, bias=bias)
    with TestClient(create_app(Service(tiny_embedder, photos))) as client:
        answer = client.post("/search", json={"text": "a dog"})
        assert len(answer.json()) == 6
        assert answer.headers["No-Good-Match"] == none_is_good
        answer = client.post("/search", json={"image": base64_of(png())})
        assert answer.headers["No-Good-Match"] == "false"  # of an image nobody can say


def test_what_a_request_holds_is_embedded_in_one_batch_and_remembered(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    given: list[int | list[str]] = []
    pixels, texts = Embedder.embed_pixels, Embedder.embed_texts
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, those: given.append(len(those)) or pixels(self, those))
    monkeypatch.setattr(Embedder, "embed_texts", lambda self, those, size: given.append(those) or texts(self, those))
    terms = [
        {"text": "a dog"},
        {"image": base64_of(png(1))},
        {"text": "a cat", "weight": 2},
        {"image": base64_of(png(2))},
    ]
    requests: list[tuple[dict[str, Any], list[int | list[str]]]] = [
        ({"terms": terms}, [["a dog", "a cat"], 2]),
        ({"terms": terms[:2]}, []),
        ({"text": "a dog + 2*a bird - a cat"}, [["a bird"]]),
        ({"image": base64_of(png(3))}, [1]),
        ({"image": base64_of(png(2))}, []),
    ]
    for asked, wanted in requests:
        given.clear()
        assert client.post("/search", json=asked).status_code == 200
        assert sorted(given, key=str) == sorted(wanted, key=str)


def test_a_image_that_cannot_be_read_is_named_by_its_place_or_its_file(client: TestClient):
    good, bad = base64_of(png()), base64_of(b"hello")
    for url, asked, place in [
        ("/search", {"image": bad}, "image[0]"),
        ("/search", {"terms": [{"text": "a"}, {"image": good}, {"image": bad}]}, "image[1]"),
        ("/classify", {"labels": ["犬"], "images": [good, good, bad]}, "images[2]"),
        ("/embed", {"images": [good, bad]}, "images[1]"),
    ]:
        answer = client.post(url, json=asked)
        assert (answer.status_code, answer.json()["error"].split(": ")[:2]) == (400, [place, "not an image"])
    files = [("images", (name, data)) for name, data in (("a.png", png()), ("b.png", b"hello"))]
    assert client.post("/embed", files=files).json()["error"].startswith("b.png: not an image")


def test_a_image_may_have_as_many_pixels_as_were_allowed_and_no_more(tiny_embedder: Embedder):
    service, usual = Service(tiny_embedder, max_pixels=24 * 24), Service(tiny_embedder)
    assert asyncio.run(service.embed_all_images([UploadedImage(png(side=24))])).shape == (1, 24)
    with pytest.raises(ImageError, match=r"^images\[0\]: too many pixels.*25 x 25.*576"):
        asyncio.run(service.embed_all_images([UploadedImage(png(side=25))]))
    wide, file = Image.new("1", (40, 1_000_001)), io.BytesIO()
    wide.save(file, "PNG")
    with pytest.raises(ImageError, match=r"40 x 1000001 .*40,000,000"):  # docs/server.md
        asyncio.run(usual.embed_all_images([UploadedImage(file.getvalue())]))
    service.close()
    usual.close()


def test_labels_times_templates_are_at_most_ten_thousand(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    labels, templates = [f"{n}" for n in range(143)], [f"{{}} {n}" for n in range(70)]
    asked = {"images": [base64_of(png())], "labels": labels, "templates": templates}
    line = "labels x templates is 10,010, at most 10,000. Send fewer of either."  # docs/server.md
    assert client.post("/classify", json=asked).json() == {"error": line}
    monkeypatch.setattr("vlm.serving.service.MAX_SENTENCES", 6)
    for few, status in ((2, 200), (3, 400)):
        asked = {**asked, "labels": labels[:few], "templates": templates[:3]}
        assert client.post("/classify", json=asked).status_code == status


def test_labels_are_ranked_for_each_image(client: TestClient):
    asked = {"images": [base64_of(png(n)) for n in range(3)], "labels": ["犬", "cat", "鳥", "sea"]}
    every = client.post("/classify", json=asked).json()
    assert [(row["path"], row["rank"]) for row in every] == [
        (f"images[{n}]", rank) for n in range(3) for rank in (1, 2, 3, 4)
    ]
    assert client.post("/classify", json={**asked, "k": 3}).json() == [row for row in every if row["rank"] <= 3]
    for n in range(3):
        scores = [row["score"] for row in every[4 * n : 4 * n + 4]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_without_an_index_search_says_so_and_the_rest_works(tiny_embedder: Embedder):
    with TestClient(create_app(Service(tiny_embedder))) as client:
        assert "no index" in client.post("/search", json={"text": "a dog"}).json()["error"]
        assert client.get("/ready").json()["indexed"] is None
        assert client.post("/embed", json={"texts": ["a dog"]}).status_code == 200


def test_what_is_added_to_the_index_meanwhile_is_found(
    client: TestClient, photos: Path, tiny_embedder: Embedder, image_folder: Path
):
    (image_folder / "new.png").write_bytes(png(9))
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        index.add_folder(image_folder, workers=1)
    found = client.post("/search", json={"image": base64_of(png(9)), "k": 1}).json()
    assert found[0]["path"] == str(image_folder / "new.png")


def test_nobody_gets_the_answer_of_another(tiny_embedder: Embedder):
    """120 requests at once, texts and images, each with its own; broken images in between."""
    texts = [f"a dog {n}" for n in range(40)]
    vectors, shades = tiny_embedder.embed_texts(texts), tiny_embedder.embed_images([png(n) for n in range(40)])
    service = Service(tiny_embedder)

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as many:
            asked: list[dict[str, Any]] = []
            for n in range(40):
                asked += [{"texts": [texts[n]]}, {"images": [base64_of(png(n))]}, {"images": [base64_of(b"no")]}]
            return await asyncio.gather(*(many.post("/embed", json=body) for body in asked))

    answers = asyncio.run(ask_all())
    service.close()
    for n in range(40):
        text, image, broken = answers[3 * n : 3 * n + 3]
        assert text.json()["texts"][0] == pytest.approx(vectors[n].tolist(), abs=1e-6)
        assert image.json()["images"][0] == pytest.approx(shades[n].tolist(), abs=1e-6)
        assert broken.status_code == 400
        assert "images[0]: not an image" in broken.json()["error"]
