import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.embedder import Embedder
from vlm.metrics import balanced_accuracy
from vlm.training.data.labelled import ClassSet, Labelled, classes_of, open_labelled
from vlm.training.measure.heads import STRENGTHS, Probe, Row, as_linear, classifier_rows, draw, fit, table
from vlm.zero_shot import classifier_from_names, classify


def problem(classes: int, n: int = 90, width: int = 6) -> tuple[Tensor, Tensor]:
    """Features around one centre per class, far from unit scale."""
    generator = torch.Generator().manual_seed(classes)
    targets = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = centres[targets] + torch.randn(n, width, generator=generator)
    return features * torch.logspace(-1, 1, width) + 5, targets


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression(classes: int, strength: float):
    features, targets = problem(classes)
    scaled = StandardScaler().fit_transform(features.double().numpy())
    expected = LogisticRegression(C=strength, max_iter=5000).fit(scaled, targets.numpy()).predict_proba(scaled)
    with torch.no_grad():
        found = as_linear(fit(features, targets, strength), classes)(features).softmax(1)
    assert np.abs(found.numpy() - expected).max() < 1e-5


def test_a_class_without_training_images_is_refused():
    features, targets = problem(3)
    with pytest.raises(ValueError, match="show 3 of 4 classes"):
        as_linear(fit(features, targets, 1.0), 4)


def test_a_draw_holds_so_many_images_of_each_class_and_depends_on_its_seed_alone():
    targets = torch.tensor([0, 1, 2, 2, 1, 0, 2, 1, 0, 2])
    drawn = [draw(targets, 3, 2, seed) for seed in range(20)]
    assert all(targets[index].tolist() == [0, 0, 1, 1, 2, 2] and len(set(index.tolist())) == 6 for index in drawn)
    assert len({tuple(index.tolist()) for index in drawn}) > 5
    assert torch.equal(draw(targets, 3, 2, 7), drawn[7])
    with pytest.raises(ValueError, match="Class 0 has 3 training images; few-shot wanted 4 of each"):
        draw(targets, 3, 4, 0)


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
def probe(tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled) -> Probe:
    return Probe(tiny_embedder, classes, train, {"validation": validation})


def validation_of(data: Labelled, count: int) -> Labelled:
    """So many of the images, all classes in them."""
    return replace(data, index=data.index[:count], targets=data.targets[:count])


def test_features_are_those_before_the_projection(probe: Probe, validation: Labelled, tiny_embedder: Embedder):
    rows, index = validation.rows, validation.index
    pixels = torch.stack([tiny_embedder.preprocess(rows.image(i)) for i in index])
    with torch.no_grad():
        torch.testing.assert_close(probe.choose.outputs, tiny_embedder.model.vision(pixels))


def test_the_zero_shot_row_is_what_classify_scores(probe: Probe, validation: Labelled, tiny_embedder: Embedder):
    (row,) = probe.zero_shot()
    rows, index = validation.rows, validation.index
    answers = classify(tiny_embedder, [rows.image(i) for i in index], probe.classes.names["en"])
    targets = torch.tensor([probe.classes.keys.index(rows.label(i) or "") for i in index])
    assert row.method == "zero-shot, en"
    assert row.top_1 == pytest.approx(float((answers.argmax(1) == targets).double().mean()))
    assert row.balanced == pytest.approx(balanced_accuracy(answers, targets))
    assert (row.chance, row.n) == (1 / 20, 12)


def test_few_shot_numbers_are_mean_and_standard_deviation_over_the_draws(probe: Probe):
    (row,) = probe.few_shot([2], draws=3)
    strength, targets = float(row.note.split()[1].rstrip(",")), probe.train.targets
    scores, recalls = [], []
    for seed in range(3):
        index = draw(targets, 20, 2, seed)
        with torch.no_grad():
            answers = as_linear(fit(probe.train.outputs[index], targets[index], strength), 20)(probe.choose.outputs)
        scores.append(float((answers.argmax(1) == probe.choose.targets).double().mean()))
        recalls.append(balanced_accuracy(answers, probe.choose.targets))
    assert row.top_1 == pytest.approx(statistics.mean(scores))
    assert row.spread == row.plain()["spread"] == pytest.approx(statistics.stdev(scores))
    assert row.balanced == pytest.approx(statistics.mean(recalls))


