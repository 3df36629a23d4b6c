"""CLIP's byte-pair encoding (Radford et al. 2021): English texts -> ids."""

import gzip
import html
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import regex

from vlm.tokenizers.protocol import Tokenizer, TokenizerConfig

# Text that ftfy and html.unescape do not change: printable ASCII without '&', kana, CJK punctuation, kanji, emoji.
_CLEAN = re.compile(r"[ -%'-~ぁ-ゖァ-ヺー-ヾ、。々「-】一-鿿\u200d\u20e3\ufe0f\u2600-\u27bf\U0001f1e6-\U0001faff]*")
# OpenAI's pattern without its two control symbols.  Runs of at most 1000 characters bound the time.
_WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}{1,1000}|\p{N}|[^\s\p{L}\p{N}]{1,1000}", regex.IGNORECASE)
CLIP_BPE_FILE = Path(__file__).parents[1] / "assets" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCAB = 49408  # 256 bytes, 256 bytes that end a word, 48,894 merges, begin, end
_CACHE_SIZE = 1 << 16  # texts, and words ...
_LONGEST_CACHED = 256  # ... of at most so many characters


class CLIPTokenizer(Tokenizer):
    """The byte-pair encoding of CLIP (Radford et al. 2021): the ids of open_clip.tokenize, several times as fast.

    Two cases differ on purpose: <start_of_text> and <end_of_text> in a text are words, not symbols; a run of more than
    1000 letters is more than one word.

    Args:
        context_length: largest T.
        pad_to_context: every batch has T = context_length.
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
        self._texts: dict[str, list[int]] = {}  # cache: captions return every epoch, labels every call
        self._words: dict[str, list[int]] = {}

    def _pieces(self, text: str) -> list[int]:
        known = self._texts.get(text)
        return _remember(self._texts, text, self._read(text)) if known is None else known

    def _read(self, text: str) -> list[int]:
        """The ids without end-of-text; reading stops once there are `context_length`."""
        ids = [self._begin_id]
        for match in _WORDS.finditer(" ".join(_clip_clean(text).split())):
            word = match[0]
            known = self._words.get(word)
            ids += _remember(self._words, word, self._word(word)) if known is None else known
            if len(ids) >= self.context_length:
                break
        return ids

    def _word(self, word: str) -> list[int]:
        """Byte-pair encoding (Sennrich et al. 2016): merges the pair that was learnt first, until none is left."""
        raw = word.encode()
        if (whole := self._wholes.get(raw)) is not None:
            return [whole]
        ids = list(raw.translate(_IDS_OF_BYTES))
        ids[-1] += 256  # the same byte at the end of a word
        merge = self._merges.get
        merged = [merge(pair, CLIP_VOCAB) for pair in pairwise(ids)]  # the id that each pair of neighbours makes
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
    """Normalise as SimpleTokenizer: repair mojibake, resolve HTML entities twice, lower case."""
    if not _CLEAN.fullmatch(text):
        import ftfy  # slow to import

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text.lower()


# GPT-2's byte alphabet: printable bytes come first and are themselves; the others are letters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_BYTES = bytes((*_PRINTABLE, *_OTHERS))  # in the order of ids
_IDS_OF_BYTES = bytes(_BYTES.index(byte) for byte in range(256))
BYTE_LETTERS = tuple(map(chr, (*_PRINTABLE, *range(0x100, 0x100 + len(_OTHERS)))))


@cache
def _clip_merges() -> dict[tuple[int, int], int]:
    """(left id, right id) -> merged id.  Ids are in the order of learning, so the smallest id is merged first."""
    ids = {letter: id for id, letter in enumerate((*BYTE_LETTERS, *(letter + "</w>" for letter in BYTE_LETTERS)))}
    lines = gzip.decompress(CLIP_BPE_FILE.read_bytes()).decode("utf-8").split("\n")
    merges: dict[tuple[int, int], int] = {}
    for id, line in enumerate(lines[1 : CLIP_VOCAB - 512 - 2 + 1], start=512):
        left, right = line.split()
        merges[ids[left], ids[right]] = ids[left + right] = id
    return merges


@cache
def _clip_wholes() -> dict[bytes, int]:
    """Words that are a single id, which merging would reach."""
    return {piece[:-1]: id for id, piece in enumerate(_clip_pieces()) if piece.endswith(b" ")}


@cache
def _clip_pieces() -> list[bytes]:
    """The bytes of each id; a piece that ends a word ends in a space."""
    pieces = [bytes([byte]) for byte in _BYTES] + [bytes([byte, 0x20]) for byte in _BYTES]
    for left, right in _clip_merges():
        pieces.append(pieces[left] + pieces[right])
    return [*pieces, b"", b""]
