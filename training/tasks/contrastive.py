"""Contrastive training: builds model, data and loss of a CLIP recipe, trains and saves."""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm.checkpoint.load import load
from vlm.config import CLIPConfig
from vlm.embedder import Embedder
from vlm.errors import DataError, RecipeError
from vlm.images.preprocess import Preprocess
from vlm.loss import clip_loss, siglip_loss
from vlm.models.clip import CLIP
from vlm.tokenizers.load import load_tokenizer
from vlm.training.data.balance import balanced_order
from vlm.training.data.captions import CaptionChoice
from vlm.training.data.division import divide, open_training_rows, open_validation_rows
from vlm.training.data.order import Mixture, Order, Shuffled
from vlm.training.data.pair_stream import PairBatch, PairStream, augmented
from vlm.training.data.pairs import Pairs
from vlm.training.data.rows import Joined, Rows, content_hash
from vlm.training.data.stream import NoSoundSample
from vlm.training.engine.accumulate import accumulate
from vlm.training.engine.distributed import Processes
from vlm.training.engine.lora import add_adapters, merge_adapters
from vlm.training.engine.precision import autocast
from vlm.training.engine.step import Backward
from vlm.training.measure.card import clip_card
from vlm.training.measure.cost import step_work
from vlm.training.measure.drawings import data_of_split, evaluate_drawings
from vlm.training.measure.measurement import Measurement
from vlm.training.measure.retrieval import embed_all_images, measure_retrieval, recall_names, retrieval_recall
from vlm.training.recipe.config import Recipe
from vlm.training.recipe.sections import ModelSection
from vlm.training.tasks.task import Task


def open_task(recipe: Recipe, processes: Processes) -> Task[PairBatch]:
    """The model, data and loss of a CLIP's recipe, on this process."""
    embedder = open_embedder(recipe, processes)
    pairs, validation = open_pairs_of(recipe, embedder)
    recipe = recipe.of_length(len(pairs))

    def finish(weights: dict[str, Tensor], out: Path, text: str) -> tuple[Embedder, str]:
        model = ordinary(embedder.model.config, recipe.model, weights).to(processes.device)
        trained = Embedder(model, embedder.tokenizer, embedder.preprocess, name=out.name)
        return trained, clip_card(out, text, len(pairs), trained, final_rows(recipe, trained, validation))

    return Task(
        recipe=recipe,
        model=embedder.model,
        backward=contrastive(recipe, embedder, processes),
        stream=open_stream(recipe, embedder, pairs, processes),
        evaluate=lambda _: retrieval_recall(embedder, validation, processes),
        samples=len(pairs),
        data_hash=content_hash(pairs.rows),
        max_broken=recipe.data.max_broken,
        metrics=recall_names(validation),
        chance_loss=chance_loss(recipe),
        work=step_work(embedder.model.config, recipe, processes.size, mean_caption_tokens(embedder, validation)),
        summary=f"{len(pairs)} training images, {len(validation)} for validation, {_sizes(embedder.model)}, "
        + recipe.length(len(pairs)),
        finish=finish,
    )


def mean_caption_tokens(embedder: Embedder, pairs: Pairs, sample: int = 256) -> int | None:
    """Mean length of the first captions; None where there are none."""
    texts = [text for language in pairs.languages for texts in pairs.texts(language)[:sample] for text in texts[:1]]
    if not texts:
        return None
    return round(float(embedder.model.text_lengths(embedder.tokenizer(texts)).double().mean()))


