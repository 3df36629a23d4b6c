import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlm import figures
from vlm.checkpoint import save
from vlm.cli import main
from vlm.config import PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.preprocess import Preprocess
from vlm.vision import ViTClassifier

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
    row = figures.colours(torch.tensor([[0.0, 0.5, 1.0]]), ["#000000", "#ff0000", "#ffffff"])
    assert [row.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (255, 0, 0), (255, 255, 255)]


def test_an_overlay_is_brightest_where_the_map_is_highest():
    grid = torch.zeros(4, 4)
    grid[1, 2] = 0.001  # scaled to its own maximum
    grey = np.asarray(figures.overlay(Image.new("RGB", (32, 32), "white"), grid, 64).convert("L"))
    assert np.unravel_index(grey.argmax(), grey.shape) == pytest.approx((24, 40), abs=8)


def test_relevance_is_red_for_blue_against_on_one_scale_for_all_texts():
    strong, weak = torch.zeros(4, 4), torch.zeros(4, 4)
    strong[0, 0], strong[3, 3], weak[0, 0] = 1, -1, 0.1
    drawn = figures.draw_relevance(Image.new("RGB", (32, 32), "white"), {"a": strong, "b": weak}, figures.pen("en"))
    page = np.asarray(drawn).astype(int)
    top, left, step = drawn.height - 208, 16, 198  # three tiles of 192 pixels, gaps of 6

    def redness(tile: int, x: int, y: int) -> int:
        red, _, blue = page[top + y, left + tile * step + x]
        return red - blue

    assert redness(1, 10, 10) > 80
    assert redness(1, 182, 182) < -80
    assert 0 < redness(2, 10, 10) < 40
    assert abs(redness(2, 182, 182)) < 5


def test_a_long_caption_is_cut_to_the_width_of_its_picture():
    draw = partial(figures.draw_relevance, Image.new("RGB", (32, 32), "white"), pen=figures.pen("en"))
    grid = torch.zeros(4, 4)
    assert draw({"a" * 500: grid, "b": grid}).size == draw({"a": grid, "b": grid}).size
    strip = np.asarray(draw({"a" * 500: grid, "": grid}).crop((16 + 2 * 198 + 2, 76, 16 + 3 * 198 - 8, 94)))
    assert (strip == 255).all()  # nothing reaches over the next picture


def test_both_languages_have_the_same_words():
    english, japanese = (figures.WORDS[language] for language in ("en", "ja"))
    assert english.keys() == japanese.keys()
    assert all(re.search("[ぁ-んァ-ヶ一-龠]", words) for words in japanese.values())


def test_without_a_japanese_font_the_words_are_english(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(figures, "FONTS", ("no such font.ttf",))
    drawing = figures.pen("ja")
    assert drawing.words == figures.WORDS["en"]
    assert not drawing.japanese


# ---- vlm look ------------------------------------------------------------------------------------------------------


def test_look_writes_one_picture_per_question(
    model: Path, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["look", picture_folder / "a.png", "--model", model, "--out", tmp_path / "out", "--json"]
    assert run(*words, "--text", "犬", "cat") == 0
    assert written(capsys.readouterr().out) == QUESTIONS
    for question in QUESTIONS:
        page = Image.open(tmp_path / "out" / f"look-{question}.png").convert("RGB")
        assert len(page.getcolors(2**24) or []) > 20  # something is drawn
    assert run(*words) == 0
    assert written(capsys.readouterr().out) == QUESTIONS[:-1]  # nothing was asked for


def test_look_into_a_classifier_shows_its_own_answer_or_the_label_asked_for(
    classifier: ViTClassifier, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture = picture_folder / "a.png"
    assert classifier.preprocess is not None
    answer = LABELS[int(classifier(classifier.preprocess(picture)[None]).argmax())]
    other = next(label for label in LABELS if label != answer)
    pages: list[bytes] = []
    for words in ([], ["--text", answer], ["--text", other]):
        where = ["--classifier", tmp_path / "my-vit", "--out", tmp_path / "out", "--json"]
        assert run("look", picture, *where, *words) == 0
        assert written(capsys.readouterr().out) == QUESTIONS
        pages.append((tmp_path / "out" / "look-relevance.png").read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_look_without_a_japanese_font_says_so_in_one_line_and_draws(
    model: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(figures, "FONTS", ())
    words = ["look", picture_folder / "a.png", "--model", model, "--out", tmp_path / "out"]
    assert run(*words, "--text", "犬", "--lang", "ja") == 0
    output = capsys.readouterr()
    assert output.err.splitlines() == [
        "vlm: no font with Japanese on this machine: the pictures are in English; text 1 is 犬"
    ]
    assert "Where is it in this picture?" in output.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "nowhere.png", "--model", "MODEL"], "nowhere.png: missing"),
        (["look", "PICTURE", "--classifier", "VIT", "--text", "fish"], "'fish' is none of the classifier's 6 labels"),
        (["classify", "PICTURE", "--classifier", "VIT", "--templates", "a {}"], "a classifier reads none"),
        (["classify", "PICTURE", "--classifier", "MODEL"], "Open it with vlm.load."),
    ],
)
def test_what_the_user_can_put_right_is_one_line(
    words: list[str],
    message: str,
    model: Path,
    classifier: ViTClassifier,
    picture_folder: Path,
    capsys: pytest.CaptureFixture[str],
):
    places = {"PICTURE": picture_folder / "a.png", "MODEL": model, "VIT": model.parent / "my-vit"}
    assert run(*[places.get(word, word) for word in words]) == 1
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


# ---- vlm classify --classifier -------------------------------------------------------------------------------------


def test_classify_with_a_classifier_ranks_its_labels_by_softmax(
    classifier: ViTClassifier, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = [picture_folder / "a.png", picture_folder / "c.jpg"]
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
    text = (Path(__file__).parent.parent / "docs" / page).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("page", ["features.md", "features.ja.md"])
def test_the_worked_example_finds_each_patch_of_a_picture_in_its_copy(
    page: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vlm.checkpoint.BUNDLED", {"mini": model})
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


@pytest.mark.parametrize("page", ["features.md", "features.ja.md"])
def test_every_picture_of_the_page_is_there(page: str):
    docs = Path(__file__).parent.parent / "docs"
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
