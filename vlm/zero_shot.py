"""Zero-shot classification (Radford et al. 2021, section 3.1): the nearest label embedding, without training."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.config import CosineHeadConfig
from vlm.embedder import Embedder
from vlm.errors import InputError
from vlm.images.open import ImageSource
from vlm.models.vision import CosineHead, ViTClassifier

_JAPANESE = re.compile("[\u3041-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f々]")  # kana or kanji


class ZeroShotClassifier:
    """Classifies images by labels alone; the labels are embedded once.

    Args:
        embedder: the model.
        labels: M different words or phrases, in any mix of languages.
        templates: sentences with {} in place of the label, for all labels; None chooses by each label's language.

    Raises:
        InputError: a label is blank or given twice, or a template has no {}.
    """

    def __init__(self, embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None):
        self.embedder = embedder
        self.labels = tuple(labels)
        self.class_embeds = class_embeddings(embedder, labels, templates)  # (M, E)

    def __call__(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        """Probabilities (B, M): softmax over exp(logit_scale) cos, each row sums to 1."""
        return self._logits(images).softmax(-1)

    def predict(self, images: ImageSource | Iterable[ImageSource], top: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable labels of each image.

        Args:
            images: one image or any iterable of images.
            top: labels for each image, at most M.

        Returns:
            For each image a list of (label, probability), most probable first; equal ones in the order of the labels.

        Raises:
            ImageError: an image cannot be used; it names the file.
        """
        if top < 1:
            raise InputError(f"top is {top}; it must be 1 or more.")
        return [ranked(self.labels, row, top) for row in self(images)]

    def scores(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        """The probability of each label by itself, (B, M): sigmoid of the logits.

        Args:
            images: one image or any iterable of images.

        Raises:
            InputError: the model was not trained with a sigmoid (SigLIP), so its logits only compare labels.
        """
        if self.embedder.model.logit_bias is None:
            raise InputError(
                f"{self.embedder.name} has no logit_bias, so its scores only compare labels. Call the classifier, or "
                "use a SigLIP model."
            )
        return self._logits(images).sigmoid()

    def _logits(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        image_embeds = self.embedder.embed_images(images).to(self.embedder.device)
        with torch.no_grad():
            return self.embedder.model.logits(image_embeds, self.class_embeds.to(self.embedder.device)).float().cpu()


def classify(
    embedder: Embedder,
    images: ImageSource | Iterable[ImageSource],
    labels: Sequence[str],
    templates: Sequence[str] | None = None,
) -> Tensor:
    """Classify images by labels alone.  For many calls with the same labels keep a `ZeroShotClassifier`.

    Args:
        embedder: the model.
        images: one image or any iterable of images.
        labels: M different words or phrases, in any mix of languages.
        templates: sentences with {} in place of the label, for all labels; None chooses by each label's language.

    Returns:
        Probabilities (B, M), each row sums to 1.

    Raises:
        InputError: a label is blank or given twice, or a template has no {}.
        ImageError: an image cannot be used; it names the file.
    """
    return ZeroShotClassifier(embedder, labels, templates)(images)


def ranked(labels: Sequence[str], probabilities: Tensor, k: int) -> list[tuple[str, float]]:
    """Sort the labels of one image by probability.

    Args:
        labels: of the M classes.
        probabilities: (M,).
        k: how many to return, at most M.

    Returns:
        (label, probability), most probable first; equal ones in the order of the labels.
    """
    order: list[int] = probabilities.argsort(descending=True, stable=True)[:k].numpy().tolist()
    return [(labels[place], float(probabilities[place])) for place in order]


def class_embeddings(embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
    """One unit vector per label: the mean over the label's templates (Radford et al. 2021, section 3.1.4).

    Args:
        embedder: the model.
        labels: M different words or phrases.
        templates: sentences with {} in place of the label, for all labels; None chooses by each label's language.

    Returns:
        float32 (M, E), unit length.

    Raises:
        InputError: a label is blank or given twice, or a template has no {}.
    """
    _check_labels(labels)
    sentences = [label_sentences(label, templates) for label in labels]  # M lists of S, S by language
    embeds = embedder.embed_texts([sentence for group in sentences for sentence in group])
    means = torch.stack([group.mean(0) for group in torch.split(embeds, [len(group) for group in sentences])])
    return F.normalize(means, dim=-1)


def zero_shot_head(embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None) -> CosineHead:
    """A classifier's head with the class embeddings as weights.

    Args:
        embedder: the model; the head reads the features of its `model.vision`.
        labels: of the M classes.
        templates: as in `class_embeddings`.

    Returns:
        A head to train on from.  Its softmax is `classify`; of a model with a logit_bias (SigLIP) its sigmoid is
        `ZeroShotClassifier.scores`.
    """
    model, class_embeds = embedder.model, class_embeddings(embedder, labels, templates)  # (M, E)
    config = CosineHeadConfig(embed_dim=embedder.embed_dim, proj=model.config.vision_proj)
    head = CosineHead(config, model.config.vision.width, len(labels))
    with torch.no_grad():
        head.proj.load_state_dict(model.vision_proj.state_dict())
        head.weight.copy_(model.logit_scale.exp().cpu() * class_embeds)
        if model.logit_bias is not None:
            head.bias.fill_(float(model.logit_bias))
    return head


def classifier_from_names(
    embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None
) -> ViTClassifier:
    """A classifier with a copy of the embedder's image encoder and `zero_shot_head`: it needs no text encoder.

    Args:
        embedder: the model.
        labels: of the M classes.
        templates: as in `class_embeddings`.
    """
    config, head = embedder.model.config.vision, zero_shot_head(embedder, labels, templates)
    classifier = ViTClassifier(config, len(labels), labels=labels, preprocess=embedder.parts()[1], head=head)
    classifier.vision.load_state_dict(embedder.model.vision.state_dict())
    return classifier.eval()


def label_sentences(label: str, templates: Sequence[str] | None = None) -> list[str]:
    """The sentences that stand for a label.

    Args:
        label: a word or phrase; spaces around it are dropped.
        templates: sentences with {} in place of the label; None: Japanese ones where the label has kana or kanji, else
            English ones.

    Raises:
        InputError: there is no template, or one has no {}.
    """
    if templates is None:
        templates = _default_templates()["ja" if _JAPANESE.search(label) else "en"]
    if isinstance(templates, str) or not templates:
        raise InputError(f"templates must be a list of one or more sentences, got {templates!r}.")
    for template in templates:
        if "{}" not in template:
            raise InputError(
                f"template {template!r} has no place for the label. Put {{}} where the label goes: '{template} {{}}'."
            )
    return [template.replace("{}", label.strip()) for template in templates]


def _check_labels(labels: Sequence[str]) -> None:
    if isinstance(labels, str):
        raise InputError(f"labels must be a list, got one text. Write [{labels!r}].")
    counts = Counter(label.strip() for label in labels)
    if not counts or "" in counts:
        raise InputError(f"{counts['']} of the {len(labels)} labels are blank. Give one or more words, each not blank.")
    twice = [label for label, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"labels given more than once: {', '.join(twice)}. Give each label once.")


@cache
def _default_templates() -> dict[str, list[str]]:
    return json.loads((Path(__file__).parent / "assets" / "templates.json").read_text(encoding="utf-8"))
