"""What the demo shows of a ViT's inside, without Gradio."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import vlm
from tests.support.demo_server import serving
from vlm.config import PreprocessConfig, VisionConfig
from vlm.demo.models import inspection
from vlm.demo.page.texts import PageError
from vlm.demo.search.samples import SAMPLES
from vlm.demo.views import inspection as views
from vlm.demo.views.models import card as model_card
from vlm.images.preprocess import Preprocess
from vlm.models.vision import ViTClassifier

DOG = SAMPLES / "fxemoji" / "dog.webp"


@pytest.fixture
def classifier() -> ViTClassifier:
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=2, mlp_dim=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ViTClassifier(
            config, 7, labels=[f"class {n}" for n in range(7)], preprocess=Preprocess(PreprocessConfig(image_size=32))
        )
        torch.nn.init.normal_(made.head.weight)
    return made.eval()


@pytest.fixture
def seen(tiny_embedder: vlm.Embedder) -> inspection.PreparedImage:
    return inspection.prepare(tiny_embedder.model.vision, tiny_embedder.preprocess, DOG)


def test_the_image_s_vector_reads_the_row_of_the_class_token(seen: inspection.PreparedImage) -> None:
    maps = [block.attn.weights(block.norm1(z)) for block, z in _blocks(seen)]  # pyright: ignore
    for block, head in ((1, 1), (1, 2), (2, 1)):
        expected = maps[block - 1][0, head - 1, 0, 1:]
        assert torch.allclose(inspection.attention(seen, block, head).grid.flatten(), expected, atol=1e-6)
    patch = inspection.attention(seen, 2, 2, 5).grid.flatten()
    assert torch.allclose(patch, maps[1][0, 1, 5, 1:], atol=1e-6)  # the class token stands before patch 1


def _blocks(seen: inspection.PreparedImage) -> list[tuple[Any, torch.Tensor]]:
    with torch.no_grad():
        z, found = seen.vision.embed(seen.images), []
        for block in seen.vision.blocks:
            found.append((block, z))
            z = block(z)
        return found


@pytest.mark.parametrize(
    ("numbers", "key"),
    [
        ((0, 1, 0), "no_such_block"),
        ((3, 1, 0), "no_such_block"),
        ((1, 3, 0), "no_such_head"),
        ((1, 1, 17), "no_such_patch"),
        ((1, 1, -1), "no_such_patch"),
        ((1.5, 1, 0), "no_such_block"),
        (("1", 1, 0), "no_such_block"),
        ((True, 1, 0), "no_such_block"),
    ],
)
def test_what_is_not_there_is_one_line_with_what_is(seen: inspection.PreparedImage, numbers: Any, key: str) -> None:
    with pytest.raises(PageError) as no:
        inspection.attention(seen, *numbers)
    assert no.value.key == key


def test_a_classifier_s_answer_is_its_softmax_sorted(classifier: ViTClassifier) -> None:
    given = inspection.predict(classifier, DOG)
    assert classifier.preprocess is not None
    with torch.no_grad():
        logits = classifier(classifier.preprocess(DOG)[None])[0].double()
    expected = sorted(zip((logits.exp() / logits.exp().sum()).tolist(), classifier.labels, strict=True), reverse=True)
    assert [label for label, _ in given.top] == [label for _, label in expected[:5]]
    assert [p for _, p in given.top] == pytest.approx([p for p, _ in expected[:5]], abs=1e-6)
    assert given.classes == 7
    assert 0 < float(given.rollout.grid.sum()) < 1  # the class token keeps the rest


def test_without_an_image_or_with_a_broken_one_the_reason_is_said(classifier: ViTClassifier) -> None:
    with pytest.raises(PageError, match="no image"):
        inspection.predict(classifier, None)
    with pytest.raises(PageError) as no:
        inspection.predict(classifier, b"not an image")
    assert no.value.key == "not an image"


class _Read(HTMLParser):
    """The buttons of a page, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.buttons: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "button":
            self.buttons.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_every_patch_and_every_head_is_a_button_with_a_name(
    seen: inspection.PreparedImage, tiny_embedder: vlm.Embedder
) -> None:
    typed = "<b>${x}"
    relevance = (typed, inspection.relevance(seen, tiny_embedder, typed))
    page = views.all_figures(seen, inspection.rollout(seen), relevance)
    read = _Read(page)
    patches = [button["data-patch"] for button in read.buttons if "data-patch" in button]
    assert patches == [str(number) for number in range(1, 17)]
    heads = [(button["data-block"], button["data-head"]) for button in read.buttons if "data-head" in button]
    assert heads == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert all(button["aria-label"] for button in read.buttons)
    assert typed in read.words
    assert "b" not in read.tags
    assert not set("${`") & set(page)


def test_a_stranger_s_card_fetches_nothing_and_runs_nothing() -> None:
    text = "# Name\n\n![x](https://a.example/x.png) <img src=y onerror=z> <script>w</script> [l](javascript:q) ${v}\n"
    page = model_card(text)
    read = _Read(page)
    assert {"h1", "article"} <= read.tags
    assert not {"img", "script"} & read.tags
    assert 'href="javascript:' not in page
    assert not set("${`") & set(page)
    assert "<script>w</script>" in read.words


@pytest.mark.long
def test_the_named_endpoints_give_the_library_s_numbers(
    classifier: ViTClassifier, tiny_embedder: vlm.Embedder, seen: inspection.PreparedImage, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    vlm.save(classifier, runs / "vit")
    vlm.save(tiny_embedder, runs / "tiny")
    with serving(str(runs / "tiny"), tmp_path, "--models", str(runs), "--classifier", str(runs / "vit")) as server:
        client, dog = Client(server.address, verbose=False), handle_file(str(DOG))
        listed = client.predict(api_name="/models")
        assert [(one["name"], one["kind"]) for one in listed] == [
            ("tiny", "clip"), ("mini", "clip"), ("vit", "vit_classifier")
        ]  # fmt: skip
        given, expected = client.predict(dog, api_name="/classifier"), inspection.predict(classifier, DOG)
        assert [one["label"] for one in given["top"]] == [label for label, _ in expected.top]
        assert torch.allclose(torch.tensor(given["rollout"]), expected.rollout.grid, atol=1e-5)
        look = client.predict(dog, "犬", 1, 2, 3, api_name="/look")
        assert torch.allclose(torch.tensor(look["attention"]), inspection.attention(seen, 1, 2, 3).grid, atol=1e-5)
        assert torch.allclose(
            torch.tensor(look["relevance"]), inspection.relevance(seen, tiny_embedder, "犬").grid, atol=1e-5
        )
        both = client.predict(dog, "犬、猫", "tiny", "mini", api_name="/compare")
        assert [one["model"] for one in both] == ["tiny", "mini"]
        assert sum(label["probability"] for label in both[0]["ranking"]) == pytest.approx(1, abs=1e-5)
        for values, endpoint, said in (
            ((dog, "no-such-folder"), "/classifier", "cannot be opened"),
            ((dog, "", 9, 1, 0), "/look", "no block 9"),
            ((dog, "犬", "hf:a/b", "mini"), "/compare", "remote model"),
        ):
            with pytest.raises(AppError, match=said):
                client.predict(*values, api_name=endpoint)
    assert "Traceback" not in server.log.read_text()
    assert "DIALLED OUT" not in server.log.read_text()
