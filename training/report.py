"""Measure a classifier: `python -m training.report ...` in a checkout is `vlm report ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
