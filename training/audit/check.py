"""The measurement of `vlm check`: scan a data set, list what is wrong, write the files of `--out`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.user_folders import check_output

if TYPE_CHECKING:
    from vlm.inspect.drawing import Language
    from vlm.tokenizers.protocol import Tokenizer
    from vlm.training.data.rows import ColumnNames, Rows

SAMPLE = 50_000
OUTPUTS = ("check.json", "doubtful.jsonl", "contact-sheet.png")


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
    """Returns the contents of check.json and writes the files to `out`."""
    from vlm.training.audit.scan import Divided
    from vlm.training.data.sources import open_rows

    if out is not None:
        check_output(out, data, OUTPUTS, OUTPUTS[0])
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
    from vlm.bundled import BUNDLED
    from vlm.tokenizers.clip_bpe import CLIPTokenizer
    from vlm.tokenizers.load import load_tokenizer

    return CLIPTokenizer() if name == "clip" else load_tokenizer(BUNDLED.get(name, Path(name)))
