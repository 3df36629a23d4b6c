"""`python -m demo ...` in a checkout is `vlm demo ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
