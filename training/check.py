"""Check a data set before training: `python -m training.check ...` in a checkout is `vlm check ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))
