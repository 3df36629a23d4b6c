"""What a cosine of a model is worth: the probability that an image answers a text, fitted on validation pairs."""

import sys

from vlm.training.measure.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
