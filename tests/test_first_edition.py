"""What version 0.1.0 wrote (fixtures/make_first_edition.py made it with commit 108aa73) opens as it is."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from vlm.cli import main

ARCHIVE = Path(__file__).parent / "fixtures" / "first_edition.tar.xz"
TEXTS = ["赤犬", "a red dog"]


@pytest.fixture
def first_edition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs, index, recipes and data of 0.1.0 as the working directory."""
    with tarfile.open(ARCHIVE) as packed:
        packed.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / "first_edition")
    return tmp_path / "first_edition"


def expected(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def test_models_of_the_first_edition_compute_what_they_computed(first_edition: Path) -> None:
    embedder, computed = vlm.load("run", device="cpu"), expected(first_edition)
    assert embedder.fingerprint == computed["fingerprint"]
    torch.testing.assert_close(embedder.embed_texts(TEXTS), torch.tensor(computed["texts"]), atol=1e-5, rtol=0)
    image = embedder.embed_images(["photos/a.png"])[0]
    torch.testing.assert_close(image, torch.tensor(computed["image"]), atol=1e-5, rtol=0)
    classifier = vlm.load_classifier("vit-run", device="cpu")
    with torch.inference_mode():
        logits = classifier(classifier.prepare()("photos/a.png")[None])[0]
    torch.testing.assert_close(logits, torch.tensor(computed["logits"]), atol=1e-5, rtol=0)


def test_an_index_of_the_first_edition_answers_and_follows_its_folder(first_edition: Path) -> None:
    computed = expected(first_edition)
    with vlm.EmbeddingIndex.open("photos.index", vlm.load("run", device="cpu")) as index:
        found = index.search(TEXTS[0], k=3)
        assert [hit.path.name for hit in found] == [name for name, _ in computed["hits"]]
        assert [hit.score for hit in found] == pytest.approx([score for _, score in computed["hits"]], abs=1e-3)
    assert main(["index", "--index", "photos.index", "--move", computed["photos"], str(first_edition / "photos")]) == 0
    with vlm.EmbeddingIndex.open("photos.index", vlm.load("run", device="cpu")) as index:
        added = index.add_folder("photos", workers=1)
        assert (added.embedded, len(index)) == (0, 3)


@pytest.mark.long
@pytest.mark.parametrize(("recipe", "run"), [("clip.toml", "run"), ("vit.toml", "vit-run")])
def test_a_stopped_run_of_the_first_edition_goes_on(first_edition: Path, recipe: str, run: str) -> None:
    """From step 4 of 6, with the recipe as it was written then."""
    rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    for name in ("model.safetensors", "manifest.json", "config.json", "README.md"):
        Path(run, name).unlink()  # a run writes its model when it ends
    lines = [row for row in rows if row["step"] <= 4]
    Path(run, "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in lines), encoding="utf-8")
    assert main(["train", recipe, "--out", run, "--resume", "auto"]) == 0
    again = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    gone_on = {row["step"]: row["loss"] for row in again if "loss" in row}
    assert gone_on.keys() == losses.keys()
    assert gone_on == pytest.approx(losses, rel=2e-3)
    opened = vlm.load(run, device="cpu") if run == "run" else vlm.load_classifier(run, device="cpu")
    assert opened
