import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.data_formats import only
from vlm.config import PreprocessConfig
from vlm.errors import DataError
from vlm.images.preprocess import Preprocess
from vlm.training.data.labelled import (
    FASHION_MNIST,
    ClassSet,
    ask,
    classes_of,
    classes_of_classifier,
    open_labelled,
    read_class_set,
)
from vlm.training.recipe.sections import HoldOutBy

READ = Preprocess(PreprocessConfig(image_size=16, resize="squash"))


def write_classes(folder: Path) -> None:
    sets = {
        "animals": {"by": "zone", "classes": {"dog": {"en": ["a dog"], "ja": ["犬"]}, "cat": {"en": ["a cat"]}}},
        "both": {
            "by": "kind",
            "classes": {
                "dog": {"en": ["a dog", "a hound"], "ja": ["犬", "いぬ"]},
                "cat": {"en": ["a cat"], "ja": ["猫"]},
            },
        },
        "listed": {"by": "uids", "classes": {}},
    }
    (folder / "classes.json").write_text(json.dumps(sets, ensure_ascii=False), encoding="utf-8")


def test_a_class_set_names_its_classes_in_the_languages_that_have_all_of_them(tmp_path: Path):
    write_classes(tmp_path)
    assert read_class_set(tmp_path, "animals").names == {"en": ("a dog", "a cat")}
    both = read_class_set(tmp_path / "data.parquet", "both")
    assert both == ClassSet(keys=("dog", "cat"), names={"en": ("a dog", "a cat"), "ja": ("犬", "猫")}, column="kind")
    assert both.words("ja") == ("犬", "猫")
    assert both.words("fr") == ("dog", "cat")


@pytest.mark.parametrize("labels", [("猫", "犬"), ("a cat", "a dog"), ("cat", "dog")])
def test_a_classifier_may_call_its_classes_by_keys_or_by_names_in_its_own_order(
    labels: tuple[str, ...], tmp_path: Path
):
    write_classes(tmp_path)
    own = classes_of_classifier(labels, str(tmp_path), "both", None)
    assert own.keys == ("cat", "dog")
    assert own.names == {"en": ("a cat", "a dog"), "ja": ("猫", "犬")}
    assert classes_of_classifier(labels, str(tmp_path), None, "kind") == ClassSet(keys=labels, column="kind")


def test_what_does_not_fit_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"There is no .*classes\.json"):
        read_class_set(tmp_path, "animals")
    write_classes(tmp_path)
    with pytest.raises(ValueError, match=r"'animal'.*animals, both, listed"):
        read_class_set(tmp_path, "animal")
    with pytest.raises(ValueError, match="lists images one by one"):
        read_class_set(tmp_path, "listed")
    with pytest.raises(ValueError, match=r"neither.*keys"):
        read_class_set(tmp_path, "both").in_order_of(("dog", "cow"))
    with pytest.raises(ValueError, match=r"classes.*1: dog"):
        ClassSet(keys=("dog",))
    letters = tuple("abcdefghi")
    with pytest.raises(
        ValueError, match=r"labels \(b, c, d, e, f, g, h, i\) are .* \(a, b, c, d, e, f, g, h, \.\.\.\)\.$"
    ):
        ClassSet(keys=letters).in_order_of(letters[1:])


