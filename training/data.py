"""Pairs of pictures and captions, in an order that depends on nothing but the recipe.

sample on disk -> `Pairs` -> `Batch`.  Position p of the endless stream of samples belongs to epoch p // n; what is
drawn for it (sample, captions, augmentation, kept patches) is a pure function of (seed, epoch, p mod n).
"""

import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.augment import AugmentConfig, augment, uniform_draws
from vlm.preprocess import Preprocess
from vlm.tokenizer import Tokenizer
from vlm.zero_shot import label_sentences

ORDER, AUGMENT, CAPTION, KEEP = range(4)  # independent random streams
_CAPTION_DRAWS = 6  # uniform numbers for one caption


class Batch(NamedTuple):
    images: Tensor  # uint8 (B, C, H, W)
    ids: Tensor  # (B, c, T), c captions a picture
    groups: Tensor  # (B,), equal numbers show the same thing
    keep: Tensor | None  # (B, K), the patches that stay
    uids: list[str]  # sample names, for messages

    def chunks(self, count: int) -> list["Batch"]:
        """Cut along the samples into `count` equal parts."""
        side = len(self.uids) // count
        return [
            Batch(*(None if part is None else part[start : start + side] for part in self))  # type: ignore[arg-type]
            for start in range(0, side * count, side)
        ]

    def to(self, device: torch.device) -> "Batch":
        keep = None if self.keep is None else self.keep.to(device, non_blocking=True)
        images, ids, groups = (t.to(device, non_blocking=True) for t in (self.images, self.ids, self.groups))
        return Batch(images, ids, groups, keep, self.uids)


class Pairs(Protocol):
    """What a data set must answer to be trained on; sample numbers run from 0."""

    uids: list[str]  # sample names
    groups: Tensor  # (n,), equal numbers show the same thing

    def __len__(self) -> int: ...

    def pictures(self, index: Tensor) -> Tensor:
        """Sample numbers (B,) -> uint8 (B, C, H, W)."""
        ...

    def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
        """(names, keywords) of every language that has any."""
        ...


class ParquetPairs:
    """Rows of a parquet file: `image`, `captions_<language>`; perhaps `keywords_<language>`, `concept`, `uid`, `split`.

    Pictures are decoded once and kept as uint8: right for sets of up to some hundred thousand small pictures.
    """

    def __init__(self, path: str | Path, preprocess: Preprocess, splits: Sequence[str] = ()):
        rows = _read_parquet(Path(path))
        _check_columns(path, rows, ("split",) if splits else ())
        if splits:
            column = [str(split) for split in rows["split"]]
            if missing := [split for split in splits if split not in column]:
                there = ", ".join(sorted(set(column)))
                raise ValueError(f"{path} has no split {', '.join(missing)}. It has: {there}.")
            rows = rows.select([i for i, split in enumerate(column) if split in splits])
        self._set(rows, torch.stack([preprocess.pixels(image["bytes"]) for image in rows["image"]]))

    def _set(self, rows: Any, pixels: Tensor) -> None:
        names: dict[str, int] = {}
        self.rows = rows
        self.pixels = pixels  # uint8 (n, C, H, W)
        columns = rows.column_names
        self.uids: list[str] = rows["uid"][:] if "uid" in columns else [f"row {i}" for i in range(len(rows))]
        concepts = rows["concept"][:] if "concept" in columns else [None] * len(rows)
        keys = [concept or uid for concept, uid in zip(concepts, self.uids, strict=True)]
        self.groups = torch.tensor([names.setdefault(key, len(names)) for key in keys])  # (n,)
        self.languages = [name.removeprefix("captions_") for name in columns if name.startswith("captions_")]
        texts = [name for name in columns if name.startswith(("captions_", "keywords_"))]
        self.texts: dict[str, list[list[str]]] = {name: [row or [] for row in rows[name]] for name in texts}

    def __len__(self) -> int:
        return len(self.uids)

    def select(self, index: Sequence[int]) -> Self:
        """The same kind of set with these rows only."""
        part = object.__new__(type(self))
        part._set(self.rows.select(index), self.pixels[torch.tensor(index, dtype=torch.long)])
        return part

    def pictures(self, index: Tensor) -> Tensor:
        return self.pixels[index]

    def captions(self, index: int) -> list[tuple[list[str], list[str]]]:
        both = [
            (self.texts[f"captions_{language}"][index], self.texts.get(f"keywords_{language}", [[]] * len(self))[index])
            for language in self.languages
        ]
        return [(names, keywords) for names, keywords in both if names or keywords]


def _read_parquet(path: Path) -> Any:
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetGenerationError
    from pyarrow.parquet import read_metadata

    if not path.is_file():
        raise ValueError(f"There is no data file {path}. Wanted a parquet file with pictures and captions.")
    try:
        count = read_metadata(path).num_rows
        rows: Any = load_dataset("parquet", data_files=str(path), split="train") if count else None
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as parquet ({reason}).") from error
    if rows is None:
        raise ValueError(f"{path} has no rows.")
    return rows.cast_column("image", Image(decode=False)) if "image" in rows.column_names else rows


def _check_columns(path: str | Path, rows: Any, more: Sequence[str]) -> None:
    columns = rows.column_names
    missing = [name for name in ("image", *more) if name not in columns]
    missing += [] if any(name.startswith("captions_") for name in columns) else ["captions_<language>"]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}. It has: {', '.join(columns)}.")


