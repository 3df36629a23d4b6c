"""The sample images and their licences."""

from pathlib import Path

import pyarrow.parquet
import pytest

from benchmarks.demo_examples import SEARCHES
from tests.support.demo_pages import needs_mini
from vlm.demo.actions import PageActions
from vlm.demo.page.texts import TEXTS
from vlm.demo.search.samples import EXAMPLES, SAMPLES, sample, samples

TRAINING = Path(__file__).parents[2] / "training"
SPLITS = {"picture_words": ("val_style", "val_concept"), "icon_words": ("val_icon_style",)}


def test_the_gallery_is_three_validation_splits_byte_for_byte() -> None:
    rows = [
        row
        for data, splits in SPLITS.items()
        for row in pyarrow.parquet.read_table(TRAINING / data / "validation.parquet").to_pylist()
        if row["split"] in splits
    ]
    assert len(rows) == len(samples())
    for row, one in zip(rows, samples(), strict=True):
        assert one.path.read_bytes() == row["image"]["bytes"]
        assert (one.en, one.ja) == (row["captions_en"][0], row["captions_ja"][0])
        assert (one.author, one.license) == (row["author"], row["license"])


def test_every_licence_of_the_gallery_is_there_in_full() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (SAMPLES / "LICENSES").iterdir()}
    for name in {one.license for one in samples()}:
        assert any(file.startswith(name) and len(text) > 1000 for file, text in texts.items()), name
    for name, text in texts.items():
        originals = [TRAINING / data / "LICENSES" / name for data in SPLITS]
        assert text in [path.read_text(encoding="utf-8") for path in originals if path.is_file()]


# ---- the examples of the page ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> PageActions:
    return PageActions("mini")


@needs_mini
@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("name", list(EXAMPLES["classify"]))
def test_every_example_is_ranked_right_and_unflagged(mini: PageActions, name: str, language: str) -> None:
    """`python -m benchmarks.demo_examples --write` chooses them; the first label is the right one."""
    labels = EXAMPLES["classify"][name][language]
    ranking = mini.classify(sample(name).path, labels)
    assert ranking[0].label == labels[0]
    assert not mini.none_fits(ranking)
    assert not mini.unknown(labels)
    assert ranking[0].match is not None


@needs_mini
@pytest.mark.long  # embeds all samples
def test_every_suggestion_and_the_sum_of_the_hint_find_what_they_name(mini: PageActions) -> None:
    words = {english: word for english, _, word in SEARCHES}
    for query in EXAMPLES["search"]:
        for text in query.values():
            results = mini.search(text)
            assert words[query["en"]] in results[0].names["en"]
            assert not mini.no_good_match(results)
            assert not mini.unknown([text])
    for language, text in (("en", "apple + green - red"), ("ja", "りんご + 緑 - 赤")):
        assert text in TEXTS["query_hint"][language]
        assert mini.search(text)[0].names["en"] == "green apple"
