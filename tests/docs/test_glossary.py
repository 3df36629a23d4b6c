"""One spelling for each term: the Japanese pages use those of the glossary."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
VARIANTS = {  # pattern of a variant -> the glossary's term
    r"フォルダ(?!ー)": "フォルダー",
    r"メモリー": "メモリ",
    r"画素": "ピクセル",
    r"ブラウザ(?!ー)": "ブラウザー",
    r"エンコーダ(?!ー)": "エンコーダー",
    r"トークナイザ(?!ー)": "トークナイザー",
    r"アテンション": "自己注意",
    r"自己注意・?ロールアウト|アテンション・?ロールアウト": "注意ロールアウト",
    r"フィルタ(?!ー|リング)": "フィルター",
    r"サーバ(?!ー)": "サーバー",
    r"パラメーター": "パラメータ",
    r"索引": "インデックス",
    r"当て推量|偶然なら": "チャンスレベル",
    r"ファイン・?チューン(?!ング)": "ファインチューニング",
    r"コントラスト学習": "対照学習",
    r"余弦": "コサイン類似度",
    r"指紋": "フィンガープリント",
    r"復号": "デコード",
    r"説明文": "キャプション",
    r"偶然の水準|偶然の正答率|偶然は": "チャンスレベル",
    r"マシン|計算機": "コンピューター",
    r"画像タワー|文のタワー|文のエンコーダー|文エンコーダー|画像のエンコーダー": "エンコーダー",
    r"特徴量": "特徴",
    r"絵(?!文字|本)": "イラスト",
}
PAGES = sorted({*ROOT.glob("*.ja.md"), *DOCS.rglob("*.ja.md"), *(DOCS / "guide" / "ja").glob("*.md")})
PROGRAMS = [  # what programs print, draw or show in Japanese
    *sorted({*(ROOT / "demo").rglob("*.json")} - {ROOT / "demo" / "search" / "mini_words.json"}),  # words of the data
    *sorted((DOCS / "notebooks").glob("*.ipynb")),
    ROOT / "vlm" / "assets" / "models" / "catalog.json",
    ROOT / "vlm" / "inspect" / "drawing.py",
    ROOT / "training" / "audit" / "sheet.py",
    DOCS / "draw_diagrams.py",
]
_CODE = re.compile(r"^```.*?^```\n|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def rows(page: str) -> list[list[str]]:
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


def test_both_glossaries_pair_the_same_terms() -> None:
    english = {(re.sub(r" \(.*\)", "", row[0]), row[1]) for row in rows("glossary.md")}
    assert english == {(row[1], row[0]) for row in rows("glossary.ja.md")}


def test_every_variant_has_its_term_in_the_glossary() -> None:
    terms = {row[0] for row in rows("glossary.ja.md")} | {"ブラウザー"}
    assert set(VARIANTS.values()) <= terms
    assert not [(pattern, term) for pattern, term in VARIANTS.items() if re.search(pattern, term)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_japanese_page_uses_the_glossarys_spelling(page: Path) -> None:
    assert not variants(_CODE.sub("", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", PROGRAMS, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_demo_figures_and_notebooks_use_the_glossarys_spelling(file: Path) -> None:
    assert not variants(file.read_text(encoding="utf-8"))


def variants(text: str) -> dict[str, str]:
    """{variant found: the glossary's term}."""
    return {found: term for pattern, term in VARIANTS.items() for found in re.findall(pattern, text)}
