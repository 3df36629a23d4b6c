"""`vlm serve` gives the commands' answers, to many at once."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import base64_of, png
from starlette.testclient import TestClient

from vlm.checkpoint import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.retrieval import EmbeddingIndex
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


def test_a_picture_comes_as_a_file_or_in_base64_and_finds_itself(client: TestClient, picture_folder: Path):
    path = picture_folder / "c.jpg"
    uploaded = client.post("/search", files={"picture": ("c.jpg", path.read_bytes())}, data={"k": "3"}).json()
    sent = client.post("/search", json={"picture": base64_of(path.read_bytes()), "k": 3}).json()
    assert uploaded == sent
    assert len(sent) == 3
    assert sent[0]["path"] == str(path)
    assert sent[0]["score"] == pytest.approx(1, abs=1e-3)


def test_terms_are_a_weighted_sum(client: TestClient, photos: Path, tiny_embedder: Embedder):
    terms = [{"text": "a dog"}, {"picture": base64_of(png(3)), "weight": -0.5}]
    found = client.post("/search", json={"terms": terms}).json()
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        hits = index.search([(1.0, "a dog"), (-0.5, png(3))])
    assert [row["path"] for row in found] == [str(hit.path) for hit in hits]
    assert [row["score"] for row in found] == pytest.approx([hit.score for hit in hits], abs=1e-6)


def test_classify_answers_what_the_command_answers(
    client: TestClient,
    tiny_embedder: Embedder,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save(tiny_embedder, tmp_path / "model")
    monkeypatch.chdir(picture_folder)
    names, labels = ["a.png", "c.jpg"], ["犬", "cat", "鳥"]
    files = [("pictures", (name, Path(name).read_bytes())) for name in names]
    wanted = command(capsys, "classify", *names, "--labels", *labels, "--model", tmp_path / "model")
    assert same_rows(client.post("/classify", files=files, data={"labels": labels}).json(), wanted)
    wanted = command(
        capsys,
        *["classify", *names, "--labels", *labels, "--model", tmp_path / "model"],
        *["--templates", "the {}", "-k", "2"],
    )
    asked = {"labels": labels, "templates": ["the {}"], "k": 2}
    pictures = [base64_of(Path(name).read_bytes()) for name in names]
    found = client.post("/classify", json={**asked, "pictures": pictures}).json()
    numbered = [{**row, "path": f"pictures[{names.index(row['path'])}]"} for row in wanted]
    assert same_rows(found, numbered)


def test_embed_gives_the_embedders_vectors(client: TestClient, tiny_embedder: Embedder):
    found = client.post("/embed", json={"texts": ["犬", "a dog"], "pictures": [base64_of(png(1))]}).json()
    assert found["texts"] == [pytest.approx(v, abs=1e-6) for v in tiny_embedder.embed_texts(["犬", "a dog"]).tolist()]
    assert found["pictures"] == [pytest.approx(v, abs=1e-6) for v in tiny_embedder.embed_images([png(1)]).tolist()]
    assert (found["model"], found["fingerprint"]) == ("tiny", tiny_embedder.fingerprint)


def test_health_embeds_a_new_picture_each_time(
    client: TestClient, tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    inner = Embedder.embed_pixels
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, pixels: sizes.append(len(pixels)) or inner(self, pixels))
    answers = [client.get("/health").json() for _ in range(2)]
    assert sizes == [1, 1]
    for answer in answers:
        assert (answer["status"], answer["model"], answer["indexed"]) == ("ok", "tiny", 6)
        assert answer["fingerprint"] == tiny_embedder.fingerprint


def test_health_fails_when_the_model_does(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    inner = Embedder.embed_pixels
    monkeypatch.setattr(Embedder, "embed_pixels", lambda self, pixels: inner(self, pixels) * float("nan"))
    answer = client.get("/health")
    assert answer.status_code == 500
    assert "nan" not in answer.text


def test_without_an_index_search_says_so_and_the_rest_works(tiny_embedder: Embedder):
    with TestClient(create_app(Service(tiny_embedder))) as client:
        assert "no index" in client.post("/search", json={"text": "a dog"}).json()["error"]
        assert client.get("/health").json()["indexed"] is None
        assert client.post("/embed", json={"texts": ["a dog"]}).status_code == 200


def test_what_is_added_to_the_index_meanwhile_is_found(
    client: TestClient, photos: Path, tiny_embedder: Embedder, picture_folder: Path
):
    (picture_folder / "new.png").write_bytes(png(9))
    with EmbeddingIndex.open(photos, tiny_embedder) as index:
        index.add_folder(picture_folder, workers=1)
    found = client.post("/search", json={"picture": base64_of(png(9)), "k": 1}).json()
    assert found[0]["path"] == str(picture_folder / "new.png")


def test_nobody_gets_the_answer_of_another(tiny_embedder: Embedder):
    """120 requests at once, texts and pictures, each with its own; broken pictures in between."""
    texts = [f"a dog {n}" for n in range(40)]
    vectors, shades = tiny_embedder.embed_texts(texts), tiny_embedder.embed_images([png(n) for n in range(40)])
    service = Service(tiny_embedder)

    async def ask_all() -> list[httpx.Response]:
        door = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=door, base_url="http://localhost") as many:
            asked: list[dict[str, Any]] = []
            for n in range(40):
                asked += [{"texts": [texts[n]]}, {"pictures": [base64_of(png(n))]}, {"pictures": [base64_of(b"no")]}]
            return await asyncio.gather(*(many.post("/embed", json=body) for body in asked))

    answers = asyncio.run(ask_all())
    service.close()
    for n in range(40):
        text, picture, broken = answers[3 * n : 3 * n + 3]
        assert text.json()["texts"][0] == pytest.approx(vectors[n].tolist(), abs=1e-6)
        assert picture.json()["pictures"][0] == pytest.approx(shades[n].tolist(), abs=1e-6)
        assert broken.status_code == 400
        assert "pictures[0]: not a picture" in broken.json()["error"]
