"""Classification by words alone (Radford et al. 2021, section 3.1): the nearest label, no training."""

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
    """Labels in any mix of languages, embedded once; then images -> probabilities (B, M)."""

    def __init__(self, embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None):
        self.embedder = embedder
        self.labels = tuple(labels)
        self.class_embeds = class_embeddings(embedder, labels, templates)  # (M, E)

    def __call__(self, images: Iterable[ImageSource]) -> Tensor:
        """Which one of the labels: softmax over exp(logit_scale) cos, (B, M), each row sums to 1."""
        return self._logits(images).softmax(-1)

    def scores(self, images: Iterable[ImageSource]) -> Tensor:
        """Each label on its own, yes or no: sigmoid of the logits, (B, M).  For models trained so (SigLIP) only."""
        if self.embedder.model.logit_bias is None:
            raise InputError(
                f"{self.embedder.name} has no logit_bias, so its scores only compare labels. Call the classifier."
            )
        return self._logits(images).sigmoid()

    def _logits(self, images: Iterable[ImageSource]) -> Tensor:
        image_embeds = self.embedder.embed_images(images).to(self.embedder.device)
        with torch.no_grad():
            return self.embedder.model.logits(image_embeds, self.class_embeds.to(self.embedder.device)).float().cpu()


def classify(
    embedder: Embedder, images: Iterable[ImageSource], labels: Sequence[str], templates: Sequence[str] | None = None
) -> Tensor:
    """Probabilities (B, M).  For many calls with the same labels keep a `ZeroShotClassifier`."""
    return ZeroShotClassifier(embedder, labels, templates)(images)


def ranked(labels: Sequence[str], probabilities: Tensor, k: int) -> list[tuple[str, float]]:
    """The K most probable labels of one image, best first; probabilities (M,).  Equal ones keep their order."""
    order: list[int] = probabilities.argsort(descending=True, stable=True)[:k].numpy().tolist()
    return [(labels[place], float(probabilities[place])) for place in order]


def class_embeddings(embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
    """One unit vector per label, (M, E): the mean of the label's templates, Radford et al. 2021, section 3.1.4.

    `templates`: sentences with {} where the label goes, for all labels; None chooses by each label's language.
    """
    _check_labels(labels)
    sentences = [label_sentences(label, templates) for label in labels]  # M lists of S, S by language
    embeds = embedder.embed_texts([sentence for group in sentences for sentence in group])
    means = torch.stack([group.mean(0) for group in torch.split(embeds, [len(group) for group in sentences])])
    return F.normalize(means, dim=-1)


def zero_shot_head(embedder: Embedder, labels: Sequence[str], templates: Sequence[str] | None = None) -> CosineHead:
    """A head to train on from: over the features of `embedder.model.vision`, its softmax is `classify`'s answer.

    Of a model with a logit_bias (SigLIP) its sigmoid is `ZeroShotClassifier.scores` too.
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
    """A copy of the embedder's image tower with `zero_shot_head`: zero-shot without the text tower."""
    config, head = embedder.model.config.vision, zero_shot_head(embedder, labels, templates)
    classifier = ViTClassifier(config, len(labels), labels=labels, preprocess=embedder.parts()[1], head=head)
    classifier.vision.load_state_dict(embedder.model.vision.state_dict())
    return classifier.eval()


def label_sentences(label: str, templates: Sequence[str] | None = None) -> list[str]:
    """The sentences that stand for a label; by default Japanese where it has kana or kanji, else English."""
    if templates is None:
        templates = _default_templates()["ja" if _JAPANESE.search(label) else "en"]
    if isinstance(templates, str) or not templates:
        raise InputError(f"templates must be a list of one or more sentences, got {templates!r}.")
    for template in templates:
        if "{}" not in template:
            raise InputError(
                f"template {template!r} does not say where the label goes. Put {{}} there: '{template} {{}}'."
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
