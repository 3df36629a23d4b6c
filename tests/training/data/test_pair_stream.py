import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.support.kept_data import png
from vlm.config import PreprocessConfig
from vlm.images.preprocess import Preprocess
from vlm.positives import NO_KEY
from vlm.tokenizers.protocol import Tokenizer
from vlm.training.data.captions import CaptionChoice
from vlm.training.data.pair_stream import PairBatch, PairStream, augmented, shrink
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.data.positive_keys import key_number, most_keys
from vlm.training.data.rows import BrokenSample
from vlm.training.data.stream import batches
from vlm.training.measure.retrieval import queries_of
from vlm.training.recipe.augmentation import AugmentConfig

PREPROCESS = Preprocess(PreprocessConfig(image_size=16, resize="pad"))
GLOBAL_BATCH = 8
MORE_WORKERS_THAN_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def pairs(run_folder) -> Pairs:
    return open_pairs(run_folder / "data.parquet", PREPROCESS, ["train"])


def stream_of(pairs: Pairs, tokenizer: Tokenizer, rank: int = 0, world: int = 1, seed: int = 3, **more) -> PairStream:
    choice = CaptionChoice(template_share=0.3, kana_share=0.3, per_image=2)
    settings = {"num_patches": 16, "patch_dropout": 0.5, "choice": choice} | more
    return PairStream(
        pairs, tokenizer, AugmentConfig(), seed=seed, batch_size=GLOBAL_BATCH, rank=rank, world=world, **settings
    )


def digests(batch: PairBatch, eot: int) -> list[str]:
    """One per sample: name, token ids without padding, kept patches, and every pixel after augmentation."""
    found = []
    assert batch.keep is not None
    for uid, ids, keep, image, group in zip(batch.uids, batch.ids, batch.keep, batch.images, batch.groups, strict=True):
        words = [row[: row.tolist().index(eot) + 1].tolist() for row in ids]
        content = repr((uid, words, keep.tolist(), group.tolist())).encode() + image.numpy().tobytes()
        found.append(hashlib.sha256(content).hexdigest())
    return found


def order(pairs: Pairs, tokenizer: Tokenizer, *, workers: int, world: int, first: int, last: int) -> list[list[str]]:
    """The digests of each global step, its ranks side by side."""
    ranks = [batches(stream_of(pairs, tokenizer, rank, world), first, last, workers) for rank in range(world)]
    steps = []
    for parts in zip(*ranks, strict=True):
        steps.append([digest for part in parts for digest in digests(part, tokenizer.eot_id)])
    return steps


def test_order_does_not_depend_on_ranks_or_on_where_a_run_resumes(pairs, tiny_tokenizer):
    truth = order(pairs, tiny_tokenizer, workers=0, world=1, first=0, last=102)
    assert len({digest for step in truth for digest in step}) == 102 * GLOBAL_BATCH  # nothing is ever seen twice alike
    alone = PairStream(  # one process is the default
        pairs, tiny_tokenizer, AugmentConfig(), seed=3, batch_size=GLOBAL_BATCH, num_patches=16, patch_dropout=0.5
    )
    given = stream_of(pairs, tiny_tokenizer, choice=None)
    assert digests(alone[5], tiny_tokenizer.eot_id) == digests(given[5], tiny_tokenizer.eot_id)
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