class PairStream(Dataset[Batch]):
    """Step s -> its `Batch`: random access into an endless stream, so that workers and resumed runs need no history.

    `rank` of `world` takes its slice of each global batch.
    """

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: Tokenizer,
        augmentation: AugmentConfig,
        *,
        seed: int,
        batch_size: int,
        num_patches: int,
        patch_dropout: float = 0.0,
        dense_from: int | None = None,  # the step from which all patches are seen
        keyword_share: float = 0.3,
        template_share: float = 0.0,
        kana_share: float = 0.0,
        captions_per_picture: int = 1,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} cannot be shared by {world} processes.")
        self.pairs, self.tokenizer, self.augmentation, self.seed = pairs, tokenizer, augmentation, seed
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.kept = num_patches - int(num_patches * patch_dropout) if patch_dropout else None
        self.num_patches, self.dense_from = num_patches, dense_from
        self.keyword_share, self.template_share, self.kana_share = keyword_share, template_share, kana_share
        self.captions_per_picture = captions_per_picture
        self._orders: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> Batch:
        share = self.batch_size // self.world
        start = step * self.batch_size + self.rank * share
        epochs, positions = np.divmod(np.arange(start, start + share), len(self.pairs))
        index = np.array([self._order(int(epoch))[position] for epoch, position in zip(epochs, positions, strict=True)])
        draws = uniform_draws(self.seed, CAPTION, epochs, positions, _CAPTION_DRAWS * self.captions_per_picture)
        texts = [self._choose(int(i), u) for i, u in zip(index, draws, strict=True)]
        ids = self.tokenizer([text for row in texts for text in row])
        keep = None
        if self.kept is not None and (self.dense_from is None or step < self.dense_from):
            order = uniform_draws(self.seed, KEEP, epochs, positions, self.num_patches).argsort(1)
            keep = torch.from_numpy(np.sort(order[:, : self.kept], axis=1))
        pictures = self.pairs.pictures(torch.from_numpy(index))
        return Batch(
            images=augment(pictures, self.augmentation, self.seed, AUGMENT, epochs, positions),
            ids=ids.view(share, self.captions_per_picture, -1),
            groups=self.pairs.groups[torch.from_numpy(index)],
            keep=keep,
            uids=[self.pairs.uids[i] for i in index],
        )

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, ORDER], counter=[0, 0, epoch, 0]))
            before = {number: order for number, order in self._orders.items() if number == epoch - 1}
            self._orders = before | {epoch: generator.permutation(len(self.pairs))}
        return self._orders[epoch]

    def _choose(self, index: int, draws: np.ndarray) -> list[str]:
        """One caption per slot: languages in turns from a random one on; a name or keyword; perhaps in a sentence."""
        languages = self.pairs.captions(index)
        if not languages:
            raise ValueError(f"sample {self.pairs.uids[index]} has no caption.")
        chosen, first = [], int(draws[0] * len(languages))
        for slot, (_, kind, which, kana, template, wording) in enumerate(draws.reshape(-1, _CAPTION_DRAWS)):
            names, keywords = languages[(first + slot) % len(languages)]
            pool = keywords if keywords and (not names or kind < self.keyword_share) else names
            caption = pool[int(which * len(pool))]
            if kana < self.kana_share:
                ways = ways_of_writing(caption)
                caption = ways[int(kana / self.kana_share * len(ways))]
            if template < self.template_share:
                sentences = label_sentences(caption)
                caption = sentences[int(wording * len(sentences))]
            chosen.append(caption)
        return chosen


_KATAKANA = "".join(map(chr, range(0x30A1, 0x30F7)))
_HIRAGANA = "".join(map(chr, range(0x3041, 0x3097)))
_TO_HIRAGANA, _TO_KATAKANA = str.maketrans(_KATAKANA, _HIRAGANA), str.maketrans(_HIRAGANA, _KATAKANA)


def ways_of_writing(text: str) -> list[str]:
    """A Japanese word as people write it too: 赤リンゴ -> 赤りんご, 赤いリンゴ, 赤いりんご; else the text itself.

    Kana change syllabary, except hiragana beside kanji, which may be grammar (赤い丸, 木の実); a colour before a
    katakana word may be an adjective.
    """
    adjective = re.sub("(赤|青|白|黒)(?=[ァ-ヺ])", r"\1い", text)
    ways = {_other_kana(text): None, adjective: None, _other_kana(adjective): None}
    return [way for way in ways if way != text] or [text]


def _other_kana(text: str) -> str:
    if all(letter in _HIRAGANA or letter == "ー" for letter in text):
        return text.translate(_TO_KATAKANA)
    return text.translate(_TO_HIRAGANA)


def batches(stream: PairStream, first_step: int, last_step: int, workers: int, *, pin: bool = False) -> Iterator[Batch]:
    """The batches of steps first_step .. last_step - 1, in order, built ahead of need in `workers` processes.

    `pin`: in memory from which copies to a GPU are fast.
    """
    yield from DataLoader(
        stream,
        sampler=range(first_step, last_step),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin,
    )


def _prepare_worker(worker: int) -> None:
    """One thread.  Ctrl-C and SIGTERM may reach all processes; it is the training loop that decides when to stop."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
