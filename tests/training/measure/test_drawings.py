"""The numbers against models that know everything or nothing, on the real validation data."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from torch import Tensor

from tests.support.check_sets import encoded
from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.embedder import Embedder
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.measure import drawings as module
from vlm.training.measure.drawings import ICON_WORDS, PICTURE_WORDS, evaluate_drawings, novel_words, open_unseen
from vlm.training.measure.measurement import Measurement, markdown_table
from vlm.training.measure.retrieval import concept_texts, embed_all_images, measure_retrieval, retrieval_recall
from vlm.zero_shot import classify


@pytest.fixture(scope="module")
def both() -> Pairs:
    """val_both, the smallest split: 39 images."""
    from vlm.config import PreprocessConfig
    from vlm.images.preprocess import Preprocess

    return open_pairs(PICTURE_WORDS / "validation.parquet", Preprocess(PreprocessConfig(image_size=32)), ("val_both",))


def one_hot(pairs: Pairs) -> Tensor:
    """Images of one concept on one axis."""
    return F.one_hot(pairs.groups, int(pairs.groups.max()) + 1).float()


class Oracle(Embedder):
    """Knows which concept each caption names."""

    def set(self, pairs: Pairs) -> "Oracle":
        self.axes: dict[str, Tensor] = {}
        for language in pairs.languages:
            for captions, axis in zip(pairs.texts(language), one_hot(pairs), strict=True):
                if captions:
                    self.axes[captions[0]] = self.axes.get(captions[0], torch.zeros_like(axis)) + axis
        return self

    def embed_texts(self, texts, batch_size: int = 256) -> Tensor:
        return F.normalize(torch.stack([self.axes[text] for text in texts]), dim=1)


def test_who_knows_all_concepts_scores_1(tiny_embedder, both):
    oracle = Oracle(tiny_embedder.model, *tiny_embedder.parts()).set(both)
    rows = measure_retrieval(oracle, both, one_hot(both), "val_both", "")
    assert {row.value for row in rows} == {1.0}
    assert {(row.language, row.task) for row in rows} == {
        (language, f"{way} {metric}")
        for language in ("en", "ja")
        for way in ("text->image", "image->text")
        for metric in ("R@1", "R@5", "R@10", "median rank", "mAP", "nDCG")
    }


def test_who_knows_nothing_scores_chance_exactly(tiny_embedder, both):
    class Blind(Embedder):
        def embed_texts(self, texts: str | Iterable[str], batch_size: int = 256) -> Tensor:
            return torch.ones(len([*texts]), 4) / 2

    blind = Blind(tiny_embedder.model, *tiny_embedder.parts())
    for row in measure_retrieval(blind, both, torch.ones(len(both), 4) / 2, "val_both", ""):
        assert row.value == pytest.approx(row.chance, abs=1e-6)
        assert row.chance > 10 if "median" in row.task else 0 < row.chance < 0.5


def test_a_concept_is_asked_for_by_its_first_caption_and_all_its_images_are_right(both):
    concepts = both.rows.column("concept")
    for language in ("en", "ja"):
        texts, correct = concept_texts(both, language)
        assert len(texts) == len({c for c, captions in zip(concepts, both.texts(language), strict=True) if captions})
        for text, row in zip(texts, correct, strict=True):
            asked = {concept for concept, hit in zip(concepts, row.tolist(), strict=True) if hit}
            assert len(asked) == 1
            assert row.sum() == concepts.count(asked.pop())
            first = both.texts(language)[int(row.int().argmax())]
            assert first[0] == text


def test_images_that_were_trained_on_are_left_out():
    known = json.loads((PICTURE_WORDS / "seen_pixels.json").read_text(encoding="utf-8"))

    class Preprocess:
        def pixels(self, _: bytes) -> Tensor:
            return torch.zeros(3, 1, 1, dtype=torch.uint8)

    pairs = open_pairs(PICTURE_WORDS / "validation.parquet", Preprocess(), ("val_concept",), cache="none")  # type: ignore[arg-type]
    kept = pairs.select(module._unseen(pairs))
    assert len(pairs) - len(kept) == len(set(known) & set(pairs.uids)) == 3
    assert not set(known) & set(kept.uids)


def test_all_numbers_of_a_split_have_chance_and_count(tiny_embedder):
    rows = evaluate_drawings(tiny_embedder, ["val_both"])
    sets = [row for row in rows if row.task.startswith("top-1")]
    assert {row.language for row in sets} == {"en", "ja"}
    for row in sets:
        classes = int(row.task.split()[2].rstrip(","))
        assert row.chance == pytest.approx(1 / classes)
        assert row.n >= classes >= 2  # restricted to classes this split shows
        assert row.value * row.n == pytest.approx(round(row.value * row.n), abs=1e-3)
    assert markdown_table(rows).count("\n") == len(rows) + 1


def test_the_progress_line_is_the_same_recall(tiny_embedder, both):
    images = embed_all_images(tiny_embedder, both)
    rows = measure_retrieval(tiny_embedder, both, images, "", "")
    recall = retrieval_recall(tiny_embedder, both)
    assert recall["val R@5 ja"] == next(r.value for r in rows if (r.task, r.language) == ("text->image R@5", "ja"))
    assert recall.keys() == {f"val R@{k} {language}" for k in (1, 5) for language in ("en", "ja")}


def run(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    code = main(["evaluate", *words])
    return code, *capsys.readouterr()


def test_the_command_reads_a_model_folder(tiny_embedder, tmp_path, capsys, monkeypatch):
    save(tiny_embedder, tmp_path / "model")
    code, out, _ = run(capsys, monkeypatch, str(tmp_path / "model"), "--split", "val_both", "--json")
    assert code == 0
    rows = [Measurement(**entry) for entry in json.loads(out)]
    assert rows == evaluate_drawings(tiny_embedder, ["val_both"])
    code, out, _ = run(capsys, monkeypatch, str(tmp_path / "model"), "--split", "val_both")
    assert code == 0
    assert out.count("\n") == len(rows) + 1


def test_an_unknown_split_or_model_is_one_line(tiny_embedder, tmp_path, capsys, monkeypatch):
    save(tiny_embedder, tmp_path / "model")
    code, _, error = run(capsys, monkeypatch, str(tmp_path / "model"), "--split", "val_stile")
    assert code == 1
    assert "has no split val_stile. It has: val_both, val_concept, val_style" in error
    code, _, error = run(capsys, monkeypatch, str(tmp_path / "none"))
    assert code == 1
    assert error.startswith("vlm: error: There is no model")


def test_own_data_gets_the_recall_that_training_shows(tiny_embedder, run_folder, tmp_path, capsys, monkeypatch):
    save(tiny_embedder, tmp_path / "model")
    data = run_folder / "data.parquet"
    code, out, _ = run(
        capsys, monkeypatch, str(tmp_path / "model"), "--data", str(data), "--split", "validation", "--json"
    )
    assert code == 0
    rows = {(row["task"], row["language"]): row for row in json.loads(out)}
    truth = retrieval_recall(tiny_embedder, open_pairs(data, tiny_embedder.preprocess, ("validation",)))
    assert {language for _, language in rows} == {"en", "ja"}
    for (task, language), row in rows.items():
        if task in ("text->image R@1", "text->image R@5"):
            assert row["value"] == pytest.approx(truth[f"val {task[-3:]} {language}"])


def test_own_data_of_which_nothing_can_be_used_is_one_line(tiny_embedder, tmp_path, capsys, monkeypatch):
    save(tiny_embedder, tmp_path / "model")
    (tmp_path / "data.csv").write_text("filepath,title\nnone.png,a dog\n")
    code, _, error = run(capsys, monkeypatch, str(tmp_path / "model"), "--data", str(tmp_path / "data.csv"))
    assert code == 1
    assert error.splitlines()[-1].startswith("vlm: error: ") and "has no sample that can be used" in error


THINGS = {"dog": "犬", "cat": "猫", "bird": "鳥", "flag": "旗"}
SETS: dict[str, dict[str, Any]] = {
    "one class": {"by": "group", "classes": {"animals": {"en": ["animal"], "ja": ["動物"]}, "cars": {"en": ["car"]}}},
    "by concept": {"by": "concept", "classes": {key: {"en": [key, "x"], "ja": [ja]} for key, ja in THINGS.items()}},
    "without Japanese": {"by": "concept", "classes": {"cat": {"en": ["cat"], "ja": []}, "dog": {"en": ["dog"]}}},
    "without English": {"by": "concept", "classes": {"cat": {"ja": ["猫"]}, "dog": {"en": [], "ja": ["犬"]}}},
    "one name in English": {
        "by": "concept",
        "classes": {"bird": {"en": ["pet"], "ja": ["鳥"]}, "dog": {"en": ["pet"], "ja": ["犬"]}},
    },
    "by name": {
        "by": "uids",
        "classes": {
            "odd": {"en": ["odd"], "ja": ["奇"], "uids": ["p1", "p3", "p5", "p99"]},
            "even": {"en": ["even"], "ja": ["偶"], "uids": ["p2", "p4"]},
        },
    },
}  # fmt: skip


@pytest.fixture
def words(tmp_path, monkeypatch) -> list[dict[str, Any]]:
    """A picture-words of 24 noisy images in four splits, in place of the real one; p0 was trained on."""
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for number in range(24):
        thing = list(THINGS)[number % 4]
        image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        rows.append({
            "uid": f"p{number}",
            "image": {"bytes": encoded(Image.fromarray(image)), "path": None},
            "captions_en": [f"a {thing}", f"one {thing}"],
            "captions_ja": [THINGS[thing]] if number % 8 != 1 else [],
            "concept": thing,
            "group": "flags" if thing == "flag" else "animals",
            "subgroup": None if thing == "dog" else f"the {thing}",
            "novel_words": number % 3 == 0 and number >= 8,
            "split": ("val_style", "val_concept", "val_both", "test_style")[number // 8 if number < 20 else 3],
        })  # fmt: skip
    for name, part in (("validation", rows[:20]), ("test", rows[20:])):
        Dataset.from_list(part).to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "classes.json").write_text(json.dumps(SETS))
    (tmp_path / "seen_pixels.json").write_text('["p0", "q1"]')
    monkeypatch.setattr(module, "PICTURE_WORDS", tmp_path)
    monkeypatch.setattr(module, "VALIDATION", ("val_style", "val_concept", "val_both"))
    monkeypatch.setattr(module, "novel_words", lambda pairs: [bool(flag) for flag in pairs.rows.column("novel_words")])
    return rows


def of_split(rows: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == split and row["uid"] != "p0"]


@pytest.mark.parametrize("split", ["val_style", "val_concept", "test_style"])
def test_each_class_set_is_asked_as_a_user_would_ask_it(tiny_embedder, words, split: str):
    own = of_split(words, split)
    expected = []
    for name, classes in SETS.items():
        if classes["by"] == "uids":
            truth = [next((k for k, v in classes["classes"].items() if row["uid"] in v["uids"]), None) for row in own]
        else:
            truth = [row[classes["by"]] if row[classes["by"]] in classes["classes"] else None for row in own]
        keys = [key for key in classes["classes"] if key in truth]
        for language in ("en", "ja"):
            labels = [labels[0] for key in keys if (labels := classes["classes"][key].get(language))]
            if len(set(labels)) == len(keys) > 1:
                asked = [(row["image"]["bytes"], key) for row, key in zip(own, truth, strict=True) if key]
                answers = classify(tiny_embedder, [image for image, _ in asked], labels).argmax(1).tolist()
                right = sum(keys[answer] == key for answer, (_, key) in zip(answers, asked, strict=True)) / len(asked)
                expected.append((split, f"top-1 of {len(keys)}, {name}", language, right, 1 / len(keys), len(asked)))
    found = [row for row in evaluate_drawings(tiny_embedder, [split]) if row.task.startswith("top-1")]
    assert found == [Measurement(*row[:3], pytest.approx(row[3]), *row[4:]) for row in expected]  # type: ignore[arg-type]
    assert len({task for _, task, *_ in expected}) >= 4


def test_rows_without_flags_and_by_novel_words_are_those_of_these_images_alone(tiny_embedder, words):
    for split in ("val_style", "val_concept"):
        own = of_split(words, split)
        pairs = open_unseen(tiny_embedder, (split,))
        assert pairs.uids == [row["uid"] for row in own]
        parts: dict[str, list[int]] = {"": list(range(len(own)))}
        parts[", no flags"] = [n for n, row in enumerate(own) if row["concept"] != "flag"]
        if split == "val_concept":
            parts[", words never trained on"] = [n for n, row in enumerate(own) if row["novel_words"]]
            parts[", only words trained on"] = [n for n, row in enumerate(own) if not row["novel_words"]]
        expected = [
            row
            for label, part in parts.items()
            for row in measure_retrieval(
                tiny_embedder, pairs.select(part), embed_all_images(tiny_embedder, pairs)[part], split, label
            )
        ]
        assert [
            row for row in evaluate_drawings(tiny_embedder, [split]) if not row.task.startswith("top-1")
        ] == expected
        assert {len(part) for part in parts.values()} == ({7, 5} if split == "val_style" else {8, 6, 3, 5})


def test_where_no_image_is_a_flag_or_all_words_are_new_there_is_no_such_row(tiny_embedder, words, tmp_path):
    rows = [row | {"subgroup": "a", "novel_words": row["split"] == "val_both"} for row in words]
    Dataset.from_list(rows).to_parquet(tmp_path / "validation.parquet")
    found = evaluate_drawings(tiny_embedder, ["val_concept", "val_both"])
    assert not [row for row in found if "flags" in row.task or "trained on" in row.task]
    assert {row.split for row in found} == {"val_concept", "val_both"}


def test_a_image_without_a_text_in_a_language_asks_for_none_in_it(tiny_embedder, words):
    pairs = open_unseen(tiny_embedder, ("val_concept",))
    lacking = [not texts for texts in pairs.texts("ja")]
    concepts = pairs.rows.column("concept")
    assert sum(lacking) == 1
    rows = measure_retrieval(tiny_embedder, pairs, embed_all_images(tiny_embedder, pairs), "s", "")
    asked = {(row.task.split()[0], row.language): row.n for row in rows}
    # a cat that has no Japanese caption is shown by another one's
    assert asked == {
        ("text->image", "en"): 4, ("image->text", "en"): 8, ("text->image", "ja"): 4, ("image->text", "ja"): 8
    }  # fmt: skip
    alone = pairs.select([n for n in range(8) if concepts[n] != "cat" or lacking[n]])
    rows = measure_retrieval(tiny_embedder, alone, embed_all_images(tiny_embedder, alone), "s", "")
    asked = {(row.task.split()[0], row.language): row.n for row in rows}
    assert asked == {
        ("text->image", "en"): 4, ("image->text", "en"): 7, ("text->image", "ja"): 3, ("image->text", "ja"): 6
    }  # fmt: skip


def test_images_are_embedded_as_always_in_any_batch(tiny_embedder, words):
    pairs = open_unseen(tiny_embedder, ("val_style",))
    expected = tiny_embedder.embed_images([pairs.rows.image(n) for n in range(len(pairs))])
    for size in (128, 3):
        torch.testing.assert_close(embed_all_images(tiny_embedder, pairs, batch_size=size), expected)


def test_novel_words_are_in_no_training_text_of_either_data_set(tiny_embedder):
    """Second truth: icon-words' own flags, which its authors computed over both data sets."""
    pairs = open_pairs(ICON_WORDS / "validation.parquet", tiny_embedder.preprocess, cache="none")
    assert novel_words(pairs) == [bool(flag) for flag in pairs.rows.column("novel_words")]


