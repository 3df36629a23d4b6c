"""The demo's actions, without Gradio; then its endpoints, without a browser."""

import base64
import csv
import io
import os
import runpy
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import gradio
import pyarrow.parquet
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import vlm
from tests.support.demo_server import serving
from tests.support.odd_images import ODD_IMAGES, write_odd_images
from vlm.calibration import Calibration
from vlm.demo import views
from vlm.demo.actions import MAX_LABELS, Actions, Ranked, read_labels, read_templates
from vlm.demo.app import build
from vlm.demo.gallery import SAMPLES, sample, samples
from vlm.demo.searching import Filters, OwnFolder, thumbnail
from vlm.demo.texts import TEXTS, NoAnswer, both
from vlm.errors import ImageReason
from vlm.inspect.relevance import relevance, text_score
from vlm.zero_shot import class_embeddings

ROOT = Path(__file__).parents[2]
DOG = SAMPLES / "fxemoji" / "dog.webp"
PICTURE_WORDS = ROOT / "training" / "picture_words"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small is slower on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def actions(tiny_embedder: vlm.Embedder, tmp_path: Path) -> Actions:
    vlm.save(tiny_embedder, tmp_path / "tiny")
    return Actions(str(tmp_path / "tiny"))


# ---- actions -------------------------------------------------------------------------------------------------------


def test_labels_come_one_a_line_or_between_commas_of_either_language() -> None:
    assert read_labels(" 犬、猫\nred apple,  bird ，\n\n鳥；車") == ("犬", "猫", "red apple", "bird", "鳥", "車")
    assert read_labels(["one, two", "three"]) == ("one, two", "three")  # a list is taken as it is


@pytest.mark.parametrize(
    ("labels", "key"),
    [
        ("", "no_labels"),
        (" ,\n、", "no_labels"),
        ("犬、猫、犬", "labels_twice"),
        ([str(number) for number in range(MAX_LABELS + 1)], "too_many_labels"),
        ("x" * 501, "text_too_long"),
        ({"label": "犬"}, "not_text"),
        ([1, 2], "not_text"),
    ],
)
def test_labels_that_cannot_be_used_are_one_clear_line(actions: Actions, labels: Any, key: str) -> None:
    with pytest.raises(NoAnswer) as no:
        actions.classify(DOG, labels)
    assert no.value.key == key
    assert str(no.value) == TEXTS[key]["en"].format(**no.value.values)
    assert "\n" not in str(no.value)


def test_the_ranking_is_the_softmax_of_the_library_sorted(actions: Actions, tiny_embedder: vlm.Embedder) -> None:
    names = ["犬", "a cat", "車", "鳥"]
    expected = dict(zip(names, vlm.classify(tiny_embedder, [DOG], names)[0].tolist(), strict=True))
    ranking = actions.classify(DOG, "犬, a cat, 車, 鳥")
    assert [ranked.label for ranked in ranking] == sorted(names, key=lambda name: -expected[name])
    assert {ranked.label: ranked.probability for ranked in ranking} == pytest.approx(expected, abs=1e-6)


