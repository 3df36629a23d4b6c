"""Train a CLIP from a recipe: python -m training.train_clip training/recipes/mini.toml --out runs/mini"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training.config import Recipe, read_recipe

if TYPE_CHECKING:
    from vlm.embedder import Embedder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.train_clip", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a TOML file, see training/recipes/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, metrics.jsonl and checkpoints")
    parser.add_argument(
        "--resume", choices=["auto", "never"], default="never", help="auto: go on from the newest checkpoint in --out, if any"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps ... (default: cpu)")
    arguments = parser.parse_args()
    try:
        recipe = read_recipe(arguments.recipe)
        return train(recipe, arguments.out, resume=arguments.resume == "auto", device=arguments.device)
    except (ValueError, FloatingPointError) as error:
        print(f"train_clip: error: {error}", file=sys.stderr)
        return 1


def train(recipe: Recipe, out: Path, *, resume: bool, device: str) -> int:
    """Exit code 0 when the model is trained and saved in `out`, 75 when a signal stopped it."""
    import torch
    from torch import Tensor, nn

    from training.data import Batch, ParquetPairs, PairStream
    from training.evaluate import retrieval_recall
    from training.loop import STOPPED, fit
    from vlm.checkpoint import load
    from vlm.clip import CLIP
    from vlm.config import PreprocessConfig
    from vlm.embedder import Embedder
    from vlm.loss import clip_loss, siglip_loss
    from vlm.preprocess import Preprocess
    from vlm.tokenizer import load_tokenizer

    torch.manual_seed(recipe.run.seed)
    if not resume and (out / "checkpoints").exists():
        raise ValueError(f"{out} holds the checkpoints of an earlier run. Add --resume auto to go on, or name another folder.")
    if recipe.model.source is not None:
        embedder = load(recipe.model.source)
    else:
        if recipe.model.tokenizer is None:
            raise ValueError("the recipe names no [model] tokenizer. python -m training.train_tokenizer writes one.")
        tokenizer = load_tokenizer(Path(recipe.model.tokenizer))
        ids = (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.context_length)
        config = recipe.model.architecture(*ids)
        grey = {"mean": (recipe.data.mean,) * 3, "std": (recipe.data.std,) * 3}
        preprocess = PreprocessConfig(image_size=config.vision.image_size, resize="pad", **grey)
        embedder = Embedder(CLIP(config), tokenizer, Preprocess(preprocess))
    model, preprocess = embedder.model.to(device), embedder.preprocess
    pairs = ParquetPairs(recipe.data.train, preprocess, recipe.data.train_splits)
    validation = ParquetPairs(recipe.data.validation, preprocess, (recipe.data.validation_split,))
    stream = PairStream(
        pairs,
        embedder.tokenizer,
        recipe.augment,
        seed=recipe.run.seed,
        batch_size=recipe.run.batch_size,
        num_patches=model.config.vision.num_patches,
        patch_dropout=recipe.data.patch_dropout,
        dense_from=round(recipe.run.steps * (1 - recipe.data.dense_share)),
        keyword_share=recipe.data.keyword_share,
        template_share=recipe.data.template_share,
        captions_per_picture=recipe.data.captions_per_picture,
    )

    def contrastive(model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, CLIP)
        image_embeds = model.encode_image(preprocess.normalize(batch.images), batch.keep).float()  # (B, E)
        text_embeds = model.encode_text(batch.ids.flatten(0, 1)).float().unflatten(0, batch.ids.shape[:2])  # (B, c, E)
        losses = [
            clip_loss(image_embeds, texts, model.logit_scale, batch.groups)
            if model.logit_bias is None
            else siglip_loss(image_embeds, texts, model.logit_scale, model.logit_bias, batch.groups)
            for texts in text_embeds.unbind(1)
        ]
        return torch.stack(losses).mean()

    def recall(_: nn.Module) -> dict[str, float]:
        return retrieval_recall(embedder, validation)

    out.mkdir(parents=True, exist_ok=True)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(pairs)} training pictures, {len(validation)} for validation, {parameters / 1e6:.1f} M parameters", file=sys.stderr)
    if not fit(model, contrastive, stream, recall, recipe, out, resume=resume):
        return STOPPED
    place(embedder, out)
    return 0


def place(embedder: "Embedder", out: Path) -> None:
    """The trained model among the run's other files, so that `vlm.load(out)` opens it; the manifest last."""
    from vlm.checkpoint import save

    new = out / ".model"
    save(embedder, new)
    for path in sorted(new.iterdir(), key=lambda path: path.name == "manifest.json"):
        path.replace(out / path.name)
    new.rmdir()


if __name__ == "__main__":
    sys.exit(main())
