"""Pack a finished run for others: float16 weights and a model card whose numbers are measured on what is packed."""

import sys

from vlm.training.measure.release import main

if __name__ == "__main__":
    sys.exit(main())