def test_search_finds_what_the_definition_finds(actions: Actions, tiny_embedder: vlm.Embedder) -> None:
    gallery = tiny_embedder.embed_images([one.path for one in samples()])
    text, image = tiny_embedder.embed_texts(["赤いりんご"])[0], tiny_embedder.embed_images([DOG])[0]
    for query, hits in [
        (text, actions.search("赤いりんご", k=50)),
        (image, actions.search(image=DOG, k=50)),
        (text + image, actions.search(" 赤いりんご ", DOG, k=50)),
    ]:
        cosines = torch.nn.functional.cosine_similarity(gallery, query[None])
        best = cosines.topk(50)
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-5)
        places = {one.file_name: place for place, one in enumerate(samples())}
        assert [cosines[places[hit.key]].item() for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_templates_are_the_visitors_or_those_of_the_language(actions: Actions, tiny_embedder: vlm.Embedder) -> None:
    given = ["a {} here", "{}!"]
    expected = dict(zip("ab", vlm.classify(tiny_embedder, [DOG], ["a", "b"], given)[0].tolist(), strict=True))
    ranking = actions.classify(DOG, "a, b", " a {} here\n\n{}! ")
    assert {ranked.label: ranked.probability for ranked in ranking} == pytest.approx(expected, abs=1e-6)
    assert read_templates("  \n") is None
    with pytest.raises(NoAnswer, match="where the label goes"):
        actions.classify(DOG, "a", "an image")


def test_none_of_these_is_said_exactly_below_the_calibrated_line(actions: Actions) -> None:
    embedder, unit = actions.embedder, torch.tensor(0.0)
    ranking = actions.classify(DOG, "a, b")
    assert [ranked.match for ranked in ranking] == [None, None]
    assert not actions.none_fits(ranking)  # no line was drawn for this model
    for bias, weak in ((-9.0, True), (9.0, False)):
        embedder.calibration = Calibration(scale=1e-6, bias=bias)
        ranking = actions.classify(DOG, "a, b")
        expected = float((unit + bias).sigmoid())
        assert [ranked.match for ranked in ranking] == pytest.approx([expected] * 2, abs=1e-5)
        assert actions.none_fits(ranking) is weak
        assert actions.no_good_match(actions.search("a")) is weak


def test_where_a_label_is_is_how_much_each_patch_moves_the_cosine(
    actions: Actions, tiny_embedder: vlm.Embedder
) -> None:
    images = tiny_embedder.preprocess(DOG)[None]
    vector = class_embeddings(tiny_embedder, ["犬"])[0]
    score = text_score(tiny_embedder.model.vision_proj, vector)
    expected = relevance(tiny_embedder.model.vision, images, score)[0]
    torch.testing.assert_close(actions.where(DOG, "犬").grid, expected)


def test_many_images_are_a_row_each_and_the_csv_says_the_same(actions: Actions, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    rows = actions.classify_all([("dog", DOG), ("<b>broken", broken)], ["a, b", "c"])
    assert rows[0].ranking == actions.classify(DOG, ["a, b", "c"])
    read = list(csv.DictReader(io.StringIO(views.csv_of(rows).removeprefix("\ufeff"))))
    assert [row["image"] for row in read] == ["dog", "<b>broken"]
    assert read[0]["best"] == rows[0].ranking[0].label
    assert float(read[0]["a, b"]) + float(read[0]["c"]) == pytest.approx(1, abs=2e-6)
    assert read[1]["error"] == TEXTS["not an image"]["en"]
    assert "<b>" not in views.table(rows)


def test_a_sum_of_terms_is_searched_by_its_definition(actions: Actions, tiny_embedder: vlm.Embedder) -> None:
    red, car, wheel = tiny_embedder.embed_texts(["red", "car", "wheel"])
    sums = tiny_embedder.embed_images([one.path for one in samples()]) @ torch.nn.functional.normalize(
        red + 0.5 * car - wheel, dim=0
    )
    hits = actions.search("red + 0.5*car - wheel", k=5)
    assert [hit.score for hit in hits] == pytest.approx(sums.topk(5).values.tolist(), abs=1e-5)
    with pytest.raises(NoAnswer, match="cancel"):
        actions.search("red - red")


def test_a_filter_leaves_the_order_and_takes_the_others_out(actions: Actions) -> None:
    everything = actions.search("a cat", k=len(samples()))
    noto = [hit.key for hit in everything if hit.key.startswith("noto/")]
    filtered = actions.search("a cat", k=len(samples()), filters=Filters(styles=("noto",)))
    assert [hit.key for hit in filtered] == noto
    assert actions.search("a cat", filters=Filters(styles=("nobody",))) == []


def test_a_key_that_names_no_image_of_the_gallery_opens_nothing(actions: Actions) -> None:
    for key in ("../app.py", "/etc/passwd", "", "fxemoji"):
        with pytest.raises(NoAnswer) as no:
            actions.similar(key)
        assert no.value.key == "missing"


def test_an_own_folder_is_indexed_privately_and_searched(
    actions: Actions, tiny_embedder: vlm.Embedder, tmp_path: Path
) -> None:
    images, cache = tmp_path / "images", tmp_path / "cache"
    images.mkdir()
    for one in samples()[:40]:
        (images / f"{one.concept}.{one.file_name.replace('/', '-')}").write_bytes(one.path.read_bytes())
    (images / "broken.png").write_text("not an image")
    before = sorted(images.iterdir())
    own = Actions(actions.source, folder=str(images), cache=cache)
    assert own.own is not None
    own.warm_up()
    _until_indexed(own.own)
    assert own.own.progress[:3] == (41, 41, 1)
    hits = own.search("a cat", k=40)
    expected = tiny_embedder.embed_images([hit.path for hit in hits]) @ tiny_embedder.embed_texts(["a cat"])[0]
    assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-2)  # kept as float16
    assert sorted(hit.path for hit in hits) == [path for path in before if path.name != "broken.png"]
    assert own.similar(hits[5].key)[0].score == pytest.approx(1, abs=1e-2)
    named = own.search("a cat", k=40, filters=Filters(name="fxemoji"))
    assert [hit.key for hit in named] == [hit.key for hit in hits if "fxemoji" in hit.path.name]
    with pytest.raises(NoAnswer, match="date"):
        own.search("a cat", filters=Filters(since="yesterday"))
    with pytest.raises(NoAnswer):
        own.similar(str(before[0]))  # a path is not a key
    assert sorted(images.iterdir()) == before and cache.stat().st_mode & 0o077 == 0
    assert not vlm.onnx.backends.cache_folder().is_relative_to(ROOT)
    own.own.close()


def _until_indexed(own: OwnFolder) -> None:
    for _ in range(600):
        if own.progress.finished:
            return
        time.sleep(0.1)
    raise AssertionError(own.progress)


def test_a_thumbnail_is_small_and_carries_no_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    Image.new("RGB", (1600, 900), "teal").save(tmp_path / "photo.jpg", exif=exif)
    data = base64.b64decode(thumbnail(tmp_path / "photo.jpg").split(",")[1])
    small = Image.open(io.BytesIO(data))
    assert max(small.size) == 192
    assert b"where I live" not in data
    assert thumbnail(tmp_path / "gone.jpg") == ""


def test_a_image_of_the_gallery_finds_itself(actions: Actions) -> None:
    best = actions.search(image=DOG, k=1)[0]
    assert best.score == pytest.approx(1, abs=1e-5)
    assert sample(best.key).concept == sample("fxemoji/dog.webp").concept
    assert actions.similar(best.key)[0] == best


def test_two_demos_of_the_same_weights_embed_the_gallery_once(actions: Actions) -> None:
    assert Actions(actions.source).gallery_embeds() is actions.gallery_embeds()


def test_nothing_to_search_and_no_image_are_said(actions: Actions) -> None:
    with pytest.raises(NoAnswer, match="nothing to search"):
        actions.search("  ")
    with pytest.raises(NoAnswer, match="no image"):
        actions.classify(None, "犬")


def test_odd_images_get_an_answer_or_one_line(actions: Actions, tmp_path: Path) -> None:
    for name, path in write_odd_images(tmp_path).items():
        reason = ODD_IMAGES[name]
        if reason is None:
            assert sum(ranked.probability for ranked in actions.classify(path, "犬、猫")) == pytest.approx(1)
            continue
        with pytest.raises(NoAnswer) as no:
            actions.classify(path, "犬、猫")
        assert no.value.key == reason


# ---- words and images --------------------------------------------------------------------------------------------


def test_every_text_says_the_same_in_both_languages() -> None:
    fields = string.Formatter()
    for key, said in TEXTS.items():
        assert set(said) == {"en", "ja"}, key
        placeholders = {language: {name for _, name, _, _ in fields.parse(said[language]) if name} for language in said}
        assert placeholders["en"] == placeholders["ja"], key
        assert said["en"].isascii(), key
        assert not said["ja"].isascii(), key


def test_every_reason_to_refuse_a_image_has_its_text() -> None:
    assert set(get_args(ImageReason)) <= set(TEXTS)


class _Read(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_what_visitors_type_never_becomes_html_or_a_template() -> None:
    typed = "<img src=x onerror=alert(1)> ${alert(2)} {{value}} `x` & \"'"
    for page in (views.bars([Ranked(typed, 1.0)]), both("labels_twice", labels=typed), views.model_note(typed)):
        read = _Read(page)
        assert typed in "".join(read.words)
        assert "img" not in read.tags
        assert not set("${`") & set(page)


def test_the_gallery_is_val_style_and_val_concept_byte_for_byte() -> None:
    rows = pyarrow.parquet.read_table(PICTURE_WORDS / "validation.parquet").to_pylist()
    rows = [row for row in rows if row["split"] in ("val_style", "val_concept")]
    assert len(rows) == len(samples())
    for row, one in zip(rows, samples(), strict=True):
        assert one.path.read_bytes() == row["image"]["bytes"]
        assert (one.en, one.ja) == (row["captions_en"][0], row["captions_ja"][0])
        assert (one.author, one.license) == (row["author"], row["license"])


def test_every_licence_of_the_gallery_is_there_in_full() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (SAMPLES / "LICENSES").iterdir()}
    for name in {one.license for one in samples()}:
        assert any(file.startswith(name) and len(text) > 1000 for file, text in texts.items()), name
    for name, text in texts.items():
        assert text == (PICTURE_WORDS / "LICENSES" / name).read_text(encoding="utf-8")


# ---- the page and its endpoints ------------------------------------------------------------------------------------


def test_the_named_endpoints_answer_programs(actions: Actions, tmp_path: Path) -> None:
    with serving(actions.source, tmp_path) as server:
        _ask(server.address, actions, tmp_path)
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "DIALLED OUT" not in log


def _ask(address: str, actions: Actions, tmp_path: Path) -> None:
    client = Client(address, verbose=False, download_files=str(tmp_path))
    dog = handle_file(str(DOG))

    expected = [ranked._asdict() for ranked in actions.classify(DOG, "犬、猫")]
    assert client.predict(image=dog, labels="犬、猫", api_name="/classify") == expected
    assert client.predict(dog, ["犬", "猫"], api_name="/classify") == expected

    found = client.predict("赤いりんご", None, api_name="/search")
    hits = actions.search("赤いりんご")
    assert [one["score"] for one in found] == pytest.approx([hit.score for hit in hits])
    images = [base64.b64decode(one["thumbnail"].split(",")[1]) for one in found]
    assert images == [hit.path.read_bytes() for hit in hits]
    assert client.predict(found[3]["key"], api_name="/similar")[0]["score"] == pytest.approx(1, abs=1e-5)
    two = client.predict(
        [dog, handle_file(str(SAMPLES / "fxemoji" / "redapple.webp"))], "犬、猫", api_name="/classify_all"
    )
    assert two[0]["labels"] == expected
    assert [one["name"] for one in two] == ["dog.webp", "redapple.webp"]
    assert client.predict(image=dog, api_name="/search")[0]["score"] == pytest.approx(1, abs=1e-5)

    broken = tmp_path / "broken.png"
    broken.write_text("not an image")
    for image, labels, key in [(handle_file(str(broken)), "犬", "not an image"), (dog, "", "no_labels")]:
        with pytest.raises(AppError) as error:
            client.predict(image, labels, api_name="/classify")
        assert str(error.value) == TEXTS[key]["en"]
    for forged in (str(DOG), {"path": str(DOG)}):  # a path of the server's own, not an upload
        with pytest.raises(AppError):
            client.predict(forged, "犬", api_name="/classify")

    endpoints: Any = client.view_api(return_format="dict", print_info=False)
    assert {"/classify", "/classify_all", "/where", "/search", "/similar"} <= set(endpoints["named_endpoints"])


def test_a_text_box_that_nobody_opened_sends_the_empty_text(actions: Actions) -> None:
    values = {block.value for block in build(actions).blocks.values() if isinstance(block, gradio.Textbox)}
    assert values == {""}  # without a value, one inside a closed accordion sends None


def test_the_api_pages_say_what_the_page_offers(actions: Actions) -> None:
    """`python docs/write_demo_api.py` writes them."""
    page: Any = build(actions).get_api_info()
    written = runpy.run_path(str(ROOT / "docs/write_demo_api.py"))["pages"](page["named_endpoints"])
    assert written["en"] == (ROOT / "docs/demo-api.md").read_text(encoding="utf-8")
    assert written["ja"] == (ROOT / "docs/demo-api.ja.md").read_text(encoding="utf-8")


@pytest.mark.long
def test_a_space_finds_demo_and_no_model_is_loaded_for_it() -> None:
    show = "import gradio; from demo.app import demo as d; print(isinstance(d, gradio.Blocks), d.analytics_enabled)"
    done = _run("-c", show, VLM_DEMO_MODEL="no-such-model")
    assert done.stdout.split() == ["True", "False"], done.stderr


def test_a_model_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    done = _run("-m", "demo", "--model", "no-such-model")
    assert done.returncode == 1
    assert "no-such-model" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        check=False,
    )
