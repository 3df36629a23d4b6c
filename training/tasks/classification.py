"""What a ViT recipe means: a model, its data, its loss, and what becomes of them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from vlm.checkpoint.load import load, load_classifier
from vlm.checkpoint.save import save
from vlm.config import VisionConfig
from vlm.errors import OtherKind
from vlm.images.preprocess import Preprocess
from vlm.metrics import top_k_accuracy
from vlm.models.vision import CosineHead, VisionTransformer, ViTClassifier, resize_pos_embed
from vlm.training.data.class_stream import ClassBatch, ClassImages, ClassStream
from vlm.training.data.labelled import ClassSet, classes_of, open_labelled, read_class_set
from vlm.training.data.stream import EndlessOrder
from vlm.training.data.transforms import Transform
from vlm.training.engine.accumulate import accumulate_mean
from vlm.training.engine.distributed import Processes
from vlm.training.engine.precision import autocast
from vlm.training.engine.step import Backward
from vlm.training.measure.card import classifier_card
from vlm.training.measure.measurement import Measurement
from vlm.training.recipe.config import VitRecipe
from vlm.training.recipe.sections import LossSection, VitSection
from vlm.training.tasks.task import Task
from vlm.zero_shot import zero_shot_head


def open_task(recipe: VitRecipe, processes: Processes) -> Task[ClassBatch]:
    """The model, data and loss of a classifier's recipe, on this process."""
    classes = open_classes(recipe)
    classifier, preprocess = open_classifier(recipe, classes, processes)
    images, validation = open_images(recipe, classes, preprocess)
    validation.say_broken("validation")
    size = sum(p.numel() for p in classifier.parameters()) / 1e6

    def prepare_folder(out: Path) -> None:
        if recipe.model.head == "names" and not (out / "start").exists():
            save(classifier, out / "start")  # the zero-shot end of WiSE-FT

    def finish(weights: dict[str, Tensor], out: Path, text: str) -> tuple[ViTClassifier, str]:
        trained = plain(classifier)
        trained.load_state_dict(weights)
        trained.to(processes.device)
        rows = final_rows(recipe, trained, preprocess, validation)
        return trained, classifier_card(out, text, len(images), trained, rows)

    return Task(
        recipe=recipe,
        model=classifier,
        backward=classifying(recipe, classifier, preprocess),
        stream=open_stream(recipe, classifier, images, processes),
        evaluate=lambda _: accuracy(classifier, preprocess, validation, processes.device),
        samples=len(images),
        max_broken=recipe.data.max_broken,
        chance_loss=math.log(len(classes.keys)),
        summary=f"{len(images)} training images of {len(classes.keys)} classes, {len(validation)} for validation, "
        f"{size:.2f} M parameters",
        finish=finish,
        prepare_folder=prepare_folder,
    )


def open_classes(recipe: VitRecipe) -> ClassSet:
    """The classes, in the order of the model's answers."""
    data = recipe.data
    if data.classes is not None:
        return read_class_set(data.train, data.classes)
    return classes_of(data.train, data.train_splits, columns=data.columns, root=data.root)


def open_images(recipe: VitRecipe, classes: ClassSet, preprocess: Preprocess) -> tuple[ClassImages, ClassImages]:
    """(to train on, to validate on)."""
    data = recipe.data
    training = open_labelled(data.train, data.train_splits, classes, columns=data.columns, root=data.root)
    if data.held_out:
        training, validation = training.hold_out(data.held_out)
    else:
        other = data.validation_source(data.train)
        validation = open_labelled(other.path, other.splits, classes, columns=other.columns, root=other.root)
    return ClassImages(training, preprocess, data.cache), ClassImages(validation, preprocess, data.cache)


def open_classifier(recipe: VitRecipe, classes: ClassSet, processes: Processes) -> tuple[ViTClassifier, Preprocess]:
    """The model at its start, the same on every process, on this one's device."""
    section, labels = recipe.model, classes.words(recipe.data.language)
    torch.manual_seed(recipe.run.seed)
    if section.start is None:
        config = section.architecture()
        preprocess = recipe.data.preprocessing(config.image_size)
        classifier = ViTClassifier(config, len(labels), labels=labels, preprocess=Preprocess(preprocess))
    else:
        classifier = from_source(section, labels)
    if section.train_blocks is not None:
        learn_from_above(classifier, section.train_blocks)
    classifier.to(processes.device, torch.float64 if recipe.run.precision == "float64" else torch.float32)
    assert classifier.preprocess is not None
    return classifier, classifier.preprocess


def from_source(section: VitSection, labels: Sequence[str]) -> ViTClassifier:
    """The image tower of any CLIP or ViT vlm can load, resized if the recipe says so, with a new head."""
    vision, preprocess, head = open_tower(section, labels)
    config = VisionConfig.from_dict(vision.config.to_dict() | (section.vision or {}))
    preprocess = Preprocess(dataclasses.replace(preprocess.config, image_size=config.image_size))
    classifier = ViTClassifier(config, len(labels), labels=labels, preprocess=preprocess, head=head)
    weights = vision.state_dict()
    weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], vision.config, config.image_size)
    classifier.vision.load_state_dict(weights)
    return classifier


