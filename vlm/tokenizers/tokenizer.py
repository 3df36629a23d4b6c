"""Sentences -> ids (B, T): SentencePiece (trained on any captions) and CLIP's byte-pair encoding."""

import gzip
import html
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import regex
import sentencepiece
import torch
from torch import Tensor

from vlm.config import Json, StrictConfig

CONFIG_FILE = "tokenizer_config.json"
MODEL_FILE = "tokenizer.model"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(StrictConfig):
    """What `tokenizer_config.json` holds; the text encoder's config must agree with it."""

    kind: str  # one of those `load_tokenizer` knows
    context_length: int  # T at most
    vocab_size: int  # V
    eot_id: int  # ends every row
    pad_id: int  # behind the end of the shorter rows of a batch
    pad_to_context: bool = False  # every batch has T = context_length
    clean: str = "none"  # for kind "tokenizers": what is done to a text before, see `vlm/tokenizers/huggingface.py`

    def __post_init__(self) -> None:
        if self.context_length < 3:
            raise ValueError(
                f"context_length is {self.context_length}; a row needs a begin, a word and an end: 3 or more."
            )


class Tokenizer(ABC):
    """Sentences -> ids.  Every row holds exactly one end-of-text, its last id; whatever the text says."""

    def __init__(self, config: TokenizerConfig):
        self.config = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.eot_id = config.eot_id
        self.pad_id = config.pad_id
        self.pad_to_context = config.pad_to_context
        self.truncated = 0  # texts that were cut so far

    def encode(self, text: str) -> list[int]:
        """The row of one text, at most `context_length` ids: what is too long is cut before the end-of-text."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a text must be a string, got {type(text).__name__} {str(text)[:60]!r}.")
        ids = self._pieces(text)
        if len(ids) >= self.context_length:
            self.truncated += 1
        return [*ids[: self.context_length - 1], self.eot_id]

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """ids (B, T), int64; T is the longest row of this batch."""
        rows = [self.encode(text) for text in ([texts] if isinstance(texts, str) else texts)]
        if not rows:
            raise ValueError("no texts to encode: the list is empty. Give at least one.")
        length = self.context_length if self.pad_to_context else max(map(len, rows))
        padded = np.array([row + [self.pad_id] * (length - len(row)) for row in rows], dtype=np.int64)
        return torch.from_numpy(padded)  # (B, T); torch reads nested lists four times as slowly

    def decode(self, ids: Iterable[int]) -> str:
        """The text of one row, as the tokenizer saw it: normalised, up to the end-of-text."""
        row = list(takewhile(lambda id: id != self.eot_id, map(int, ids)))
        if bad := [id for id in row if not 0 <= id < self.vocab_size]:
            raise ValueError(f"id {bad[0]} is outside the vocabulary of {self.vocab_size} ids.")
        return self._text(row)

    def save(self, folder: Path) -> None:
        """Write what `load_tokenizer` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n", encoding="utf-8")

    @abstractmethod
    def _pieces(self, text: str) -> list[int]:
        """The ids without end-of-text.  May stop once there are `context_length` of them."""

    @abstractmethod
    def _text(self, ids: list[int]) -> str: ...


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (Kudo & Richardson 2018); `training.train_tokenizer` makes one from captions.

    Symbols such as </s> are never read out of a text: there they are four characters.
    """

    def __init__(self, model: Path | bytes, context_length: int, *, pad_to_context: bool = False):
        self._model = _sentencepiece(model)
        super().__init__(
            TokenizerConfig(
                kind="sentencepiece",
                context_length=context_length,
                vocab_size=self._model.get_piece_size(),
                eot_id=self._model.eos_id(),
                pad_id=self._model.pad_id(),
                pad_to_context=pad_to_context,
            )
        )

    def save(self, folder: Path) -> None:
        """The settings and the SentencePiece model."""
        super().save(folder)
        (folder / MODEL_FILE).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The SentencePiece model file."""
        return self._model.serialized_model_proto()

    def byte_share(self, texts: Iterable[str]) -> float:
        """The share of ids that stand for a single byte of a character the vocabulary lacks, 0..1."""
        ids = [id for text in texts for id in self._pieces(text)]
        return sum(map(self._model.is_byte, ids)) / max(len(ids), 1)

    def _pieces(self, text: str) -> list[int]:
        return self._model.encode(_without_lone_surrogates(text))

    def _text(self, ids: list[int]) -> str:
        return self._model.decode(ids)


