"""`vlm train` and `vlm tokenizer`: a recipe becomes a model, captions become a tokenizer."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.options import Run, add_data_description, add_device, columns_of, positive
from vlm.errors import InputError
from vlm.user_folders import expanded

if TYPE_CHECKING:
    from vlm.training.recipe.config import Recipe, VitRecipe

REPOSITORY_DATA = ("training/picture_words", "training/icon_words")  # as recipes name it


def train(parser: ArgumentParser) -> Run:
    """Train a CLIP or an image classifier from a recipe.

    The recipe says at its top which of the two: task = "clip" or task = "vit".

    On several GPUs, or on several machines that share the folder of --out (the same command on each):

        torchrun --nproc-per-node 8 -m vlm train RECIPE.toml --out DIR --resume auto
        torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \\
            -m vlm train RECIPE.toml --out DIR --resume auto

    SIGTERM and Ctrl-C finish the step, save and end with exit code 75 (torchrun makes it 1): run the command again with
    --resume auto to go on. A second Ctrl-C stops at once.
    """
    parser.add_argument(
        "recipe", metavar="RECIPE", type=Path, nargs="?", help="a TOML file, such as training/recipes/finetune.toml"
    )
    parser.add_argument(
        "--init",
        metavar="DATA",
        help="look at the data and write RECIPE (default: DATA.toml, here); nothing is trained",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the model, metrics.jsonl and checkpoints")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the newest checkpoint in --out, if there is one; default %(default)s",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="run a few steps and print memory, samples/s and the time of all steps"
    )
    parser.add_argument(
        "--profile", action="store_true", help="write a trace of steps 10 to 20 into DIR/profile (chrome://tracing)"
    )
    parser.add_argument("--push", metavar="ORG/NAME", help="upload the finished model to the Hugging Face hub")
    add_data_description(parser)
    add_device(parser)
    elsewhere = parser.add_argument_group(
        "--dry-run for other hardware", "Estimate time and memory of a CLIP recipe on other GPUs (nothing is run)."
    )
    elsewhere.add_argument("--gpus", type=int, metavar="N", help="number of GPUs")
    elsewhere.add_argument(
        "--gpu", choices=["a100", "h100", "h200", "l4"], help="peak and memory are those of the datasheet"
    )
    elsewhere.add_argument("--tflops", type=float, help="peak of one GPU, where it is none of these")
    elsewhere.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is used (0.4)")
    elsewhere.add_argument("--caption-tokens", type=int, help="mean length of a caption; default: the maximum")

    def run(args: Namespace) -> int:
        if args.init is not None:
            return _write_recipe(args)
        if args.recipe is None:
            parser.error("RECIPE is needed: a TOML file. --init DATA writes one.")
        out: Path = args.out
        if args.gpus is not None and not args.dry_run:
            parser.error("--gpus goes with --dry-run; torchrun starts a run on several GPUs")
        if args.out is None and not args.dry_run:
            parser.error("--out DIR is needed: the folder for the model")
        # torch and oneDNN keep a compiled product for each length of a text batch: memory grows without a limit
        os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        from vlm.training.engine.run_folder import recorded_recipe
        from vlm.training.recipe.config import Recipe
        from vlm.training.recipe.reading import read_any_recipe

        resume = args.resume == "auto" and not args.dry_run
        said = _said_of_data(args)
        recipe = read_any_recipe(args.recipe, recorded_recipe(out) if resume else None, said)
        text = args.recipe.read_text(encoding="utf-8-sig")
        for folder in REPOSITORY_DATA:
            if folder in text and not Path(folder).exists():
                raise InputError(
                    f"{args.recipe} needs {folder}, which is not in the package but in the repository: there is no "
                    "such folder here. Run the command in a checkout of the repository."
                )
        described = _described(recipe, args)
        if args.gpus is not None:
            from vlm.training.measure.cost import print_plan

            if not isinstance(described, Recipe):
                raise InputError("--gpus plans CLIP recipes only. Leave it out: a few steps are run here.")
            from vlm.training.tasks.contrastive import sample_count

            if (samples := sample_count(described)) is not None:
                described = described.of_length(samples)
                print(f"length      {described.length(samples)}")
            print_plan(described, args.gpus, args.gpu, args.tflops, args.efficiency, args.caption_tokens)
            return 0
        from vlm.training.engine.distributed import init_from_env, leave
        from vlm.training.tasks.train import dry_run
        from vlm.training.tasks.train import train as train_model

        try:
            processes = init_from_env(None if args.device == "auto" else args.device, recipe.run.timeout_minutes)
            if args.dry_run:
                dry_run(described, processes)
                return 0
            own = text if described == recipe and not said else None
            return train_model(described, out, processes, resume=resume, push=args.push, text=own, profile=args.profile)
        finally:
            leave()

    return run


def _write_recipe(args: Namespace) -> int:
    """`--init`: the recipe, its choices, and the command that trains from it."""
    from vlm.training.tasks.first_recipe import choices_table, write_first_recipe

    name = expanded(args.init).absolute().name.split(".")[0] or "my"
    path: Path = args.recipe or Path(f"{name}.toml")
    written = write_first_recipe(args.init, path, columns=columns_of(args.columns), root=args.root)
    print(choices_table(written))
    print(f"\nwritten to {path}. Next: vlm train {path} --out runs/{path.stem}")
    return 0


def _said_of_data(args: Namespace) -> dict[str, Any]:
    """Settings of [data] that the command line gives."""
    columns, root = columns_of(args.columns), None if args.root is None else str(args.root)
    return {name: value for name, value in (("columns", columns), ("root", root)) if value is not None}


def _described(recipe: "Recipe | VitRecipe", args: Namespace) -> "Recipe | VitRecipe":
    """The recipe with the precision that the command line says."""
    from dataclasses import replace

    if _said_of_data(args) and not isinstance(recipe.data.train, str):
        raise InputError("--columns and --root describe one data set, and the recipe has several. Write them into it.")
    return recipe if args.dtype == "auto" else replace(recipe, run=replace(recipe.run, precision=args.dtype))


def tokenizer(parser: ArgumentParser) -> Run:
    """Train a SentencePiece tokenizer on captions, English and Japanese alike.

    Unigram pieces (Kudo 2018) after NFKC, case folded; characters too rare for a piece are encoded as bytes.
    """
    parser.add_argument(
        "captions", nargs="+", metavar="CAPTIONS", type=Path, help=".txt (one a line), .csv, .tsv, .jsonl or .parquet"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--vocab-size", type=positive, default=4096, metavar="V", help="pieces, bytes included; default %(default)s"
    )
    parser.add_argument(
        "--context-length", type=positive, default=32, metavar="T", help="ids per caption at most; default %(default)s"
    )
    parser.add_argument(
        "--columns", nargs="+", default=[], metavar="NAME", help="of tables; default: caption*, keyword*, text, title"
    )

    def run(args: Namespace) -> None:
        from vlm.training.tasks.tokenizer import describe, read_captions, train_tokenizer

        texts = [text for path in args.captions for text in read_captions(path, args.columns)]
        trained = train_tokenizer(texts, args.vocab_size, args.context_length)
        trained.save(args.out)
        print(describe(trained, texts))

    return run