def open_embedder(recipe: Recipe, processes: Processes) -> Embedder:
    """The model at its start, the same on every process, on this one's device."""
    section = recipe.model
    torch.manual_seed(recipe.run.seed)
    if section.start is not None:
        embedder = load(section.start, device="cpu")
        if section.tokenizer is not None:
            embedder = Embedder(embedder.model, load_tokenizer(Path(section.tokenizer)), embedder.preprocess)
        if (embedder.model.logit_bias is not None) != (section.loss == "siglip"):
            fitting = "clip" if embedder.model.logit_bias is None else "siglip"
            raise RecipeError(f"{section.start} was trained with the other loss. Set [model] loss = '{fitting}'.")
    else:
        if section.tokenizer is None:
            raise RecipeError("a new model needs [model] tokenizer = a folder. `vlm tokenizer` trains one on captions.")
        tokenizer = load_tokenizer(Path(section.tokenizer))
        ids = (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length)
        config = section.architecture(*ids)
        preprocess = recipe.data.preprocessing(config.vision.image_size)
        embedder = Embedder(CLIP(config), tokenizer, Preprocess(preprocess))
    choose_layers(embedder.model, section)
    embedder.model.vision.any_size = recipe.data.coarse_size > 0
    embedder.model.to(processes.device, torch.float64 if recipe.run.precision == "float64" else torch.float32)
    return embedder


def choose_layers(clip: CLIP, section: ModelSection) -> None:
    """Freezes the layers that a recipe does not train; with LoRA, adapters are trained instead of the blocks."""
    towers = [clip.text] if section.lock_vision else [clip.vision, clip.text]
    depth = max(len(tower.blocks) for tower in towers)
    last = depth if section.train_blocks is None else section.train_blocks
    if last > depth:
        raise RecipeError(
            f"train_blocks is {last}; this model has {depth} blocks. Wanted 0 to {depth}, or leave it out: all."
        )
    blocks = [block for tower in towers for block in list(tower.blocks)[max(0, len(tower.blocks) - last) :]]
    if section.lora_rank:
        add_adapters(clip, blocks, section.lora_rank, section.lora_alpha)
        return
    if section.train_blocks is not None:
        clip.vision.requires_grad_(False)
        clip.text.requires_grad_(False)
        for part in (*blocks, clip.vision.norm, clip.vision.pool, clip.text.norm):
            if part is not None:
                part.requires_grad_(True)
    if section.lock_vision:
        clip.vision.requires_grad_(False)
        clip.vision_proj.requires_grad_(False)


def ordinary(config: CLIPConfig, section: ModelSection, weights: dict[str, Tensor]) -> CLIP:
    """A model of the run's weights, with none of its machinery."""
    clip = CLIP(config)
    choose_layers(clip, section)
    clip.load_state_dict(weights)
    if section.lora_rank:
        merge_adapters(clip)
    return clip


def open_pairs_of(recipe: Recipe, embedder: Embedder) -> tuple[Pairs, Pairs]:
    """(to train on, to validate on).  Of the validation data what cannot be used is left out, and said."""
    data = recipe.data
    if isinstance(data.train, str):
        training, validation, said = divide(data, recipe.data.sources[0].path)
        if said:
            print(said, file=sys.stderr)
    else:
        training = Joined([open_training_rows(source) for source in data.sources])
        if data.validation is None:
            raise RecipeError("a mixture needs validation data of its own: set [data] validation = a folder or file.")
        validation = open_validation_rows(data, "")
    for remark in training.remarks():
        print(remark.text, file=sys.stderr)
    pairs, broken = Pairs(validation, embedder.preprocess).sound()
    if broken:
        print(f"{len(broken)} validation samples left out; the first: {broken[0]}", file=sys.stderr)
    if not len(pairs):
        raise NoSoundSample(f"{validation.name} has no sample that can be used; the first: {broken[0]}", broken)
    return Pairs(training, embedder.preprocess.near(), data.cache), pairs


def sample_count(recipe: Recipe) -> int | None:
    """Samples of the training data, none of them opened; None where they are not here and the recipe names its steps.

    Raises:
        DataError: the recipe says `epochs`, and the data cannot be opened.
    """
    try:
        if isinstance(recipe.data.train, str):
            return len(divide(recipe.data, recipe.data.sources[0].path)[0])
        return sum(len(open_training_rows(source)) for source in recipe.data.sources)
    except (DataError, RecipeError):
        if recipe.run.epochs:
            raise
        return None


