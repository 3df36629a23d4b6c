"""The training of an image classifier: its data, its model, its loss and its validation."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from vlm.checkpoint.save import save
from vlm.errors import RecipeError
from vlm.images.preprocess import Preprocess
from vlm.models.vision import ViTClassifier
from vlm.training.data.balance import balanced_order
from vlm.training.data.class_stream import ClassBatch, ClassImages, ClassStream, transformed
from vlm.training.data.rows import content_hash
from vlm.training.data.stream import EndlessOrder
from vlm.training.data.targets import ClassifierData, open_classifier_data
from vlm.training.data.transforms import Transform
from vlm.training.engine.accumulate import accumulate_mean
from vlm.training.engine.distributed import Processes
from vlm.training.engine.precision import autocast
from vlm.training.engine.step import Backward
from vlm.training.measure.card import classifier_card
from vlm.training.measure.measurement import Measurement
from vlm.training.measure.multi_label import average_precisions, best_thresholds
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.sections import LossSection
from vlm.training.tasks.classifier_model import open_classifier, ordinary
from vlm.training.tasks.objectives import (
    MultiLabel,
    Objective,
    Regression,
    SingleLabel,
    balanced_weights,
)
from vlm.training.tasks.task import Task


def open_task(recipe: VitRecipe, processes: Processes) -> Task[ClassBatch]:
    """The model, data and loss of a classifier's recipe, on this process."""
    data = open_classifier_data(recipe.data, recipe.loss.problem)
    recipe = recipe.of_length(len(data.training.index))
    objective = open_objective(recipe.loss, data)
    classifier, preprocess = open_classifier(recipe, data.labels, processes)
    if isinstance(objective, MultiLabel) and recipe.model.head == "new":
        with torch.no_grad():
            classifier.head.bias.copy_(objective.first_bias())
    images = ClassImages(data.training, preprocess.near(), recipe.data.cache)
    validation = ClassImages(data.validation, preprocess, recipe.data.cache)
    validation.say_broken("validation")
    size = sum(p.numel() for p in classifier.parameters()) / 1e6

    def prepare_folder(out: Path) -> None:
        if recipe.model.head == "zero_shot" and not (out / "start").exists():
            save(classifier, out / "start")  # the zero-shot end of WiSE-FT

    def finish(weights: dict[str, Tensor], out: Path, text: str) -> tuple[ViTClassifier, str]:
        trained = ordinary(classifier, recipe.model, weights).to(processes.device)
        outputs, targets = predictions(trained.eval(), preprocess, validation, processes.device)
        measured = card_measurements(objective, outputs, targets, recipe, data.validation_name)
        finish_outputs(trained, objective, outputs, targets)
        return trained, classifier_card(out, text, len(images), trained, measured)

    what = {"single_label": "classes", "multi_label": "labels", "regression": "values"}[recipe.loss.problem]
    return Task(
        recipe=recipe,
        model=classifier,
        backward=classifying(recipe, classifier, preprocess, objective),
        stream=open_stream(recipe, classifier, images, processes),
        evaluate=lambda model: objective.metrics(*predictions(model, preprocess, validation, processes.device)),
        samples=len(images),
        data_hash=content_hash(images.rows),
        labels=data.labels,
        max_broken=recipe.data.max_broken,
        metrics=objective.names,
        chance_loss=objective.chance_loss,
        summary=f"{len(images)} training images of {len(data.labels)} {what}, {len(validation)} for validation, "
        f"{size:.2f} M parameters, {recipe.length(len(images))}",
        finish=finish,
        prepare_folder=prepare_folder,
    )


def open_objective(section: LossSection, data: ClassifierData) -> Objective:
    """The loss of a recipe, with the class weights or the mean and spread of its training targets."""
    targets, M = data.training.targets, len(data.labels)
    balanced = section.class_weights == "balanced"
    match section.problem:
        case "single_label":
            weights = balanced_weights(targets[targets >= 0], M) if balanced else None
            return SingleLabel(M, label_smoothing=section.label_smoothing, weights=weights)
        case "multi_label":
            shares = targets.double().mean(0)
            weights = (1 - shares) / shares.clamp_min(1 / len(targets)) if balanced else None
            return MultiLabel(shares, label_smoothing=section.label_smoothing, weights=weights)
        case "regression":
            spread = targets.double().std(0, correction=0)
            return Regression(targets.double().mean(0), torch.where(spread > 0, spread, 1.0))


