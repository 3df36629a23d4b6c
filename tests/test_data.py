import hashlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from training.augment import AugmentConfig
from training.data import _CAPTION_DRAWS, Batch, PairStream, ParquetPairs, batches, ways_of_writing
from vlm.config import PreprocessConfig
from vlm.preprocess import Preprocess
from vlm.tokenizer import Tokenizer

PREPROCESS = Preprocess(PreprocessConfig(image_size=16, resize="pad"))
GLOBAL_BATCH = 8
MORE_WORKERS_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def pairs(run_folder) -> ParquetPairs:
    return ParquetPairs(run_folder / "data.parquet", PREPROCESS, ["train"])


def stream_of(
    pairs: ParquetPairs, tokenizer: Tokenizer, rank: int = 0, world: int = 1, seed: int = 3, **more
) -> PairStream:
    settings = {
        "num_patches": 16,
        "patch_dropout": 0.5,
        "template_share": 0.3,
        "kana_share": 0.3,
        "captions_per_picture": 2,
    } | more
    return PairStream(
        pairs, tokenizer, AugmentConfig(), seed=seed, batch_size=GLOBAL_BATCH, rank=rank, world=world, **settings
    )


def digests(batch: Batch, eot: int) -> list[str]:
    """One per sample: name, token ids without padding, kept patches, and every pixel after augmentation."""
    found = []
    assert batch.keep is not None
    for uid, ids, keep, image, group in zip(batch.uids, batch.ids, batch.keep, batch.images, batch.groups, strict=True):
        words = [row[: row.tolist().index(eot) + 1].tolist() for row in ids]
        content = repr((uid, words, keep.tolist(), int(group))).encode() + image.numpy().tobytes()
        found.append(hashlib.sha256(content).hexdigest())
    return found


def order(
    pairs: ParquetPairs, tokenizer: Tokenizer, *, workers: int, world: int, first: int, last: int
) -> list[list[str]]:
    """The digests of each global step, its ranks side by side."""
    ranks = [batches(stream_of(pairs, tokenizer, rank, world), first, last, workers) for rank in range(world)]
    steps = []
    for parts in zip(*ranks, strict=True):
        steps.append([digest for part in parts for digest in digests(part, tokenizer.eot_id)])
    return steps


def test_order_does_not_depend_on_ranks_or_on_where_a_run_resumes(pairs, tiny_tokenizer):
    truth = order(pairs, tiny_tokenizer, workers=0, world=1, first=0, last=102)
    assert len({digest for step in truth for digest in step}) == 102 * GLOBAL_BATCH  # nothing is ever seen twice alike
    for world, first in itertools.product((1, 2, 4), (37, 100)):
        assert order(pairs, tiny_tokenizer, workers=0, world=world, first=first, last=102) == truth[first:], (
            world,
            first,
        )


@MORE_WORKERS_THAN_CORES
def test_order_does_not_depend_on_workers(pairs, tiny_tokenizer):
    truth = order(pairs, tiny_tokenizer, workers=0, world=1, first=37, last=42)
    for workers in (1, 2, 4):
        assert order(pairs, tiny_tokenizer, workers=workers, world=1, first=37, last=42) == truth, workers


@MORE_WORKERS_THAN_CORES
@pytest.mark.long
@pytest.mark.parametrize("first", [0, 37, 100])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_order_is_the_same_for_all_workers_ranks_and_resume_points(pairs, tiny_tokenizer, workers, world, first):
    truth = order(pairs, tiny_tokenizer, workers=0, world=1, first=0, last=104)
    assert order(pairs, tiny_tokenizer, workers=workers, world=world, first=first, last=104) == truth[first:]


def test_another_seed_is_another_order(pairs, tiny_tokenizer):
    one, two = (stream_of(pairs, tiny_tokenizer, seed=seed)[0] for seed in (3, 4))
    assert one.uids != two.uids
    assert not torch.equal(one.images, two.images)


