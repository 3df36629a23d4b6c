"""Pack a finished run: `python -m training.release ...`."""

import sys

from vlm.cli import run_alone
from vlm.commands.release import release

if __name__ == "__main__":
    sys.exit(run_alone(release, "python -m training.release"))
