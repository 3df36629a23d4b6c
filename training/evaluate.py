"""Measure a CLIP on a data set: `python -m training.evaluate ...` in a checkout is `vlm evaluate ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
