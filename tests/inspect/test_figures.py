import itertools
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont

from vlm.checkpoint.save import save
from vlm.cli import main
from vlm.config import PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.inspect import figures
from vlm.inspect.attention import attention_read
from vlm.inspect.drawing import WORDS, choose_lettering, colours, enlarged, image_seen, mosaic, overlay
from vlm.inspect.parameters import patch_filters
from vlm.models.vision import VisionTransformer, ViTClassifier

QUESTIONS = ["attention", "rollout", "distance", "positions", "filters", "relevance"]
LABELS = ["shirt", "靴", "bag", "coat", "dress", "sandal"]


@pytest.fixture
def model(tiny_embedder: Embedder, tmp_path: Path) -> Path:
    save(tiny_embedder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def classifier(tmp_path: Path) -> ViTClassifier:
    """Random weights, saved as `my-vit`."""
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = ViTClassifier(config, 6, labels=LABELS, preprocess=Preprocess(PreprocessConfig(image_size=32)))
        torch.nn.init.normal_(classifier.head.weight)
    save(classifier, tmp_path / "my-vit")
    return classifier.eval()


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def written(output: str) -> list[str]:
    return [Path(row["path"]).stem.removeprefix("look-") for row in json.loads(output)]


# ---- drawing -------------------------------------------------------------------------------------------------------


def test_colours_begin_and_end_with_the_scale_and_pass_through_its_stops():
    row = colours(torch.tensor([[0.0, 0.5, 1.0]]), ["#000000", "#ff0000", "#ffffff"])
    assert [row.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 0, 0), (255, 255, 255)]


def test_an_overlay_is_brightest_where_the_map_is_highest():
    grid = torch.zeros(4, 4)
    grid[1, 2] = 0.001  # scaled to its own maximum
    grey = np.asarray(overlay(Image.new("RGB", (32, 32), "white"), grid, 64).convert("L"))
    assert np.unravel_index(grey.argmax(), grey.shape) == pytest.approx((24, 40), abs=8)


def test_relevance_is_red_for_blue_against_on_one_scale_for_all_texts():
    strong, weak = torch.zeros(4, 4), torch.zeros(4, 4)
    strong[0, 0], strong[3, 3], weak[0, 0] = 1, -1, 0.1
    drawn = figures.draw_relevance(
        Image.new("RGB", (32, 32), "white"), {"a": strong, "b": weak}, choose_lettering("en")
    )
    page = np.asarray(drawn).astype(int)
    top, left, step = drawn.height - 208, 16, 198  # three tiles of 192 pixels, gaps of 6

    def redness(tile: int, x: int, y: int) -> int:
        red, _, blue = page[top + y, left + tile * step + x]
        return red - blue

    assert redness(1, 10, 10) > 80
    assert redness(1, 182, 182) < -80
    assert 0 < redness(2, 10, 10) < 40
    assert abs(redness(2, 182, 182)) < 5


def test_a_long_caption_is_cut_to_the_width_of_its_image():
    draw = partial(figures.draw_relevance, Image.new("RGB", (32, 32), "white"), lettering=choose_lettering("en"))
    grid = torch.zeros(4, 4)
    assert draw({"a" * 500: grid, "b": grid}).size == draw({"a": grid, "b": grid}).size
    strip = np.asarray(draw({"a" * 500: grid, "": grid}).crop((16 + 2 * 198 + 2, 76, 16 + 3 * 198 - 8, 94)))
    assert (strip == 255).all()  # nothing reaches over the next image


def test_a_font_that_is_missing_leaves_it_to_the_next(monkeypatch: pytest.MonkeyPatch):
    there = findfont("DejaVu Sans")  # which matplotlib brings along
    monkeypatch.setattr("vlm.inspect.drawing.FONTS", ("no such font.ttf", there, "nor this.ttf"))
    drawing = choose_lettering("ja")
    assert drawing.japanese
    assert drawing.words == WORDS["ja"]
    font = drawing.font(17)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert (font.path, font.size) == (there, 17)


