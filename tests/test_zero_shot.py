from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlm.embedder import Embedder
from vlm.zero_shot import ZeroShotClassifier, class_embeddings, classify, label_sentences


def test_probabilities_are_a_softmax_of_scaled_cosines(tiny_embedder: Embedder, picture_folder: Path):
    pictures, labels = [picture_folder / "a.png", picture_folder / "b.png"], ["犬", "a cat", "car"]
    texts = [tiny_embedder.embed_texts([f"the {label}", f"{label}!"]).mean(0) for label in labels]
    cosines = F.cosine_similarity(tiny_embedder.embed_images(pictures)[:, None], torch.stack(texts)[None], dim=-1)
    expected = (tiny_embedder.model.logit_scale.exp() * cosines).softmax(-1)
    found = classify(tiny_embedder, pictures, labels, templates=["the {}", "{}!"])
    assert torch.allclose(found, expected, atol=1e-6)


def test_class_embeddings_are_unit_length_and_follow_the_order_of_the_labels(tiny_embedder: Embedder):
    labels = ["犬", "a cat", "空を飛ぶ鳥", "car"]
    embeds = class_embeddings(tiny_embedder, labels)
    assert torch.allclose(embeds.norm(dim=1), torch.ones(4), atol=1e-6)
    assert torch.allclose(class_embeddings(tiny_embedder, labels[::-1]), embeds.flip(0), atol=1e-6)


def test_a_single_bare_template_is_the_text_itself(tiny_embedder: Embedder):
    assert torch.allclose(
        class_embeddings(tiny_embedder, ["dog"], ["{}"]), tiny_embedder.embed_texts(["dog"]), atol=1e-6
    )


@pytest.mark.parametrize("label", ["犬", "いぬ", "イヌ", "ｲﾇ", "イヌ dog", "人々"])
def test_kana_or_kanji_anywhere_chooses_japanese_sentences(label: str):
    assert f"{label}の絵" in label_sentences(label)
    assert f"a picture of {label}" not in label_sentences(label)


@pytest.mark.parametrize("label", ["dog", "chien", "café", "42", "{x}"])
def test_other_labels_get_english_sentences(label: str):
    assert f"a picture of {label}" in label_sentences(label)
    assert not any("の" in sentence for sentence in label_sentences(label))


def test_one_classifier_answers_as_classify_does_on_each_call(tiny_embedder: Embedder, picture_folder: Path):
    zero_shot = ZeroShotClassifier(tiny_embedder, ["dog", "猫"])
    for name in ("a.png", "c.jpg"):
        alone = classify(tiny_embedder, [picture_folder / name], ["dog", "猫"])
        assert torch.equal(zero_shot([picture_folder / name]), alone)
    assert zero_shot([]).shape == (0, 2)


def test_scores_judge_each_label_alone_where_the_model_was_trained_so(tiny_embedder: Embedder, picture_folder: Path):
    pictures = [picture_folder / "a.png"]
    with pytest.raises(ValueError, match="tiny has no logit_bias"):
        ZeroShotClassifier(tiny_embedder, ["dog", "cat"]).scores(pictures)
    tiny_embedder.model.logit_bias = nn.Parameter(torch.tensor(-2.0))
    two, three = (ZeroShotClassifier(tiny_embedder, ["dog", "cat", "car"][:count]) for count in (2, 3))
    assert torch.allclose(two.scores(pictures), three.scores(pictures)[:, :2], atol=1e-6)
    logits = tiny_embedder.model.logits(tiny_embedder.embed_images(pictures), two.class_embeds)
    assert torch.allclose(two.scores(pictures), logits.sigmoid(), atol=1e-6)
    assert torch.allclose(two(pictures), (logits + 2).softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], None, "0 of the 0 labels are blank"),
        (["dog", " "], None, "1 of the 2 labels are blank"),
        (["dog", "cat", " dog"], None, "more than once: dog"),
        ("dog", None, "must be a list"),
        (["dog"], ["a photo"], "does not say where the label goes"),
        (["dog"], [], "one or more sentences"),
        (["dog"], "a {}", "one or more sentences"),
    ],
)
def test_bad_labels_and_templates_are_one_clear_line(
    tiny_embedder: Embedder, labels: list[str], templates: list[str] | None, message: str
):
    with pytest.raises(ValueError, match=message) as error:
        class_embeddings(tiny_embedder, labels, templates)
    assert "\n" not in str(error.value)
