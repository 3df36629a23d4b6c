"""Interpolate two classifiers: `python -m training.wise_ft ...` in a checkout is `vlm wise-ft ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["wise-ft", *sys.argv[1:]]))