def test_every_epoch_shows_every_picture_once_in_another_order(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer)
    steps = len(pairs) // GLOBAL_BATCH
    first, second = ([uid for s in range(e * steps, (e + 1) * steps) for uid in stream[s].uids] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(pairs.uids)
    assert first != second


def test_captions_are_names_and_keywords_of_both_languages(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer, keyword_share=0.5, template_share=0.0, kana_share=0.0)
    drawn = {text for u in np.random.default_rng(0).random((200, 2 * _CAPTION_DRAWS)) for text in stream._choose(1, u)}
    names, keywords = pairs.texts["captions_en"][1] + pairs.texts["captions_ja"][1], pairs.texts["keywords_en"][1]
    assert drawn == {*names, *keywords}
    two = stream._choose(1, np.full(2 * _CAPTION_DRAWS, 0.9))
    assert [text.isascii() for text in two] in ([True, False], [False, True])  # the languages take turns


def test_keyword_share_is_the_share_of_keywords(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer, keyword_share=0.25, template_share=0.0, captions_per_picture=1)
    drawn = [stream._choose(0, u)[0] for u in np.random.default_rng(0).random((2000, _CAPTION_DRAWS))]
    share = np.mean([text in pairs.texts["keywords_en"][0] for text in drawn])  # picture 0 has English only
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5


def test_patch_dropout_keeps_different_patches_per_sample_in_order_and_ends_where_it_should(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer, patch_dropout=0.75, dense_from=5)
    keep = stream[4].keep
    assert keep is not None
    assert keep.shape == (GLOBAL_BATCH, 4)
    assert (keep.diff(dim=1) > 0).all()
    assert len({tuple(row.tolist()) for row in keep}) > 1
    assert stream[5].keep is None
    assert stream_of(pairs, tiny_tokenizer, patch_dropout=0.0)[0].keep is None


def test_groups_are_equal_exactly_where_concepts_are(pairs):
    concepts = pairs.rows["concept"]
    same = torch.tensor([[a == b for b in concepts] for a in concepts])
    assert torch.equal(pairs.groups[:, None] == pairs.groups[None, :], same)


def test_select_is_the_same_rows_of_everything(pairs):
    part = pairs.select([5, 2])
    assert part.uids == [pairs.uids[5], pairs.uids[2]]
    assert torch.equal(part.pixels, pairs.pictures(torch.tensor([5, 2])))
    assert part.captions(1) == pairs.captions(2)


def test_chunks_of_a_batch_are_its_rows_in_order(pairs, tiny_tokenizer):
    batch = stream_of(pairs, tiny_tokenizer)[0]
    chunks = batch.chunks(4)
    assert [uid for chunk in chunks for uid in chunk.uids] == batch.uids
    for name in ("images", "ids", "groups", "keep"):
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), getattr(batch, name))
    assert stream_of(pairs, tiny_tokenizer, patch_dropout=0.0)[0].chunks(2)[1].keep is None


def write(folder: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), folder / "data.parquet")
    return folder / "data.parquet"


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"There is no data file .*none\.parquet"):
        ParquetPairs(tmp_path / "none.parquet", PREPROCESS)


def test_a_file_that_is_not_parquet_is_one_line(tmp_path):
    (tmp_path / "data.parquet").write_text("uid,image\n1,2\n")
    with pytest.raises(ValueError, match=r"data\.parquet cannot be read as parquet") as caught:
        ParquetPairs(tmp_path / "data.parquet", PREPROCESS)
    assert "\n" not in str(caught.value)


def test_missing_columns_are_named_with_those_there_are(tmp_path):
    path = write(tmp_path, uid=["a"], title=["x"])
    with pytest.raises(ValueError, match=r"no column image, split, captions_<language>. It has: uid, title"):
        ParquetPairs(path, PREPROCESS, ["train"])


def test_an_unknown_split_is_named_with_those_there_are(run_folder):
    with pytest.raises(ValueError, match=r"has no split val. It has: train, validation"):
        ParquetPairs(run_folder / "data.parquet", PREPROCESS, ["val"])


def test_a_file_without_rows_is_one_line(run_folder, tmp_path):
    table = pq.read_table(run_folder / "data.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        ParquetPairs(tmp_path / "data.parquet", PREPROCESS)


def test_uid_concept_and_keywords_may_be_missing(run_folder, tmp_path):
    table = pq.read_table(run_folder / "data.parquet").select(["image", "captions_en"])
    pq.write_table(table, tmp_path / "data.parquet")
    pairs = ParquetPairs(tmp_path / "data.parquet", PREPROCESS)
    assert pairs.uids[:2] == ["row 0", "row 1"]
    assert len(pairs.groups.unique()) == len(pairs) == 60
    assert pairs.captions(0) == [(["a red dog"], [])]


def test_a_sample_without_captions_is_named(pairs, tiny_tokenizer):
    class Wordless(ParquetPairs):
        def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
            return []

    wordless = object.__new__(Wordless)
    wordless.__dict__ = pairs.__dict__
    with pytest.raises(ValueError, match=r"sample picture-\d+ has no caption"):
        stream_of(wordless, tiny_tokenizer)[0]


def test_a_batch_that_does_not_divide_is_one_line(pairs, tiny_tokenizer):
    with pytest.raises(ValueError, match="batch_size 8 cannot be shared by 3 processes"):
        stream_of(pairs, tiny_tokenizer, world=3)


def test_ways_of_writing_are_what_people_write_too() -> None:
    ways = {
        "赤リンゴ": ["赤りんご", "赤いリンゴ", "赤いりんご"],
        "りんご": ["リンゴ"],
        "ケーキ": ["けーき"],
        "赤い丸": ["赤い丸"],
        "木の実": ["木の実"],
        "dog": ["dog"],
    }
    assert {word: ways_of_writing(word) for word in ways} == ways