def test_samples_of_other_classes_are_left_out_and_said(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    data = str(run_folder / "data.parquet")
    every = classes_of(data, "validation", "concept")
    assert len(every.keys) == 12
    some = ClassSet(keys=every.keys[:3][::-1], column="concept")
    found = open_labelled(data, "validation", some)
    assert [only(found.rows.labels(i)) for i in found.index] == [some.keys[t] for t in found.targets.tolist()]
    assert len(found.index) == 3
    assert found.left_out == {f"class {key} is not asked for": 1 for key in every.keys[3:]}
    lines = capsys.readouterr().err.splitlines()
    assert f"validation: 1 of 12 samples left out: class {every.keys[5]} is not asked for" in lines
    with pytest.raises(ValueError, match=r"sample.*classes"):
        open_labelled(data, "validation", ClassSet(keys=("cow", "sheep"), column="concept"))


def test_answers_are_the_models_for_each_image_in_order(run_folder: Path):
    data = str(run_folder / "data.parquet")
    found = open_labelled(data, "validation", classes_of(data, "validation", "concept"))
    answers = ask(lambda images: images.mean((2, 3)), READ, found, what="mean", batch_size=5)
    expected = torch.stack([READ(found.rows.image(i)).mean((1, 2)) for i in found.index])
    torch.testing.assert_close(answers.outputs, expected)
    assert answers.index == found.index
    assert torch.equal(answers.targets, found.targets)


def test_broken_images_are_left_out_named_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from PIL import Image

    for kind, level in (("cat", 0), ("dog", 255)):
        (tmp_path / kind).mkdir()
        for number in range(3):
            grey = np.full((20, 20, 3), level, np.uint8)
            Image.fromarray(grey).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    found = open_labelled(str(tmp_path), None, classes_of(str(tmp_path), None, None))
    answers = ask(lambda images: images.mean((1, 2, 3)) > 0, READ, found, what="bright")
    assert answers.outputs.tolist() == [0, 0, 1, 1, 1]
    assert answers.targets.tolist() == [0, 0, 1, 1, 1]
    assert [found.rows.uid(i) for i in answers.index] == [found.rows.uid(i) for i in range(6) if i != 1]
    assert answers.left_out == {"not an image": 1}
    assert "cat/1.png left out: " in capsys.readouterr().err


def test_samples_without_a_class_or_a_image_are_counted_by_their_reasons(tmp_path: Path, capsys):
    from PIL import Image

    lines = ["image,label", "0.png,cat", "1.png,", "2.png,dog", "../3.png,cat", "4.png,cow", "5.png,", "6.png,dog"]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for number in (0, 6):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    data = str(tmp_path / "a.csv")
    found = open_labelled(data, None, ClassSet(keys=("dog", "cat")))
    assert (found.index, found.targets.tolist()) == ([0, 2, 3, 6], [1, 0, 1, 0])
    assert found.left_out == {"no class": 2, "class cow is not asked for": 1}
    assert f"{data}: 2 of 7 samples left out: no class" in capsys.readouterr().err.splitlines()
    sizes: list[int] = []

    def model(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.double().mean((1, 2, 3))

    answers = ask(model, READ, found, what="asked", batch_size=1)
    assert sizes == [1, 1]
    torch.testing.assert_close(answers.outputs, torch.stack([READ(tmp_path / f"{n}.png").mean() for n in (0, 6)]))
    assert (answers.index, answers.targets.tolist()) == ([0, 6], [1, 0])
    assert answers.left_out == found.left_out | {"missing": 1, "outside the folder": 1}
    err = capsys.readouterr().err
    assert "asked: 100%" in err and "4/4" in err and "../3.png left out: ../3.png: outside the folder" in err
    (tmp_path / "0.png").unlink()
    (tmp_path / "6.png").unlink()
    with pytest.raises(ValueError, match=r"4 images.*a\.csv.*opened"):
        ask(model, READ, found, what="asked")
    with pytest.raises(ValueError, match=r"sample.*classes.*class"):
        open_labelled(data, None, ClassSet(keys=("x", "y")))


@pytest.mark.parametrize("by", ["concept", "sample"])
def test_held_out_samples_and_the_rest_are_everything_once_and_always_the_same(run_folder: Path, by: HoldOutBy):
    data = str(run_folder / "data.parquet")
    every = open_labelled(data, "train", classes_of(data, "train", "concept"))
    rest, held = every.hold_out(10, by)
    assert len(held.index) == len(held.targets) == 10
    assert sorted(rest.index + held.index) == every.index
    assert rest.index == sorted(rest.index) and held.index == sorted(held.index)
    target_of = dict(zip(every.index, every.targets.tolist(), strict=True))
    assert [target_of[i] for i in held.index] == held.targets.tolist()
    assert every.hold_out(10, by)[1].index == held.index
    assert held.left_out == rest.left_out == every.left_out
    classes = len(set(every.targets.tolist()))
    assert len(every.hold_out(47, by)[0].index) == (1 if by == "sample" else classes)  # every class keeps an image
    for count in (0, 48):
        with pytest.raises(DataError, match=f"held_out.*{count}.*48"):
            every.hold_out(count, by)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_fashion_mnist_is_named_in_both_languages_whatever_the_classifier_calls_it(language: str):
    labels = FASHION_MNIST.words(language)[::-1]
    found = classes_of_classifier(labels, "anywhere", None, None)
    assert found.words(language) == labels
    assert (found.keys[0], found.words("ja")[0]) == ("ankle boots", "ブーツ")


@pytest.mark.parametrize("language", ["en", "ja"])
def test_two_classes_of_one_name_are_told_apart_by_their_keys(language: str):
    names = {"en": ("crane", "crane", "dog"), "ja": ("鶴", "クレーン", "クレーン")}
    classes = ClassSet(keys=("crane bird", "crane machine", "dog"), names=names)
    words = classes.words(language)
    assert len(set(words)) == 3
    order = [2, 0, 1]
    turned = classes.in_order_of([words[i] for i in order])
    assert turned.keys == tuple(classes.keys[i] for i in order)
    assert turned.words(language) == tuple(words[i] for i in order)


def test_two_classes_of_one_key_are_refused():
    with pytest.raises(DataError, match="crane"):
        ClassSet(keys=("crane", "dog", "crane"))