def test_c_is_the_best_on_the_split_that_chooses_and_every_split_is_scored(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled
):
    probe = Probe(tiny_embedder, classes, validation_of(train, 40), {"seen": train, "validation": validation})

    def score(head: nn.Linear, split: str) -> float:
        with torch.no_grad():
            return float((head(probe.splits[split].outputs).argmax(1) == probe.splits[split].targets).double().mean())

    heads = {c: as_linear(fit(probe.train.outputs, probe.train.targets, c), 20) for c in STRENGTHS}
    head, strength = probe.fit_linear()
    scores = {c: score(heads[c], "seen") for c in STRENGTHS}
    assert strength == max(scores, key=scores.__getitem__) and scores[STRENGTHS[0]] < scores[strength]
    torch.testing.assert_close(head.weight, heads[strength].weight)
    rows = probe.rows("mine", [head], "")
    assert [(row.split, row.n) for row in rows] == [("seen", 48), ("validation", 12)]
    assert [row.top_1 for row in rows] == [pytest.approx(score(head, split)) for split in ("seen", "validation")]


def test_few_shot_rows_give_mean_and_spread_over_the_draws(probe: Probe):
    one, two = probe.few_shot([1, 2], draws=3)
    assert (one.method, two.method) == ("few-shot, 1 per class", "few-shot, 2 per class")
    assert one.spread >= 0
    assert "3 draws" in one.note
    (single,) = probe.few_shot([1], draws=1)
    assert single.plain()["spread"] is None
    assert "few-shot, 1 per class" in table([one, two, single])


def test_the_saved_linear_probe_scores_in_the_table_as_the_probe_itself(
    probe: Probe, validation: Labelled, tmp_path: Path
):
    linear, strength = probe.fit_linear()
    (expected,) = probe.rows("linear probe", [linear], f"C {strength:g}")
    save(probe.classifier(linear, probe.classes.words("en")), tmp_path / "linear")
    (row,) = classifier_rows(str(tmp_path / "linear"), probe.classes, {"validation": validation})
    assert (row.top_1, row.balanced, row.n) == (expected.top_1, expected.balanced, expected.n)
    assert row.method == "classifier linear"
    linear.weight.data, linear.bias.data = linear.weight.flip(0), linear.bias.flip(0)
    save(probe.classifier(linear, probe.classes.words("en")[::-1]), tmp_path / "reversed")
    (row,) = classifier_rows(str(tmp_path / "reversed"), probe.classes, {"validation": validation})
    assert (row.top_1, row.balanced) == (expected.top_1, expected.balanced)


def test_a_model_that_does_not_say_how_it_reads_images_is_refused(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled, tmp_path: Path
):
    model = classifier_from_names(tiny_embedder, classes.words("en"))
    model.preprocess = None
    with pytest.raises(ValueError, match=r"^The model came without preprocessing settings, so it cannot read"):
        Probe(model, classes, train, {"validation": validation})
    save(model, tmp_path / "vit")
    with pytest.raises(ValueError, match="vit came without preprocessing settings, so it cannot read images"):
        classifier_rows(str(tmp_path / "vit"), classes, {"validation": validation})


def test_a_table_has_its_numbers_under_their_names_and_no_spread_of_one():
    rows = [Row("a", "b", 0.9876, 0.0123, 0.5, 0.25, 57, "how"), Row("c", "d", 0.5, math.nan, 0.4, 0.3, 6, "")]
    head, one, two = table(rows).splitlines()
    assert one.split() == ["a", "b", "0.988", "0.012", "0.500", "0.250", "57", "how"]
    assert two.split() == ["c", "d", "0.500", "0.400", "0.300", "6"]
    for name, number in zip(head.split()[2:7], one.split()[2:7], strict=True):
        assert head.index(f" {name} ") + len(name) == one.index(f" {number} ") + len(number)
    assert [row.plain()["spread"] for row in rows] == [0.0123, None]


def test_a_classifier_is_probed_without_a_zero_shot_row(
    tiny_embedder: Embedder, classes: ClassSet, train: Labelled, validation: Labelled, tmp_path: Path
):
    save(classifier_from_names(tiny_embedder, ["dog", "cat"]), tmp_path / "vit")
    probe = Probe(load_classifier(tmp_path / "vit"), classes, train, {"validation": validation})
    assert probe.zero_shot() == []
    assert probe.train.outputs.shape == (48, 32)
