"""The command `python -m training.check` within this process: its options, what it prints, the files it writes."""

import json
import re
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from tests.support.check_sets import THINGS, encoded, examine, noise_image, row, sound
from vlm.bundled import BUNDLED
from vlm.cli import main
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.load import load_tokenizer
from vlm.training.audit.check import SAMPLE, check, open_tokenizer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main(["check", *map(str, words), "--workers", "0"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """40 sound images, 30 of them for training; two have the same caption."""
    rows = [{**own, "split": "train" if n < 30 else "test"} for n, own in enumerate(sound())]
    rows[3]["caption"] = rows[5]["caption"] = "赤い犬"
    Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def folder(place: Path, captions: list[str]) -> Path:
    place.mkdir()
    for n, caption in enumerate(captions):
        noise_image(n).save(place / f"{n}.png")
        (place / f"{n}.txt").write_text(caption, encoding="utf-8")
    return place


def test_findings_are_numbered_below_the_table_or_it_says_there_are_none(run, data: Path, tmp_path: Path):
    code, out, _ = run(data)
    assert (code, out.splitlines()[-2:]) == (0, ["", "No problems found."])
    assert out.startswith("rows ")
    odd = folder(tmp_path / "odd", ["<b>a dog</b>", "IMG_1.png", "a cat"])
    found = check([str(odd)], open_tokenizer("mini"))["findings"]
    code, out, _ = run(odd)
    assert (code, len(found)) == (0, 2)
    assert out.endswith(f"\n\n1. {found[0]['text']}\n2. {found[1]['text']}\n")
    assert "; " not in found[0]["text"].split("Leave them out")[1]
    assert all(finding["text"].endswith("(--out FOLDER lists them).") for finding in found)


def test_json_is_all_that_is_printed_and_what_the_folder_holds(run, data: Path, tmp_path: Path):
    code, out, _ = run(data, "--json", "--out", tmp_path / "new" / "out")
    assert code == 0
    text = (tmp_path / "new" / "out" / "check.json").read_text(encoding="utf-8")
    assert out == text
    assert json.loads(text)["splits"] == {"train": 30, "test": 10}
    assert '"caption": "赤い犬"' in text and '\n "data": ' in text
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {
        "check.json",
        "doubtful.jsonl",
        "contact-sheet.png",
    }


def test_options_choose_splits_columns_and_how_many(run, data: Path, tmp_path: Path):
    found = json.loads(run(data, "--json", "--split", "test")[1])
    assert (found["rows"], found["splits"]) == (10, {"test": 10})
    found = json.loads(run(data, "--json", "--sample", "7")[1])
    assert (found["rows"], found["looked_at"]) == (40, 7)
    rows = [{"photo": own["image"], "note": own["caption"], "alt_note": "x y", "caption": ""} for own in sound()[:5]]
    Dataset.from_list(rows).to_parquet(tmp_path / "own.parquet")
    words = ["--columns", "image=photo", "caption=note", "caption=alt_note"]
    found = json.loads(run(tmp_path / "own.parquet", "--json", *words)[1])
    assert found["captions"]["per_image"] == {"2": 5}
    assert found["captions"]["distinct"] == 6


def test_paths_of_a_table_may_begin_elsewhere(run, tmp_path: Path):
    images = folder(tmp_path / "images", ["x"] * 3)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "data.csv"
    table.write_text("filepath,title\n" + "".join(f"{n}.png,a {THINGS[n]}\n" for n in range(3)))
    assert json.loads(run(table, "--json")[1])["broken"] == {"missing": 3}
    assert json.loads(run(table, "--json", "--root", images)[1])["sound"] == 3


def test_the_sheet_is_in_the_language_asked_for(run, data: Path, tmp_path: Path):
    pages = []
    for language in ("en", "ja"):
        assert run(data, "--out", tmp_path / language, "--lang", language)[0] == 0
        with Image.open(tmp_path / language / "contact-sheet.png") as sheet:
            pages.append(sheet.tobytes())
    from vlm.inspect.drawing import choose_lettering

    assert (pages[0] != pages[1]) == choose_lettering("ja").japanese


def test_a_tokenizer_is_named_by_word_or_folder(run, data: Path, tmp_path: Path):
    assert isinstance(open_tokenizer("clip"), CLIPTokenizer)
    mini = open_tokenizer("mini")
    assert mini.encode("犬 and cat") == load_tokenizer(BUNDLED["mini"]).encode("犬 and cat")
    mini.save(tmp_path / "own")
    assert open_tokenizer(str(tmp_path / "own")).encode("犬 and cat") == mini.encode("犬 and cat")
    lengths = {
        json.loads(run(data, "--json", "--tokenizer", name)[1])["tokens"]["context_length"] for name in ("mini", "clip")
    }
    assert lengths == {mini.context_length, 77}


def test_every_doubt_is_one_line_whatever_the_caption_holds(tmp_path: Path):
    rows = sound()[:3]
    rows[1]["caption"] = "<b>\u2028犬\n"
    rows += [
        row(3, b"no image", "a fox"),
        row(4, encoded(noise_image(0)), "a dog again"),
        row(5, encoded(Image.new("RGB", (9, 90), "red")), "a line"),
    ]
    found = examine(rows, tmp_path)
    text = (tmp_path / "doubtful.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 6
    assert "犬" in text
    doubts = [json.loads(line) for line in text.splitlines()]
    assert [(doubt["uid"], doubt["split"], doubt["what"]) for doubt in doubts] == [
        ("sample 3", "", "broken"),
        ("sample 4", "set", "duplicate"),
        *(("sample 5", "set", what) for what in ("uniform", "tiny", "long")),
        ("sample 1", "set", "markup in caption"),
    ]
    assert doubts[0]["detail"].startswith("not an image: ")
    (markup,) = (finding["text"] for finding in found["findings"] if finding["name"] == "markup")
    assert markup.endswith(f"; {tmp_path / 'doubtful.jsonl'} lists them.")


def test_where_nothing_is_sound_there_is_no_sheet(run, tmp_path: Path):
    rows = [row(n, b"", "a dog") for n in range(2)]
    Dataset.from_list(rows).to_parquet(tmp_path / "data.parquet")
    code, out, _ = run(tmp_path / "data.parquet", "--out", tmp_path / "out")
    assert code == 0
    assert "No sample is sound" in out.splitlines()[-1]
    assert not (tmp_path / "out" / "contact-sheet.png").exists()
    assert (tmp_path / "out" / "doubtful.jsonl").read_text().count("\n") == 2


def test_what_the_user_can_put_right_is_one_line(run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, message in (
        ([tmp_path / "none.csv"], "none.csv"),
        ([data, "--split", "tset"], "has no split tset"),
        ([data, "--tokenizer", tmp_path / "none"], str(tmp_path / "none")),
    ):
        code, out, error = run(*words)
        assert (code, out, error.count("\n")) == (1, "", 1)
        assert error.startswith("vlm: error: ") and message in error
    for words, message in (
        (["--columns", "image=photo", "note", "more"], "ROLE=NAME, got note"),
        (["--sample", "0"], "got 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(data, *words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_the_number_looked_at_at_most_is_the_one_that_is_promised(capsys: pytest.CaptureFixture[str], monkeypatch):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    docs = Path(__file__).parents[3] / "docs"
    assert f"at random ({SAMPLE:,})" in " ".join(capsys.readouterr().out.split())
    assert f"**At most {SAMPLE:,} samples**" in (docs / "data.md").read_text(encoding="utf-8")
    assert re.search(rf"{SAMPLE:,}|{SAMPLE // 10_000} ?万", (docs / "data.ja.md").read_text(encoding="utf-8"))
