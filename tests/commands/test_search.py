"""The command `vlm search`: its options and what it prints."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.conftest import Command
from tests.support.odd_images import noise
from vlm.cli import main
from vlm.commands import search_prompt
from vlm.commands.printing import escaped
from vlm.embedder import Embedder
from vlm.index.embedding_index import EmbeddingIndex


@pytest.fixture
def where(vlm_command: Command, photos: Path) -> list[str | Path]:
    """The index of the six images."""
    return ["--index", photos]


def test_a_search_needs_one_query_and_one_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words in ([], ["x", "--duplicates", "0.9"]):
        with pytest.raises(SystemExit) as stopped:
            main(["search", *words, "--index", str(tmp_path)])
        assert stopped.value.code == 2
        assert "give either QUERY or --duplicates" in capsys.readouterr().err
    assert main(["search", "x", "--index", str(tmp_path / "none")]) == 1
    assert f"There is no index '{tmp_path / 'none'}'. Make one: vlm index FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["x", "--literal"], "--literal"),
        (["x", "--json", "--paths"], "--json"),
        (["x", "-0", "--paths"], "--null"),
        (["x", "--json", "-0"], "--json"),
        (["x", "--thumbnails", "--json"], "--thumbnails"),
        (["x", "--thumbnails"], "terminal"),
        (["--duplicates", "--by-date"], "--by-date"),
        (["--duplicates", "--exact"], "--exact"),
    ],
)
def test_an_option_without_effect_is_wrong_usage(words: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        main(["search", "--index", "i", *words])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        (["1" + "0" * 39 + "*dog + cat"], "weight"),
        ([" - people"], "subtract"),
        (["red -"], "term"),
        (["dog", "--since", "2024-13"], "2024-13"),
        (["dog", "--until", "2024-02-30"], "2024-02-30"),
        (["--duplicates", "98"], "0.98"),
        (["--duplicates=-1"], "-1"),
        (["--duplicates", "nan"], "nan"),
        (["dog", "--html", "nowhere/page.html"], "nowhere"),
        (["dog", "--html", "."], "folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line(vlm_command: Command, where: list[str | Path], words: list[str], fact: str):
    code, out, err = vlm_command("search", *words, *where)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert fact in err


def test_a_page_that_cannot_be_written_is_said_before_a_folder_is_embedded(
    vlm_command: Command, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(EmbeddingIndex, "add_folder", None)  # whoever calls it fails
    code, _, err = vlm_command("search", "犬", "--folder", image_folder, "--html", image_folder / "no" / "page.html")
    assert (code, err.count("\n")) == (1, 1)


# ---- filters -------------------------------------------------------------------------------------------------------


def test_a_filter_that_nothing_passes_is_said_with_a_hint_for_brackets(vlm_command: Command, where: list[str | Path]):
    code, out, err = vlm_command("search", "犬", "--glob", "[2024] x/*", "--min-side", "9", *where)
    assert (code, out) == (0, "")
    assert "[2024] x/*" in err and "--min-side 9" in err and "--literal" in err
    assert "--literal" not in vlm_command("search", "犬", "--glob", "nowhere/*", *where)[2]
    assert "passes" not in vlm_command("search", "犬", "--glob", "*.png", *where)[2]


def test_duplicates_heed_every_filter_and_every_form_of_output(
    vlm_command: Command, image_folder: Path, tmp_path: Path
):
    for number, name in enumerate(["b", "c", "d"]):
        (image_folder / name).mkdir()
        for copy in range(2):
            exif = Image.Exif()
            exif[0x0132] = f"202{number}:01:01 00:00:00"
            exif[0x010E] = f"copy {copy}"  # other bytes, the same pixels
            noise(20 + 10 * number, 50, 70 + number).save(image_folder / name / f"{copy}.png", exif=exif)
    index = ["--index", tmp_path / "i"]
    vlm_command("index", image_folder, *index)

    def groups(*words: str) -> list[str]:
        rows = json.loads(vlm_command("search", "--duplicates", "0.9995", *words, *index, "--json")[1])
        assert all(len(row["paths"]) == 2 for row in rows)
        return [Path(row["paths"][0]).parent.name for row in rows]

    assert groups() == ["b", "c", "d"]
    assert groups("--glob", "[bc]/*") == ["b", "c"]
    assert groups("--since", "2021") == ["c", "d"]
    assert groups("--until", "2020") == ["b"]
    assert groups("--min-side", "25") == ["c", "d"]
    assert groups("-k", "2") == ["b", "c"]
    page = tmp_path / "page.html"
    code, out, _ = vlm_command("search", "--duplicates", "0.9995", *index, "--html", page, "-0")
    assert code == 0 and out.count("\0") == 6 and "\n" not in out
    text = page.read_text(encoding="utf-8")
    assert text.count("<figure>") == 6 and text.count("<hr>") == 2


# ---- output --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two\nlines.png", "red\x1b[31m.png", "back\rwards.png", "\u202egnp.exe.png"])
def test_control_characters_of_names_are_escaped_for_people_and_kept_for_programs(
    vlm_command: Command, image_folder: Path, tmp_path: Path, name: str
):
    (image_folder / "a.png").rename(image_folder / name)
    index = ["--index", tmp_path / "i"]
    vlm_command("index", image_folder, *index)
    for words in ([], ["--paths"], ["--by-date"]):
        out = vlm_command("search", "犬", *index, *words)[1]
        assert len(out.splitlines()) == 6
        assert name not in out and escaped(name) in out
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", out)
    assert str(image_folder / name) in vlm_command("search", "犬", *index, "-0")[1].split("\0")
    assert str(image_folder / name) in [
        row["path"] for row in json.loads(vlm_command("search", "犬", *index, "--json")[1])
    ]


@pytest.mark.parametrize("source", ["file", "EXIF"])
def test_by_date_puts_the_same_hits_in_the_order_of_their_dates(
    source: str, vlm_command: Command, image_folder: Path, where: list[str | Path], tmp_path: Path
):
    for age, path in enumerate(sorted(path for path in image_folder.rglob("*.*") if path.is_file())):
        if source == "EXIF" and path.suffix in (".png", ".jpg"):
            exif = Image.Exif()
            exif[0x0132] = f"{2020 - age}:01:02 03:04:05"
            noise(9, 9, age).save(path, exif=exif)
        os.utime(path, (86400 * 365 * (20 - age), 86400 * 365 * (20 - age)))
    vlm_command("index", image_folder, *where)
    plain, dated = (
        json.loads(vlm_command("search", "犬", *where, "-k", "4", *words, "--json")[1]) for words in ([], ["--by-date"])
    )
    assert {row["path"] for row in plain} == {row["path"] for row in dated}
    assert [row["taken"] for row in dated] == sorted(row["taken"] for row in plain)
    lines = vlm_command("search", "犬", *where, "--by-date")[1].splitlines()
    assert [line.split("\t")[2] for line in lines] == sorted(line.split("\t")[2] for line in lines)


def test_on_a_terminal_columns_have_names(
    vlm_command: Command, where: list[str | Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = vlm_command("search", "犬", *where)[1].splitlines()
    assert lines[0].split("\t") == ["rank", "score", "path"]
    assert len(lines) == 7
    assert vlm_command("search", "犬", *where, "--by-date")[1].splitlines()[0].split("\t")[2] == "taken"
    assert len(vlm_command("search", "犬", *where, "--paths")[1].splitlines()) == 6


def test_a_minus_that_is_part_of_a_word_gets_a_hint(vlm_command: Command, where: list[str | Path]):
    assert "beach - people" in vlm_command("search", "red -dog", *where)[2]
    assert vlm_command("search", "red - dog", *where)[2] == ""


def test_thumbnails_are_printed_between_the_lines(
    vlm_command: Command, where: list[str | Path], image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("textual_image")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    (image_folder / "b.png").unlink()
    code, out, err = vlm_command("search", "犬", *where, "--thumbnails")
    assert code == 0, err
    assert len(out.splitlines()) > 5 * 5  # a few lines each
    assert "b.png: missing" in err


def test_a_reader_that_has_enough_ends_the_command_without_a_word(image_folder: Path, tmp_path: Path):
    """`vlm search ... | head -1`"""
    command = f"{sys.executable} -m vlm.cli search 犬 --folder {image_folder} -k 6 2>{tmp_path / 'err'} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout.splitlines()) == 1
    assert not re.search(r"Traceback|Broken|error", (tmp_path / "err").read_text())


# ---- the prompt ----------------------------------------------------------------------------------------------------


def test_without_a_query_a_terminal_asks_for_queries_and_loads_the_model_once(
    vlm_command: Command,
    where: list[str | Path],
    image_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    lines = iter(["犬", "", "red -", "a cat", str(image_folder / "b.png"), "nowhere.png"])

    def typed(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    made: list[Embedder] = []
    opened = EmbeddingIndex.open
    monkeypatch.setattr(
        EmbeddingIndex, "open", lambda folder, embedder, **named: made.append(embedder) or opened(folder, embedder)
    )
    code, out, err = vlm_command("search", *where, "-k", "3")
    assert (code, len(made)) == (0, 1)
    assert len([line for line in out.splitlines() if line.startswith("  ")]) == 9
    assert "red -" in err and "nowhere.png" in err and "Traceback" not in err


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_the_prompt_ends_with_ctrl_d_or_ctrl_c_and_keeps_its_history_private(
    end: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    typed: Iterator[str] = iter(["犬"])

    def read(prompt: str) -> str:
        for line in typed:
            return line
        raise end

    monkeypatch.setattr("builtins.input", read)
    asked: list[str] = []
    search_prompt.ask_for_queries(asked.append)
    assert asked == ["犬"]
    history = tmp_path / "vlm" / "search_history"
    if history.exists():
        assert history.stat().st_mode & 0o077 == 0
