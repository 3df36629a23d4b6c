"""How good and how honest a classifier is, as numbers and as images."""

import sys

from vlm.training.measure.report import main

if __name__ == "__main__":
    sys.exit(main())
