"""Every format, opened: the same content is the same samples, in the same order."""

import hashlib
import json
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.data_formats import (
    CAPTIONED,
    LABELLED,
    csv_of_repeated_rows,
    parquet_shards_of_bytes,
    sample_images,
    saved_by_datasets,
    tars,
)
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess
from vlm.training.data.captions import CaptionChoice
from vlm.training.data.pair_stream import PairStream
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.data.rows import BrokenSample, Captions, Joined, Remark, Rows, Selected, class_names
from vlm.training.data.sources import open_rows
from vlm.training.recipe.augmentation import AugmentConfig

PREPROCESS = Preprocess(PreprocessConfig(image_size=16))


def order_hash(pairs: Pairs, tokenizer, steps: int = 4) -> str:
    """Of every pixel, token and kept patch of the first steps, and of who shows the same."""
    stream = PairStream(
        pairs, tokenizer, AugmentConfig(), seed=0, batch_size=8, num_patches=16, patch_dropout=0.5,
        choice=CaptionChoice(per_image=2),
    )  # fmt: skip
    digest = hashlib.sha256()
    for step in range(steps):
        batch = stream[step]
        same = batch.groups[:, None] == batch.groups[None, :]
        assert batch.keep is not None
        for part in (batch.images, batch.ids, batch.keep, same):
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def captioned_hash(tmp_path_factory, tiny_tokenizer) -> str:
    """Of the content itself, without any file."""

    class Content(Pairs):
        def __init__(self) -> None:
            super().__init__(open_rows(parquet_shards_of_bytes(tmp_path_factory.mktemp("truth"))), PREPROCESS, "none")

        def pixels(self, index: int) -> torch.Tensor:
            return PREPROCESS.pixels(sample_images()[index][1])

        def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
            return [(sample_images()[index][2], [])]

    return order_hash(Content(), tiny_tokenizer)


@pytest.mark.parametrize("write", CAPTIONED, ids=lambda write: write.__name__)
def test_every_format_gives_the_same_order_hash(write, tmp_path, tiny_tokenizer, captioned_hash):
    pairs = open_pairs(write(tmp_path), PREPROCESS)
    assert order_hash(pairs, tiny_tokenizer) == captioned_hash
    assert len(set(pairs.uids)) == len(pairs) == 24


def test_formats_with_classes_give_the_same_order_hash(tmp_path, tiny_tokenizer):
    found = {}
    for write in LABELLED:
        (tmp_path / write.__name__).mkdir()
        pairs = open_pairs(write(tmp_path / write.__name__), PREPROCESS)
        assert class_names(pairs.rows) == ["bird", "cat", "dog"]
        found[write.__name__] = order_hash(pairs, tiny_tokenizer)
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_number_of_shards_is_the_same_data(shards, tmp_path, tiny_tokenizer, captioned_hash):
    assert order_hash(open_pairs(tars(tmp_path, shards), PREPROCESS), tiny_tokenizer) == captioned_hash


def test_decoding_ahead_and_decoding_on_demand_are_the_same(tmp_path, tiny_tokenizer, captioned_hash):
    source = csv_of_repeated_rows(tmp_path)
    for cache in ("memory", "none", "disk", "disk"):  # the second time from the disk
        assert order_hash(open_pairs(source, PREPROCESS, cache=cache), tiny_tokenizer) == captioned_hash


def test_languages_come_from_columns_and_from_a_column(tmp_path):
    (tmp_path / "a.csv").write_text("image,caption_en,caption_ja\n1.png,a dog,犬\n2.png,,猫\n", encoding="utf-8")
    rows = open_rows(tmp_path / "a.csv")
    assert rows.captions(0) == {"en": (["a dog"], []), "ja": (["犬"], [])}
    assert rows.captions(1) == {"ja": (["猫"], [])}
    (tmp_path / "b.csv").write_text("image,text,lang\n1.png,a dog,en\n1.png,犬,ja\n", encoding="utf-8")
    assert open_rows(tmp_path / "b.csv").captions(0) == {"en": (["a dog"], []), "ja": (["犬"], [])}


def test_named_columns_come_first(tmp_path):
    (tmp_path / "a.csv").write_text("image,photo,caption,note_ja\nx,1.png,no,犬\n", encoding="utf-8")
    rows = open_rows(tmp_path / "a.csv", columns={"image": "photo", "caption": ["note_ja"]})
    assert (rows.uid(0), rows.captions(0)) == ("1.png", {"ja": (["犬"], [])})
    with pytest.raises(ValueError, match=r"phot.*image, photo, .*photo\?"):
        open_rows(tmp_path / "a.csv", columns={"image": "phot"})
    with pytest.raises(ValueError, match=r"'picture'.*knows: image, caption"):
        open_rows(tmp_path / "a.csv", columns={"picture": "photo"})


def test_joined_sets_keep_their_samples_apart(tmp_path):
    (tmp_path / "tars").mkdir()
    parts = [open_rows(csv_of_repeated_rows(tmp_path)), Selected(open_rows(tars(tmp_path / "tars")), [3, 1])]
    both = Joined(parts)
    assert len(both) == 26
    assert len({both.uid(index) for index in range(26)}) == 26
    assert both.captions(25) == parts[1].captions(1) == parts[0].captions(1)
    assert both.group(24) != both.group(25)


