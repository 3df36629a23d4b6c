"""The words of mini's training data, by which the demo says that a query is unknown; and how well that works.

python -m benchmarks.demo_words --write    # demo/search/mini_words.json
python -m benchmarks.demo_words            # nonsense and unknown words: how many are flagged, by threshold and by words
"""

import argparse
import json
import random
import re
import string
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet

from vlm.bundled import BUNDLED
from vlm.demo.actions import PageActions
from vlm.demo.search.known_words import WORDS_FILE, english_words, is_known, japanese_words
from vlm.demo.search.samples import samples

ROOT = Path(__file__).parents[1]
SEED, COUNT = 0, 200
# words of everyday photographs and of ideas; those that the training data has are left out of the count
UNKNOWN_EN = [
    "democracy",
    "philosophy",
    "inflation",
    "bureaucracy",
    "jurisprudence",
    "thermodynamics",
    "asphalt",
    "plaster",
    "scaffolding",
    "gravel",
    "linoleum",
    "cardigan",
    "beret",
    "corduroy",
    "drywall",
    "upholstery",
    "tarmac",
    "culvert",
    "spatula",
    "colander",
    "ottoman",
    "trellis",
    "pergola",
    "mezzanine",
    "balustrade",
    "gutter",
    "downspout",
    "algorithm",
    "semiconductor",
    "mitochondria",
    "chlorophyll",
    "glacier",
    "fjord",
    "archipelago",
    "peninsula",
    "tundra",
    "savanna",
    "estuary",
    "plateau",
]
UNKNOWN_JA = [
    "民主主義",
    "哲学",
    "官僚",
    "熱力学",
    "漆喰",
    "足場",
    "砂利",
    "雨どい",
    "半導体",
    "葉緑素",
    "氷河",
    "群島",
    "半島",
    "三角州",
    "高原",
    "憲法",
    "議会",
    "選挙",
    "裁判",
    "経済",
    "景気",
    "金利",
    "為替",
    "貿易",
    "関税",
    "倫理",
    "論理",
    "証明",
    "微分",
    "積分",
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_words", description=__doc__)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        WORDS_FILE.write_text(json.dumps(training_words(), ensure_ascii=False) + "\n", encoding="utf-8")
    actions = PageActions("mini")
    known = [text for one in samples() for text in (one.en, one.ja)]
    for name, queries in (
        ("nonsense, letters", nonsense(string.ascii_lowercase, 5, 10)),
        ("nonsense, kana", nonsense("".join(map(chr, range(0x3042, 0x3094))), 3, 6)),
        ("unknown words, en", [word for word in UNKNOWN_EN if not is_known(word)]),
        ("unknown words, ja", [word for word in UNKNOWN_JA if not is_known(word)]),
        ("names of the samples", random.Random(SEED).sample(known, COUNT)),
    ):
        report(actions, name, queries)


def training_files() -> list[Path]:
    """The training files that the recipes in mini's card name."""
    card = (BUNDLED["mini"] / "README.md").read_text(encoding="utf-8")
    return [ROOT / name for name in sorted(set(re.findall(r"training/\w+/train\.parquet", card)))]


def training_words() -> dict[str, list[str]]:
    """Every word of the captions and keywords of the training files, by language."""
    columns = ["captions_en", "captions_ja", "keywords_en", "keywords_ja"]
    rows = [row for file in training_files() for row in pyarrow.parquet.read_table(file, columns=columns).to_pylist()]
    texts = {name: [text for row in rows for text in row[name] or ()] for name in columns}
    english = {word for name in columns[::2] for text in texts[name] for word in english_words(text)}
    japanese = {word for name in columns[1::2] for text in texts[name] for word in japanese_words(text)}
    return {"en": sorted(english), "ja": sorted(japanese)}


def nonsense(letters: str, shortest: int, longest: int) -> list[str]:
    chance = random.Random(SEED)
    return ["".join(chance.choices(letters, k=chance.randint(shortest, longest))) for _ in range(COUNT)]


def report(actions: PageActions, name: str, queries: Sequence[str]) -> None:
    """Shares flagged as "no good match", as unknown words, and by either; the mean probability of the first result."""
    results = [actions.search(query, k=1) for query in queries]
    weak = [actions.no_good_match(found) for found in results]
    unknown = [not is_known(query) for query in queries]
    either = [one or other for one, other in zip(weak, unknown, strict=True)]
    mean = sum(found[0].probability or 0.0 for found in results) / len(results)
    shares = " ".join(f"{sum(flags) / len(queries):6.1%}" for flags in (weak, unknown, either))
    print(f"{name:22} n {len(queries):4}  weak, unknown, either: {shares}  mean probability {mean:.2f}", flush=True)


if __name__ == "__main__":
    main()
