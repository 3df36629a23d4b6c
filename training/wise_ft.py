"""Between a classifier before and after fine-tuning, weight by weight (WiSE-FT, Wortsman et al. 2022)."""

import sys

from vlm.training.measure.wise_ft import main

if __name__ == "__main__":
    sys.exit(main())
