"""`python -m vlm` is the command `vlm`; `torchrun -m vlm train ...` starts one process for each GPU."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