class Letters:
    """A sample for each letter; capitals have no class."""

    def __init__(self, letters: str, name: str):
        self.letters, self.name, self.fingerprint = letters, name, f"print of {letters}"

    def __len__(self) -> int:
        return len(self.letters)

    def uid(self, index: int) -> str:
        return f"uid {self.letters[index]}"

    def image(self, index: int) -> bytes:
        return self.letters[index].encode()

    @property
    def run_length(self) -> int:
        return ord(self.letters[0])

    def read_ahead(self, index: Sequence[int]) -> None:
        self.read = [self.letters[number] for number in index]

    def captions(self, index: int) -> Captions:
        return {"en": ([self.letters[index]], [])}

    def labels(self, index: int) -> list[str]:
        return [] if self.letters[index].isupper() else [f"class {self.letters[index]}"]

    def concept(self, index: int) -> str:
        return f"concept {self.letters[index]}"

    def remarks(self) -> list[Remark]:
        return [Remark("links", f"remark {self.name}")]

    def group(self, index: int) -> str:
        return f"group {self.letters[index]}"

    def split(self, index: int) -> str:
        return {"z": "last", "a": "first"}.get(self.letters[index], "")

    def splits(self) -> list[str]:
        return sorted({self.split(index) for index in range(len(self))} - {""})

    def column(self, name: str) -> list[str]:
        return [f"{name} {letter}" for letter in self.letters]


def check_letters(rows: Rows, letters: str) -> None:
    """All that is asked of `rows`, against the same letters in one piece."""
    truth = Letters(letters, "")
    assert len(rows) == len(letters)
    for what in ("image", "captions", "labels", "concept", "group", "split"):
        assert [getattr(rows, what)(i) for i in range(len(rows))] == [getattr(truth, what)(i) for i in range(len(rows))]
    assert (rows.splits(), rows.column("x")) == (truth.splits(), truth.column("x"))


def test_selected_samples_are_those_in_that_order():
    rows = Letters("zabCd", "set")
    part = Selected(rows, np.array([3, 0, 0, 4]))  # type: ignore[arg-type]
    check_letters(part, "Czzd")
    assert (part.name, part.uid(0), part.uid(3)) == ("set", "uid C", "uid d")
    check_letters(Selected(rows, []), "")
    prints = {Selected(rows, index).fingerprint for index in ([3, 0], [0, 3], [3], [30], [])}
    assert len(prints | {rows.fingerprint, Selected(Letters("zab", "set"), [3, 0]).fingerprint}) == 7
    assert Selected(rows, [3, 0]).fingerprint == Selected(rows, (3, 0)).fingerprint


def test_joined_sets_are_one_after_the_other_whatever_their_lengths():
    both = Joined([Letters("zb", "one"), Letters("", "none"), Letters("C", "two"), Letters("ade", "three")])
    check_letters(both, "zbCade")
    uids = ["one: uid z", "one: uid b", "two: uid C", "three: uid a", "three: uid d", "three: uid e"]
    assert [both.uid(index) for index in range(6)] == uids
    assert both.name == "one + none + two + three"
    assert both.fingerprint == "print of zb + print of  + print of C + print of ade"


def test_classes_are_those_of_all_samples_sorted():
    assert class_names(Letters("badab", "set")) == ["class a", "class b", "class d"]
    for letters in ("", "B"):
        with pytest.raises(ValueError, match=r"samples without.*class"):
            class_names(Letters(letters, "set"))


def test_a_broken_sample_is_one_line_and_the_same_in_another_process():
    for uid, shown in (("犬/1.png", "犬/1.png"), ("a\nb", r"'a\nb'")):
        error = pickle.loads(pickle.dumps(BrokenSample(uid, "missing", "no\n such  file")))
        assert isinstance(error, BrokenSample)
        assert str(error) == f"{shown}: missing: no such file"
        assert (error.uid, error.reason, error.detail) == (shown, "missing", "no such file")


def broken(rows, index: int) -> tuple[str, str]:
    with pytest.raises(BrokenSample) as caught:
        rows.image(index)
    return caught.value.uid, caught.value.reason


def test_paths_may_not_leave_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(sample_images()[0][1])
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "none.png"]
    (folder / "a.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names) + ",x\n")
    rows = open_rows(folder / "a.csv")
    for index, name in enumerate(names[:3]):
        assert broken(rows, index) == (name, "outside the folder")
    assert os.path.exists(str(rows.image(3))) is False
    with pytest.raises(BrokenSample, match="missing"):
        rows.image(4)
    assert open_rows(folder / "a.csv", root=tmp_path).image(1) == str(tmp_path / "secret.png")


def test_a_split_that_is_not_there_is_named_with_those_there_are(run_folder):
    with pytest.raises(ValueError, match=r"split.*train, validation"):
        open_rows(run_folder / "data.parquet", ["test"])
    assert len(open_rows(run_folder / "data.parquet", ["validation"])) == 12
    assert open_rows(run_folder / "data.parquet").splits() == ["train", "validation"]


def write(folder: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), folder / "data.parquet")
    return folder / "data.parquet"


