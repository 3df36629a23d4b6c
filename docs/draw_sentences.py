"""Draw sentences of the pages in both languages by a seed, to read them alone.

python -m docs.draw_sentences --seed 0 --count 30
"""

import argparse
import random
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_PROSE = re.compile(
    r"^```.*?^```\n|^\$\$.*?^\$\$|^\s*(?:\||#|!\[|<|- <)[^\n]*$|<!--.*?-->", re.MULTILINE | re.DOTALL
)
END = re.compile(r"(?<=[。])|(?<=[.:?!])\s+(?=[A-Z`*])|\n\s*\n|\n- ")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.draw_sentences", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    args = parser.parse_args()
    pages = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - {ROOT / "docs/reference/commands.md"})
    every = [(page.relative_to(ROOT), one) for page in pages for one in sentences(page.read_text(encoding="utf-8"))]
    for page, sentence in random.Random(args.seed).sample(every, args.count):
        print(f"{page}: {sentence}")


def sentences(page: str) -> list[str]:
    """Sentences of at least 20 characters, each on one line; code, tables, headings and equations are left out."""
    parts = (" ".join(part.split()) for part in END.split(NOT_PROSE.sub("", page)))
    return [part for part in parts if len(part) >= 20]


if __name__ == "__main__":
    main()
