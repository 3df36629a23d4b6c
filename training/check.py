"""Look at a data set before paying for a GPU: python -m training.check DATA [DATA ...]"""

import sys

from vlm.training.audit.check import main

if __name__ == "__main__":
    sys.exit(main())
