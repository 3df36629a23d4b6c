"""Choose the examples of the demo: samples that the model ranks right and above its threshold in both languages.

python -m benchmarks.demo_examples            # prints every candidate
python -m benchmarks.demo_examples --write    # eight images, two of them icons if they are right, and six queries
"""

import argparse
import json
from pathlib import Path
from typing import Any

from vlm.demo.actions import PageActions
from vlm.demo.search.samples import SAMPLES, sample

LANGUAGES = ("en", "ja")
IMAGES, ICONS, QUERIES = 8, 2, 6
EXAMPLES = SAMPLES.parent / "examples.json"
# sample, of fxemoji where no folder is named -> labels, the right one first
CANDIDATES: dict[str, tuple[list[str], list[str]]] = {
    "redapple": (["apple", "tomato", "cherry", "balloon"], ["りんご", "トマト", "さくらんぼ", "風船"]),
    "sailboat": (["ship", "car", "airplane", "train"], ["船", "車", "飛行機", "電車"]),
    "octopus": (["octopus", "fish", "spider", "crab"], ["タコ", "魚", "クモ", "カニ"]),
    "guitar": (["guitar", "trumpet", "piano", "drum"], ["ギター", "トランペット", "ピアノ", "太鼓"]),
    "umbrella": (["umbrella", "mushroom", "hat", "tent"], ["傘", "キノコ", "帽子", "テント"]),
    "sunflower": (["sunflower", "tulip", "sun", "tree"], ["ヒマワリ", "チューリップ", "太陽", "木"]),
    "bicycle": (["bicycle", "motorcycle", "bus", "scissors"], ["自転車", "バイク", "バス", "はさみ"]),
    "dog": (["dog", "cat", "bird", "horse"], ["犬", "猫", "鳥", "馬"]),
    "banana": (["banana", "lemon", "moon", "corn"], ["バナナ", "レモン", "月", "とうもろこし"]),
    "elephant": (["elephant", "mouse", "pig", "cow"], ["ゾウ", "ネズミ", "ブタ", "牛"]),
    "pandaface": (["panda", "bear", "koala", "rabbit"], ["パンダ", "クマ", "コアラ", "ウサギ"]),
    "penguin": (["penguin", "cow", "lion", "fish"], ["ペンギン", "牛", "ライオン", "魚"]),
    "pineapple": (["pineapple", "watermelon", "melon", "cactus"], ["パイナップル", "スイカ", "メロン", "サボテン"]),
    "rocket": (["rocket", "airplane", "helicopter", "satellite"], ["ロケット", "飛行機", "ヘリコプター", "人工衛星"]),
    "sliceofpizza": (["pizza", "bread", "cake", "cheese"], ["ピザ", "パン", "ケーキ", "チーズ"]),
    "europeancastle": (["castle", "house", "church", "school"], ["城", "家", "教会", "学校"]),
    "train": (["train", "bus", "car", "ship"], ["電車", "バス", "車", "船"]),
    "snowman": (["snowman", "bear", "ghost", "doll"], ["雪だるま", "クマ", "おばけ", "人形"]),
    "key": (["key", "lock", "hammer", "spoon"], ["鍵", "錠前", "ハンマー", "スプーン"]),
    "camera": (["camera", "television", "telephone", "clock"], ["カメラ", "テレビ", "電話", "時計"]),
    "trumpet": (["trumpet", "piano", "guitar", "drum"], ["トランペット", "ピアノ", "ギター", "太鼓"]),
    "tulip": (["tulip", "sunflower", "cactus", "mushroom"], ["チューリップ", "ヒマワリ", "サボテン", "キノコ"]),
    "flat-color-icons/camera": (["camera", "telephone", "printer", "clock"], ["カメラ", "電話", "プリンター", "時計"]),
    "flat-color-icons/calculator": (
        ["calculator", "calendar", "keyboard", "door"],
        ["電卓", "カレンダー", "キーボード", "ドア"],
    ),
    "flat-color-icons/home": (["house", "factory", "church", "car"], ["家", "工場", "教会", "車"]),
    "flat-color-icons/idea": (["light bulb", "candle", "moon", "balloon"], ["電球", "ろうそく", "月", "風船"]),
    "flat-color-icons/lock": (["lock", "key", "bag", "bell"], ["錠", "鍵", "かばん", "ベル"]),
    "iconoir/bicycle": (["bicycle", "car", "bus", "airplane"], ["自転車", "車", "バス", "飛行機"]),
    "iconoir/bell": (["bell", "cup", "hat", "light bulb"], ["ベル", "カップ", "帽子", "電球"]),
    "iconoir/coffee-cup": (["coffee", "cake", "bell", "bottle"], ["コーヒー", "ケーキ", "ベル", "びん"]),
    "iconoir/apple": (["apple", "pear", "balloon", "egg"], ["りんご", "梨", "風船", "卵"]),
}
# query -> a word in the English name of the first result
SEARCHES: list[tuple[str, str, str]] = [
    ("a red apple", "赤いりんご", "apple"),
    ("a castle", "お城", "castle"),
    ("a heart", "ハート", "heart"),
    ("a sad face", "悲しい顔", "face"),
    ("a clock", "時計", "o’clock"),
    ("musical notes", "音符", "musical"),
    ("a butterfly", "蝶", "butterfly"),
    ("a rocket", "ロケット", "rocket"),
    ("a smiling face", "笑顔", "face"),
    ("the moon", "月", "moon"),
    ("a fish", "魚", "fish"),
    ("a star", "星", "star"),
    ("a train", "電車", "train"),
    ("a cat face", "猫の顔", "cat"),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_examples", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    actions = PageActions(args.model)
    classified = [one for stem, labels in CANDIDATES.items() if (one := margin(actions, stem, labels)) is not None]
    found = [search_margin(actions, *query) for query in SEARCHES]
    for one in sorted([*classified, *found], key=lambda one: -one[0]):
        print(f"{one[0]:.3f}  {json.dumps(one[1], ensure_ascii=False)}")
    good = chosen(sorted(classified, key=lambda one: -one[0]))
    queries = [one for score, one in sorted(found, key=lambda one: -one[0]) if score > 0][:QUERIES]
    if args.write:
        write({"classify": {name: labels for one in good for name, labels in one.items()}, "search": queries})


def chosen(ranked: list[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The best images, among them the best icons; fewer where fewer are right."""
    right = [one for score, one in ranked if score > 0]
    icons = [one for one in right if not next(iter(one)).startswith("fxemoji/")][:ICONS]
    others = [one for one in right if one not in icons and next(iter(one)).startswith("fxemoji/")][
        : IMAGES - len(icons)
    ]
    return [one for one in right if one in icons or one in others]


def margin(actions: PageActions, stem: str, labels: tuple[list[str], list[str]]) -> tuple[float, dict[str, Any]] | None:
    """The smaller match probability of the right label over both languages; -1 if wrong or flagged."""
    name = f"{stem if '/' in stem else f'fxemoji/{stem}'}.webp"
    if not (SAMPLES / name).is_file():
        return None
    matches: list[float] = []
    for given in labels:
        ranking = actions.classify(sample(name).path, given)
        right = ranking[0].label == given[0] and not actions.none_fits(ranking) and not actions.unknown(given)
        matches.append((ranking[0].match or 0.0) if right else -1.0)
    return min(matches), {name: dict(zip(LANGUAGES, labels, strict=True))}


def search_margin(actions: PageActions, english: str, japanese: str, contains: str) -> tuple[float, dict[str, str]]:
    """The smaller match probability of the first result; -1 if flagged or of another name."""
    matches: list[float] = []
    for text in (english, japanese):
        results = actions.search(text, k=1)
        flagged = actions.no_good_match(results) or actions.unknown([text])
        right = contains in results[0].names["en"].lower() and not flagged
        matches.append((results[0].probability or 0.0) if right else -1.0)
    return min(matches), {"en": english, "ja": japanese}


def write(examples: dict[str, Any]) -> None:
    rows = [f"    {json.dumps(name)}: {json.dumps(labels, ensure_ascii=False)}"
            for name, labels in examples["classify"].items()]  # fmt: skip
    queries = [f"    {json.dumps(query, ensure_ascii=False)}" for query in examples["search"]]
    text = '{\n  "classify": {\n' + ",\n".join(rows) + '\n  },\n  "search": [\n' + ",\n".join(queries) + "\n  ]\n}\n"
    Path(EXAMPLES).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
