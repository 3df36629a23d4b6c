"""Look at a data set before paying for a GPU: python -m training.check DATA [DATA ...]

Broken files, duplicates, leaks between splits, captions, what the tokenizer makes of them, sizes; then, in plain words,
what is wrong and what to do.  Several DATA are checked as one: a leak from one to another is found too.
--out FOLDER receives check.json, doubtful.jsonl (every sample to look at, and why) and contact-sheet.png.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.options import positive, user_language

if TYPE_CHECKING:
    from vlm.inspect.figures import Language
    from vlm.tokenizers.tokenizer import Tokenizer
    from vlm.training.data.rows import ColumnNames, Rows

SAMPLE = 50_000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", help="a folder, .csv, .jsonl, .parquet, .tar, or a data set of the hub")
    parser.add_argument("--split", nargs="+", default=[], metavar="SPLIT", help="only these; default: all")
    parser.add_argument("--columns", nargs="+", default=[], metavar="ROLE=NAME", help="image=photo caption=note, ...")
    parser.add_argument("--root", type=Path, help="where the paths of a table begin; default: its folder")
    parser.add_argument("--tokenizer", default="mini", help="mini, clip, or a folder; default %(default)s")
    parser.add_argument(
        "--sample", type=positive, default=SAMPLE, metavar="N", help="look at N at most, drawn at random (50,000)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="of the contact sheet")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for check.json, doubtful.jsonl, contact-sheet.png")
    parser.add_argument("--json", action="store_true", help="print check.json in place of the table")
    args = parser.parse_args()
    if wrong := [pair for pair in args.columns if "=" not in pair]:
        parser.error(f"--columns wants ROLE=NAME, got {wrong[0]}")
    columns: dict[str, list[str]] = {}
    for pair in args.columns:
        role, _, name = pair.partition("=")
        columns.setdefault(role, []).append(name)
    from vlm.training.audit.findings import table  # torch is slow to import, and --help does not need it

    try:
        tokenizer = open_tokenizer(args.tokenizer)
        found = check(
            args.data, tokenizer, splits=args.split, columns=columns, root=args.root, sample=args.sample,
            workers=args.workers, out=args.out, language=args.lang,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(f"check: error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return 0
    print(table(found), end="\n\n")
    for number, finding in enumerate(found["findings"], 1):
        print(f"{number}. {finding['text']}")
    if not found["findings"]:
        print("Nothing to complain about.")
    return 0


def check(
    data: list[str],
    tokenizer: "Tokenizer",
    *,
    splits: list[str] | None = None,
    columns: "ColumnNames | None" = None,
    root: Path | None = None,
    sample: int = SAMPLE,
    workers: int = 0,
    out: Path | None = None,
    language: "Language" = "en",
) -> dict[str, Any]:
    """What check.json holds; `out` receives the files.  `ValueError`: what `open_rows` cannot open."""
    from vlm.training.audit.scan import Divided
    from vlm.training.data.rows import open_rows

    rows = Divided([open_rows(source, splits or (), columns, root) for source in data])
    return check_rows(rows, tokenizer, sample=sample, workers=workers, out=out, language=language)


def check_rows(
    rows: "Rows",
    tokenizer: "Tokenizer",
    *,
    sample: int = SAMPLE,
    workers: int = 0,
    out: Path | None = None,
    language: "Language" = "en",
) -> dict[str, Any]:
    """The same for a data set that is open."""
    from vlm.training.audit.findings import findings
    from vlm.training.audit.numbers import find_twins, image_doubts, numbers, twin_doubts
    from vlm.training.audit.scan import Doubt, scan
    from vlm.training.audit.sheet import draw_sheet

    context_length = tokenizer.context_length
    seen = scan(rows, tokenizer, sample=sample, workers=workers)
    twins = find_twins(seen.facts)
    found = numbers(seen, twins, context_length)
    listed = f"; {out / 'doubtful.jsonl'} lists them" if out else " (--out FOLDER lists them)"
    found["findings"] = [finding._asdict() for finding in findings(found, listed)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "check.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        broken = [Doubt(sample.uid, "", "broken", f"{sample.reason}: {sample.detail}") for sample in seen.broken]
        with (out / "doubtful.jsonl").open("w", encoding="utf-8") as file:
            for doubt in (*broken, *twin_doubts(seen, twins), *image_doubts(seen), *seen.doubts):
                file.write(json.dumps(doubt._asdict(), ensure_ascii=False).replace("\u2028", " ") + "\n")
        if len(seen.facts):
            draw_sheet(seen, twins, out / "contact-sheet.png", language)
    return found


def open_tokenizer(name: str) -> "Tokenizer":
    """mini, clip, or what `Tokenizer.save` or `vlm.save` wrote."""
    from vlm.checkpoint.folder import BUNDLED
    from vlm.tokenizers.tokenizer import CLIPTokenizer, load_tokenizer

    return CLIPTokenizer() if name == "clip" else load_tokenizer(BUNDLED.get(name, Path(name)))


if __name__ == "__main__":
    sys.exit(main())