def test_icon_splits_are_measured_with_their_own_classes(tiny_embedder):
    rows = evaluate_drawings(tiny_embedder, ["val_icon_style"])
    assert {row.split for row in rows} == {"val_icon_style"}
    sets = [row for row in rows if row.task.startswith("top-1")]
    assert [(row.task.split(", ")[1], row.language) for row in sets] == [("icons", "en"), ("icons", "ja")]
    assert {row.n for row in rows if row.task == "image->text R@1"} == {684}


def test_the_validation_splits_are_the_default_and_people_get_a_table(
    tiny_embedder, words, tmp_path, capsys, monkeypatch
):
    save(tiny_embedder, tmp_path / "model")
    code, out, _ = run(capsys, monkeypatch, str(tmp_path / "model"))
    head, *lines = out.splitlines()
    rows = evaluate_drawings(tiny_embedder, ["val_style", "val_concept", "val_both"])
    assert (code, len(lines)) == (0, len(rows))
    assert head.split() == ["split", "task", "value", "chance", "n"]
    for line, row in zip(lines, rows, strict=True):
        assert line.startswith(row.split) and f" {row.task} " in line
        assert line.split()[-4:] == [row.language, f"{row.value:.3f}", f"{row.chance:.4f}", str(row.n)]
    assert len({len(line) for line in lines}) == 1


