import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlm.checkpoint.load import load
from vlm.config import Projection
from vlm.embedder import Embedder
from vlm.errors import InputError
from vlm.models.clip import CLIP
from vlm.zero_shot import (
    ZeroShotClassifier,
    class_embeddings,
    classifier_from_names,
    classify,
    label_sentences,
    ranked,
)


def test_probabilities_are_a_softmax_of_scaled_cosines(tiny_embedder: Embedder, image_folder: Path):
    images, labels = [image_folder / "a.png", image_folder / "b.png"], ["犬", "a cat", "car"]
    texts = [tiny_embedder.embed_texts([f"the {label}", f"{label}!"]).mean(0) for label in labels]
    cosines = F.cosine_similarity(tiny_embedder.embed_images(images)[:, None], torch.stack(texts)[None], dim=-1)
    expected = (tiny_embedder.model.logit_scale.exp() * cosines).softmax(-1)
    found = classify(tiny_embedder, images, labels, templates=["the {}", "{}!"])
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


def test_one_classifier_answers_as_classify_does_on_each_call(tiny_embedder: Embedder, image_folder: Path):
    zero_shot = ZeroShotClassifier(tiny_embedder, ["dog", "猫"])
    for name in ("a.png", "c.jpg"):
        alone = classify(tiny_embedder, [image_folder / name], ["dog", "猫"])
        assert torch.equal(zero_shot([image_folder / name]), alone)
    assert zero_shot([]).shape == (0, 2)


def test_predictions_are_the_most_probable_labels_of_each_image(tiny_embedder: Embedder, image_folder: Path):
    labels, images = ["dog", "猫", "car"], [image_folder / "a.png", image_folder / "b.png"]
    zero_shot = ZeroShotClassifier(tiny_embedder, labels)
    wanted = [sorted(zip(labels, row, strict=True), key=lambda pair: -pair[1]) for row in zero_shot(images).tolist()]
    assert zero_shot.predict(iter(images)) == wanted
    alone = zero_shot(images[0])[0].tolist()
    assert zero_shot.predict(images[0], top=2) == [
        sorted(zip(labels, alone, strict=True), key=lambda pair: -pair[1])[:2]
    ]
    with pytest.raises(InputError, match="top is 0"):
        zero_shot.predict(images, top=0)


def test_scores_judge_each_label_alone_where_the_model_was_trained_so(tiny_embedder: Embedder, image_folder: Path):
    images = [image_folder / "a.png"]
    with pytest.raises(ValueError, match="tiny has no logit_bias"):
        ZeroShotClassifier(tiny_embedder, ["dog", "cat"]).scores(images)
    tiny_embedder.model.logit_bias = nn.Parameter(torch.tensor(-2.0))
    two, three = (ZeroShotClassifier(tiny_embedder, ["dog", "cat", "car"][:count]) for count in (2, 3))
    assert torch.allclose(two.scores(images), three.scores(images)[:, :2], atol=1e-6)
    logits = tiny_embedder.model.logits(tiny_embedder.embed_images(images), two.class_embeds)
    assert torch.allclose(two.scores(images), logits.sigmoid(), atol=1e-6)
    assert torch.allclose(two(images), (logits + 2).softmax(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], None, "0 of the 0 labels are blank"),
        (["dog", " "], None, "1 of the 2 labels are blank"),
        (["", "dog", " ", "cat", "\t"], None, "^3 of the 5 labels are blank"),
        (["dog", "cat", " dog"], None, "more than once: dog"),
        (["dog", "cat", "dog ", "car", "bird", "car", "car"], None, "^labels given more than once: dog, car. Give"),
        ("dog", None, r"must be a list, got one text. Write \['dog'\]"),
        (["dog"], ["{}", "a photo", "a {}"], "template 'a photo' .*'a photo {}'"),
        (["dog"], [], r"one or more sentences, got \[\]"),
        (["dog"], "a {}", "one or more sentences, got 'a {}'"),
    ],
)
def test_bad_labels_and_templates_are_one_clear_line(
    tiny_embedder: Embedder, labels: list[str], templates: list[str] | None, message: str
):
    with pytest.raises(ValueError, match=message) as error:
        class_embeddings(tiny_embedder, labels, templates)
    assert "\n" not in str(error.value)


