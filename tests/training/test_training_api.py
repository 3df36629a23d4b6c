"""`vlm.training` from Python: recipes are objects, nothing is a command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlm
from tests.support.tiny_run import RECIPE, VIT_RECIPE
from vlm import training
from vlm.embedder import Embedder
from vlm.errors import DataError, RecipeError
from vlm.training.engine.curves import read_metrics


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six images and a table with one caption for each."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    lines = ["file_name,caption"]
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,image number {number}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def sections(kind: dict, run_folder: Path, **data: object) -> dict:
    model = {"tokenizer": str(run_folder / "tokenizer")} if kind is RECIPE else {}
    return {
        **kind,
        "model": kind["model"] | model,
        "data": kind["data"] | {"train": str(run_folder / "data.parquet")} | data,
        "run": kind["run"] | {"steps": 10, "eval_every": 10, "save_every": 5},
    }


def test_ten_steps_of_a_clip_make_a_model_and_a_recipe_that_repeats_them(run_folder: Path, tmp_path: Path):
    recipe = training.Recipe.from_dict(sections(RECIPE, run_folder))
    assert training.train(recipe, tmp_path / "model", device="cpu")
    assert read_metrics(tmp_path / "model" / "metrics.jsonl")["loss"][-1][0] == 10
    assert vlm.load(tmp_path / "model").embed_texts(["a red dog"]).shape == (1, 8)
    assert training.read_recipe(tmp_path / "model" / "recipe.toml") == recipe


def test_ten_steps_of_a_classifier(run_folder: Path, tmp_path: Path):
    recipe = training.VitRecipe.from_dict(sections(VIT_RECIPE, run_folder))
    assert training.train(recipe, str(tmp_path / "model"), device="cpu")
    assert "red dog" in vlm.load_classifier(tmp_path / "model").labels


def test_a_stopped_run_is_false_and_goes_on(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = training.Recipe.from_dict(sections(RECIPE, run_folder))
    with monkeypatch.context() as stopped:
        stopped.setattr("vlm.training.tasks.train.fit", lambda *words, **more: False)
        stopped.setattr("vlm.training.tasks.train.draw_curves", lambda out: None)
        assert not training.train(recipe, tmp_path / "model", device="cpu")
    assert training.train(recipe, tmp_path / "model", device="cpu", resume=True)


def test_what_cannot_be_used_is_an_error_of_its_kind(tmp_path: Path):
    with pytest.raises(RecipeError, match="train"):
        training.train(training.Recipe(), tmp_path / "model", device="cpu")
    with pytest.raises(DataError, match="nowhere"):
        training.check(tmp_path / "nowhere")


def test_evaluate_takes_an_embedder_or_a_folder(tiny_embedder: Embedder, photos: Path, tmp_path: Path):
    vlm.save(tiny_embedder, tmp_path / "model")
    found = training.evaluate(tiny_embedder, photos)
    assert [row._asdict() for row in training.evaluate(tmp_path / "model", str(photos))] == [
        row._asdict() for row in found
    ]
    images = tiny_embedder.embed_images([photos / f"{number}.png" for number in range(6)])
    scores = tiny_embedder.embed_texts([f"image number {number}" for number in range(6)]) @ images.T
    first = next(row for row in found if row.task == "text->image R@1")
    assert first.value == pytest.approx(float((scores.argmax(1).numpy() == np.arange(6)).mean()), abs=1e-6)
    assert first.n == 6 and first.chance == pytest.approx(1 / 6)


def test_check_takes_one_data_set_or_several(photos: Path, tmp_path: Path):
    (photos / "1.png").write_bytes(b"no image")
    alone = training.check(photos, out=tmp_path / "found")
    assert (tmp_path / "found" / "check.json").exists()
    assert any("1 " in finding["text"] and "broken" in finding["text"].lower() for finding in alone["findings"])
    assert training.check([photos])["findings"] != []


def test_importing_it_does_not_import_torch():
    code = "import sys, vlm.training as t; t.train, t.check, t.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_lists_what_it_offers():
    assert sorted(training.__all__) == training.__all__
    assert all(getattr(training, name).__name__ for name in training.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        training.trian  # type: ignore[attr-defined]  # noqa: B018
