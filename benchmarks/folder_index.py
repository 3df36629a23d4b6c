"""An index of 20,000 files kept up to date: what each kind of change costs, and whether anything is lost.

    python -m benchmarks.folder_index            writes benchmarks/folder_index.md
    python -m benchmarks.folder_index 2000       fewer files, for a look

picture-words written out as files, with copies, 300 broken ones of 10 kinds among them; then runs of `vlm index` with
nothing changed, files renamed, edited, touched, deleted and added.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

PICTURE_WORDS = Path(__file__).parent.parent / "training" / "picture_words"
REPORT = Path(__file__).with_suffix(".md")


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with tempfile.TemporaryDirectory() as place:
        rows, wrong = measure(Path(place), count)
    text = report(count, rows, wrong)
    if count == 20_000:
        REPORT.write_text(text, encoding="utf-8")
    print(text)
    return int(bool(wrong))


def measure(place: Path, count: int) -> tuple[list[str], list[str]]:
    """The rows of the table, and what was not as it must be."""
    folder, chance, wrong, rows = place / "images", random.Random(0), [], []
    write_images(folder, count - 300, chance)
    broken = write_broken(folder, 30)
    (place / "empty").mkdir()
    start_up = np.min([run(place, place / "empty")[0] for _ in range(3)], axis=0)

    def check(what: str, change: Callable[[], None], **expected: int) -> None:
        change()
        took, row = run(place, folder)
        clock, processor = took - start_up
        found = {
            name: value if isinstance(value, int) else len(value) for name, value in row.items() if name in expected
        }
        if found != expected:
            wrong.append(f"{what}: {found}, wanted {expected}")
        skipped = {item["path"]: item["reason"] for item in row["skipped"]}
        if skipped != broken:
            wrong.append(f"{what}: {len(skipped.keys() ^ broken.keys())} skipped files too many or too few")
        rows.append(
            f"| {what} | {row['embedded']} | {row['recognised']} | {row['unchanged']} | {len(row['vanished'])} | "
            f"{len(skipped)} | {clock:.1f} | {processor:.1f} |"
        )
        if what == "nothing" and processor > 2:
            wrong.append(f"nothing changed: {processor:.1f} s of the processor, wanted 2")

    images = sorted(path for path in folder.rglob("*.webp") if str(path) not in broken)
    contents = len({path.read_bytes() for path in images})
    check("everything is new", lambda: None, embedded=contents, recognised=len(images) - contents)
    check("nothing", lambda: None, embedded=0, recognised=0, unchanged=count, vanished=0)
    some = chance.sample(images, count // 10)
    tenth = len(some)
    moved = [path.with_name(f"renamed-{path.name}") for path in some]
    check("a tenth renamed", lambda: move(some, moved), embedded=0, recognised=tenth, vanished=tenth)
    check("and back", lambda: move(moved, some), embedded=0, recognised=tenth, vanished=tenth)
    check("a tenth touched", lambda: touch(some), embedded=0, recognised=tenth)
    hundredth = some[: count // 100]
    check("a hundredth edited", lambda: edit(hundredth), embedded=len(hundredth), recognised=0)
    gone = some[-count // 100 :]
    check("a hundredth deleted", lambda: remove(gone), embedded=0, vanished=len(gone))
    check("nothing", lambda: None, embedded=0, recognised=0, vanished=0, unchanged=count - len(gone))
    return [f"Start-up (an empty folder): {start_up[0]:.1f} s, {start_up[1]:.1f} s of the processor.\n", *rows], wrong


def run(place: Path, folder: Path) -> tuple[np.ndarray, dict]:
    """`vlm index` as a user runs it -> seconds by the clock and of the processor, its answer."""
    command = [sys.executable, "-m", "vlm.cli", "index", str(folder), "--index", str(place / "index"), "--json"]
    start = seconds()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return seconds() - start, json.loads(done.stdout)[0]


def seconds() -> np.ndarray:
    """By the clock, and of the processor in all processes that were started and have ended."""
    used = os.times()
    return np.array([time.perf_counter(), used.children_user + used.children_system])


def write_images(folder: Path, count: int, chance: random.Random) -> None:
    """All of picture-words in folders by style, then copies under other names until there are `count`."""
    written: list[Path] = []
    for name in ("train", "validation", "test"):
        table = pq.read_table(PICTURE_WORDS / f"{name}.parquet", columns=["uid", "style", "image"])
        for row in table.slice(0, count - len(written)).to_pylist():
            path = folder / str(row["style"] or "none") / f"{len(written):05d}.webp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(row["image"]["bytes"])
            written.append(path)
    for number in range(count - len(written)):
        source = chance.choice(written)
        copy = folder / "copies" / f"{number % 50:02d}" / f"{number:05d}-{source.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())


def write_broken(folder: Path, each: int) -> dict[str, str]:
    """`each` of ten kinds -> {path: the reason that must be given}."""
    whole = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        file = BytesIO()
        Image.effect_noise((90, 70), 80).convert("RGB").save(file, kind)
        whole[kind] = file.getvalue()
    bomb = bytearray(whole["BMP"])
    bomb[18:26] = (60_000).to_bytes(4, "little") * 2
    kinds: dict[str, tuple[str, bytes, str]] = {
        "empty": (".jpg", b"", "empty file"),
        "text": (".png", b"I am no image\n", "not an image"),
        "zeros": (".webp", bytes(500), "not an image"),
        "eps": (".eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        "pdf": (".jpg", b"%PDF-1.7\n", "unsupported format"),
        "psd": (".psd", b"8BPS\0\1", "unsupported format"),
        "cut-jpeg": (".jpg", whole["JPEG"][: len(whole["JPEG"]) // 2], "truncated"),
        "cut-png": (".png", whole["PNG"][: len(whole["PNG"]) // 2], "truncated"),
        "bomb": (".bmp", bytes(bomb), "too many pixels"),
        "jpeg-xl": (".jxl", b"\xff\x0a" + bytes(50), "unsupported format"),
    }
    expected = {}
    for name, (suffix, data, reason) in kinds.items():
        for number in range(each):
            path = folder / "broken" / f"{name}-{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            expected[str(path)] = reason
    return expected


def move(sources: list[Path], targets: list[Path]) -> None:
    for source, target in zip(sources, targets, strict=True):
        source.rename(target)


def touch(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path)


def remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()


def edit(paths: list[Path]) -> None:
    for number, path in enumerate(paths):
        Image.new("RGB", (96, 96), (number % 256, number // 256, 77)).save(path, "WEBP", lossless=True)


def report(count: int, rows: list[str], wrong: list[str]) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "pillow", "numpy"))
    load = os.getloadavg()[0]
    verdict = "Everything as it must be." if not wrong else "Not as it must be: " + "; ".join(wrong) + "."
    table = "\n".join(rows[1:])
    return f"""# {count:,} files kept up to date

`python -m benchmarks.folder_index`, {datetime.date.today()}, {platform.machine()}, {os.cpu_count()} processors, load
{load:.1f}, Python {platform.python_version()}, {versions}, model mini. picture-words as files, the rest copies of them,
and 30 each of 10 kinds of broken file. {rows[0]}
| what changed | embedded | recognised | unchanged | vanished | skipped | seconds beyond start-up | of the processor |
|---|---|---|---|---|---|---|---|
{table}

{verdict}
"""


if __name__ == "__main__":
    sys.exit(main())