def open_stream(recipe: VitRecipe, classifier: ViTClassifier, images: ClassImages, processes: Processes) -> ClassStream:
    """The training batches of this process."""
    run, data, config = recipe.run, recipe.data, classifier.vision.config
    order = EndlessOrder(
        len(images),
        seed=run.seed,
        batch_size=run.batch_size,
        rank=processes.rank,
        world=processes.size,
        order=balanced_order(images.rows, data.balance, run.seed),
    )
    bits = classifier.prepare().config.bits
    transform = Transform(recipe.transform, config.image_shape, run.seed, config.in_channels, bits)
    if data.augment_on == "device" and bits == 16 and transform.steps:
        raise RecipeError('augment_on = "device" is for images of 8 bits; these have 16. Set it to "workers".')
    return ClassStream(
        images,
        transform,
        order,
        seed=run.seed,
        num_patches=config.num_patches,
        patch_dropout=data.patch_dropout,
        dense_from=recipe.dense_from,
        transform_later=transform.can_be_later and data.augments_on(processes.device.type),
    )


def classifying(
    recipe: VitRecipe, classifier: ViTClassifier, preprocess: Preprocess, objective: Objective
) -> Backward[ClassBatch]:
    """The loss of one batch and its gradients, in as many chunks as the recipe says.

    Images are mixed here, on the model's device; the loop has seeded the step.
    """
    dtype, chunks = classifier.head.weight.dtype, recipe.run.accumulate
    mix = mixing(recipe.loss, len(classifier.labels))

    def backward(model: nn.Module, batch: ClassBatch, scale: Tensor | float) -> Tensor:
        images, targets = mix(preprocess.normalize(transformed(batch, recipe.transform)).to(dtype), batch.targets)
        keeps = [None] * chunks if batch.keep is None else batch.keep.chunk(chunks)

        def loss(chunk: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
            part, wanted, keep = chunk
            with autocast(recipe.run.precision, images.device):
                return objective.loss(model(part, keep), wanted)

        parts = list(zip(images.chunk(chunks), targets.chunk(chunks), keeps, strict=True))
        return accumulate_mean(model, parts, loss, scale)

    return backward


def mixing(section: LossSection, num_classes: int) -> v2.Transform:
    """(images, targets) -> both mixed; class numbers become shares (B, M)."""
    classes = num_classes if section.problem == "single_label" else None
    kinds: list[v2.Transform] = []
    if section.mixup:
        kinds.append(v2.MixUp(alpha=section.mixup, num_classes=classes))
    if section.cutmix:
        kinds.append(v2.CutMix(alpha=section.cutmix, num_classes=classes))
    return v2.RandomApply([v2.RandomChoice(kinds)], section.mix_share) if kinds else v2.Identity()


@torch.no_grad()
def predictions(
    model: nn.Module, preprocess: Preprocess, images: ClassImages, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Outputs (n, M) and targets of all images that can be opened, on the CPU.

    Args:
        model: images (B, C, H, W) -> outputs (B, M).
        preprocess: normalises the pixels.
        images: to measure on.
        device: of the model.
    """
    dtype = next(model.parameters()).dtype
    parts = [
        (model(preprocess.normalize(pixels.to(device)).to(dtype)).cpu(), wanted) for pixels, wanted in images.batches()
    ]
    outputs, targets = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return outputs, targets


def card_measurements(
    objective: Objective, outputs: Tensor, targets: Tensor, recipe: VitRecipe, split: str
) -> list[Measurement]:
    """Returns the measurements of the model card; n is the number of images that were measured.

    Args:
        objective: of the recipe.
        outputs: of the validation images, (n, M).
        targets: of the validation images.
        recipe: names the language of the labels.
        split: name of the validation split.
    """
    found, n, M = objective.metrics(outputs, targets), len(targets), outputs.shape[1]
    if isinstance(objective, MultiLabel):
        chance = float(average_precisions(torch.zeros_like(outputs), targets).nanmean())
        chances = {"mAP": chance}
    elif isinstance(objective, Regression):
        of_mean = objective.metrics(torch.zeros_like(outputs), targets)
        chances = {"MAE": of_mean["val MAE"], "R2": 0.0}
    else:
        chances = {"top-1": 1 / M, "top-5": 5 / M}
    return [
        Measurement(split, f"classification {name}" if "top" in name else name, recipe.data.language,
                    found[f"val {name}"], chance, n)
        for name, chance in chances.items()
        if f"val {name}" in found
    ]  # fmt: skip


@torch.no_grad()
def finish_outputs(classifier: ViTClassifier, objective: Objective, outputs: Tensor, targets: Tensor) -> None:
    """Give a multi-label model its thresholds, and the outputs of a regression model the units of the targets.

    Args:
        classifier: the trained model, which is changed.
        objective: of the recipe.
        outputs: of the validation images, (n, M).
        targets: of the validation images.
    """
    if isinstance(objective, MultiLabel):
        classifier.thresholds = tuple(best_thresholds(outputs.sigmoid(), targets).tolist())
    elif isinstance(objective, Regression):
        head = classifier.head
        std, mean = objective.std.to(head.weight), objective.mean.to(head.weight)
        head.weight.mul_(std[:, None])
        head.bias.mul_(std).add_(mean)
