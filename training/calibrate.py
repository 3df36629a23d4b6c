"""Fit the probability that an image matches a text: `python -m training.calibrate ...`."""

import sys

from vlm.cli import run_alone
from vlm.commands.release import calibrate

if __name__ == "__main__":
    sys.exit(run_alone(calibrate, "python -m training.calibrate"))
