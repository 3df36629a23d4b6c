"""Train from a recipe: `python -m training.train_clip ...` in a checkout is `vlm train ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
