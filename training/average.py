"""Average two CLIPs: `python -m training.average ...`."""

import sys

from vlm.cli import run_alone
from vlm.commands.release import average

if __name__ == "__main__":
    sys.exit(run_alone(average, "python -m training.average"))
