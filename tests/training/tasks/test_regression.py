"""Regression against scikit-learn: a head on frozen features is linear regression."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, r2_score

import vlm
from tests.support.check_sets import encoded
from vlm.checkpoint.save import save
from vlm.training import VitRecipe, train
from vlm.training.data.labelled import ask
from vlm.training.data.targets import open_classifier_data
from vlm.training.measure.report import evaluate_classifier


def write_images(path: Path) -> Path:
    """120 images whose price follows from their colours, with noise."""
    rng, rows = np.random.default_rng(0), []
    for number in range(120):
        colour = rng.integers(0, 256, 3)
        pixels = np.clip(rng.normal(colour, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
        price = 1000 + 3 * colour[0] - 2 * colour[2] + rng.normal(0, 30)
        split = "train" if number < 80 else "validation"
        image = {"bytes": encoded(Image.fromarray(pixels)), "path": None}
        rows.append({"image": image, "price": float(price), "split": split})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.long
def test_a_regression_head_predicts_as_scikit_learns_linear_regression(tiny_embedder: vlm.Embedder, tmp_path: Path):
    save(tiny_embedder, tmp_path / "clip")
    data = write_images(tmp_path / "data.parquet")
    recipe = VitRecipe.from_dict({
        "model": {"source": str(tmp_path / "clip"), "train_blocks": 0},
        "data": {"train": str(data), "train_splits": ["train"], "validation_split": "validation", "workers": 0,
                 "columns": {"label": "price"}},
        "loss": {"problem": "regression"},
        "optim": {"matrices": "adamw", "lr": 0.05, "weight_decay": 0.0, "warmup_steps": 5, "final_lr": 0.0,
                  "clip_norm": 1e9},
        "run": {"steps": 60, "batch_size": 40, "eval_every": 60, "save_every": 60},
    })  # fmt: skip
    assert train(recipe, tmp_path / "run")
    ours = vlm.load_classifier(tmp_path / "run")

    opened = open_classifier_data(recipe.data, "regression")
    vision, preprocess = tiny_embedder.model.vision, tiny_embedder.preprocess
    seen, unseen = (ask(vision, preprocess, part, what="x") for part in (opened.training, opened.validation))
    theirs = LinearRegression().fit(seen.outputs.double().numpy(), seen.targets.double().numpy())
    expected = theirs.predict(unseen.outputs.double().numpy())
    answers = ask(ours, ours.prepare(), opened.validation, what="x")
    truth = unseen.targets.double().numpy()
    difference = np.abs(answers.outputs.double().numpy() - expected).mean()
    assert r2_score(truth, expected) > 0.8
    assert difference < 0.25 * mean_absolute_error(truth, np.full_like(truth, truth.mean()))

    (row,) = evaluate_classifier(ours, str(data), splits=["validation"], label="price")["values"]
    values = answers.outputs.double().numpy()
    assert row["MAE"] == pytest.approx(mean_absolute_error(truth, values), rel=1e-4)
    assert row["R2"] == pytest.approx(r2_score(truth, values), rel=1e-4)
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert f"| R2 | en | {row['R2']:.3f} |" in card
    name, value = ours.predict(opened.validation.rows.image(opened.validation.index[0]))[0][0]
    assert (name, value) == ("price", pytest.approx(float(values[0, 0]), rel=1e-4))