def _sentencepiece(model: Path | bytes) -> sentencepiece.SentencePieceProcessor:
    name = "these bytes" if isinstance(model, bytes) else str(model)
    try:
        content = model if isinstance(model, bytes) else model.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the tokenizer model {name}: {error.strerror}.") from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        intact = bool(content) and processor.load_from_serialized_proto(content)
    except RuntimeError:
        intact = False
    if not intact:
        raise ValueError(f"{name} ({len(content)} bytes) is not a SentencePiece model, or is damaged.")
    if processor.eos_id() < 0 or processor.pad_id() < 0:
        raise ValueError(f"{name} has no end-of-text or no padding symbol. Train it with eos_id and pad_id.")
    return processor


def _without_lone_surrogates(text: str) -> str:
    """Half a UTF-16 pair (undecodable file names have them) becomes U+FFFD; ftfy does the same."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# Text that ftfy and html.unescape leave as it is: printable ASCII without '&', kana, CJK punctuation, kanji, emoji.
_CLEAN = re.compile(r"[ -%'-~ぁ-ゖァ-ヺー-ヾ、。々「-】一-鿿\u200d\u20e3\ufe0f\u2600-\u27bf\U0001f1e6-\U0001faff]*")
# OpenAI's pattern without its two control symbols.  No run is longer than 1000, so that the time stays bounded.
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}{1,1000}|\p{N}|[^\s\p{L}\p{N}]{1,1000}", regex.IGNORECASE)
CLIP_BPE_FILE = Path(__file__).parents[1] / "assets" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCAB = 49408  # 256 bytes, 256 bytes that end a word, 48,894 merges, begin, end
_CACHE_SIZE = 1 << 16  # texts, and words ...
_LONGEST_CACHED = 256  # ... of at most so many characters


class CLIPTokenizer(Tokenizer):
    """The byte-pair encoding of CLIP (Radford et al. 2021): the ids of open_clip.tokenize, several times as fast.

    Two cases differ, on purpose: <start_of_text> and <end_of_text> written in a text are words, not symbols; a run of
    more than 1000 letters is more than one word.
    """

    def __init__(self, context_length: int = 77, *, pad_to_context: bool = False):
        super().__init__(
            TokenizerConfig(
                kind="clip_bpe",
                context_length=context_length,
                vocab_size=CLIP_VOCAB,
                eot_id=CLIP_VOCAB - 1,
                pad_id=0,
                pad_to_context=pad_to_context,
            )
        )
        self._begin_id = CLIP_VOCAB - 2
        self._merges, self._wholes = _clip_merges(), _clip_wholes()
        self._texts: dict[str, list[int]] = {}  # captions come again every epoch, labels every call
        self._words: dict[str, list[int]] = {}

    def _pieces(self, text: str) -> list[int]:
        known = self._texts.get(text)
        return _remember(self._texts, text, self._read(text)) if known is None else known

    def _read(self, text: str) -> list[int]:
        """At least `context_length` ids if there are more."""
        ids = [self._begin_id]
        for match in _WORDS.finditer(" ".join(_clip_clean(text).split())):
            word = match[0]
            known = self._words.get(word)
            ids += _remember(self._words, word, self._word(word)) if known is None else known
            if len(ids) >= self.context_length:
                break
        return ids

    def _word(self, word: str) -> list[int]:
        """Byte-pair encoding: the pair that was learnt first is merged, until none is left (Sennrich et al. 2016)."""
        raw = word.encode()
        if (whole := self._wholes.get(raw)) is not None:
            return [whole]
        ids = list(raw.translate(_IDS_OF_BYTES))
        ids[-1] += 256  # the same byte at the end of a word
        merge = self._merges.get
        merged = [merge(pair, CLIP_VOCAB) for pair in pairwise(ids)]  # what each neighbour pair makes
        while merged and (first := min(merged)) < CLIP_VOCAB:
            at = merged.index(first)
            ids[at : at + 2] = [first]
            del merged[at]
            if at > 0:
                merged[at - 1] = merge((ids[at - 1], first), CLIP_VOCAB)
            if at < len(merged):
                merged[at] = merge((first, ids[at + 1]), CLIP_VOCAB)
        return ids

    def _text(self, ids: list[int]) -> str:
        pieces = _clip_pieces()
        return b"".join(pieces[id] for id in ids if id != self._begin_id).decode("utf-8", "replace").strip()


def _remember(cache: dict[str, list[int]], text: str, ids: list[int]) -> list[int]:
    if len(cache) == _CACHE_SIZE:
        cache.clear()
    if len(text) <= _LONGEST_CACHED:
        cache[text] = ids
    return ids


def _clip_clean(text: str) -> str:
    """SimpleTokenizer's cleaning: mojibake repaired, HTML entities resolved (twice), lower case."""
    if not _CLEAN.fullmatch(text):
        import ftfy  # slow to import

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


