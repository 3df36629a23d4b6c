"""What a CLIP recipe means: a model, its data, its loss, and what becomes of them."""

import math
import re
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from training.accumulate import accumulate
from training.card import model_card, push_to_hub
from training.config import Recipe, read_recipe
from training.data import Batch, PairStream, ParquetPairs
from training.distributed import Processes
from training.evaluate import PICTURE_WORDS, Row, embed_pictures, evaluate, retrieval_recall, retrieval_rows
from training.loop import STOPPED, Backward, fit, rehearse
from training.parallel import whole_weights
from training.record import draw_curves
from vlm.checkpoint import load, save
from vlm.clip import CLIP
from vlm.config import PreprocessConfig
from vlm.embedder import Embedder
from vlm.loss import clip_loss, siglip_loss
from vlm.preprocess import Preprocess
from vlm.tokenizer import load_tokenizer


def train(recipe_file: Path, out: Path, peers: Processes, *, resume: bool = False, push: str | None = None) -> int:
    """Exit code 0 when the model is trained and saved in `out`, 75 when a signal stopped it."""
    recipe = read_recipe(recipe_file)
    if not resume and (out / "checkpoints").exists():
        raise ValueError(
            f"{out} holds an earlier run's checkpoints. Add --resume auto to go on, or name another folder."
        )
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise ValueError(f"--push {push} is no name on the hub; wanted org/name.")
    embedder = open_embedder(recipe, peers)
    pairs = ParquetPairs(recipe.data.train, embedder.preprocess, recipe.data.train_splits)
    validation = ParquetPairs(recipe.data.validation, embedder.preprocess, (recipe.data.validation_split,))
    if peers.rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        if recipe_file.resolve() != (out / "recipe.toml").resolve():
            shutil.copyfile(recipe_file, out / "recipe.toml")
        size = sum(p.numel() for p in embedder.model.parameters()) / 1e6
        print(
            f"{len(pairs)} training pictures, {len(validation)} for validation, {size:.1f} M parameters",
            file=sys.stderr,
        )

    def recall(_: nn.Module) -> dict[str, float]:
        return retrieval_recall(embedder, validation, peers)

    done = fit(
        embedder.model,
        contrastive(recipe, embedder, peers),
        open_stream(recipe, embedder, pairs, peers),
        recall,
        recipe,
        out,
        peers=peers,
        chance_loss=chance_loss(recipe),
        resume=resume,
    )
    if peers.rank == 0:
        draw_curves(out)
    if not done:
        return STOPPED
    weights = whole_weights(embedder.model)  # of all processes, so before the others leave
    if peers.rank == 0:
        trained = Embedder(CLIP(embedder.model.config), embedder.tokenizer, embedder.preprocess, name=out.name)
        trained.model.load_state_dict(weights)
        trained.model.to(peers.device)
        rows = final_rows(recipe, trained, validation)
        place(trained, out, model_card(out, recipe_file.read_text(encoding="utf-8"), len(pairs), trained, rows))
        if push is not None:
            push_to_hub(out, push)
    return 0


def dry_run(recipe_file: Path, peers: Processes) -> None:
    """Two steps of the recipe, and what they say about all of it, on standard output."""
    recipe = read_recipe(recipe_file)
    embedder = open_embedder(recipe, peers)
    pairs = ParquetPairs(recipe.data.train, embedder.preprocess, recipe.data.train_splits)
    stream = open_stream(recipe, embedder, pairs, peers)
    found = rehearse(embedder.model, contrastive(recipe, embedder, peers), stream, recipe, peers)
    if peers.rank == 0:
        hours, minutes = divmod(round(found.seconds * recipe.run.steps / 60), 60)
        print(f"memory      {found.peak_bytes / 2**30:.2f} GiB at most, of one process")
        print(f"speed       {recipe.run.batch_size / found.seconds:.1f} samples/s, {found.seconds:.2f} s a step")
        print(f"all steps   about {hours} h {minutes:02d} min for {recipe.run.steps}, validation not counted")