def open_tower(section: VitSection, labels: Sequence[str]) -> tuple[VisionTransformer, Preprocess, CosineHead | None]:
    """The tower, its preprocessing, and the head that the class names make, if the recipe wants it."""
    source = section.start or ""
    try:
        embedder = load(source, num_heads=section.num_heads)
    except OtherKind as error:
        if section.head == "names":
            raise ValueError(f"{source} knows no words, so head = 'names' needs another source: a CLIP.") from error
        classifier = load_classifier(source, num_heads=section.num_heads)
        tower, preprocess, head = classifier.vision, classifier.preprocess, None
    else:
        tower, preprocess = embedder.model.vision, embedder.preprocess
        head = zero_shot_head(embedder, labels) if section.head == "names" else None
    if preprocess is None:
        raise ValueError(f"{source} does not say how images are prepared. Convert it with its config: vlm convert.")
    return tower, preprocess, head


def learn_from_above(classifier: ViTClassifier, blocks: int) -> None:
    """Only the head, the last LayerNorm and pooling, and so many last blocks learn; 0: the head alone."""
    depth = len(classifier.vision.blocks)
    if not 0 <= blocks <= depth:
        raise ValueError(f"train_blocks is {blocks}; this model has {depth} blocks, so wanted 0 to {depth}.")
    classifier.vision.requires_grad_(False)
    if blocks:
        for part in (*classifier.vision.blocks[-blocks:], classifier.vision.norm, classifier.vision.pool):
            if part is not None:
                part.requires_grad_(True)


def open_stream(recipe: VitRecipe, classifier: ViTClassifier, images: ClassImages, processes: Processes) -> ClassStream:
    run, data, config = recipe.run, recipe.data, classifier.vision.config
    order = EndlessOrder(
        len(images), seed=run.seed, batch_size=run.batch_size, rank=processes.rank, world=processes.size
    )
    return ClassStream(
        images,
        Transform(recipe.transform, config.image_shape, run.seed),
        order,
        seed=run.seed,
        num_patches=config.num_patches,
        patch_dropout=data.patch_dropout,
        dense_from=recipe.dense_from,
    )


def classifying(recipe: VitRecipe, classifier: ViTClassifier, preprocess: Preprocess) -> Backward[ClassBatch]:
    """Cross-entropy of one batch, in as many chunks as the recipe says.

    ClassImages are mixed here, on the model's device: the loop has seeded the step.
    """
    dtype, chunks = classifier.head.weight.dtype, recipe.run.accumulate
    mix = mixing(recipe.loss, len(classifier.labels))

    def backward(model: nn.Module, batch: ClassBatch, scale: Tensor | float) -> Tensor:
        images, targets = mix(preprocess.normalize(batch.images).to(dtype), batch.targets)
        keeps = [None] * chunks if batch.keep is None else batch.keep.chunk(chunks)

        def loss(chunk: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
            part, wanted, keep = chunk
            with autocast(recipe.run.precision, images.device):
                return F.cross_entropy(model(part, keep), wanted, label_smoothing=recipe.loss.label_smoothing)

        parts = list(zip(images.chunk(chunks), targets.chunk(chunks), keeps, strict=True))
        return accumulate_mean(model, parts, loss, scale)

    return backward


def mixing(section: LossSection, num_classes: int) -> v2.Transform:
    """(images, targets) -> both mixed, targets (B, M) then."""
    kinds: list[v2.Transform] = []
    if section.mixup:
        kinds.append(v2.MixUp(alpha=section.mixup, num_classes=num_classes))
    if section.cutmix:
        kinds.append(v2.CutMix(alpha=section.cutmix, num_classes=num_classes))
    return v2.RandomApply([v2.RandomChoice(kinds)], section.mix_share) if kinds else v2.Identity()


@torch.no_grad()
def accuracy(model: nn.Module, preprocess: Preprocess, images: ClassImages, device: torch.device) -> dict[str, float]:
    """Mean loss and top-1 over the images, top-5 where there are more than five classes."""
    dtype = next(model.parameters()).dtype
    parts = [
        (model(preprocess.normalize(pixels.to(device)).to(dtype)).cpu(), wanted) for pixels, wanted in images.batches()
    ]
    logits, targets = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    ks = (1, 5) if logits.shape[1] > 5 else (1,)
    found = {f"val top-{k}": top_k_accuracy(logits, targets, k) for k in ks}
    return {"val loss": float(F.cross_entropy(logits, targets)), **found}


def final_rows(
    recipe: VitRecipe, classifier: ViTClassifier, preprocess: Preprocess, validation: ClassImages
) -> list[Measurement]:
    """What the model card reports, measured on the validation images."""
    device, M, n = classifier.head.weight.device, len(classifier.labels), len(validation)
    found = accuracy(classifier.eval(), preprocess, validation, device)
    split = f"{recipe.data.held_out} held out" if recipe.data.held_out else recipe.data.validation_split or "validation"
    return [
        Measurement(split, f"classification {name}", recipe.data.language, found[f"val {name}"], k / M, n)
        for k, name in ((1, "top-1"), (5, "top-5"))
        if f"val {name}" in found
    ]


def plain(classifier: ViTClassifier) -> ViTClassifier:
    """The same architecture with new weights, none of this run's machinery around it."""
    head = classifier.head
    new = CosineHead(head.config, head.width, head.out_features) if isinstance(head, CosineHead) else None
    return ViTClassifier(
        classifier.vision.config,
        len(classifier.labels),
        labels=classifier.labels,
        preprocess=classifier.preprocess,
        head=new,
    )
