"""Measure the frozen features of a model: `python -m training.probe ...` in a checkout is `vlm probe ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["probe", *sys.argv[1:]]))