def open_embedder(recipe: Recipe, peers: Processes) -> Embedder:
    """The model at its start, the same on every process, on this one's device."""
    section = recipe.model
    torch.manual_seed(recipe.run.seed)
    if section.source is not None:
        embedder = load(section.source)
        if section.tokenizer is not None:
            embedder = Embedder(embedder.model, load_tokenizer(Path(section.tokenizer)), embedder.preprocess)
        if (embedder.model.logit_bias is not None) != (section.loss == "siglip"):
            fitting = "clip" if embedder.model.logit_bias is None else "siglip"
            raise ValueError(f"{section.source} was trained with the other loss. Set [model] loss = '{fitting}'.")
    else:
        if section.tokenizer is None:
            raise ValueError("the recipe names no [model] tokenizer. python -m training.train_tokenizer writes one.")
        tokenizer = load_tokenizer(Path(section.tokenizer))
        ids = (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length)
        config = section.architecture(*ids)
        grey, std = recipe.data.mean, recipe.data.std
        preprocess = PreprocessConfig(
            image_size=config.vision.image_size, resize="squash", mean=(grey, grey, grey), std=(std, std, std)
        )
        embedder = Embedder(CLIP(config), tokenizer, Preprocess(preprocess))
    if section.lock_vision:
        embedder.model.vision.requires_grad_(False)
        embedder.model.vision_proj.requires_grad_(False)
    embedder.model.to(peers.device, torch.float64 if recipe.run.precision == "float64" else torch.float32)
    return embedder


def open_stream(recipe: Recipe, embedder: Embedder, pairs: ParquetPairs, peers: Processes) -> PairStream:
    run, data = recipe.run, recipe.data
    if run.batch_size % (peers.size * run.accumulate):
        raise ValueError(
            f"batch_size {run.batch_size} cannot be cut into accumulate = {run.accumulate} equal chunks on each of "
            f"{peers.size} processes."
        )
    return PairStream(
        pairs,
        embedder.tokenizer,
        recipe.augment,
        seed=run.seed,
        batch_size=run.batch_size,
        num_patches=embedder.model.config.vision.num_patches,
        patch_dropout=data.patch_dropout,
        dense_from=round(run.steps * (1 - data.dense_share)),
        keyword_share=data.keyword_share,
        template_share=data.template_share,
        kana_share=data.kana_share,
        captions_per_picture=data.captions_per_picture,
        rank=peers.rank,
        world=peers.size,
    )


def contrastive(recipe: Recipe, embedder: Embedder, peers: Processes) -> Backward:
    """The loss of one batch, averaged over the captions of a picture, in as many chunks as the recipe says."""
    clip, preprocess = embedder.model, embedder.preprocess
    shared = [clip.logit_scale] if clip.logit_bias is None else [clip.logit_scale, clip.logit_bias]
    dtype = clip.logit_scale.dtype

    def embed(model: nn.Module, chunk: Batch) -> tuple[Tensor, ...]:
        pixels = preprocess.normalize(chunk.images).to(dtype)
        images, texts = model(pixels, chunk.ids.flatten(0, 1), chunk.keep)  # (B, E), (B c, E)
        return images, *texts.unflatten(0, chunk.ids.shape[:2]).unbind(1)

    def backward(model: nn.Module, batch: Batch, scale: float) -> Tensor:
        def loss(images: Tensor, *captions: Tensor) -> Tensor:
            losses = [
                clip_loss(images, texts, clip.logit_scale, batch.groups, peers=peers)
                if clip.logit_bias is None
                else siglip_loss(images, texts, clip.logit_scale, clip.logit_bias, batch.groups, peers=peers)
                for texts in captions
            ]
            return scale * torch.stack(losses).mean()

        return accumulate(model, batch.chunks(recipe.run.accumulate), embed, loss, shared) / scale

    return backward


def chance_loss(recipe: Recipe) -> float:
    """Of a model that gives all pairs the same, best score: ln(B); with sigmoids B times the entropy of 1 / B."""
    B = recipe.run.batch_size
    return math.log(B) + ((B - 1) * math.log(B / max(1, B - 1)) if recipe.model.loss == "siglip" else 0.0)


def final_rows(recipe: Recipe, embedder: Embedder, validation: ParquetPairs) -> list[Row]:
    """What the model card reports, measured on the validation split."""
    split = recipe.data.validation_split
    if Path(recipe.data.validation).resolve() == (PICTURE_WORDS / "validation.parquet").resolve():
        return evaluate(embedder, [split])
    return retrieval_rows(embedder, validation, embed_pictures(embedder, validation), split, "")


def place(embedder: Embedder, out: Path, card: str) -> None:
    """The trained model among the run's other files, so that `vlm.load(out)` opens it; the manifest last."""
    new = out / ".model"
    save(embedder, new, card)
    for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
        path.replace(out / path.name)
    new.rmdir()
