"""Embed the images of a data set: `python -m training.embed ...` in a checkout is `vlm embed ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
