"""Where in an image is what a text names?  Four ways to ask `mini`, on drawings by an artist that it never saw.

    python -m benchmarks.relevance > benchmarks/relevance.md      (four minutes; --seed draws other drawings)

Four or nine drawings side by side make one image, and one of them is asked for by its English name; counted is how
often the map's sum is highest on the right one.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import vlm
from benchmarks.machine import about
from vlm.inspect.attention import patch_grid
from vlm.inspect.drawing import mosaic
from vlm.inspect.relevance import Score, relevance, text_score
from vlm.models.vision import VisionTransformer

SAMPLES = Path(__file__).parents[1] / "demo" / "samples"
SIDE = 192  # of the image, in pixels
IMAGES = 320

Ask = Callable[[VisionTransformer, Tensor, Score], Tensor]  # images (1, C, H, W) -> (H/P, W/P)


def main() -> None:
    parser = argparse.ArgumentParser(description="Four ways to ask a ViT where in an image a thing is.")
    parser.add_argument("--seed", type=int, default=5)
    seed = parser.parse_args().seed
    print("# Where is it? Maps of `mini` for images of several drawings\n")
    print(about(f"python -m benchmarks.relevance --seed {seed}", ["torch"], torch.get_num_threads()))
    print(f"{IMAGES} images each; share in which the map's sum is highest on the drawing that was asked for.\n")
    print("| map | of 4 (chance 0.25) | of 9 (chance 0.11) |\n|---|---:|---:|")
    found = count(vlm.load("mini"), seed)
    for name in WAYS:
        print(f"| {name} | {found[name, 2] / IMAGES:.3f} | {found[name, 3] / IMAGES:.3f} |")


@torch.no_grad()
def count(mini: vlm.Embedder, seed: int) -> dict[tuple[str, int], int]:
    """(way, drawings in a row) -> images in which the right drawing was found."""
    lines = (SAMPLES / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    drawings = [row for row in map(json.loads, lines) if row["file_name"].startswith("fxemoji/")]
    generator = torch.Generator().manual_seed(seed)
    found = {(name, across): 0 for name in WAYS for across in (2, 3)}
    for number in range(IMAGES):
        for across in (2, 3):
            drawn = [drawings[i] for i in torch.randperm(len(drawings), generator=generator)[: across**2].tolist()]
            tiles = [
                vlm.open_image(SAMPLES / row["file_name"]).resize((SIDE // across, SIDE // across)) for row in drawn
            ]
            wanted = number % across**2
            images = mini.preprocess(sheet(tiles, across))[None]
            score = text_score(mini.model.vision_proj, mini.embed_texts([drawn[wanted]["en"]])[0])
            for name, ask in WAYS.items():
                fine = F.interpolate(
                    ask(mini.model.vision, images, score)[None, None], (24, 24)
                )  # 8, 2 and 3 divide 24
                found[name, across] += int(F.avg_pool2d(fine, 24 // across).argmax()) == wanted
    return found


def sheet(tiles: list[Image.Image], across: int) -> Image.Image:
    return mosaic([tiles[start : start + across] for start in range(0, len(tiles), across)], gap=0)


def seen(vision: VisionTransformer, images: Tensor, score: Score, keep: Tensor) -> Tensor:
    """The score of each row of patches alone."""
    return score(vision(images.expand(len(keep), -1, -1, -1), keep))


def random_halves(vision: VisionTransformer, images: Tensor, score: Score, pairs: int = 128) -> Tensor:
    """Mean gain of the half with a patch over the half without it; what `relevance` was before windows."""
    patches = vision.config.num_patches
    order = torch.rand(pairs, patches, generator=torch.Generator().manual_seed(0)).argsort(1)
    first, second = order.split(patches // 2, dim=1)
    side = torch.ones(pairs, patches).scatter(1, second, -1)
    gain = seen(vision, images, score, first) - seen(vision, images, score, second)
    return (gain @ side / pairs).unflatten(0, vision.config.grid)


def one_left_out(vision: VisionTransformer, images: Tensor, score: Score) -> Tensor:
    patches = torch.arange(vision.config.num_patches)
    keep = torch.stack([patches[patches != left_out] for left_out in patches])
    return (score(vision(images)) - seen(vision, images, score, keep)).unflatten(0, vision.config.grid)


def last_tokens(vision: VisionTransformer, images: Tensor, score: Score) -> Tensor:
    tokens = vision.norm(vision.features(images, blocks=(-1,)).blocks[0])[0]
    return patch_grid(vision.config, score(tokens))


WAYS: dict[str, Ask] = {
    "windows (`vlm.inspect.relevance`)": lambda vision, images, score: relevance(vision, images, score)[0],
    "random halves of the patches, 128 pairs": random_halves,
    "one patch left out at a time": one_left_out,
    "similarity of the last patch tokens to the text": last_tokens,
}


if __name__ == "__main__":
    main()
