"""The demo's actions, without Gradio; then its endpoints, without a browser."""

import os
import string
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet
import pytest
import torch
from demo_server import serving
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from odd_pictures import ODD_PICTURES, write_odd_pictures

import vlm
from demo import views
from demo.actions import MAX_LABELS, Actions, NoAnswer, Ranked, read_labels
from demo.gallery import SAMPLES, sample, samples
from demo.texts import TEXTS, both
from vlm.preprocess import Reason

DOG = SAMPLES / "fxemoji" / "dog.webp"
PICTURE_WORDS = Path(__file__).parents[1] / "training" / "picture_words"


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
    text, picture = tiny_embedder.embed_texts(["赤いりんご"])[0], tiny_embedder.embed_images([DOG])[0]
    for query, hits in [
        (text, actions.search("赤いりんご", k=50)),
        (picture, actions.search(picture=DOG, k=50)),
        (text + picture, actions.search(" 赤いりんご ", DOG, k=50)),
    ]:
        cosines = torch.nn.functional.cosine_similarity(gallery, query[None])
        best = cosines.topk(50)
        assert [hit.score for hit in hits] == pytest.approx(best.values.tolist(), abs=1e-5)
        places = {one.file_name: place for place, one in enumerate(samples())}
        assert [cosines[places[hit.sample.file_name]].item() for hit in hits] == pytest.approx(
            best.values.tolist(), abs=1e-5
        )


def test_a_picture_of_the_gallery_finds_itself(actions: Actions) -> None:
    best = actions.search(picture=DOG, k=1)[0]
    assert best.score == pytest.approx(1, abs=1e-5)
    assert best.sample.concept == sample("fxemoji/dog.webp").concept


def test_two_demos_of_the_same_weights_embed_the_gallery_once(actions: Actions) -> None:
    assert Actions(actions.source).gallery_embeds() is actions.gallery_embeds()


def test_nothing_to_search_and_no_picture_are_said(actions: Actions) -> None:
    with pytest.raises(NoAnswer, match="nothing to search"):
        actions.search("  ")
    with pytest.raises(NoAnswer, match="no picture"):
        actions.classify(None, "犬")


def test_odd_pictures_get_an_answer_or_one_line(actions: Actions, tmp_path: Path) -> None:
    for name, path in write_odd_pictures(tmp_path).items():
        reason = ODD_PICTURES[name]
        if reason is None:
            assert sum(ranked.probability for ranked in actions.classify(path, "犬、猫")) == pytest.approx(1)
            continue
        with pytest.raises(NoAnswer) as no:
            actions.classify(path, "犬、猫")
        assert no.value.key == reason


# ---- words and pictures --------------------------------------------------------------------------------------------


def test_every_text_says_the_same_in_both_languages() -> None:
    fields = string.Formatter()
    for key, said in TEXTS.items():
        assert set(said) == {"en", "ja"}, key
        placeholders = {language: {name for _, name, _, _ in fields.parse(said[language]) if name} for language in said}
        assert placeholders["en"] == placeholders["ja"], key
        assert said["en"].isascii(), key
        assert not said["ja"].isascii(), key


def test_every_reason_to_refuse_a_picture_has_its_text() -> None:
    assert set(get_args(Reason)) <= set(TEXTS)


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
    assert [Path(one["picture"]).read_bytes() for one in found] == [hit.sample.path.read_bytes() for hit in hits]
    assert client.predict(image=dog, api_name="/search")[0]["score"] == pytest.approx(1, abs=1e-5)

    broken = tmp_path / "broken.png"
    broken.write_text("not a picture")
    for image, labels, key in [(handle_file(str(broken)), "犬", "not a picture"), (dog, "", "no_labels")]:
        with pytest.raises(AppError) as error:
            client.predict(image, labels, api_name="/classify")
        assert str(error.value) == TEXTS[key]["en"]
    for forged in (str(DOG), {"path": str(DOG)}):  # a path of the server's own, not an upload
        with pytest.raises(AppError):
            client.predict(forged, "犬", api_name="/classify")

    endpoints: Any = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/classify", "/search"}


@pytest.mark.long
def test_a_space_finds_demo_and_no_model_is_loaded_for_it() -> None:
    show = "from demo.app import demo; print(type(demo).__name__, demo.analytics_enabled)"
    done = _run("-c", show, VLM_DEMO_MODEL="no-such-model")
    assert done.stdout.split() == ["Blocks", "False"], done.stderr


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
        cwd=Path(__file__).parents[1],
        env={**os.environ, **variables},
        check=False,
    )
