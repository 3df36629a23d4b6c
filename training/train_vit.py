"""Train an image classifier from a recipe: python -m training.train_vit training/recipes/fashion-mnist.toml --out DIR

From nothing, or from the image tower of any CLIP or ViT that vlm can load.  On several GPUs as training.train_clip.

SIGTERM and Ctrl-C finish the step, save and end with code 75 (torchrun makes it 1): run the command again to go on.
"""

import sys

from vlm.training.tasks.command import Actions, run


def actions() -> Actions:
    from vlm.training.tasks.classification import dry_run, train  # torch is slow to import, and --help does not need it

    return Actions(train, dry_run)


def main() -> int:
    return run("train_vit", __doc__ or "", actions)


if __name__ == "__main__":
    sys.exit(main())
