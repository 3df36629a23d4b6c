import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from vlm.checkpoint.load import load_classifier
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.config import PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.models.vision import ViTClassifier
from vlm.training.data.labelled import ClassSet, open_labelled
from vlm.training.measure.wise_ft import curve, interpolate
from vlm.zero_shot import classifier_from_names

TINY = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, num_heads=2, mlp_dim=16)
KEYS = ("red cat", "green cat", "blue bird", "black sun")


def classifier(seed: int, config: VisionConfig = TINY, labels: Sequence[str] = KEYS) -> ViTClassifier:
    torch.manual_seed(seed)
    preprocess = Preprocess(PreprocessConfig(image_size=config.image_size, resize="squash"))
    model = ViTClassifier(config, len(labels), labels=labels, preprocess=preprocess)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def bits(model: torch.nn.Module) -> dict[str, bytes]:
    return {name: weight.numpy().tobytes() for name, weight in model.state_dict().items()}


def test_alpha_0_and_1_are_the_two_ends_bit_for_bit():
    start, end = classifier(0), classifier(1)
    with torch.no_grad():
        start.head.bias[:2] = torch.tensor([-0.0, 1e-45])
        end.head.bias[:2] = torch.tensor([1e30, -0.0])
    assert bits(interpolate(start, end, 0)) == bits(start)
    assert bits(interpolate(start, end, 1)) == bits(end)
    assert bits(interpolate(start, end, 0)) != bits(end)


def test_between_the_ends_every_weight_is_the_weighted_mean():
    start, end = classifier(0), classifier(1)
    mixed = interpolate(start, end, 0.3).state_dict()
    for name, weight in start.state_dict().items():
        torch.testing.assert_close(mixed[name], 0.7 * weight + 0.3 * end.state_dict()[name])


def test_mixing_changes_neither_end_and_takes_labels_and_preprocessing_along():
    start, end = classifier(0), classifier(1)
    before = bits(start), bits(end)
    mixed = interpolate(start, end, 0.5)
    with torch.no_grad():
        mixed.head.weight.zero_()
    assert (bits(start), bits(end)) == before
    assert mixed.labels == KEYS
    assert mixed.preprocess and end.preprocess and mixed.preprocess.config == end.preprocess.config


def test_dropout_may_differ_but_nothing_else(tiny_embedder: Embedder):
    start = classifier(0)
    interpolate(start, classifier(1, dataclasses.replace(TINY, dropout=0.1, drop_path=0.2)), 0.5)
    others = {
        "START has labels red cat.*END red cat, dog": classifier(1, labels=("red cat", "dog")),
        "different architectures: num_heads 2 and 4": classifier(1, dataclasses.replace(TINY, num_heads=4)),
        "START has a Linear head, END a CosineHead": classifier_from_names(tiny_embedder, KEYS),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            interpolate(start, other, 0.5)
    brighter = classifier(1)
    brighter.preprocess = Preprocess(PreprocessConfig(image_size=16, resize="squash", fill=0))
    with pytest.raises(ValueError, match=r"preprocessing.*255.*0"):
        interpolate(start, brighter, 0.5)
    brighter.preprocess = None
    for one, other, values in ((start, brighter, "255 and None"), (brighter, start, "None and 255")):
        with pytest.raises(ValueError, match=rf"preprocessing: .*{values}"):
            interpolate(one, other, 0.5)
    two = dataclasses.replace(TINY, num_heads=4, mlp_dim=8)
    with pytest.raises(ValueError, match=r"architectures: mlp_dim 16.*8; num_heads 2"):
        interpolate(start, classifier(1, two), 0.5)
    for alpha in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"between 0.*1.*{alpha}"):
            interpolate(start, classifier(1), alpha)


def test_what_cannot_read_images_has_no_curve(run_folder: Path):
    start, end = classifier(0), classifier(1)
    start.preprocess = end.preprocess = None
    data = open_labelled(str(run_folder / "data.parquet"), "train", ClassSet(keys=KEYS, column="concept"))
    with pytest.raises(ValueError, match="without preprocessing settings"):
        curve(start, end, data, [0.5])


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    return main(["wise-ft", *map(str, words)])


def test_the_command_tries_every_alpha_and_writes_the_best(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    start, end = classifier(0), classifier(1)
    save(start, tmp_path / "start")
    save(end, tmp_path / "end")
    words = (tmp_path / "start", tmp_path / "end", run_folder / "data.parquet", "--label", "concept")
    more = ("--choose", "train", "--steps", 4, "--out", tmp_path / "wise", "--json")
    assert run(monkeypatch, *words, *more) == 0
    points = json.loads(capsys.readouterr().out)
    assert [point["alpha"] for point in points] == [0, 0.25, 0.5, 0.75, 1]
    best = max(points, key=lambda point: point["top_1"])
    assert bits(load_classifier(tmp_path / "wise")) == bits(interpolate(start, end, best["alpha"]))
    card = (tmp_path / "wise" / "README.md").read_text()
    assert all(f"\n| {point['alpha']:.2f} | {point['top_1']:.4f} |\n" in card for point in points)
    assert f"{1 - best['alpha']:g} times that before and {best['alpha']:g} times that after" in card
    assert f"`train`, {best['n']} images" in card
    assert {point["n"] for point in points} == {12}  # three of each of the four classes
    assert run(monkeypatch, *words, "--choose", "train", "--steps", 2, "--held-out", 4, "--json") == 0
    assert [point["n"] for point in json.loads(capsys.readouterr().out)] == [4, 4, 4]


def test_of_equals_the_one_nearest_to_the_start_is_best(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    save(classifier(0), tmp_path / "both")
    words = (tmp_path / "both", tmp_path / "both", run_folder / "data.parquet", "--label", "concept")
    assert run(monkeypatch, *words, "--choose", "train", "--steps", 2) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    same = lines[0][3]
    assert [line[:4] for line in lines] == [["alpha", alpha, "top-1", same] for alpha in ("0.00", "0.50", "1.00")]
    assert [line[4:] for line in lines] == [["best"], [], []]


def test_the_command_starts_from_a_clips_zero_shot_classifier(
    tiny_embedder: Embedder,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    save(tiny_embedder, tmp_path / "clip")
    start = classifier_from_names(tiny_embedder, KEYS)
    end = classifier_from_names(tiny_embedder, KEYS, ["{}!"])
    save(end, tmp_path / "end")
    words = (tmp_path / "clip", tmp_path / "end", run_folder / "data.parquet", "--label", "concept", "--zero-shot")
    assert run(monkeypatch, *words, "--choose", "train", "--steps", 1, "--out", tmp_path / "wise") == 0
    alpha = 0 if capsys.readouterr().out.splitlines()[0].endswith("best") else 1
    assert bits(load_classifier(tmp_path / "wise")) == bits(interpolate(start, end, alpha))
    assert run(monkeypatch, *words, "--choose", "train", "--steps", 1, "--templates", "{}!", "--json") == 0
    one, other = json.loads(capsys.readouterr().out)
    assert one["top_1"] == other["top_1"]  # the very sentences that the end began with
    assert run(monkeypatch, *words[:-1], "--choose", "train", "--templates", "{}!") == 1
    said = "--templates make sentences of --zero-shot; a classifier reads none. Leave them out."
    assert capsys.readouterr() == ("", f"vlm: error: {said}\n")
    assert run(monkeypatch, tmp_path / "none", *words[1:], "--choose", "train") == 1
    assert capsys.readouterr().err.startswith("vlm: error: ")
