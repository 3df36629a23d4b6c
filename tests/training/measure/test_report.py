import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.support.check_sets import encoded
from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.config import PreprocessConfig, VisionConfig
from vlm.images.preprocess import Preprocess
from vlm.metrics import expected_calibration_error, top_k_accuracy
from vlm.models.vision import ViTClassifier
from vlm.training import VitRecipe, train
from vlm.training.data.labelled import ClassSet, ask, classes_of, open_labelled
from vlm.training.measure.classifier_metrics import Temperature, fit_temperature


@pytest.fixture
def trained(run_folder: Path, tmp_path: Path) -> Path:
    """A classifier of the 12 concepts of the validation split, with Japanese among its labels' letters."""
    keys = classes_of(str(run_folder / "data.parquet"), "validation", "concept").keys
    config = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=16)
    torch.manual_seed(0)
    preprocess = Preprocess(PreprocessConfig(image_size=16, resize="squash"))
    model = ViTClassifier(config, len(keys), labels=keys, preprocess=preprocess)
    torch.nn.init.normal_(model.head.weight)
    save(model, tmp_path / "vit")
    return tmp_path / "vit"


def run(*words: object) -> int:
    return main(["report", *map(str, words)])


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_report_holds_the_numbers_of_the_classifier_and_all_its_images(
    trained: Path,
    run_folder: Path,
    tmp_path: Path,
    language: str,
    capsys: pytest.CaptureFixture[str],
):
    data, out = str(run_folder / "data.parquet"), tmp_path / "report"
    words = (trained, data, "--label", "concept", "--lang", language, "--out", out)
    assert run(*words, "--split", "train", "--fit-split", "validation", "--json") == 0
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == found

    model = load_classifier(trained)
    assert model.preprocess
    answers = ask(
        model, model.preprocess, open_labelled(data, "train", ClassSet(keys=model.labels, column="concept")), what="x"
    )
    assert found["n"] == len(answers.targets)
    assert found["n"] + sum(found["left_out"].values()) == 48
    for k in (1, 5):
        value = top_k_accuracy(answers.outputs, answers.targets, k)
        assert found[f"top_{k}"] == {"value": pytest.approx(value), "chance": k / 12}
    probabilities = answers.outputs.softmax(1)
    assert found["expected_calibration_error"] == pytest.approx(
        expected_calibration_error(probabilities, answers.targets)
    )
    assert (found["split"], found["temperature_fitted_on"]) == ("train", "validation")
    for name in ("confusion", "reliability", "most-wrong"):
        with Image.open(out / f"{name}.png") as image:
            assert len(image.convert("RGB").getcolors(1 << 20) or []) > 5
    assert f"{found['top_1']['value']:.3f} | {1 / 12:.3f}" in (out / "README.md").read_text(encoding="utf-8")


