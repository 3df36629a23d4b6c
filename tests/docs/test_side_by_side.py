"""The programs of docs/comparison that do the same with vlm and three other libraries: they run, and are counted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import transformers
from PIL import Image
from safetensors.torch import save_file

from docs.page_blocks import blocks, printed

DOCS = Path(__file__).parents[2] / "docs"
TASKS = ("load", "new head", "train on a folder", "evaluate", "predict", "features", "attention map")
_HEAD = re.compile(r"# (?:[\w.]+: )?(" + "|".join(TASKS) + r")$")


def programs(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [block.body for block in blocks(text) if block.kind == "python" and "# new head" in block.body]


def lines_of(program: str) -> dict[str, int]:
    """Lines for each task: no comments, no imports, no empty lines."""
    counts: dict[str, int] = {}
    task = ""
    for line in program.splitlines():
        if (head := _HEAD.match(line)) is not None:
            task = head[1]
            counts[task] = 0
        elif line.strip() and not re.match(r"(import|from) |#", line):
            counts[task] += 1
    return counts


@pytest.mark.parametrize("page", ["comparison.md", "comparison.ja.md"])
def test_the_table_counts_the_lines_of_the_programs(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    table = text.split("<!-- side by side -->")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    counted = [lines_of(program) for program in programs(page)]
    assert [list(counts) for counts in counted] == [list(TASKS)] * 4
    assert rows == [[task, *(str(counts[task]) for counts in counted)] for task in TASKS]


def test_both_languages_have_the_same_programs() -> None:
    assert programs("comparison.md") == programs("comparison.ja.md")


def prepare_folder(folder: Path) -> None:
    """photos of two classes, and a small ViT as transformers and timm save it."""
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for number in range(12):
            path = folder / "photos" / split / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = (60, 190)[number % 2]
            levels = np.clip(random.normal(level, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(levels).save(path)
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 64, "num_labels": 5}
    config = transformers.ViTConfig(**sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    arguments: dict[str, Any] = {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
    model: Any = timm.create_model("vit_tiny_patch16_224", **arguments)
    (folder / "timm-vit").mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "timm-vit" / "model.safetensors")
    data = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 5,
            "interpolation": "bilinear", "classifier": "head", "first_conv": "patch_embed.proj"}  # fmt: skip
    info = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": arguments, "pretrained_cfg": data}
    (folder / "timm-vit" / "config.json").write_text(json.dumps(info))


@pytest.mark.long
@pytest.mark.parametrize("number", range(4), ids=["vlm", "timm", "transformers", "lightning"])
def test_the_programs_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    if number == 3:
        pytest.importorskip("lightning")  # no package of ours needs it
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    prepare_folder(tmp_path)
    program = programs("comparison.md")[number]
    ends = "\nprint(tuple(features.shape), len(maps), flush=True)\n"
    from docs.page_blocks import Block

    assert re.match(r"\(1, (32|48)\) 1$", printed(Block("python", program + ends), tmp_path).splitlines()[-1])
