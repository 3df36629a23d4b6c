"""The model of a classifier's recipe: a new ViT or any trained image encoder, the head, and which weights train."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm.checkpoint.backbone import load_backbone
from vlm.checkpoint.load import load, load_classifier
from vlm.errors import CheckpointError, OtherKind, RecipeError
from vlm.images.preprocess import Preprocess
from vlm.models.vision import CosineHead, VisionTransformer, ViTClassifier
from vlm.training.engine.distributed import Processes
from vlm.training.engine.lora import add_adapters, merge_adapters
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.sections import VitSection
from vlm.zero_shot import zero_shot_head


def open_classifier(recipe: VitRecipe, labels: Sequence[str], processes: Processes) -> tuple[ViTClassifier, Preprocess]:
    """The model at its start, the same weights on every process, on this process's device.

    Args:
        recipe: names the source or the architecture.
        labels: of the M outputs.
        processes: this process.
    """
    section, problem = recipe.model, recipe.loss.problem
    torch.manual_seed(recipe.run.seed)
    if section.start is None:
        config = section.architecture()
        preprocess = Preprocess(recipe.data.preprocessing(config.image_size, config.in_channels))
        classifier = ViTClassifier(config, len(labels), labels=labels, preprocess=preprocess, problem=problem)
    else:
        classifier = from_source(section, labels, recipe)
    choose_trained(classifier, section)
    classifier.to(processes.device, torch.float64 if recipe.run.precision == "float64" else torch.float32)
    return classifier, classifier.prepare()


def from_source(section: VitSection, labels: Sequence[str], recipe: VitRecipe | None = None) -> ViTClassifier:
    """A classifier on the image encoder of any CLIP or ViT, resized if the recipe says so.

    Args:
        section: [model] of the recipe.
        labels: of the M outputs.
        recipe: says what the outputs are; None is a single-label task.

    Raises:
        CheckpointError: the source does not say how images are prepared, or has no head that could be kept.
        RecipeError: the head that the recipe wants does not fit the source.
    """
    source, changes = section.start or "", dict(section.vision or {})
    problem = recipe.loss.problem if recipe else "single_label"
    size = changes.pop("image_size", None)
    image_size = tuple(size) if isinstance(size, list) else size
    kept: dict[str, Tensor] | None = None
    head = None
    if section.head == "keep":
        trained = _open_trained(source, section, labels)
        vision, preprocess, kept = trained.vision, trained.preprocess, trained.head.state_dict()
        if isinstance(trained.head, CosineHead):
            head = CosineHead(trained.head.config, trained.head.width, len(labels))
    else:
        vision, preprocess, head = _open_encoder(source, section, labels)
    if preprocess is None:
        raise CheckpointError(
            f"{source} does not say how images are prepared. Convert it with its config: vlm convert."
        )
    classifier = ViTClassifier.on_backbone(
        vision, preprocess, labels, problem=problem, image_size=image_size, head=head, **changes
    )
    if kept is not None:
        classifier.head.load_state_dict(kept)
    return classifier


def _open_trained(source: str, section: VitSection, labels: Sequence[str]) -> ViTClassifier:
    """The classifier whose head is kept; its labels must be those of the data, whose order they get."""
    trained = load_classifier(source, num_heads=section.num_heads)
    if sorted(trained.labels) != sorted(labels):
        raise RecipeError(
            f'head = "keep" needs the labels of {source} ({_some(trained.labels)}), and the data has {_some(labels)}. '
            'Use head = "new", data with the same labels, or [data] rename.'
        )
    order = torch.tensor([trained.labels.index(label) for label in labels])
    with torch.no_grad():
        for part in (trained.head.weight, trained.head.bias):
            part.copy_(part[order])
    return trained


def _open_encoder(
    source: str, section: VitSection, labels: Sequence[str]
) -> tuple[VisionTransformer, Preprocess | None, CosineHead | None]:
    """The image encoder, its preprocessing, and the zero-shot head, if the recipe wants it."""
    if section.head == "new" and section.num_heads is None:
        backbone = load_backbone(source)
        return backbone.vision, backbone.preprocess, None
    try:
        embedder = load(source, device="cpu", num_heads=section.num_heads)
    except OtherKind as error:
        if section.head == "zero_shot":
            raise RecipeError(
                f'{source} has no text encoder, and head = "zero_shot" needs one. Use another source, a CLIP, or "new".'
            ) from error
        classifier = load_classifier(source, num_heads=section.num_heads)
        return classifier.vision, classifier.preprocess, None
    head = zero_shot_head(embedder, labels) if section.head == "zero_shot" else None
    return embedder.model.vision, embedder.parts()[1], head


def choose_trained(classifier: ViTClassifier, section: VitSection) -> None:
    """Set which weights train: all, the last blocks and what lies above, or adapters on them and the head."""
    blocks, depth = section.train_blocks, len(classifier.vision.blocks)
    if blocks is not None and not 0 <= blocks <= depth:
        raise RecipeError(f"train_blocks is {blocks}; this model has {depth} blocks, so wanted 0 to {depth}.")
    chosen = list(classifier.vision.blocks)[depth - (depth if blocks is None else blocks) :]
    if section.lora_rank:
        add_adapters(classifier, chosen, section.lora_rank, section.lora_alpha)
        classifier.head.requires_grad_(True)
        return
    if blocks is None:
        return
    classifier.vision.requires_grad_(False)
    if blocks:
        for part in (*chosen, classifier.vision.norm, classifier.vision.pool):
            if part is not None:
                part.requires_grad_(True)


def ordinary(classifier: ViTClassifier, section: VitSection, weights: dict[str, Tensor]) -> ViTClassifier:
    """A plain classifier with a run's weights: nothing of the training, adapters merged.

    Args:
        classifier: as it was trained.
        section: [model] of the recipe.
        weights: of all processes.
    """
    head = classifier.head
    new = ViTClassifier(
        classifier.vision.config,
        len(classifier.labels),
        labels=classifier.labels,
        preprocess=classifier.preprocess,
        head=CosineHead(head.config, head.width, head.out_features) if isinstance(head, CosineHead) else None,
        problem=classifier.problem,
    )
    choose_trained(new, section)
    new.load_state_dict(weights)
    if section.lora_rank:
        merge_adapters(new)
    return new


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