# GPT-2's byte alphabet: the printable bytes come first and stand for themselves, the others are written from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_BYTES = bytes((*_PRINTABLE, *_OTHERS))  # in the order of ids
_IDS_OF_BYTES = bytes(_BYTES.index(byte) for byte in range(256))
BYTE_LETTERS = tuple(map(chr, (*_PRINTABLE, *range(0x100, 0x100 + len(_OTHERS)))))


@cache
def _clip_merges() -> dict[tuple[int, int], int]:
    """(left id, right id) -> merged id.  Ids count up in the order of learning, so the smallest id goes first."""
    ids = {letter: id for id, letter in enumerate((*BYTE_LETTERS, *(letter + "</w>" for letter in BYTE_LETTERS)))}
    lines = gzip.decompress(CLIP_BPE_FILE.read_bytes()).decode("utf-8").split("\n")
    merges: dict[tuple[int, int], int] = {}
    for id, line in enumerate(lines[1 : CLIP_VOCAB - 512 - 2 + 1], start=512):
        left, right = line.split()
        merges[ids[left], ids[right]] = ids[left + right] = id
    return merges


@cache
def _clip_wholes() -> dict[bytes, int]:
    """The words that are one id: merging would end there."""
    return {piece[:-1]: id for id, piece in enumerate(_clip_pieces()) if piece.endswith(b" ")}


@cache
def _clip_pieces() -> list[bytes]:
    """The bytes of each id; a piece that ends a word ends in a space."""
    pieces = [bytes([byte]) for byte in _BYTES] + [bytes([byte, 0x20]) for byte in _BYTES]
    for left, right in _clip_merges():
        pieces.append(pieces[left] + pieces[right])
    return [*pieces, b"", b""]


_KINDS: dict[str, Callable[[Path, TokenizerConfig], Tokenizer]] = {
    "sentencepiece": lambda folder, config: SentencePieceTokenizer(
        folder / MODEL_FILE, config.context_length, pad_to_context=config.pad_to_context
    ),
    "clip_bpe": lambda _, config: CLIPTokenizer(config.context_length, pad_to_context=config.pad_to_context),
    "tokenizers": lambda folder, config: _json_tokenizer(folder, config),
}


def _json_tokenizer(folder: Path, config: TokenizerConfig) -> Tokenizer:
    from vlm.tokenizers.huggingface import (  # it builds on this module; only foreign models need it
        JSON_FILE,
        JsonTokenizer,
    )

    return JsonTokenizer(folder / JSON_FILE, config)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Open what `Tokenizer.save` wrote; raises ValueError where the files are missing, damaged or disagree."""
    path = folder / CONFIG_FILE
    try:
        values: Json = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{folder} holds no tokenizer: cannot read {CONFIG_FILE} ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; wanted an object.")
    try:
        config = TokenizerConfig.from_dict(values)
    except (TypeError, ValueError) as error:  # a setting is missing; unknown, or of the wrong type
        raise ValueError(f"{path}: {error}") from error
    if config.kind not in _KINDS:
        raise ValueError(f"{path}: kind is '{config.kind}'; it must be one of {', '.join(_KINDS)}.")
    tokenizer = _KINDS[config.kind](folder, config)
    for name in (field.name for field in fields(config)):
        said, found = getattr(config, name), getattr(tokenizer.config, name)
        if said != found:
            raise ValueError(f"{path} says {name} {said}, the model has {found}. The files do not belong together.")
    return tokenizer
