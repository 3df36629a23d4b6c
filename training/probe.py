"""What the frozen features of a model are worth: linear probe, few-shot and zero-shot, in one table with chance."""

import sys

from vlm.training.measure.probe import main

if __name__ == "__main__":
    sys.exit(main())
