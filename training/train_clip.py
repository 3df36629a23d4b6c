"""Train a CLIP from a recipe: python -m training.train_clip training/recipes/mini.toml --out runs/mini

On several GPUs, or on several machines that share the folder of --out (the same command on each):
    torchrun --nproc-per-node 8 -m training.train_clip RECIPE.toml --out DIR --resume auto
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \\
        -m training.train_clip RECIPE.toml --out DIR --resume auto

SIGTERM and Ctrl-C finish the step, save and end with code 75 (torchrun makes it 1): run the command again to go on.
"""

import sys
from functools import partial

from vlm.training.tasks.command import Actions, run


def actions() -> Actions:
    from vlm.training.measure.cost import print_plan
    from vlm.training.recipe.config import Recipe
    from vlm.training.tasks.train import dry_run, train_file  # torch is slow to import, and --help does not need it

    return Actions(partial(train_file, Recipe), partial(dry_run, Recipe), print_plan)


def main() -> int:
    return run("train_clip", __doc__ or "", actions)


if __name__ == "__main__":
    sys.exit(main())
