"""Search in the samples and in a folder, against the definition."""

import base64
import io
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlm
from tests.support.demo_pages import DOG
from vlm.demo.actions import PageActions
from vlm.demo.page.texts import PageError
from vlm.demo.search.folder import FolderCollection
from vlm.demo.search.known_words import is_known
from vlm.demo.search.retrieval import Filters
from vlm.demo.search.samples import sample, samples
from vlm.demo.search.thumbnails import thumbnail
from vlm.user_folders import cache_folder

ROOT = Path(__file__).parents[2]


def test_search_finds_what_the_definition_finds(actions: PageActions, tiny_embedder: vlm.Embedder) -> None:
    gallery = tiny_embedder.embed_images([one.path for one in samples()])
    text, image = tiny_embedder.embed_texts(["赤いりんご"])[0], tiny_embedder.embed_images([DOG])[0]
    for query, results in [
        (text, actions.search("赤いりんご", k=50)),
        (image, actions.search(image=DOG, k=50)),
        (text + image, actions.search(" 赤いりんご ", DOG, k=50)),
    ]:
        cosines = torch.nn.functional.cosine_similarity(gallery, query[None])
        best = cosines.topk(50)
        assert [result.score for result in results] == pytest.approx(best.values.tolist(), abs=1e-5)
        places = {one.file_name: place for place, one in enumerate(samples())}
        assert [cosines[places[result.key]].item() for result in results] == pytest.approx(
            best.values.tolist(), abs=1e-5
        )


def test_a_sum_of_terms_is_searched_by_its_definition(actions: PageActions, tiny_embedder: vlm.Embedder) -> None:
    red, car, wheel = tiny_embedder.embed_texts(["red", "car", "wheel"])
    sums = tiny_embedder.embed_images([one.path for one in samples()]) @ torch.nn.functional.normalize(
        red + 0.5 * car - wheel, dim=0
    )
    results = actions.search("red + 0.5*car - wheel", k=5)
    assert [result.score for result in results] == pytest.approx(sums.topk(5).values.tolist(), abs=1e-5)
    with pytest.raises(PageError) as error:
        actions.search("red - red")
    assert error.value.key == "terms_cancel"


def test_a_filter_leaves_the_order_and_takes_the_others_out(actions: PageActions) -> None:
    everything = actions.search("a cat", k=len(samples()))
    noto = [result.key for result in everything if result.key.startswith("noto/")]
    filtered = actions.search("a cat", k=len(samples()), filters=Filters(styles=("noto",)))
    assert [result.key for result in filtered] == noto
    assert actions.search("a cat", filters=Filters(styles=("nobody",))) == []


def test_a_key_that_names_no_image_of_the_gallery_opens_nothing(actions: PageActions) -> None:
    for key in ("../app.py", "/etc/passwd", "", "fxemoji"):
        with pytest.raises(PageError) as no:
            actions.similar(key)
        assert no.value.key == "missing"


def test_an_own_folder_is_indexed_privately_and_searched(
    actions: PageActions, tiny_embedder: vlm.Embedder, tmp_path: Path
) -> None:
    images, cache = tmp_path / "images", tmp_path / "cache"
    images.mkdir()
    for one in samples()[:40]:
        (images / f"{one.concept}.{one.file_name.replace('/', '-')}").write_bytes(one.path.read_bytes())
    (images / "broken.png").write_text("not an image")
    before = sorted(images.iterdir())
    own = PageActions(actions.source, folder=str(images), cache=cache)
    assert own.folder is not None
    own.warm_up()
    _until_indexed(own.folder)
    assert own.folder.progress[:3] == (41, 41, ("broken.png",))
    results = own.search("a cat", k=40)
    expected = tiny_embedder.embed_images([result.path for result in results]) @ tiny_embedder.embed_texts(["a cat"])[0]
    assert [result.score for result in results] == pytest.approx(expected.tolist(), abs=1e-2)  # kept as float16
    assert sorted(result.path for result in results) == [path for path in before if path.name != "broken.png"]
    assert own.similar(results[5].key)[0].score == pytest.approx(1, abs=1e-2)
    named = own.search("a cat", k=40, filters=Filters(name="fxemoji"))
    assert [result.key for result in named] == [result.key for result in results if "fxemoji" in result.path.name]
    with pytest.raises(PageError) as error:
        own.search("a cat", filters=Filters(since="yesterday"))
    assert error.value.key == "cannot_search"
    with pytest.raises(PageError) as error:
        own.similar(str(before[0]))  # a path is not a key
    assert error.value.key == "missing"
    assert sorted(images.iterdir()) == before and cache.stat().st_mode & 0o077 == 0
    assert not cache_folder().is_relative_to(ROOT)
    own.folder.close()


def _until_indexed(own: FolderCollection) -> None:
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


def test_an_image_of_the_gallery_finds_itself(actions: PageActions) -> None:
    best = actions.search(image=DOG, k=1)[0]
    assert best.score == pytest.approx(1, abs=1e-5)
    assert sample(best.key).concept == sample("fxemoji/dog.webp").concept
    assert actions.similar(best.key)[0] == best


def test_two_demos_of_the_same_weights_embed_the_gallery_once(actions: PageActions) -> None:
    assert PageActions(actions.source).sample_embeds() is actions.sample_embeds()


def test_nothing_to_search_and_no_image_are_said(actions: PageActions) -> None:
    for action, key in ((lambda: actions.search("  "), "nothing_to_search"),
                        (lambda: actions.classify(None, "犬"), "no_image")):  # fmt: skip
        with pytest.raises(PageError) as error:
            action()
        assert error.value.key == key


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("a red apple", True),
        ("apples", True),
        ("APPLE", True),
        ("赤いりんごの絵", True),
        ("電車", True),
        ("犬", True),
        ("🍎", True),
        ("asdfghjkl", False),
        ("democracy", False),
        ("民主主義", False),
        ("of the", True),
        ("ぬめげ", False),
    ],
)
def test_words_of_the_training_data_are_known(text: str, known: bool) -> None:
    assert is_known(text) == known


def test_unknown_words_are_told_of_the_bundled_model_only(actions: PageActions) -> None:
    assert PageActions("mini").unknown(["asdfghjkl", "apple"]) == ["asdfghjkl"]
    assert actions.unknown(["asdfghjkl"]) == []
    assert PageActions("mini").unknown_terms("apple + zxqv - 0.5*asdfghjkl") == ["zxqv", "asdfghjkl"]
    assert PageActions("mini").unknown_terms("りんご + 緑 - 赤") == PageActions("mini").unknown_terms(" ") == []