def test_of_own_data_all_is_asked_for_or_the_splits_named_and_what_is_broken_is_said(
    tiny_embedder, words, tmp_path, capsys, caplog, monkeypatch
):
    save(tiny_embedder, tmp_path / "model")
    broken = [row | {"image": {"bytes": b"", "path": None}} if row["uid"] in ("p3", "p9") else row for row in words]
    Dataset.from_list(broken).to_parquet(tmp_path / "own.parquet")
    own = [str(tmp_path / "model"), "--data", str(tmp_path / "own.parquet"), "--json"]
    code, out, _ = run(capsys, monkeypatch, *own)
    rows = [Measurement(**row) for row in json.loads(out)]
    assert (code, {row.split for row in rows}) == (0, {"all"})
    assert {row.n for row in rows if row.task == "image->text R@1"} == {22}
    (left_out,) = caplog.messages
    assert left_out.startswith("2 samples left out; the first: p3: missing: ")
    caplog.clear()
    assert out.startswith("[\n {")
    code, out, _ = run(capsys, monkeypatch, *own, "--split", "val_style", "val_both")
    rows = [Measurement(**row) for row in json.loads(out)]
    assert {row.split for row in rows} == {"val_style+val_both"}
    assert {row.n for row in rows if row.task == "image->text R@1"} == {11}
    assert caplog.messages[0].startswith("1 samples left out")