def test_a_mosaic_has_each_tile_at_its_row_and_column_and_white_between():
    colours = [
        [(10 * row + 5, 20 * column, 7) for column in range(3 - row % 2)] for row in range(3)
    ]  # the second is short
    tiles = [[Image.new("RGB", (7, 5), colour) for colour in line] for line in colours]
    for gap, laid in ((4, mosaic(tiles, gap=4)), (0, mosaic(tiles, gap=0))):
        expected = np.full((15 + 2 * gap, 21 + 2 * gap, 3), 255)
        for row, line in enumerate(colours):
            for column, colour in enumerate(line):
                y, x = row * (5 + gap), column * (7 + gap)
                expected[y : y + 5, x : x + 7] = colour
        np.testing.assert_array_equal(np.asarray(laid), expected)


def test_enlarged_images_keep_their_shape():
    assert enlarged(Image.new("RGB", (30, 20)), 60).size == (60, 40)
    assert enlarged(Image.new("RGB", (20, 30)), 15).size == (10, 15)


def test_a_image_seen_is_the_pixels():
    pixels = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    seen = image_seen(pixels)
    assert seen.size == (5, 4)
    assert seen.getpixel((3, 2)) == tuple(pixels[:, 2, 3].tolist())


def uneven() -> tuple[VisionTransformer, torch.Tensor, Image.Image]:
    """A tower with a grid of 2 x 4 patches, 3 blocks and 2 heads, and an image for it."""
    config = VisionConfig(image_size=(16, 32), patch_size=8, width=12, depth=3, num_heads=2, mlp_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = VisionTransformer(config).eval()
        for weight in vision.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    return (
        vision,
        torch.randn(1, 3, 16, 32, generator=torch.Generator().manual_seed(1)),
        Image.new("RGB", (32, 16), "grey"),
    )


def brightest(tile: Image.Image, grid: tuple[int, int]) -> tuple[int, int]:
    light = np.asarray(tile.convert("L")).astype(float)
    height, width = light.shape
    middles = light[height // grid[0] // 2 :: height // grid[0], width // grid[1] // 2 :: width // grid[1]]
    y, x = np.unravel_index(middles.argmax(), middles.shape)
    return int(y), int(x)


def test_rows_of_attention_are_blocks_and_columns_heads():
    vision, images, image = uneven()
    read = attention_read(vision, images)[:, 0]
    tiles = figures.attention_tiles(vision, images, image)
    assert (len(tiles), {len(line) for line in tiles}) == (3, {2})
    for line, maps in zip(tiles, read, strict=True):
        for tile, grid in zip(line, maps, strict=True):
            assert tile.size == (96, 48)
            assert brightest(tile, (2, 4)) == np.unravel_index(int(grid.argmax()), (2, 4))


def test_blocks_and_heads_are_counted_from_1(monkeypatch: pytest.MonkeyPatch):
    vision, images, image = uneven()
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "sheet", lambda name, lettering, tiles, columns, rows: drawn.extend((columns, rows)))
    figures.draw_attention(vision, images, image, choose_lettering("en"))
    assert [[word.split()[-1] for word in words] for words in drawn] == [["1", "2"], ["1", "2", "3"]]


def test_each_position_is_reddest_at_its_own_place_and_blue_where_it_is_the_opposite():
    vision, _, _ = uneven()
    with torch.no_grad():
        vision.pos_embed[0, 1:] = torch.eye(12)[[0, 1, 2, 3, 4, 5, 6, 0]]
        vision.pos_embed[0, 8] *= -1  # the last is the first, turned round
    tiles = figures.position_tiles(vision)
    assert (len(tiles), {len(line) for line in tiles}) == (2, {4})
    for row, column in itertools.product(range(2), range(4)):
        tile = np.asarray(tiles[row][column]).astype(int)
        side = tile.shape[0]
        assert tile.shape == (side, side, 3)
        middle = tile[side // 4 :: side // 2, side // 8 :: side // 4]
        assert middle.shape == (2, 4, 3)
        redness = middle[..., 0] - middle[..., 2]
        expected = np.zeros((2, 4))
        expected[row, column] = 1
        if (row, column) in ((0, 0), (1, 3)):
            expected[1 - row, 3 - column] = -1
        np.testing.assert_array_equal(np.sign(redness * (abs(redness) > 20)), expected)


@pytest.mark.parametrize("channels", [3, 1])
def test_a_filter_tile_is_its_filter_from_black_to_white(channels: int):
    config = VisionConfig(
        image_size=(16, 32), patch_size=8, width=12, depth=1, num_heads=2, mlp_dim=16, in_channels=channels
    )
    vision = VisionTransformer(config)
    filters = patch_filters(vision)[0]
    tiles = figures.filter_tiles(vision)
    assert len(tiles) == len(filters) == 12
    for tile, own in zip(tiles, filters.numpy(), strict=True):
        levels = np.asarray(tile)[4::8, 4::8].transpose(2, 0, 1) / 127.5 - 1  # (3, 8, 8), 8 pixels each
        np.testing.assert_allclose(levels, np.broadcast_to(own / abs(own).max(), (3, 8, 8)), atol=0.005)


def test_dots_stand_at_their_block_and_as_high_as_their_head_looks(monkeypatch: pytest.MonkeyPatch):
    vision, images, _ = uneven()
    top = math.hypot(8, 24)  # from corner to corner
    far = torch.tensor([[0.2, 0.8], [0.4, 0.8], [0.6, 0.8]]) * top
    monkeypatch.setattr(figures, "attention_distance", lambda maps, config, grid: far)
    page = np.asarray(figures.draw_distance(vision, images, choose_lettering("en"))).astype(int)
    dots = (page == (0xB7, 0x37, 0x79)).all(-1)
    columns = np.flatnonzero(dots.any(0))
    groups = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(groups) == 3
    middles = [group.mean() for group in groups]
    assert middles[2] - middles[1] == pytest.approx(middles[1] - middles[0], abs=1)
    heights = []
    for group in groups:
        rows = np.flatnonzero(dots[:, group].any(1))
        parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
        heights.append([part.mean() for part in parts])  # from the top: 0.8 first
    step = heights[0][1] - heights[1][1]
    assert step > 20
    assert heights[1][1] - heights[2][1] == pytest.approx(step, abs=1)
    assert [low - high for high, low in heights] == pytest.approx([3 * step, 2 * step, step], abs=2)


def test_no_figure_is_cut_off_at_the_edge():
    vision, images, image = uneven()
    grids = {"dog": lambda features: features[:, 0], "a long caption " * 9: lambda features: features[:, 1]}
    for language in ("en", "ja"):
        for name, page in figures.draw_all(vision, images, image, grids, choose_lettering(language)).items():
            pixels = np.asarray(page)
            inner = pixels[8:-8, 8:-8]
            assert (pixels == 255).sum() - (inner == 255).sum() == pixels.size - inner.size, name


def test_both_languages_have_the_same_words():
    english, japanese = (WORDS[language] for language in ("en", "ja"))
    assert english.keys() == japanese.keys()
    assert all(re.search("[ぁ-んァ-ヶ一-龠]", words) for words in japanese.values())


def test_without_a_japanese_font_the_words_are_english(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm.inspect.drawing.FONTS", ("no such font.ttf",))
    drawing = choose_lettering("ja")
    assert drawing.words == WORDS["en"]
    assert not drawing.japanese


# ---- vlm look ------------------------------------------------------------------------------------------------------


def test_look_writes_one_image_per_question(
    model: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["look", image_folder / "a.png", "--model", model, "--out", tmp_path / "out", "--json"]
    assert run(*words, "--text", "犬", "cat") == 0
    assert written(capsys.readouterr().out) == QUESTIONS
    for question in QUESTIONS:
        page = Image.open(tmp_path / "out" / f"look-{question}.png").convert("RGB")
        assert len(page.getcolors(2**24) or []) > 20  # something is drawn
    assert run(*words) == 0
    assert written(capsys.readouterr().out) == QUESTIONS[:-1]  # nothing was asked for


def test_look_into_a_classifier_shows_its_own_answer_or_the_label_asked_for(
    classifier: ViTClassifier, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    image = image_folder / "a.png"
    assert classifier.preprocess is not None
    answer = LABELS[int(classifier(classifier.preprocess(image)[None]).argmax())]
    other = next(label for label in LABELS if label != answer)
    pages: list[bytes] = []
    for words in ([], ["--text", answer], ["--text", other]):
        where = ["--classifier", tmp_path / "my-vit", "--out", tmp_path / "out", "--json"]
        assert run("look", image, *where, *words) == 0
        assert written(capsys.readouterr().out) == QUESTIONS
        pages.append((tmp_path / "out" / "look-relevance.png").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_look_without_a_japanese_font_says_so_in_one_line_and_draws(
    model: Path,
    image_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("vlm.inspect.drawing.FONTS", ())
    words = ["look", image_folder / "a.png", "--model", model, "--out", tmp_path / "out"]
    assert run(*words, "--text", "犬", "--lang", "ja") == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "vlm: no font with Japanese on this machine: the images are in English; text 1 is 犬"
    ]
    assert "Where is it in this image?" in output.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "nowhere.png", "--model", "MODEL"], "nowhere.png: missing"),
        (["look", "IMAGE", "--classifier", "VIT", "--text", "fish"], "'fish' is none of the classifier's 6 labels"),
        (["classify", "IMAGE", "--classifier", "VIT", "--templates", "a {}"], "a classifier reads none"),
        (["classify", "IMAGE", "--classifier", "MODEL"], "Open it with vlm.load."),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    words: list[str],
    message: str,
    model: Path,
    classifier: ViTClassifier,
    image_folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    places = {"IMAGE": image_folder / "a.png", "MODEL": model, "VIT": model.parent / "my-vit"}
    assert run(*[places.get(word, word) for word in words]) == 1
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


# ---- vlm classify --classifier -------------------------------------------------------------------------------------


def test_classify_with_a_classifier_ranks_its_labels_by_softmax(
    classifier: ViTClassifier, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = [image_folder / "a.png", image_folder / "c.jpg"]
    assert run("classify", *paths, "--classifier", tmp_path / "my-vit", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert classifier.preprocess is not None
    logits = classifier(torch.stack([classifier.preprocess(path) for path in paths]))
    for path, row in zip(paths, logits.tolist(), strict=True):
        ranked = sorted(zip(torch.tensor(row).softmax(0).tolist(), LABELS, strict=True), reverse=True)[:5]
        found = [(each["score"], each["label"]) for each in rows if each["path"] == str(path)]
        assert [label for _, label in found] == [label for _, label in ranked]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in ranked], abs=1e-5)
    assert run("classify", *paths, "--classifier", tmp_path / "my-vit", "-k", "1", "--json") == 0
    assert [row["rank"] for row in json.loads(capsys.readouterr().out)] == [1, 1]


# ---- docs/features -------------------------------------------------------------------------------------------------


def code_of(page: str) -> str:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("page", ["features.md", "features.ja.md"])
def test_the_worked_example_finds_each_patch_of_a_image_in_its_copy(
    page: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vlm.checkpoint.sources.BUNDLED", {"mini": model})
    monkeypatch.chdir(tmp_path)
    noise = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save("one.png")
    Image.fromarray(noise.numpy()).save("other.png")
    found: dict[str, torch.Tensor] = {}
    exec(code_of(page), found)
    assert found["match"].tolist() == list(range(16))
    assert found["mutual"].all()
    assert found["where"].shape == (2, 4, 4)
    with Image.open("matches.png") as laid, Image.open("one.png") as one:
        assert laid.tobytes() == one.tobytes()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size, heads", [((128, 16), 12), ((16, 128), 12), ((8, 8), 2)])
def test_every_figure_is_drawn_of_narrow_images_and_of_a_single_patch(size: tuple[int, int], heads: int):
    config = VisionConfig(image_size=size, patch_size=8, width=24, depth=1, num_heads=heads, mlp_dim=32)
    vision, image = VisionTransformer(config).eval(), Image.new("RGB", (size[1], size[0]), "red")
    scores = {"x": lambda features: features[:, 0]}
    drawn = figures.draw_all(vision, torch.zeros(1, 3, *size), image, scores, choose_lettering("en"))
    assert sorted(drawn) == sorted(QUESTIONS)


@pytest.mark.parametrize("page", ["features.md", "features.ja.md"])
def test_every_image_of_the_page_is_there(page: str):
    docs = Path(__file__).parents[2] / "docs"
    named = re.findall(r"\]\((images/[^)]+)\)", (docs / page).read_text(encoding="utf-8"))
    folder = "images/ja" if page.endswith(".ja.md") else "images"
    fashion = "images/fashion/ja" if page.endswith(".ja.md") else "images/fashion"
    questions = ["attention", "rollout", "relevance", "distance", "positions", "filters"]
    assert named == [
        "images/matches.png",
        *(f"{folder}/look-{question}.png" for question in questions),
        "images/mini-curves.png",
        *(f"{fashion}/look-{question}.png" for question in questions),
        "images/fashion-mnist-curves.png",
    ]
    assert [name for name in named if not (docs / name).is_file()] == []


def test_both_languages_show_the_same_code():
    without_comments = [re.sub(r"  # .*", "", code_of(page)) for page in ("features.md", "features.ja.md")]
    assert without_comments[0] == without_comments[1]