def test_what_cannot_be_opened_is_one_line(tmp_path, run_folder):
    (tmp_path / "bad.parquet").write_text("uid,image\n1,2\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed.tar.gz").write_bytes(b"x")
    pq.write_table(pq.read_table(run_folder / "data.parquet").slice(0, 0), tmp_path / "rowless.parquet")
    tarfile.open(tmp_path / "memberless.tar", "w").close()
    for name, words in {
        "none.parquet": "There is no data .*none.parquet: there is no such file. Wanted a folder",
        "bad.parquet": "cannot be read as parquet",
        "rowless.parquet": "has no rows",
        "memberless.tar": "has no rows",
        "empty": "without images or data files. Wanted a folder",
        "packed.tar.gz": "is packed .* Unpack it",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            open_rows(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_missing_columns_are_named_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"column.*images.*uid, title"):
        open_rows(write(tmp_path, uid=["a"], title=["x"]))
    with pytest.raises(ValueError, match=r"captions.*image, captoin.*captoin"):
        open_rows(write(tmp_path, image=["a"], captoin=["x"]))
    with pytest.raises(ValueError, match=r"addresses.*images.*img2dataset"):
        open_rows(write(tmp_path, url=["a"], caption=["x"]))


def test_a_parquet_row_without_a_name_is_named_by_its_number(run_folder, tmp_path):
    pq.write_table(pq.read_table(run_folder / "data.parquet").select(["image", "captions_en"]), tmp_path / "d.parquet")
    rows = open_rows(tmp_path / "d.parquet")
    assert [rows.uid(index) for index in (0, 59)] == ["row 0", "row 59"]
    assert rows.captions(0) == {"en": (["a red dog"], [])}
    assert rows.group(0) == "a red dog"


def test_all_five_captions_are_drawn_equally_often(tmp_path, tiny_tokenizer):
    """Pearson's chi-squared of 40 images x 5 captions, 160 degrees of freedom: more than 249 has a chance of 1e-5."""
    lines = [
        f'{{"image": "{n}.png", "captions": {[f"p{n} c{k}" for k in range(5)]}}}'.replace("'", '"') for n in range(40)
    ]
    (tmp_path / "five.jsonl").write_text("\n".join(lines))

    class Blank(Pairs):
        def pixels(self, index: int) -> torch.Tensor:
            return torch.zeros(3, 4, 4, dtype=torch.uint8)

    drawn: dict[str, int] = {}

    def count(texts: list[str]) -> torch.Tensor:
        for text in texts:
            drawn[text] = drawn.get(text, 0) + 1
        return torch.zeros(len(texts), 2, dtype=torch.long)

    pairs = Blank(open_rows(tmp_path / "five.jsonl"), PREPROCESS, "none")
    stream = PairStream(pairs, count, AugmentConfig(), seed=0, batch_size=40, num_patches=1)  # type: ignore[arg-type]
    epochs = 100
    for step in range(epochs):
        stream[step]
    counts = np.array([[drawn.get(f"p{n} c{k}", 0) for k in range(5)] for n in range(40)])
    assert (counts.sum(1) == epochs).all()
    assert counts.min() > 0
    expected = epochs / 5
    assert ((counts - expected) ** 2 / expected).sum() < 249


def test_recall_counts_all_five_captions(tmp_path):
    from vlm.metrics import recall_at_k
    from vlm.training.measure.retrieval import concept_texts

    lines = [
        f'{{"image": "{n}.png", "captions": {[f"p{n} c{k}" for k in range(5)]}}}'.replace("'", '"') for n in range(4)
    ]
    (tmp_path / "five.jsonl").write_text("\n".join(lines))
    texts, correct = concept_texts(Pairs(open_rows(tmp_path / "five.jsonl"), PREPROCESS, "none"), "")
    assert texts == [f"p{n} c{k}" for n in range(4) for k in range(5)]
    truth = torch.tensor([[text.startswith(f"p{n} ") for n in range(4)] for text in texts])
    assert torch.equal(correct, truth)
    for k in range(5):  # an image whose k-th caption comes first is found, whichever it is
        scores = torch.zeros(4, 20)
        scores[torch.arange(4), torch.arange(4) * 5 + k] = 1
        assert recall_at_k(scores, correct.T, 1) == 1


def test_splits_are_asked_of_a_table_that_has_none(tmp_path):
    (tmp_path / "data.csv").write_text("image,caption\na.png,a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"splits.*train.*asked"):
        open_rows(str(tmp_path / "data.csv"), ("train",))


def test_a_set_saved_by_datasets_that_lacks_a_part_is_one_line(tmp_path):
    folder = saved_by_datasets(tmp_path)
    state = json.loads((folder / "state.json").read_text())
    del state["_data_files"]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"saved.*datasets \(.*_data_files.*\)"):
        open_rows(folder)