def test_every_epoch_shows_every_image_once_in_another_order(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer)
    steps = len(pairs) // GLOBAL_BATCH
    first, second = ([uid for s in range(e * steps, (e + 1) * steps) for uid in stream[s].uids] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(pairs.uids)
    assert first != second


def test_patch_dropout_keeps_different_patches_per_sample_in_order_and_ends_where_it_should(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer, patch_dropout=0.75, dense_from=5)
    keep = stream[4].keep
    assert keep is not None
    assert keep.shape == (GLOBAL_BATCH, 4)
    assert (keep.diff(dim=1) > 0).all()
    assert len({tuple(row.tolist()) for row in keep}) > 1
    assert stream[5].keep is None
    assert stream_of(pairs, tiny_tokenizer, patch_dropout=0.0)[0].keep is None


def test_coarse_images_are_small_until_the_dense_steps(pairs, tiny_tokenizer):
    stream = stream_of(pairs, tiny_tokenizer, patch_dropout=0.25, num_patches=4, coarse_size=8, dense_from=5)
    assert stream[4].images.shape == (GLOBAL_BATCH, 3, 8, 8)
    keep = stream[4].keep
    assert keep is not None and keep.shape == (GLOBAL_BATCH, 3)
    assert stream[5].images.shape == (GLOBAL_BATCH, 3, 16, 16)
    assert stream[5].keep is None
    assert stream[4].uids == stream_of(pairs, tiny_tokenizer)[4].uids


def test_a_coarse_image_is_what_pillow_makes_of_it():
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, small in zip(images, shrink(images, 15), strict=True):
        wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((15, 15), Image.Resampling.BILINEAR)
        assert (small.permute(1, 2, 0).int() - torch.from_numpy(np.array(wanted)).int()).abs().max() <= 1


def test_texts_are_names_not_keywords(pairs):
    assert pairs.languages == ["en", "ja"]
    for language in pairs.languages:
        own = [pairs.rows.captions(index).get(language, ([], []))[0] for index in range(len(pairs))]
        assert pairs.texts(language) == own
        assert any(own)


def related(keys: torch.Tensor) -> torch.Tensor:
    """(B, B) bool: which images of a batch share a key."""
    own = [set(row) - {NO_KEY} for row in keys.view(len(keys), -1).tolist()]
    return torch.tensor([[not a.isdisjoint(b) for b in own] for a in own])


@pytest.mark.parametrize("language", ["", "_en"])
def test_images_that_share_a_caption_are_right_for_each_others_texts(language, tmp_path, tiny_tokenizer):
    """As `queries_of` has it: 0 and 1 share one, 1 and 2 another, spelled otherwise; 3 is alone, 4 and 5 a concept."""
    captions = [["a dog", "a pet"], ["my house", "a\u00a0dog"], ["my  house", "ｈｏｍｅ"], ["home!"], ["fur"], ["skin"]]
    concepts = [None, None, None, None, "cat", "cat"]
    rows = [
        {"image": {"bytes": png(n), "path": None}, f"captions{language}": own, "concept": concept}
        for n, (own, concept) in enumerate(zip(captions, concepts, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    pairs = open_pairs(tmp_path / "d.parquet", PREPROCESS)
    batch = PairStream(pairs, tiny_tokenizer, AugmentConfig(), seed=0, batch_size=6, num_patches=16)[0]
    order = torch.tensor([pairs.uids.index(uid) for uid in batch.uids]).argsort()
    found = related(batch.groups[order])
    assert (found.triu(1)).nonzero().tolist() == [[0, 1], [1, 2], [4, 5]]
    _, right = queries_of(pairs, language.strip("_"))
    shared = {(a, b) for images in right for a in images for b in images if a < b}
    assert shared == {(0, 1), (1, 2), (4, 5)}


def test_an_image_with_one_text_has_one_key(tmp_path):
    """Nothing is to be paid for where nothing can overlap."""
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "d.csv").write_text("image,caption\na.png,dog\na.png,cat\n")
    assert most_keys(open_pairs(tmp_path / "d.csv", PREPROCESS)) == 2  # one image, two rows
    (tmp_path / "e.csv").write_text("image,caption\na.png,dog\n")
    assert most_keys(open_pairs(tmp_path / "e.csv", PREPROCESS)) == 1


def test_groups_are_equal_exactly_where_concepts_are(pairs):
    concepts = pairs.rows.column("concept")
    same = torch.tensor([[a == b for b in concepts] for a in concepts])
    assert torch.equal(pairs.groups[:, None] == pairs.groups[None, :], same)


def test_groups_of_a_batch_are_equal_exactly_where_concepts_are(pairs, tiny_tokenizer):
    concept = dict(zip(pairs.uids, pairs.rows.column("concept"), strict=True))
    stream, together = stream_of(pairs, tiny_tokenizer), 0
    for batch in (stream[step] for step in range(12)):
        same = torch.tensor([[concept[a] == concept[b] for b in batch.uids] for a in batch.uids])
        assert torch.equal(related(batch.groups), same)
        together += int(same.sum()) - len(same)
    assert together > 0


def test_select_is_the_same_rows_of_everything(pairs):
    part = pairs.select([5, 2])
    assert part.uids == [pairs.uids[5], pairs.uids[2]]
    assert torch.equal(part.images([0, 1]), pairs.images([5, 2]))
    assert part.captions(1) == pairs.captions(2)


def test_chunks_of_a_batch_are_its_rows_in_order(pairs, tiny_tokenizer):
    batch = stream_of(pairs, tiny_tokenizer)[0]
    chunks = batch.chunks(4)
    assert [uid for chunk in chunks for uid in chunk.uids] == batch.uids
    for name in ("images", "ids", "groups", "keep"):
        assert torch.equal(torch.cat([getattr(chunk, name) for chunk in chunks]), getattr(batch, name))
    assert stream_of(pairs, tiny_tokenizer, patch_dropout=0.0)[0].chunks(2)[1].keep is None


def test_a_batch_moves_with_all_its_parts(pairs, tiny_tokenizer):
    for dropout in (0.5, 0.0):
        batch = stream_of(pairs, tiny_tokenizer, patch_dropout=dropout)[0]
        moved = batch.to(torch.device("meta"))
        assert moved.host_ids is batch.ids
        parts = [part for part in moved._replace(host_ids=None) if isinstance(part, torch.Tensor)]
        assert [part.device.type for part in parts] == ["meta"] * (4 if dropout else 3)
        assert [part.shape for part in parts] == [part.shape for part in batch if isinstance(part, torch.Tensor)]
        assert (moved.uids, moved.broken) == (batch.uids, batch.broken)


def test_what_does_not_divide_is_rounded_to_more_patches(pairs, tiny_tokenizer):
    for patches, dropout, kept in ((10, 0.25, 8), (16, 0.99, 1), (3, 0.3, 3)):
        keep = stream_of(pairs, tiny_tokenizer, num_patches=patches, patch_dropout=dropout)[0].keep
        assert keep is not None and keep.shape == (GLOBAL_BATCH, kept)


def test_coarse_images_stay_so_where_no_step_is_named(pairs, tiny_tokenizer):
    assert stream_of(pairs, tiny_tokenizer, coarse_size=8)[10**6].images.shape == (GLOBAL_BATCH, 3, 8, 8)
    dense = stream_of(pairs, tiny_tokenizer, coarse_size=8, dense_from=0)[0]
    assert dense.images.shape == (GLOBAL_BATCH, 3, 16, 16) and dense.keep is None


class Lines(Pairs):
    """Image n is all n; its captions say so."""

    def __init__(self, count: int, lost: dict[int, str] | None = None):
        self.count, self.lost, self.rows = count, lost or {}, self  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.count

    def uid(self, index: int) -> str:
        return f"p{index}"

    def group(self, index: int) -> str:
        return f"group {index // 2}"

    def concept(self, index: int) -> str:
        return f"group {index // 2}"

    def read_ahead(self, index: Sequence[int]) -> None:
        pass

    def pixels(self, index: int) -> torch.Tensor:
        if "image" in self.lost.get(index, ""):
            raise BrokenSample(self.uid(index), "missing", "no image")
        return torch.full((3, 4, 4), index, dtype=torch.uint8)

    def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
        if "caption" in self.lost.get(index, ""):
            raise BrokenSample(self.uid(index), "no caption", "none")
        return [([f"{index} {language}"], []) for language in range(3)]


def numbers_of(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[int(word) for word in text.split()] for text in texts])


PLAIN = AugmentConfig(zoom=(1, 1), stretch=0, rotate=0, shear=0, shift=0, colour=0, hue=0, gray=0, line=0, blur=0,
                      background=0, erase=0)  # fmt: skip


def test_images_captions_groups_and_names_of_a_batch_belong_together():
    choice = CaptionChoice(per_image=2)
    stream = PairStream(Lines(12), numbers_of, PLAIN, seed=0, batch_size=6, num_patches=4, choice=choice)  # type: ignore[arg-type]
    batch = stream[0]
    samples = [int(uid[1:]) for uid in batch.uids]
    assert batch.images.shape == (6, 3, 4, 4) and batch.ids.shape == (6, 2, 2)
    assert batch.images[:, 0, 2, 1].tolist() == samples
    assert batch.ids[:, :, 0].tolist() == [[sample, sample] for sample in samples]
    assert ((batch.ids[:, 1, 1] - batch.ids[:, 0, 1]) % 3 == 1).all()  # the next language
    wanted = [[f"concept\ngroup {sample // 2}", *(f"{sample} {i}" for i in range(3))] for sample in samples]
    assert batch.groups.tolist() == [[key_number(key) for key in row] for row in wanted]
    assert (batch.broken, batch.keep) == ((), None)


def test_a_missing_caption_is_said_before_a_missing_image():
    lost = Lines(6, {1: "caption", 2: "image", 4: "caption and image"})
    batch = PairStream(lost, numbers_of, PLAIN, seed=0, batch_size=6, num_patches=4)[0]  # type: ignore[arg-type]
    reasons = {error.uid: error.reason for error in batch.broken}
    assert reasons == {"p1": "no caption", "p2": "missing", "p4": "no caption"}


def test_numbers_of_keys_are_63_bits_of_a_known_hash():
    names = [f"group {number}" for number in range(1000)]
    numbers = [key_number(name) for name in names]
    assert len(set(numbers)) == 1000
    assert torch.tensor(numbers).tolist() == numbers  # they fit, and none is negative
    assert min(numbers) >= 0 and max(numbers) >= 2**62
    assert sum(number & 1 for number in numbers) not in (0, 1000)
    digest = hashlib.blake2b("犬".encode(), digest_size=8).hexdigest()
    assert key_number("犬") == int(digest, 16) // 2


def test_what_cannot_be_opened_is_left_out_and_told(run_folder, tmp_path):
    table = pq.read_table(run_folder / "data.parquet").slice(0, 5)
    images = table.column("image").to_pylist()
    images[3]["bytes"] = b"no image"
    field = table.schema.field("image")
    changed = pa.array(images, field.type)
    pq.write_table(table.set_column(table.column_names.index("image"), field, changed), tmp_path / "data.parquet")
    pairs = open_pairs(tmp_path / "data.parquet", PREPROCESS, [])
    sound, broken = pairs.sound()
    assert [sound.captions(index) for index in range(4)] == [pairs.captions(index) for index in (0, 1, 2, 4)]
    assert (len(sound), len(broken)) == (4, 1)


@pytest.mark.parametrize(("workers", "world", "item"), [(0, 1, 3), (0, 2, 1), (1, 1, 4), (2, 1, 3)])
def test_a_step_built_in_parts_is_the_step_built_whole(
    pairs: Pairs, tiny_tokenizer: Tokenizer, workers: int, world: int, item: int
):
    for rank in range(world):
        stream = stream_of(pairs, tiny_tokenizer, rank, world)
        found = list(batches(stream, 2, 5, workers, largest_item=item))
        for step, batch in enumerate(found, 2):
            whole = stream[step]
            assert digests(batch, tiny_tokenizer.eot_id) == digests(whole, tiny_tokenizer.eot_id)
            assert torch.equal(batch.ids, whole.ids) and batch.uids == whole.uids


@pytest.mark.parametrize("coarse", [0, 8])
def test_images_augmented_later_are_those_augmented_in_the_workers(
    pairs: Pairs, tiny_tokenizer: Tokenizer, coarse: int
):
    """To one grey level, the chunks of a step and its parts too."""
    config = AugmentConfig(line=0.3, background=0.3, erase=0.3, blur=0.5, flip=0.5)
    now, later = (
        PairStream(pairs, tiny_tokenizer, config, seed=3, batch_size=8, num_patches=4, coarse_size=coarse,
                   dense_from=4, augment_later=on_device)
        for on_device in (False, True)
    )  # fmt: skip
    for step in (1, 5):
        wanted, batch = now[step].images.int(), later[step]
        assert batch.draws is not None and batch.images.shape[-1] == pairs.preprocess.config.image_shape[1]
        parts = list(batches(later, step, step + 1, 0, largest_item=3))
        for found in (augmented(batch, config), augmented(parts[0].to(torch.device("cpu")), config),
                      torch.cat([augmented(chunk, config) for chunk in batch.chunks(4)])):  # fmt: skip
            assert found.shape == wanted.shape
            assert int((found.int() - wanted).abs().max()) <= 1


def test_shrinking_in_floats_is_shrinking_in_bytes_to_one_grey_level():
    """What a GPU computes, where there is no kernel for bytes."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    in_floats = F.interpolate(images.float(), (12, 12), mode="bilinear", antialias=True).round().clamp(0, 255)
    assert int((in_floats.int() - shrink(images, 12).int()).abs().max()) <= 1
