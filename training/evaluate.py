"""What a CLIP knows of a data set, in each language, with chance beside every number."""

import sys

from vlm.training.measure.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