def open_order(recipe: Recipe, pairs: Pairs) -> Order:
    seed = recipe.run.seed

    def shuffled(rows: Rows) -> Shuffled:
        window = recipe.data.shuffle_window
        if window is None and not pairs.in_memory and rows.run_length > 1:
            window = rows.run_length
        return Shuffled(len(rows), seed, window or 0)

    if len(recipe.data.sources) == 1 or not isinstance(pairs.rows, Joined):
        if (balanced := balanced_order(pairs.rows, recipe.data.balance, seed)) is not None:
            return balanced
        return shuffled(pairs.rows)
    orders = [shuffled(part) for part in pairs.rows.parts]
    return Mixture(orders, [part.weight for part in recipe.data.sources], seed)


def open_stream(recipe: Recipe, embedder: Embedder, pairs: Pairs, processes: Processes) -> PairStream:
    run, data = recipe.run, recipe.data
    return PairStream(
        pairs,
        embedder.tokenizer,
        recipe.augment,
        seed=run.seed,
        batch_size=run.batch_size,
        num_patches=data.coarse(embedder.model.config.vision).num_patches,
        patch_dropout=data.patch_dropout,
        coarse_size=data.coarse_size,
        dense_from=recipe.dense_from,
        choice=CaptionChoice(
            keyword_share=data.keyword_share,
            template_share=data.template_share,
            kana_share=data.kana_share,
            per_image=data.captions_per_image,
        ),
        order=open_order(recipe, pairs),
        rank=processes.rank,
        world=processes.size,
        augment_later=data.augments_on(processes.device.type),
    )


def contrastive(recipe: Recipe, embedder: Embedder, processes: Processes) -> Backward:
    """The loss of one batch, averaged over the captions of an image, in as many chunks as the recipe says."""
    clip, preprocess = embedder.model, embedder.preprocess
    shared = [clip.logit_scale] if clip.logit_bias is None else [clip.logit_scale, clip.logit_bias]
    dtype, precision = clip.logit_scale.dtype, recipe.run.precision

    def embed(model: nn.Module, chunk: PairBatch) -> tuple[Tensor, ...]:
        pixels = preprocess.normalize(augmented(chunk, recipe.augment)).to(dtype)
        packing = None if chunk.host_ids is None else clip.text.packing(chunk.host_ids.flatten(0, 1))
        if packing is not None:
            packing = packing.to(processes.device)
        with autocast(precision, processes.device):
            images, texts = model(pixels, chunk.ids.flatten(0, 1), chunk.keep, packing)  # (B, E), (B c, E)
        return images, *texts.unflatten(0, chunk.ids.shape[:2]).unbind(1)

    def backward(model: nn.Module, batch: PairBatch, scale: Tensor | float) -> Tensor:
        def loss(images: Tensor, *captions: Tensor) -> Tensor:
            losses = [
                clip_loss(images, texts, clip.logit_scale, batch.groups, processes=processes)
                if clip.logit_bias is None
                else siglip_loss(images, texts, clip.logit_scale, clip.logit_bias, batch.groups, processes=processes)
                for texts in captions
            ]
            return scale * torch.stack(losses).mean()

        return accumulate(model, batch.chunks(recipe.run.accumulate), embed, loss, shared) / scale

    return backward


def chance_loss(recipe: Recipe) -> float:
    """Loss of a model that gives all pairs the same, best score: ln(B); with sigmoids B times the entropy of 1 / B."""
    B = recipe.run.batch_size
    return math.log(B) + ((B - 1) * math.log(B / max(1, B - 1)) if recipe.model.loss == "siglip" else 0.0)


def _sizes(clip: CLIP) -> str:
    learning, size = (sum(p.numel() for p in clip.parameters() if p.requires_grad or every) for every in (False, True))
    return f"{size / 1e6:.1f} M parameters" + f", {learning / 1e6:.2f} M of them learn" * (learning < size)


def final_rows(recipe: Recipe, embedder: Embedder, validation: Pairs) -> list[Measurement]:
    """Returns the measurements of the model card, made on the validation split."""
    split = recipe.data.validation_split
    if Path(recipe.data.validation or "").resolve() == (data_of_split(split) / "validation.parquet").resolve():
        return evaluate_drawings(embedder, [split])
    return measure_retrieval(embedder, validation, embed_all_images(embedder, validation), split)
