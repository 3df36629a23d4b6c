"""Many real vectors on a machine without a GPU: `mini` embeddings of augmented picture-words, none of them invented.

    python -m benchmarks.image_vectors FILE.npy [COUNT]           (COUNT: default 1 000 000; half an hour on 2 cores)

Every image of train.parquet is augmented anew (as for training) until there are enough.  The patches of an augmented
image are dealt into four hands at random, and each hand is embedded alone: `mini` was trained so, on a random quarter
of the patches.  A thousand vectors thus cost what 250 whole images cost, and each is what the model itself says.
Weights are bfloat16.  An interrupted run goes on where it was.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

import vlm
from vlm.training.data.augment import augment, uniform_draws
from vlm.training.data.pairs import open_pairs
from vlm.training.recipe.augmentation import AugmentConfig

TRAIN, VALIDATION = (Path(f"training/picture_words/{name}.parquet") for name in ("train", "validation"))
HANDS = 4
BATCH = 256  # images


def make(file: Path, count: int) -> None:
    embedder = vlm.load("mini")
    images = open_pairs(TRAIN, embedder.preprocess)
    model = embedder.model.bfloat16().eval()
    done_file = file.with_suffix(".done")
    done = int(done_file.read_text()) if file.exists() and done_file.exists() else 0
    vectors = open_memmap(file, "r+" if done else "w+", np.float16, shape=(count, embedder.embed_dim))
    begun, start = done, time.perf_counter()
    while done < count:
        numbers = done // HANDS + np.arange(BATCH)
        epochs, positions = np.divmod(numbers, len(images))
        pixels = augment(images.images(positions.tolist()), AugmentConfig(), 0, 0, epochs, positions)
        images = embedder.preprocess.normalize(pixels).bfloat16()  # (B, 3, H, W)
        hands = deal(epochs, positions, model.config.vision.num_patches)  # (B, HANDS, K)
        with torch.inference_mode():
            embeds = [model.encode_image(images, hands[:, hand]).float() for hand in range(HANDS)]
        rows = torch.stack(embeds, 1).flatten(0, 1).numpy()  # (B HANDS, E)
        vectors[done : done + len(rows)] = rows[: count - done]
        done = min(count, done + len(rows))
        if done % (50 * len(rows)) == 0 or done == count:
            vectors.flush()
            done_file.write_text(str(done))
            rate = (done - begun) / (time.perf_counter() - start)
            print(f"{done:,} of {count:,} vectors, {rate:,.0f} a second", file=sys.stderr, flush=True)


def deal(epochs: np.ndarray, positions: np.ndarray, patches: int) -> Tensor:
    """(B, HANDS, patches // HANDS) numbers of patches; no patch is in two hands of an image."""
    order = uniform_draws(0, 1, epochs, positions, patches).argsort(1)
    return torch.from_numpy(order).unflatten(1, (HANDS, -1))


def main() -> None:
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000)


if __name__ == "__main__":
    main()
