"""docs/photos: the evening with photographs, command by command, in an empty folder and against a hub on 127.0.0.1."""

import csv
import re
import shlex
from pathlib import Path

import pytest

from docs.page_blocks import blocks
from tests.docs.test_guide import NUMBER, same_in_both_languages
from tests.support.photo_evening import PAGE, evening
from vlm.cli import _parser  # pyright: ignore[reportPrivateUsage]


def test_both_languages_have_the_same_commands_and_outputs() -> None:
    english, japanese = (blocks(page.read_text(encoding="utf-8")) for page in (PAGE, PAGE.with_suffix(".ja.md")))
    assert [block.kind for block in english] == [block.kind for block in japanese]
    for one, other in zip(english, japanese, strict=True):
        assert same_in_both_languages(one) == same_in_both_languages(other)


def test_every_command_of_the_page_is_understood() -> None:
    lines = [line for block in blocks(PAGE.read_text(encoding="utf-8")) for line in block.body.splitlines()]
    commands = [shlex.split(line.split(">")[0])[1:] for line in lines if line.startswith("vlm ")]
    assert len(commands) > 10
    for command in commands:
        _parser().parse_args(command)  # SystemExit(2) where the command line is not understood


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_evening_runs_in_an_empty_folder_and_prints_what_the_page_says(tmp_path: Path, wheel_python: Path) -> None:
    """With the wheel installed and no checkout."""
    output, texts = "", list[tuple[str, str]]()
    with evening(tmp_path, wheel_python) as run:
        for block in blocks(PAGE.read_text(encoding="utf-8")):
            if block.kind in ("sh", "python"):
                output = run.run(block)
            elif block.kind == "text":
                texts.append((output, block.body))
        with (run.folder / "photos/metadata.csv").open(encoding="utf-8") as file:
            captions = {row["file_name"]: row["caption"] for row in csv.DictReader(file)}
        assert (run.folder / "found.html").stat().st_size > 1000
    *untrained, (gain, _), (found, _) = texts
    for printed, page in untrained:
        same(printed, page)
    before, _, after, _ = (float(number) for number in NUMBER.findall(gain))
    assert after >= before + 0.3
    names = re.findall(r"IMG_\d+\.jpg", found)
    assert len(names) == 3
    assert {captions[name] for name in names} == {"Bella"}


def same(printed: str, page: str) -> None:
    """Words and whole numbers exactly; numbers with a point to 2 per cent, or 0.02. The faster back end may differ."""
    printed, page = (re.sub(r"computed by \w+", "computed by the faster", text) for text in (printed, page))
    assert NUMBER.sub("0.0", printed).split() == NUMBER.sub("0.0", page).split(), printed
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, page)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)