def test_labels_are_ranked_by_probability_and_equal_ones_keep_their_order():
    labels, probabilities = ["a", "b", "c", "d", "e"], torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])
    best = sorted(zip(labels, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])  # a stable sort
    for k in (1, 3, 5, 9):
        assert ranked(labels, probabilities, k) == best[:k]
        assert all(type(score) is float for _, score in ranked(labels, probabilities, k))
    numbers = [str(number) for number in range(5000)]
    assert ranked(numbers, torch.zeros(5000), 5000) == [(number, 0.0) for number in numbers]


def test_spaces_around_a_label_are_not_part_of_it_and_each_place_is_filled():
    assert label_sentences(" big dog ", ["{}", "{} and {}!", "a { } {}"]) == [
        "big dog",
        "big dog and big dog!",
        "a { } big dog",
    ]


LABELS = {"en": ["a dog", "a cat", "car"], "ja": ["犬", "猫", "車"]}


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("templates", [None, ["{}!"]])
def test_a_classifier_from_names_answers_as_classify_does(
    tiny_embedder: Embedder, image_folder: Path, language: str, templates: list[str] | None
):
    names = ["a.png", "b.png", "c.jpg"]
    classifier = classifier_from_names(tiny_embedder, LABELS[language], templates)
    pixels = torch.stack([tiny_embedder.preprocess(image_folder / name) for name in names])
    expected = classify(tiny_embedder, [image_folder / name for name in names], LABELS[language], templates)
    with torch.no_grad():
        torch.testing.assert_close(classifier(pixels).softmax(-1), expected, atol=1e-5, rtol=0)
    assert classifier.labels == tuple(LABELS[language])
    assert classifier.preprocess is tiny_embedder.preprocess


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_same_holds_for_the_released_model_with_its_sharp_temperature(image_folder: Path, language: str):
    mini = load("mini")
    classifier = classifier_from_names(mini, LABELS[language])
    pixels = torch.stack([mini.preprocess(image_folder / name) for name in ("a.png", "b.png")])
    expected = classify(mini, [image_folder / "a.png", image_folder / "b.png"], LABELS[language])
    with torch.no_grad():
        torch.testing.assert_close(classifier(pixels).softmax(-1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("proj", ["linear_bias", "none"])
def test_of_a_siglip_the_sigmoid_of_each_logit_is_its_score_too(
    tiny_embedder: Embedder, image_folder: Path, proj: Projection
):
    config = dataclasses.replace(tiny_embedder.model.config, embed_dim=32, vision_proj=proj, logit_bias=-2.0)
    embedder = Embedder(CLIP(config).eval(), *tiny_embedder.parts())
    images = [image_folder / "a.png", image_folder / "b.png"]
    with torch.no_grad():
        logits = classifier_from_names(embedder, LABELS["en"])(torch.stack([*map(embedder.preprocess, images)]))
    torch.testing.assert_close(logits.softmax(-1), classify(embedder, images, LABELS["en"]), atol=1e-5, rtol=0)
    scores = ZeroShotClassifier(embedder, LABELS["en"]).scores(images)
    torch.testing.assert_close(logits.sigmoid(), scores, atol=1e-5, rtol=0)


def test_training_a_classifier_from_names_leaves_the_model_it_came_from_alone(tiny_embedder: Embedder):
    before = tiny_embedder.fingerprint
    classifier = classifier_from_names(tiny_embedder, LABELS["en"])
    loss = F.cross_entropy(classifier(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]))
    loss.backward()
    assert all(weight.grad is not None for weight in classifier.parameters())
    torch.optim.SGD(classifier.parameters(), lr=1.0).step()
    assert tiny_embedder.fingerprint == before