def test_where_the_temperature_saw_the_measured_images_the_card_says_so(
    trained: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = (trained, run_folder / "data.parquet", "--label", "concept", "--out", tmp_path / "report")
    assert run(*words, "--split", "validation") == 0
    assert "a little too good" in (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    before, after = (part["expected_calibration_error"] for part in (found, found["with_temperature"]))
    temperature = Temperature(found["temperature"], found["temperature_at_limit"])
    fitted = f"at temperature {temperature} fitted on validation"
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["top-1", f"{found['top_1']['value']:.3f}", "chance", f"{1 / 12:.3f}"],
        ["top-5", f"{found['top_5']['value']:.3f}", "chance", f"{5 / 12:.3f}"],
        ["balanced", "accuracy", f"{found['balanced_accuracy']['value']:.3f}", "chance", f"{1 / 12:.3f}"],
        f"calibration error {before:.3f} {after:.3f} {fitted}".split(),
        [f"{found['n']}", *f"images of validation; all of it in {tmp_path / 'report'}".split()],
    ]


def test_the_temperature_may_be_fitted_to_what_was_held_out(trained: Path, run_folder: Path, tmp_path: Path):
    data, out = str(run_folder / "data.parquet"), tmp_path / "report"
    where = (trained, data, "--label", "concept", "--out", out)
    assert run(*where, "--split", "validation", "--fit-split", "train", "--held-out", "12") == 0
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (found["split"], found["temperature_fitted_on"]) == ("validation", "train, 12 held out")
    assert (found["classifier"], found["data"]) == (str(trained), data)
    model = load_classifier(trained)
    assert model.preprocess
    held_out = open_labelled(data, "train", ClassSet(keys=model.labels, column="concept")).hold_out(12)[1]
    answers = ask(model, model.preprocess, held_out, what="x")
    assert found["temperature"] == pytest.approx(fit_temperature(answers.outputs, answers.targets).value)
    assert "a little too good" not in (out / "README.md").read_text(encoding="utf-8")


SMALL = {"image_size": 16, "patch_size": 8, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16}


def write_photos(folder: Path) -> Path:
    """Three class folders of ten noisy images."""
    rng = np.random.default_rng(0)
    for level, name in ((40, "red"), (120, "green"), (200, "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            image = np.clip(rng.normal(level, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("held_out", [6, 9])
def test_the_held_out_part_of_a_run_is_measured_without_being_named(tmp_path: Path, held_out: int):
    """A flat folder has no split to name: all of it would have the training images in it."""
    photos = write_photos(tmp_path / "photos")
    settings = {
        "model": {"vision": SMALL},
        "data": {"train": str(photos), "held_out": held_out, "workers": 0},
        "run": {"steps": 1, "batch_size": 4},
    }  # fmt: skip
    assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    for words in ((), (photos,)):
        assert run(tmp_path / "run", *words, "--out", tmp_path / "report") == 0
        found = json.loads((tmp_path / "report/metrics.json").read_text(encoding="utf-8"))
        assert (found["n"], found["split"], found["data"]) == (held_out, f"{held_out} held out", str(photos))
    data = open_labelled(str(photos), None, classes_of(str(photos)))
    held = data.hold_out(held_out)[1]
    model = load_classifier(tmp_path / "run")
    answers = ask(model, model.prepare(), held, what="x")
    assert found["top_1"]["value"] == pytest.approx(top_k_accuracy(answers.outputs, answers.targets))


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_labels_that_have_changed_since_the_training_are_refused(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
):
    photos = write_photos(tmp_path / "photos")
    settings = {
        "model": {"vision": SMALL},
        "data": {"train": str(photos), "held_out": 6, "workers": 0},
        "run": {"steps": 1, "batch_size": 4},
    }  # fmt: skip
    assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    if change == "rename":
        (photos / "blue").rename(photos / "sky blue")
    else:
        shutil.rmtree(photos / "blue")
    assert run(tmp_path / "run", "--out", tmp_path / "report") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "blue" in error and "changed" in error


def test_without_a_run_the_part_to_measure_is_asked_for(
    trained: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(trained, run_folder / "data.parquet", "--out", tmp_path / "report") == 1
    assert "--split" in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_multi_label_and_regression_models_have_reports_of_their_own(tmp_path: Path, problem: str):
    rng, rows = np.random.default_rng(0), []
    for _ in range(30):
        level = int(rng.integers(0, 256))
        image = encoded(Image.new("RGB", (16, 16), (level, 255 - level, 128)))
        labels = ["bright"] * (level > 127) + ["any"]
        label = labels if problem == "multi_label" else level / 10
        rows.append({"image": {"bytes": image, "path": None}, "label": label})
    data = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    settings = {
        "model": {"vision": SMALL | {"width": 16, "mlp_dim": 32}},
        "data": {"train": str(data), "held_out": 10, "workers": 0, "columns": {"label": "label"}},
        "loss": {"problem": problem},
        "optim": {"warmup_steps": 1, "lr": 0.01},
        "run": {"steps": 40, "batch_size": 10, "eval_every": 40, "save_every": 40},
    }  # fmt: skip
    assert train(VitRecipe.from_dict(settings), tmp_path / "run")
    model = load_classifier(tmp_path / "run")
    assert model.problem == problem
    assert run(tmp_path / "run", "--out", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report/metrics.json").read_text(encoding="utf-8"))
    card = (tmp_path / "run/README.md").read_text(encoding="utf-8")
    assert found["n"] == 10
    if problem == "multi_label":
        assert model.labels == ("any", "bright") and len(model.thresholds or ()) == 2
        assert found["mAP"]["value"] > found["mAP"]["chance"] + 0.1 and f"{found['mAP']['value']:.3f}" in card
    else:
        (row,) = found["values"]
        assert row["MAE"] < 0.7 * row["MAE_of_the_mean"] and f"{row['MAE']:.3f}" in card
        ((name, value),) = model.predict(rows[0]["image"]["bytes"])[0]
        assert name == "label" and abs(value - rows[0]["label"]) < 10


def test_what_does_not_fit_is_one_line_and_exit_code_1(
    trained: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = (trained, run_folder / "data.parquet", "--out", tmp_path / "report")
    assert run(*words, "--split", "test", "--label", "concept") == 1
    assert run(*words, "--split", "train", "--classes", "animals") == 1
    errors = capsys.readouterr().err
    assert errors.count("vlm: error: ") == errors.count("\n") == 2
    assert not (tmp_path / "report").exists()
