import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.config import PreprocessConfig, VisionConfig
from vlm.images.preprocess import Preprocess
from vlm.metrics import expected_calibration_error, top_k_accuracy
from vlm.models.vision import ViTClassifier
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
    assert run(*where, "--split", "validation", "--held-out", "5") == 0
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert (found["split"], found["temperature_fitted_on"]) == ("validation", "validation, 5 held out")
    assert (found["classifier"], found["data"]) == (str(trained), data)
    model = load_classifier(trained)
    assert model.preprocess
    held_out = open_labelled(data, "validation", ClassSet(keys=model.labels, column="concept")).hold_out(5)[1]
    answers = ask(model, model.preprocess, held_out, what="x")
    assert found["temperature"] == pytest.approx(fit_temperature(answers.outputs, answers.targets).value)
    assert "a little too good" not in (out / "README.md").read_text(encoding="utf-8")


def test_what_does_not_fit_is_one_line_and_exit_code_1(
    trained: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = (trained, run_folder / "data.parquet", "--out", tmp_path / "report")
    assert run(*words, "--split", "test", "--label", "concept") == 1
    assert run(*words, "--split", "train", "--classes", "animals") == 1
    errors = capsys.readouterr().err
    assert errors.count("vlm: error: ") == errors.count("\n") == 2
    assert not (tmp_path / "report").exists()
