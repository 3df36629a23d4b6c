"""The commands `vlm index` and `vlm search --index`, and the page they write."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support.odd_images import noise
from vlm.calibration import Calibration
from vlm.checkpoint.save import save_calibration
from vlm.cli import main
from vlm.commands.contact_sheet import contact_sheet
from vlm.embedder import Embedder
from vlm.index.embedding_index import EmbeddingIndex


def test_index_then_search_on_the_command_line(
    vlm_command: Callable[..., tuple[int, str, str]], tiny_embedder: Embedder, image_folder: Path, tmp_path: Path
):
    where = ["--index", tmp_path / "photos.index"]
    (image_folder / "empty.png").touch()
    code, out, err = vlm_command("index", image_folder, *where, "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["embedded"], row["images"]) == (6, 6)
    assert [(Path(item["path"]).name, item["reason"]) for item in row["skipped"]] == [("empty.png", "empty file")]
    assert "vlm: skipped 1 of 7 images" in err
    assert "image/s" in err
    (image_folder / "a.png").unlink()
    code, out, err = vlm_command("index", image_folder, *where, "--prune")
    assert out.startswith("0 embedded, 0 recognised, 6 unchanged, 0 moved, 1 vanished, 1 forgotten, ")
    assert out.endswith("; 5 in the index\n")
    assert "vlm: skipped 1 of 6 images" in err

    code, out, _ = vlm_command("search", "犬 - 猫", *where, "-k", "3", "--json")
    rows = json.loads(out)
    with EmbeddingIndex.open(tmp_path / "photos.index", tiny_embedder) as index:
        expected = [(str(hit.path), hit.score, hit.rank, None) for hit in index.search("犬 - 猫", 3)]
    assert [(row["path"], row["score"], row["rank"], row["probability"]) for row in rows] == expected
    assert vlm_command("search", "犬 - 猫", *where, "-k", "3", "--paths")[1].splitlines() == [
        hit[0] for hit in expected
    ]
    first = vlm_command("search", image_folder / "b.png", *where, "--glob", "images/*")[1].splitlines()[0]
    assert first.split("\t")[2] == str(image_folder / "b.png")
    shutil.copy(image_folder / "b.png", image_folder / "copy.png")
    vlm_command("index", image_folder, *where)
    (group,) = json.loads(vlm_command("search", "--duplicates", "0.9999", *where, "--json")[1])
    assert group["paths"] == [str(image_folder / name) for name in ("b.png", "copy.png")]


def test_the_contact_sheet_shows_the_hits_in_order_and_nothing_private(
    vlm_command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
):
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    noise(400, 30).save(image_folder / "<b>.jpg", exif=exif)
    where, page = ["--index", tmp_path / "photos.index"], tmp_path / "page.html"
    vlm_command("index", image_folder, *where)
    rows = json.loads(vlm_command("search", "<i>犬</i>", *where, "--html", page, "--json")[1])
    text = page.read_text(encoding="utf-8")
    assert text.count("<img src=") == len(rows) == 7
    places = [text.index(f"> {row['rank']} &middot;".replace("> ", ">")) for row in rows]
    assert places == sorted(places)
    assert "<b>" not in text
    assert "<i>" not in text
    assert "&lt;i&gt;犬" in text
    assert b"secret camera" not in b"".join(base64.b64decode(copy.split('"')[0]) for copy in text.split("base64,")[1:])


def test_a_file_that_is_gone_says_so_in_place_of_its_image(
    vlm_command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
):
    where, page = ["--index", tmp_path / "photos.index"], tmp_path / "page.html"
    vlm_command("index", image_folder, *where)
    (image_folder / "b.png").unlink()
    rows = json.loads(vlm_command("search", "犬", *where, "--html", page, "--json")[1])
    figures = re.findall("<figure>(.*?)</figure>", page.read_text(encoding="utf-8"))
    assert len(figures) == len(rows) == 6
    for figure, row in zip(figures, rows, strict=True):
        assert f"<figcaption>{row['rank']} &middot; {row['score']:.3f} &middot; {row['path']}</figcaption>" in figure
        assert ("<p>missing</p>" in figure) == ("<img" not in figure) == row["path"].endswith("b.png")
    assert sum("missing" in figure for figure in figures) == 1
    assert "No good match" not in contact_sheet([], "犬")  # which is for those to say who judge


def test_copies_are_small_and_keep_their_shape(
    vlm_command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
):
    where, page = ["--index", tmp_path / "photos.index"], tmp_path / "page.html"
    noise(900, 600).save(image_folder / "large.png")
    vlm_command("index", image_folder, *where)
    rows = json.loads(vlm_command("search", "犬", *where, "--html", page, "--json")[1])
    copies = [copy.split('"')[0] for copy in page.read_text(encoding="utf-8").split("base64,")[1:]]
    for row, copy in zip(rows, copies, strict=True):
        with Image.open(row["path"]) as whole, Image.open(io.BytesIO(base64.b64decode(copy))) as small:
            scale = min(1, max(small.size) / max(whole.size))
            assert small.size == (round(whole.width * scale), round(whole.height * scale))
            assert max(small.size) <= 400
            assert whole.size == small.size or "large.png" in row["path"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "犬", "--index", "nowhere"], "There is no index 'nowhere'"),
        (["search", "犬", "--index", "EMPTY"], "has no images for this model"),
        (["index", "nowhere", "--index", "EMPTY"], "There is no folder 'nowhere'"),
        (["index", "IMAGES", "--index", "IMAGES"], "is not an index"),
    ],
)
def test_what_the_user_can_put_right_is_exit_code_1_and_one_line(
    words: list[str],
    message: str,
    vlm_command: Callable[..., tuple[int, str, str]],
    image_folder: Path,
    tmp_path: Path,
):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "IMAGES": image_folder}
    code, out, err = vlm_command(*[places.get(word, word) for word in words])
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err


@pytest.mark.parametrize(
    "words",
    [
        ["search", "--index", "i"],
        ["search", "x", "--index", "i", "--duplicates"],
        ["search", "x", "--index", "i", "--folder", "f"],
        ["index", "f"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str]):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_a_probability_is_shown_everywhere_and_no_good_match_is_said_once(
    vlm_command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
):
    where, page = ["--index", tmp_path / "photos.index"], tmp_path / "page.html"
    vlm_command("index", image_folder, *where)
    best = json.loads(vlm_command("search", "犬", *where, "--json")[1])[0]["score"]

    def searched(line: float, *words: str | Path) -> tuple[str, str, str]:
        save_calibration(tmp_path / "model", Calibration(scale=10, bias=-10 * best, line=line), "")  # the first: 50 %
        code, out, err = vlm_command("search", *words, *where, "--html", page)
        assert code == 0
        return out, err, page.read_text(encoding="utf-8")

    out, err, sheet = searched(0.4, "犬")
    assert out.splitlines()[0].split("\t")[2].strip() == "50.0%"
    assert "&middot; 50.0% &middot;" in sheet
    assert "no good match" not in (err + sheet).lower()
    out, err, sheet = searched(0.6, "犬")
    assert len(out.splitlines()) == 6  # shown all the same
    assert err.splitlines() == ["vlm: no good match: the first is one with a probability of 50.0%"]
    assert "No good match" in sheet
    for unjudged in ("犬 - 猫", image_folder / "a.png"):
        out, err, sheet = searched(0.999, unjudged)
        assert "%" not in out + err
        assert "no good match" not in (err + sheet).lower()
