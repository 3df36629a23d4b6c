"""Embed the images of any data set: python -m training.embed MODEL DATA --out SHARDS"""

import sys

from vlm.training.measure.embed import main

if __name__ == "__main__":
    sys.exit(main())
