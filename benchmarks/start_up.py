"""From the start of a process to its answer: the command `vlm` beside a few lines with OpenCLIP and transformers.

    python -m benchmarks.start_up > benchmarks/start_up.md      (--quick: 2 rounds)

All read the same random ViT-B/32 from disk, in their own format, and say which of two labels fits an image.  Processes
take turns; a time is that of the whole process.  What all wait for, `import torch`, is timed as well and taken off.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import vlm
from benchmarks.machine import about
from benchmarks.side_by_side import QUICK_ROUNDS, ROUNDS, ratios
from vlm.config import PreprocessConfig, named_size

IMAGE = Path(__file__).parents[1] / "demo/samples"
OPENCLIP = """
import open_clip, torch
from PIL import Image
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
with torch.no_grad():
    image = model.encode_image(preprocess(Image.open("{image}"))[None], normalize=True)
    text = model.encode_text(tokenizer(["a photo of a dog", "a photo of a cat"]), normalize=True)
    print((model.logit_scale.exp() * image @ text.T).softmax(-1))
"""
TRANSFORMERS = """
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel
model, processor = CLIPModel.from_pretrained("{folder}"), AutoProcessor.from_pretrained("{folder}")
texts = ["a photo of a dog", "a photo of a cat"]
inputs = processor(text=texts, images=Image.open("{image}"), return_tensors="pt", padding=True)
with torch.no_grad():
    print(model(**inputs).logits_per_image.softmax(-1))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="From the start of a process to its answer.")
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    quick = parser.parse_args().quick
    rounds = QUICK_ROUNDS if quick else ROUNDS
    print("# From the start of a process to its answer\n")
    packages = ["torch", "open_clip_torch", "transformers"]
    print(about("python -m benchmarks.start_up" + " --quick" * quick, packages, os.cpu_count() or 1))
    print(f"{rounds} rounds, in turns, files in the page cache. ViT-B/32, float32, two labels, one image.\n")
    with tempfile.TemporaryDirectory() as root:
        commands = write(Path(root))
        for command in commands.values():
            run(command)
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                taken[name].append(run(command))
    bare = taken["`import torch`"]
    beyond = {name: [t - b for t, b in zip(times, bare, strict=True)] for name, times in taken.items()}
    ours = beyond["`vlm classify`"]
    print(
        "| process | s, median | best | beyond `import torch`, median | this / vlm of that, median of rounds | range |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for name, times in taken.items():
        line = f"| {name} | {statistics.median(times):.2f} | {min(times):.2f} |"
        if name in ("`vlm --help`", "`import torch`"):
            print(f"{line} | | |")
            continue
        beside = ratios(beyond[name], ours)
        line += f" {statistics.median(beyond[name]):.2f} | {statistics.median(beside):.2f} |"
        print(f"{line} {beside[0]:.2f} to {beside[-1]:.2f} |")


def write(root: Path) -> dict[str, list[str]]:
    """The model in three formats, and what to run."""
    torch.manual_seed(0)
    config = named_size("B/32")
    preprocess = vlm.Preprocess(PreprocessConfig(image_size=224))
    embedder = vlm.Embedder(vlm.CLIP(config), vlm.load_tokenizer(_clip_tokenizer(root)), preprocess)
    vlm.save(embedder, root / "vlm")
    for kind in ("openclip", "huggingface"):
        vlm.export(embedder, root / kind, kind)
    image = sorted(path for path in IMAGE.rglob("*") if path.suffix in (".png", ".jpg", ".webp"))[0]
    command = [str(Path(sys.executable).with_name("vlm"))]
    words = ["classify", str(image), "--model", str(root / "vlm"), "--labels", "dog", "cat"]
    return {
        "`vlm --help`": [*command, "--help"],
        "`import torch`": [sys.executable, "-c", "import torch"],
        "OpenCLIP": [sys.executable, "-c", OPENCLIP.format(folder=root / "openclip", image=image)],
        "transformers": [sys.executable, "-c", TRANSFORMERS.format(folder=root / "huggingface", image=image)],
        "`vlm classify`": [*command, *words, "--templates", "a photo of a {}"],
    }


def _clip_tokenizer(root: Path) -> Path:
    from vlm.tokenizers.clip_bpe import CLIPTokenizer

    CLIPTokenizer().save(root / "tokenizer")
    return root / "tokenizer"


def run(command: list[str]) -> float:
    """Seconds; a failure ends the measurement with what the process said."""
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{command[:2]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return seconds


if __name__ == "__main__":
    main()
