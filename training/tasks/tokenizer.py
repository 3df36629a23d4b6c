"""Train a SentencePiece tokenizer on captions, English and Japanese alike."""

import csv
import io
import json
import random
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import DataError, InputError

if TYPE_CHECKING:  # they cost a second, which --help does not need
    from vlm.tokenizers.sentencepiece import SentencePieceTokenizer

_LARGEST_CORPUS = 1_000_000  # captions to learn pieces from; more adds minutes and changes little
_DELIMITER = "\ue000"  # private use: NFKC leaves it alone
_KANA_OR_KANJI = "\u3005-\u30ff\u3400-\u9fff\uff66-\uff9f"
_JAPANESE_START = re.compile(rf"(?<!\S)(?=[{_KANA_OR_KANJI}])")

_Table = tuple[list[str], Callable[[list[str]], Iterator[dict[str, Any]]]]  # all column names, rows of the chosen ones


def train_tokenizer(texts: Iterable[str], vocab_size: int, context_length: int) -> "SentencePieceTokenizer":
    """Unigram pieces (Kudo 2018) of the distinct texts; the same texts in the same order give the same model.

    Case is folded after NFKC: "Red Apple" in a title and "red apple" in a caption show the same thing, and a small
    vocabulary should learn the word once.  Japanese words do not swallow the space before them, so 犬 is the same piece
    at the start of a text and in its middle.  Characters too rare for a piece are spelt in bytes.
    """
    import sentencepiece

    from vlm.tokenizers.sentencepiece import SentencePieceTokenizer

    corpus = list(dict.fromkeys(cleaned for text in texts if (cleaned := " ".join(text.split()))))
    if not corpus:
        raise DataError("there is no caption to learn from: every text is empty.")
    if len(corpus) > _LARGEST_CORPUS:
        corpus = random.Random(0).sample(corpus, _LARGEST_CORPUS)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=(_JAPANESE_START.sub(_DELIMITER, text) for text in corpus),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=0.9995,  # SentencePiece's advice for Japanese
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc_cf",
            pretokenization_delimiter=_DELIMITER,
            pad_id=0,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            num_threads=4,  # fixed: sums of floats depend on it
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(_explain(str(error), vocab_size)) from error
    return SentencePieceTokenizer(model.getvalue(), context_length)


def _explain(message: str, vocab_size: int) -> str:
    if highest := re.search(r"too high.*<= (\d+)", message):
        return (
            f"vocab_size {vocab_size} is more than these captions can fill: at most {highest[1]}. Lower --vocab-size."
        )
    if lowest := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", message):
        return f"vocab_size {vocab_size} is too small for the characters of these captions: at least {lowest[1]}."
    return f"SentencePiece could not train: {' '.join(message.split())}"


def read_captions(path: Path, columns: Sequence[str] = ()) -> Iterator[str]:
    """The captions of a .txt (one a line), .csv, .tsv, .jsonl or .parquet file.

    Without `columns`: those called caption*, keyword*, text or title.  A cell is a string, a list of strings or empty.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix != ".txt" and path.suffix not in readers:
        raise DataError(f"{path} is not one of .txt, {', '.join(readers)}.")
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is not a file.")
    try:
        if path.suffix == ".txt":
            yield from path.read_text(encoding="utf-8-sig").splitlines()
            return
        names, rows_of = readers[path.suffix](path)
        chosen = _choose(path, names, columns)
        for row in rows_of(chosen):
            for name in chosen:
                yield from _strings(path, name, row.get(name))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}.") from error


def _read_csv(path: Path) -> _Table:
    text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    reader = csv.DictReader(text, delimiter="\t" if path.suffix == ".tsv" else ",")
    return list(reader.fieldnames or []), lambda _: reader


def _read_jsonl(path: Path) -> _Table:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number} is not a JSON object: {error}.") from error
    return list(dict.fromkeys(name for row in rows for name in row)), lambda _: iter(rows)


def _read_parquet(path: Path) -> _Table:
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file: {error}.") from error
    return file.schema_arrow.names, lambda chosen: (
        row for batch in file.iter_batches(columns=chosen) for row in batch.to_pylist()
    )


def _choose(path: Path, names: list[str], columns: Sequence[str]) -> list[str]:
    if missing := [name for name in columns if name not in names]:
        raise DataError(f"{path} has no column {', '.join(missing)}. It has: {', '.join(names)}.")
    usual = [n for n in names if n.startswith(("caption", "keyword")) or n in ("text", "title")]
    if not columns and not usual:
        raise DataError(
            f"{path} has no column caption*, keyword*, text or title. It has: {', '.join(names)}; use --columns."
        )
    return list(columns) or usual


def _strings(path: Path, column: str, cell: object) -> Iterator[str]:
    for value in cell if isinstance(cell, list) else [cell]:
        if isinstance(value, str):
            yield value
        elif value is not None:
            raise DataError(f"{path}, column '{column}' holds {value!r}; wanted a string or a list of strings.")


def describe(tokenizer: "SentencePieceTokenizer", texts: Sequence[str]) -> str:
    """One screen for people: vocabulary, coverage, and how long the captions are."""
    cut_before = tokenizer.truncated
    lengths = [len(tokenizer.encode(text)) for text in texts]
    cuts = statistics.quantiles(lengths, n=100, method="inclusive") if len(lengths) > 1 else lengths * 99
    percentiles = " · ".join(f"{p} %: {cuts[p - 1]:.0f}" for p in (50, 90, 95, 99))
    return "\n".join(
        (
            f"vocabulary       {tokenizer.vocab_size} pieces",
            f"captions         {len(texts)}",
            f"spelt in bytes   {tokenizer.byte_share(texts):.2%} of the pieces",
            f"ids per caption  {percentiles} · longest {max(lengths)}",
            f"cut at {tokenizer.context_length:<10}{tokenizer.truncated - cut_before} captions",
        )
    )
