"""training/measure/probe.py and `vlm probe`."""

import json
import math
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.errors import CheckpointError
from vlm.metrics import balanced_accuracy, top_k_accuracy
from vlm.training.data.labelled import ClassSet, Labelled, classes_of, open_labelled
from vlm.training.measure.classifier_metrics import fit_temperature
from vlm.training.measure.heads import (
    as_linear,
    choose_heads,
    draw_shots,
    fit_logistic_regression,
    nearest_neighbours,
)
from vlm.training.measure.probe import FrozenFeatures, ProbeResult, measure_classifier, probe_table
from vlm.zero_shot import classifier_from_names, classify


@pytest.fixture
def clip(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "clip")
    return tmp_path / "clip"


def run(*words: object) -> int:
    return main(["probe", *map(str, words)])


def test_one_command_makes_the_whole_table_and_the_linear_probe_as_a_classifier(
    clip: Path,
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    words = (clip, run_folder / "data.parquet", "--label", "concept", "--shots", 1, 2, 9, "--draws", 2)
    assert run(*words, "--choose", "validation", "--out", tmp_path / "linear", "--json") == 0
    (left_out,) = caplog.messages  # the rarest of the 20 classes has two of the 48 images
    assert "few-shot with 9 images" in left_out and "has 2" in left_out
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == [
        "zero-shot, names",
        "few-shot, 1 per class",
        "few-shot, 2 per class",
        "k-NN",
        "linear probe",
    ]
    assert all(row["chance"] == 1 / 20 and row["n"] == 12 and row["split"] == "validation" for row in rows)
    assert [row["note"].split(", ")[-1] for row in rows] == [
        "default templates",
        "2 draws",
        "2 draws",
        "48 images",
        "48 images",
    ]
    assert len(load_classifier(tmp_path / "linear").labels) == 20

    assert run(tmp_path / "linear", *words[1:], "--choose", "validation", "--json") == 0
    methods = [row["method"] for row in json.loads(capsys.readouterr().out)]
    assert methods == [row["method"] for row in rows[1:]]  # a ViT reads no names

    more = ("--held-out", 8, "--report", "validation", "--shots", "--classifier", tmp_path / "linear")
    assert run(*words, *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[29:41].strip() for line in lines[1:]] == ["held out", "validation"] * 4
    assert all(line.endswith(", 40 images") for line in lines[3:7])  # of 48
    assert [line.split()[-1] for line in lines[7:]] == ["8", "12"]
    assert lines[-1].startswith("classifier linear")
    assert f"{rows[-1]['top_1']:6.3f}" in lines[-1]  # the same images as before


def test_classes_are_named_by_a_set_beside_the_data_in_the_language_asked_for(
    clip: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.copy(run_folder / "data.parquet", tmp_path / "data.parquet")
    names = {"red dog": ("a dog", "犬"), "red cat": ("a cat", "猫"), "red bird": ("a bird", "鳥")}
    few = {key: {"en": [en], "ja": [ja]} for key, (en, ja) in names.items()}
    (tmp_path / "classes.json").write_text(json.dumps({"few": {"by": "concept", "classes": few}}))
    words = (clip, tmp_path / "data.parquet", "--classes", "few", "--shots", "--held-out", 2)
    for language, number in (("en", 0), ("ja", 1)):
        out = tmp_path / language
        assert run(*words, "--lang", language, "--out", out, "--json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["method"] for row in rows] == ["zero-shot, en", "zero-shot, ja", "k-NN", "linear probe"]
        assert all(row["chance"] == 1 / 3 and row["n"] == 2 and row["spread"] is None for row in rows)
        assert load_classifier(out).labels == tuple(pair[number] for pair in names.values())


@pytest.mark.parametrize("words", [(), ("--choose", "validation", "--held-out", 2)])
def test_one_way_to_choose_is_asked_for(capsys: pytest.CaptureFixture[str], words: tuple[object, ...]):
    with pytest.raises(SystemExit) as stopped:
        run("mini", "nowhere", *words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("error: give either --choose SPLIT or --held-out N\n")


def test_what_does_not_fit_is_one_line_and_exit_code_1(
    clip: Path, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = (clip, run_folder / "data.parquet", "--label", "concept")
    assert run(*words, "--choose", "test") == 1
    assert run(tmp_path / "none", *words[1:], "--choose", "validation") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("vlm: error: ")]) == len(errors) == 2


@pytest.mark.parametrize("command", ["probe", "wise_ft", "report", "train_tokenizer"])
def test_help_does_not_wait_for_torch(command: str):
    words = [sys.executable, "-X", "importtime", "-m", f"training.{command}", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "argparse" in done.stderr and "torch" not in done.stderr and "sentencepiece" not in done.stderr


@pytest.fixture
def classes(run_folder: Path) -> ClassSet:
    """20 of them."""
    keys = classes_of(str(run_folder / "data.parquet"), "train", "concept").keys
    return ClassSet(keys=keys, names={"en": tuple(f"a {key}" for key in keys)}, column="concept")


@pytest.fixture
def train(classes: ClassSet, run_folder: Path) -> Labelled:
    """48 images."""
    return open_labelled(str(run_folder / "data.parquet"), "train", classes)


@pytest.fixture
def validation(classes: ClassSet, run_folder: Path) -> Labelled:
    """12 images."""
    return open_labelled(str(run_folder / "data.parquet"), "validation", classes)


@pytest.fixture
def features(tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled) -> FrozenFeatures:
    return FrozenFeatures(tiny_embedder, classes, train, {"validation": validation})


def validation_of(data: Labelled, count: int) -> Labelled:
    """So many of the images, all classes in them."""
    return replace(data, index=data.index[:count], targets=data.targets[:count])


def test_features_are_those_before_the_projection(
    features: FrozenFeatures, validation: Labelled, tiny_embedder: Embedder
):
    rows, index = validation.rows, validation.index
    pixels = torch.stack([tiny_embedder.preprocess(rows.image(i)) for i in index])
    with torch.no_grad():
        torch.testing.assert_close(features.choose.outputs, tiny_embedder.model.vision(pixels))


def test_the_zero_shot_row_is_what_classify_scores(
    features: FrozenFeatures, validation: Labelled, tiny_embedder: Embedder
):
    (row,) = features.zero_shot()
    rows, index = validation.rows, validation.index
    answers = classify(tiny_embedder, [rows.image(i) for i in index], features.classes.names["en"])
    targets = torch.tensor([features.classes.keys.index((rows.labels(i) or [""])[0]) for i in index])
    assert row.method == "zero-shot, en"
    assert row.top_1 == pytest.approx(float((answers.argmax(1) == targets).double().mean()))
    assert row.balanced == pytest.approx(balanced_accuracy(answers, targets))
    assert (row.chance, row.n) == (1 / 20, 12)


def test_few_shot_numbers_are_mean_and_standard_deviation_over_the_draws(features: FrozenFeatures):
    (row,) = features.few_shot([2], draws=3)
    strength, targets = float(row.note.split()[1].rstrip(",")), features.train.targets
    scores, recalls = [], []
    for seed in range(3):
        index = draw_shots(targets, 20, 2, seed)
        with torch.no_grad():
            answers = as_linear(fit_logistic_regression(features.train.outputs[index], targets[index], strength), 20)(
                features.choose.outputs
            )
        scores.append(float((answers.argmax(1) == features.choose.targets).double().mean()))
        recalls.append(balanced_accuracy(answers, features.choose.targets))
    assert row.top_1 == pytest.approx(statistics.mean(scores))
    assert row.spread == row.plain()["spread"] == pytest.approx(statistics.stdev(scores))
    assert row.balanced == pytest.approx(statistics.mean(recalls))


def test_the_first_split_chooses_c_and_every_split_is_measured(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled
):
    measured = {"seen": train, "validation": validation}
    features = FrozenFeatures(tiny_embedder, classes, validation_of(train, 40), measured)
    seen = features.splits["seen"]
    head, c = features.fit_linear()
    (expected,), best = choose_heads([(features.train.outputs, features.train.targets)], seen.outputs, seen.targets, 20)
    assert c == best
    torch.testing.assert_close(head.weight, expected.weight)
    results = features.measure("mine", [head], "")
    assert [(row.split, row.n) for row in results] == [("seen", 48), ("validation", 12)]
    for row in results:
        answers = features.splits[row.split]
        with torch.no_grad():
            right = (head(answers.outputs).argmax(1) == answers.targets).double().mean()
        assert row.top_1 == pytest.approx(float(right))


def test_the_saved_linear_probe_is_calibrated_on_the_split_that_chooses(features: FrozenFeatures):
    linear, _ = features.fit_linear()
    with torch.no_grad():
        logits = linear(features.choose.outputs)
        temperature = fit_temperature(logits, features.choose.targets).value
        saved = features.classifier(linear, features.classes.keys).head(features.choose.outputs)
    torch.testing.assert_close(saved, logits / temperature)
    assert not 0.99 < temperature < 1.01


def test_k_nearest_neighbours_are_a_row_of_the_table(features: FrozenFeatures):
    (row,) = features.k_nearest(3)
    train, choose = features.train, features.choose
    scores = nearest_neighbours(train.outputs, train.targets, choose.outputs, 20, k=3)
    assert row.top_1 == pytest.approx(top_k_accuracy(scores, choose.targets))
    assert (row.method, row.n, row.chance) == ("k-NN", 12, 1 / 20) and math.isnan(row.spread)


def test_few_shot_rows_give_mean_and_spread_over_the_draws(features: FrozenFeatures):
    one, two = features.few_shot([1, 2], draws=3)
    assert (one.method, two.method) == ("few-shot, 1 per class", "few-shot, 2 per class")
    assert one.spread >= 0
    assert "3 draws" in one.note
    (single,) = features.few_shot([1], draws=1)
    assert single.plain()["spread"] is None
    assert "few-shot, 1 per class" in probe_table([one, two, single])


def test_the_saved_linear_probe_scores_in_the_table_as_the_probe_itself(
    features: FrozenFeatures, validation: Labelled, tmp_path: Path
):
    linear, strength = features.fit_linear()
    (expected,) = features.measure("linear probe", [linear], f"C {strength:g}")
    save(features.classifier(linear, features.classes.words("en")), tmp_path / "linear")
    (row,) = measure_classifier(str(tmp_path / "linear"), features.classes, {"validation": validation})
    assert (row.top_1, row.balanced, row.n) == (expected.top_1, expected.balanced, expected.n)
    assert row.method == "classifier linear"
    linear.weight.data, linear.bias.data = linear.weight.flip(0), linear.bias.flip(0)
    save(features.classifier(linear, features.classes.words("en")[::-1]), tmp_path / "reversed")
    (row,) = measure_classifier(str(tmp_path / "reversed"), features.classes, {"validation": validation})
    assert (row.top_1, row.balanced) == (expected.top_1, expected.balanced)


def test_a_model_that_does_not_say_how_it_reads_images_is_refused(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled, tmp_path: Path
):
    model = classifier_from_names(tiny_embedder, classes.words("en"))
    model.preprocess = None
    with pytest.raises(CheckpointError, match="preprocessing"):
        FrozenFeatures(model, classes, train, {"validation": validation})
    save(model, tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"vit .*preprocessing"):
        measure_classifier(str(tmp_path / "vit"), classes, {"validation": validation})


def test_a_table_has_its_numbers_under_their_names_and_no_spread_of_one():
    rows = [
        ProbeResult("a", "b", 0.9876, 0.0123, 0.5, 0.25, 57, "how"),
        ProbeResult("c", "d", 0.5, math.nan, 0.4, 0.3, 6, ""),
    ]
    head, one, two = probe_table(rows).splitlines()
    assert one.split() == ["a", "b", "0.988", "0.012", "0.500", "0.250", "57", "how"]
    assert two.split() == ["c", "d", "0.500", "0.400", "0.300", "6"]
    for name, number in zip(head.split()[2:7], one.split()[2:7], strict=True):
        assert head.index(f" {name} ") + len(name) == one.index(f" {number} ") + len(number)
    assert [row.plain()["spread"] for row in rows] == [0.0123, None]


def test_a_classifier_is_probed_without_a_zero_shot_row(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled, tmp_path: Path
):
    save(classifier_from_names(tiny_embedder, ["dog", "cat"]), tmp_path / "vit")
    features = FrozenFeatures(load_classifier(tmp_path / "vit"), classes, train, {"validation": validation})
    assert features.zero_shot() == []
    assert features.train.outputs.shape == (48, 32)
