"""The numbers against models that know everything or nothing, on the real validation data."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import evaluate as module
from training.card import markdown_table
from training.evaluate import PICTURE_WORDS, concept_texts, evaluate, retrieval_recall, retrieval_rows
from training.pairs import Pairs, open_pairs
from vlm.checkpoint import save
from vlm.embedder import Embedder


@pytest.fixture(scope="module")
def both() -> Pairs:
    """val_both, the smallest split: 39 pictures."""
    from vlm.config import PreprocessConfig
    from vlm.preprocess import Preprocess

    return open_pairs(PICTURE_WORDS / "validation.parquet", Preprocess(PreprocessConfig(image_size=32)), ("val_both",))


def one_hot(pairs: Pairs) -> Tensor:
    """Pictures of one concept on one axis."""
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
    rows = retrieval_rows(oracle, both, one_hot(both), "val_both", "")
    assert {row.value for row in rows} == {1.0}
    assert {(row.language, row.task) for row in rows} == {
        (language, f"{way} {metric}")
        for language in ("en", "ja")
        for way in ("text->image", "image->text")
        for metric in ("R@1", "R@5", "R@10", "median rank", "mAP", "nDCG")
    }


def test_who_knows_nothing_scores_chance_exactly(tiny_embedder, both):
    class Blind(Embedder):
        def embed_texts(self, texts, batch_size: int = 256) -> Tensor:
            return torch.ones(len(texts), 4) / 2

    blind = Blind(tiny_embedder.model, *tiny_embedder.parts())
    for row in retrieval_rows(blind, both, torch.ones(len(both), 4) / 2, "val_both", ""):
        assert row.value == pytest.approx(row.chance, abs=1e-6)
        assert row.chance > 10 if "median" in row.task else 0 < row.chance < 0.5


def test_a_concept_is_asked_for_by_its_first_caption_and_all_its_pictures_are_right(both):
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


def test_pictures_that_were_trained_on_are_left_out():
    known = json.loads((PICTURE_WORDS / "seen_pixels.json").read_text(encoding="utf-8"))

    class Preprocess:
        def pixels(self, _: bytes) -> Tensor:
            return torch.zeros(3, 1, 1, dtype=torch.uint8)

    pairs = open_pairs(PICTURE_WORDS / "validation.parquet", Preprocess(), ("val_concept",), cache="none")  # type: ignore[arg-type]
    kept = pairs.select(module._unseen(pairs))
    assert len(pairs) - len(kept) == len(set(known) & set(pairs.uids)) == 3
    assert not set(known) & set(kept.uids)


def test_all_numbers_of_a_split_have_chance_and_count(tiny_embedder):
    rows = evaluate(tiny_embedder, ["val_both"])
    sets = [row for row in rows if row.task.startswith("top-1")]
    assert {row.language for row in sets} == {"en", "ja"}
    for row in sets:
        classes = int(row.task.split()[2].rstrip(","))
        assert row.chance == pytest.approx(1 / classes)
        assert row.n >= classes >= 2  # restricted to classes this split shows
        assert row.value * row.n == pytest.approx(round(row.value * row.n), abs=1e-3)
    assert markdown_table(rows).count("\n") == len(rows) + 1


def test_the_progress_line_is_the_same_recall(tiny_embedder, both):
    images = module.embed_pictures(tiny_embedder, both)
    rows = retrieval_rows(tiny_embedder, both, images, "", "")
    recall = retrieval_recall(tiny_embedder, both)
    assert recall["val R@5 ja"] == next(r.value for r in rows if (r.task, r.language) == ("text->image R@5", "ja"))
    assert recall.keys() == {f"val R@{k} {language}" for k in (1, 5) for language in ("en", "ja")}


def run(capsys, monkeypatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    code = module.main()
    return code, *capsys.readouterr()


def test_the_command_reads_a_model_folder(tiny_embedder, tmp_path, capsys, monkeypatch):
    save(tiny_embedder, tmp_path / "model")
    code, out, _ = run(capsys, monkeypatch, str(tmp_path / "model"), "--split", "val_both", "--json")
    assert code == 0
    rows = [module.Row(**entry) for entry in json.loads(out)]
    assert rows == evaluate(tiny_embedder, ["val_both"])
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
    assert error.startswith("evaluate: error: There is no model")


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
    assert error.splitlines()[-1].startswith("evaluate: error: ") and "has no sample that can be used" in error
