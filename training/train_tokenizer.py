"""Train a tokenizer: `python -m training.train_tokenizer ...` in a checkout is `vlm tokenizer ...`."""

import sys

from vlm.cli import main

if __name__ == "__main__":
    sys.exit(main(["tokenizer", *sys.argv[1:]]))
