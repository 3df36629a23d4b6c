"""Train a SentencePiece tokenizer on captions, English and Japanese alike."""

import sys

from vlm.training.tasks.tokenizer import main

if __name__ == "__main__":
    sys.exit(main())
