"""CLIP's byte-pair encoding beside OpenCLIP's and Hugging Face's fast tokenizer: the same ids, and how fast.

    python -m benchmarks.tokenizer_speed > benchmarks/tokenizer_speed.md      (--quick: fewer texts, 2 rounds)

Captions: names and keywords of training/picture_words in English and Japanese, some with the emoji itself.  A call
takes a list of texts and gives padded ids.  Cold: a new tokenizer, its tables loaded, none of these texts seen.  Warm:
the same texts again.  Hugging Face's is Rust and may use all processors; the same tokenizer serves for both, and it has
not OpenCLIP's cleaning of texts (ftfy).
"""

import argparse
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer
from pyarrow.parquet import read_table
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.machine import about
from benchmarks.side_by_side import PICTURE_WORDS, QUICK_ROUNDS, ROUNDS, head, in_turns, row
from vlm.interop.tokenizer_files import write_tokenizer
from vlm.tokenizers.clip_bpe import CLIPTokenizer

COMPARED, TIMED = 100_000, 5_000
OURS = "`vlm`"
Tokenize = Callable[[list[str]], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="CLIP's byte-pair encoding beside OpenCLIP's and Hugging Face's.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts, 2 rounds")
    quick = parser.parse_args().quick
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # open_clip turns it off
    print("# CLIP's byte-pair encoding\n")
    packages = ["open_clip_torch", "transformers", "tokenizers"]
    print(about("python -m benchmarks.tokenizer_speed" + " --quick" * quick, packages, os.cpu_count() or 1))
    texts = captions(COMPARED // 10 if quick else COMPARED)
    face = huggingface()
    print(f"{len(texts):,} different captions, English, Japanese and with emoji:\n")
    print("| beside | captions with other ids |\n|---|---:|")
    for name, theirs in (("OpenCLIP", SimpleTokenizer()), ("Hugging Face, fast", face)):
        print(f"| {name} | {different(CLIPTokenizer(), theirs, texts):,} |", flush=True)
    timed, rounds = texts[:TIMED], QUICK_ROUNDS if quick else ROUNDS
    print(f"\n{len(timed):,} of them, {rounds} rounds in turns:\n")
    fresh = {"OpenCLIP": SimpleTokenizer, OURS: CLIPTokenizer, "Hugging Face, fast": lambda: face}
    seen: dict[str, Tokenize] = {name: make() for name, make in fresh.items()}
    cold = in_turns({name: _first_call(make, timed, rounds) for name, make in fresh.items()}, rounds)
    warm = in_turns({name: lambda one=one: one(timed) for name, one in seen.items()}, rounds)
    for title, taken in (("cold", cold), ("warm", warm)):
        print(head(title))
        print("\n".join(row(name, seconds, taken[OURS]) for name, seconds in taken.items()) + "\n", flush=True)


def captions(count: int) -> list[str]:
    """Different ones, in a random order that is always the same."""
    draw = random.Random(0)
    rows = read_table(PICTURE_WORDS / "train.parquet").drop_columns(["image"]).to_pylist()

    def endless() -> Iterator[str]:
        while True:
            entry = draw.choice(rows)
            language = draw.choice(("en", "ja"))
            words = entry[f"captions_{language}"] + entry[f"keywords_{language}"]
            words = draw.sample(words, min(len(words), draw.randint(1, 6)))
            if draw.random() < 0.3 and (emoji := _emoji(entry["concept"])):
                words.insert(draw.randrange(len(words) + 1), emoji)
            yield ("、" if language == "ja" else draw.choice((", ", " "))).join(words)

    found: dict[str, None] = {}
    for text in endless():
        found[text] = None
        if len(found) == count:
            return list(found)
    raise AssertionError


def _emoji(concept: str) -> str:
    """u1f468_200d_1f33e -> the characters; nothing where the concept is a name."""
    try:
        return "".join(chr(int(code, 16)) for code in concept.removeprefix("u").replace("_", "-").split("-"))
    except (ValueError, OverflowError):
        return ""


def huggingface() -> Tokenize:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), CLIPTokenizer())
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def tokenize(texts: list[str]) -> Tensor:
        return tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt").input_ids

    return tokenize


def different(ours: CLIPTokenizer, theirs: Tokenize, texts: list[str]) -> int:
    """Texts whose ids, up to the end-of-text, are not the same."""
    count = 0
    for start in range(0, len(texts), 1000):
        part = texts[start : start + 1000]
        count += sum(
            _row(a, ours.eot_id) != _row(b, ours.eot_id) for a, b in zip(ours(part), theirs(part), strict=True)
        )
    return count


def _row(ids: Tensor, eot_id: int) -> list[int]:
    row = ids.tolist()
    return row[: row.index(eot_id) + 1]


def _first_call(make: Callable[[], Tokenize], texts: list[str], rounds: int) -> Callable[[], Tensor]:
    """Every call is the first of a tokenizer made beforehand."""
    waiting = [make() for _ in range(rounds + 1)]
    return lambda: waiting.pop()(texts)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
