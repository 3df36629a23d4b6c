"""Train a CLIP from a recipe: python -m training.train_clip training/recipes/mini.toml --out runs/mini

On several GPUs, or on several machines that share the folder of --out (the same command on each):
    torchrun --nproc-per-node 8 -m training.train_clip RECIPE.toml --out DIR --resume auto
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \\
        -m training.train_clip RECIPE.toml --out DIR --resume auto

SIGTERM and Ctrl-C finish the step, save and end with code 75 (torchrun makes it 1): run the command again to go on.
"""

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.train_clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="a TOML file, see training/recipes/")
    parser.add_argument("--out", type=Path, help="folder for the model, metrics.jsonl and checkpoints")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the newest checkpoint in --out, if any",
    )
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--dry-run", action="store_true", help="two steps: memory, samples/s, how long all would take")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload the finished model to the Hugging Face hub")
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.dry_run:
        parser.error("--out is needed: where shall the model go?")
    # Batches of texts have ever new lengths; torch and oneDNN keep a product compiled for each: few, or memory grows.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    from training.contrastive import dry_run, train  # torch is slow to import, and --help does not need it
    from training.distributed import init_from_env, leave

    try:
        peers = init_from_env(arguments.device)
        if arguments.dry_run or arguments.out is None:
            dry_run(arguments.recipe, peers)
            return 0
        return train(arguments.recipe, arguments.out, peers, resume=arguments.resume == "auto", push=arguments.push)
    except (ValueError, FloatingPointError) as error:
        print(f"train_clip: error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()


if __name__ == "__main__":
    sys.exit(main())
