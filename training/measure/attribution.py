"""Attribution of the data that mini is trained on, as it ships beside the weights."""

import csv
from pathlib import Path

from vlm.training.measure.drawings import ICON_WORDS, PICTURE_WORDS

ATTRIBUTION = ("ATTRIBUTION.md", "LICENSES.txt")
_COLUMNS = ("package", "version", "licence", "author", "total")


def write_attribution(out: Path) -> None:
    """Write ATTRIBUTION.md (sources, authors, licences) and LICENSES.txt (their texts) into a model folder.

    Args:
        out: the folder; both files are replaced.
    """
    readme = (PICTURE_WORDS / "README.md").read_text(encoding="utf-8")
    drawn = [line for line in readme.split("Attribution and licences", 1)[1].splitlines() if line[:2] in ("- ", "  ")]
    with (ICON_WORDS / "sources.tsv").open(encoding="utf-8") as file:
        icons = list(csv.DictReader(file, delimiter="\t"))
    table = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    table += [f"| {' | '.join(row[name] for name in _COLUMNS)} |" for row in icons if int(row["train"])]
    text = (
        "# Attribution\n\n`mini` was trained on drawings by these authors, rendered to pixels of 96 x 96. The texts of "
        "all licences are in LICENSES.txt.\n\n## picture-words\n\n"
        + "\n".join(drawn)
        + "\n\n## icon-words\n\nSome monochrome icons were drawn in a dark colour; names were cleaned and "
        "translated.\n\n" + "\n".join(table) + "\n"
    )
    (out / ATTRIBUTION[0]).write_text(text, encoding="utf-8")
    (out / ATTRIBUTION[1]).write_text(_licence_texts(), encoding="utf-8")


def _licence_texts() -> str:
    """Each text once, under the names of the files that have it."""
    names: dict[str, list[str]] = {}
    for folder in (PICTURE_WORDS, ICON_WORDS):
        for path in sorted((folder / "LICENSES").glob("*.txt")):
            names.setdefault(path.read_text(encoding="utf-8").strip(), []).append(f"{folder.name}/{path.name}")
    rule = "=" * 100
    return "\n\n".join(f"{rule}\n{', '.join(files)}\n{rule}\n\n{text}" for text, files in names.items()) + "\n"
