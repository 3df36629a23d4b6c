"""Train an image classifier from a recipe: python -m training.train_vit training/recipes/fashion-mnist.toml --out DIR

From nothing, or from the image tower of any CLIP or ViT that vlm can load.  On several GPUs as training.train_clip.

SIGTERM and Ctrl-C finish the step, save and end with code 75 (torchrun makes it 1): run the command again to go on.
"""

import sys
from functools import partial

from vlm.training.tasks.command import Actions, run


def actions() -> Actions:
    from vlm.training.recipe.config import VitRecipe
    from vlm.training.tasks.train import dry_run, train_file  # torch is slow to import, and --help does not need it

    return Actions(partial(train_file, VitRecipe), partial(dry_run, VitRecipe))


def main() -> int:
    return run("train_vit", __doc__ or "", actions)


if __name__ == "__main__":
    sys.exit(main())
