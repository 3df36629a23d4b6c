"""Models of other libraries with random weights: does ours give the same numbers?  Writes the tables of docs/interop.

    python -m benchmarks.interop_table                       every part
    python -m benchmarks.interop_table layouts               one of: layouts, architectures, models
    python -m benchmarks.interop_table architectures --seconds 240      go on for so long; the next call goes on there

Layouts: repositories of tests/support/hub_rows.py on a hub on 127.0.0.1.  Architectures: the 115 behind OpenCLIP's
pretrained sets, one block deep, through the same hub.  Models: every config of OpenCLIP, shrunk, and some at full size.
"""

import argparse
import copy
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import open_clip
import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import nn

import vlm
from tests.interop.test_openclip_registry import ARCHITECTURES, check_architecture
from tests.support.fake_hub import FakeHub, serving
from tests.support.foreign_models import randomise
from tests.support.hub_layouts import difference
from tests.support.hub_rows import GROUPS, REFUSED
from vlm.interop.formats import openclip
from vlm.interop.formats.openclip_config import ModelCfg
from vlm.interop.formats.timm import named
from vlm.models.clip import CLIP

Rows = list[tuple[str, ...]]

ROWS_FILE = Path(__file__).parent.parent / "build" / "interop_architectures.jsonl"
VOCAB = 600
EMBED_DIM = 48
DOCS = Path(__file__).parent.parent / "docs"
HEADS = {  # page -> mark -> heads of the columns
    "interop.md": {
        "layouts": ("layout", "images", "2400x1600", "texts", ""),
        "refused": ("what is there", "what the one line says"),
        "architectures": ("OpenCLIP architecture", "computed by", "image", "text"),
        "full size": ("model", "largest difference"),
        "every model": ("OpenCLIP model", "image", "text", "logits"),
        "outside": ("OpenCLIP model", "what this library has no part for"),
    },
    "interop.ja.md": {
        "layouts": ("レイアウト", "画像", "2400x1600", "文", ""),
        "refused": ("置かれているもの", "1 行のエラーに含まれる語"),
        "architectures": ("OpenCLIP のアーキテクチャ", "計算するもの", "画像", "文"),
        "full size": ("モデル", "差の最大値"),
        "every model": ("OpenCLIP のモデル", "画像", "文", "ロジット"),
        "outside": ("OpenCLIP のモデル", "このライブラリにない部分"),
    },
}


@dataclass(frozen=True)
class Difference:
    """The largest differences between their outputs and ours."""

    image: float
    text: float
    logits: float  # in units of exp(logit_scale)

    @property
    def worst(self) -> float:
        return max(self.image, self.text, self.logits)


def config_of(name: str) -> dict[str, Any]:
    """OpenCLIP's own config of one of its models."""
    config = open_clip.get_model_config(name)
    assert config is not None
    return config


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """The same flags; depth 2, width at most 128, few patches, few words."""
    config = copy.deepcopy(config) | {"embed_dim": EMBED_DIM}
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        patch, width = (
            int(vision["timm_model_name"].split("_patch")[1].split("_")[0]),
            timm_width(vision["timm_model_name"]),
        )
        if vision["timm_proj"] == "none":
            config["embed_dim"] = width
    else:
        patch = vision["patch_size"]
        heads = 4
        vision |= {"layers": 2, "width": 16 * heads, "head_width": 16}
    vision["image_size"] = patch * 3 + vision["image_size"] % patch
    text |= {"layers": 2, "width": 64, "heads": 4, "vocab_size": VOCAB}
    if text.get("proj_type") == "none":
        text["width"], text["heads"] = config["embed_dim"], 8
    return config


def timm_width(name: str) -> int:
    return 8 * named(name).num_heads


@contextmanager
def small_timm(image_size: int) -> Iterator[None]:
    """timm builds its models at depth 2 and width 8 x heads."""
    create = timm.create_model

    def small(name: str, **settings: Any) -> nn.Module:
        return create(name, **settings, img_size=image_size, depth=2, embed_dim=timm_width(name))

    with mock.patch("open_clip.timm_model.timm.create_model", small):
        yield


def build(config: dict[str, Any]) -> Any:
    """OpenCLIP's own model of a config, with random weights everywhere: zeros and ones would hide mistakes."""
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    with small_timm(config["vision_cfg"]["image_size"]):
        model = (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**config)
    return randomise(model)


def inputs(model: ModelCfg) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and rows of ids that end and are padded as OpenCLIP's tokenizers do."""
    generator = torch.Generator().manual_seed(1)
    side, text = model.vision_cfg.image_size, model.text_cfg
    assert isinstance(side, int)
    images = torch.randn(3, 3, side, side, generator=generator)
    end = text.eos_id if text.pool_type == "eos" else text.vocab_size - 1
    ids = torch.randint(5, text.vocab_size - 5, (3, text.context_length), generator=generator)
    for row, length in enumerate((4, 9, text.context_length)):
        ids[row, length - 1] = end
        ids[row, length:] = 1 if text.pool_type == "eos" and end != 1 else 0
    return images, ids


def compare(config: dict[str, Any]) -> Difference:
    """Builds, converts, runs both."""
    theirs = build(config)
    model = ModelCfg.from_dict(config)
    ours_config, state = openclip.read_model(theirs.state_dict(), model)
    ours = CLIP(ours_config)
    ours.load_state_dict(state)
    ours.eval()
    images, ids = inputs(model)
    height, width = ours_config.vision.image_shape
    with torch.inference_mode():
        image, text = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
        our_image, our_text = ours(images[:, :, :height, :width], ids)
        logits = theirs.get_logits(images, ids)[0] - ours.logits(our_image, our_text)
    return Difference(
        float((image - our_image).abs().max()),
        float((text - our_text).abs().max()),
        float(logits.abs().max() / theirs.logit_scale.detach().exp()),
    )


def _openclip(folder: Path, name: str) -> nn.Module:
    config = config_of(name)
    kind = open_clip.model.CustomTextCLIP if config.get("custom_text") else open_clip.model.CLIP
    model = kind(**{setting: value for setting, value in config.items() if setting != "custom_text"})
    return _save(folder, model, {"model_cfg": config}, "open_clip_config.json")


def _timm(folder: Path, name: str) -> nn.Module:
    return _save(folder, timm.create_model(name), {"architecture": name}, "config.json")


def _siglip(folder: Path) -> nn.Module:
    words = {"bos_token_id": None, "eos_token_id": 1}
    return _save_transformers(folder, transformers.SiglipModel(transformers.SiglipConfig(text_config=words)))


# ViT-B/32 where the library has it, random weights, through the library's own files.
FULL_SIZE: dict[str, Callable[[Path], nn.Module]] = {
    "OpenCLIP `CLIP`, ViT-B-32": lambda folder: _openclip(folder, "ViT-B-32"),
    "OpenCLIP `CustomTextCLIP`, ViT-B-16-SigLIP": lambda folder: _openclip(folder, "ViT-B-16-SigLIP"),
    "Hugging Face `CLIPModel`, ViT-B/32": lambda folder: _save_transformers(
        folder, transformers.CLIPModel(transformers.CLIPConfig())
    ),
    "Hugging Face `SiglipModel`, ViT-B/16": _siglip,
    "Hugging Face `ViTForImageClassification`, ViT-B/16": lambda folder: _save_transformers(
        folder, transformers.ViTForImageClassification(transformers.ViTConfig())
    ),
    "timm `vit_base_patch32_224`": lambda folder: _timm(folder, "vit_base_patch32_224"),
    "timm `vit_base_patch32_clip_224`": lambda folder: _timm(folder, "vit_base_patch32_clip_224"),
    "torchvision `vit_b_32`": lambda folder: _save(folder, torchvision.models.vit_b_32(), None, ""),
}


def _save(folder: Path, model: nn.Module, info: dict[str, Any] | None, name: str) -> nn.Module:
    randomise(model)
    folder.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, folder / "model.safetensors")
    if info is not None:
        (folder / name).write_text(json.dumps(info))
    return model.eval()


def _save_transformers(folder: Path, model: Any) -> nn.Module:
    randomise(model)
    model.save_pretrained(folder)
    return model.eval()


def compare_full_size(save: Callable[[Path], nn.Module]) -> float:
    """Saved by them, opened by us: the largest difference of unit vectors, or of logits as a share of the largest."""
    with tempfile.TemporaryDirectory() as root, torch.inference_mode():
        theirs: Any = save(Path(root) / "model")
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(2, 3, 224, 224, generator=generator)
        match theirs:
            case timm.models.VisionTransformer() | torchvision.models.VisionTransformer():
                return _share(theirs(images), vlm.load_classifier(Path(root) / "model")(images))
            case transformers.ViTForImageClassification():
                return _share(theirs(images).logits, vlm.load_classifier(Path(root) / "model")(images))
        ours = vlm.load(Path(root) / "model").model
        text = ours.config.text
        ids = torch.randint(2, text.vocab_size - 2, (2, text.context_length), generator=generator)
        ids[:, -3:] = text.eot_id
        if isinstance(theirs, open_clip.model.CLIP | open_clip.model.CustomTextCLIP):
            image, words = theirs.encode_image(images, normalize=True), theirs.encode_text(ids, normalize=True)
        else:
            out = theirs(input_ids=ids, pixel_values=images)
            image, words = out.image_embeds, out.text_embeds
        our_image, our_words = ours(images, ids)
        return max(float((image - our_image).abs().max()), float((words - our_words).abs().max()))


def _share(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs - ours).abs().max() / theirs.abs().max())


def layout_rows() -> tuple[Rows, Rows, float]:
    """(rows of the layouts, rows of what is refused, the largest difference that is not a known one)."""
    rows: Rows = []
    refused: Rows = []
    worst = 0.0
    for group, layouts in GROUPS.items():
        rows.append((f"**{group}**", "", "", "", ""))
        for title, layout in layouts.items():
            with _hub() as (hub, folder):
                found = difference(layout, hub, folder)
            if not layout.known:
                worst = max(worst, found.images, found.large, found.texts or 0.0)
            cells = ["" if value is None else f"{value:.0e}" for value in (found.images, found.large, found.texts)]
            rows.append((title, *cells, layout.known))
            print(*rows[-1], file=sys.stderr)
    for title, (write, _) in REFUSED.items():
        with _hub() as (hub, folder):
            folder.mkdir()
            write(hub, folder)
            try:
                vlm.load("hf:org/model")
            except vlm.errors.VlmError as error:
                refused.append((title, re.sub(r"(?<!\w)/\S+/", "", str(error)).replace("|", "\\|")))
            else:
                raise AssertionError(f"{title} was opened")
    return rows, refused, worst


@contextmanager
def _hub() -> Iterator[tuple[FakeHub, Path]]:
    """A hub of its own, and a folder that does not exist yet."""
    with (
        tempfile.TemporaryDirectory() as place,
        pytest.MonkeyPatch.context() as patched,
        serving(Path(place) / "cache", patched) as hub,
    ):
        yield hub, Path(place) / "it"


def architecture_rows(seconds: float) -> tuple[Rows, float]:
    """Rows of the architectures measured so far, this call's and those of calls before; and the largest difference."""
    ROWS_FILE.parent.mkdir(exist_ok=True)
    known = [json.loads(line) for line in ROWS_FILE.read_text().splitlines()] if ROWS_FILE.exists() else []
    begin = time.monotonic()
    for name in ARCHITECTURES:
        if any(row[0] == name for row in known) or time.monotonic() - begin > seconds:
            continue
        with _hub() as (hub, folder):
            folder.mkdir()
            library, image, text = check_architecture(hub, folder, name)
        known.append([name, library, image, text])
        print(*known[-1], file=sys.stderr)
        with ROWS_FILE.open("a") as file:
            file.write(json.dumps(known[-1]) + "\n")
    rows = [(name, library, f"{image:.0e}", f"{text:.0e}") for name, library, image, text in sorted(known)]
    return rows, max((max(image, text) for _, _, image, text in known), default=0.0)


def model_rows() -> tuple[dict[str, Rows], float]:
    """Rows of OpenCLIP's configs and of the models at full size, and the largest difference."""
    rows: Rows = []
    outside: Rows = []
    full: Rows = []
    worst = 0.0
    for name in open_clip.list_models():
        config = config_of(name)
        reasons = ModelCfg.from_dict(config).outside()
        if reasons:
            outside.append((name, "; ".join(reasons)))
            continue
        found = compare(shrunk(config))
        worst = max(worst, found.worst)
        rows.append((name, *(f"{difference:.0e}" for difference in (found.image, found.text, found.logits))))
        print(*rows[-1], file=sys.stderr)
    for name, save in FULL_SIZE.items():
        found_difference = compare_full_size(save)
        worst = max(worst, found_difference)
        full.append((name, f"{found_difference:.0e}"))
        print(*full[-1], file=sys.stderr)
    return {"full size": full, "every model": rows, "outside": outside}, worst


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=["layouts", "architectures", "models"])
    parser.add_argument("--seconds", type=float, default=float("inf"))
    args = parser.parse_args()
    tables: dict[str, Rows] = {}
    worst: list[float] = []
    if args.part in (None, "layouts"):
        tables["layouts"], tables["refused"], largest = layout_rows()
        worst.append(largest)
    if args.part in (None, "architectures"):
        tables["architectures"], largest = architecture_rows(args.seconds)
        worst.append(largest)
    if args.part in (None, "models"):
        found, largest = model_rows()
        tables |= found
        worst.append(largest)
    for name, heads in HEADS.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        for mark, head in heads.items():
            if mark in tables:
                page = filled(page, mark, head, tables[mark])
        (DOCS / name).write_text(page, encoding="utf-8")
    return 0 if max(worst) <= 1e-5 else 1


def filled(page: str, mark: str, head: tuple[str, ...], rows: Rows) -> str:
    """The page with a table between `<!-- mark -->` and the next `<!-- end -->`."""
    before, rest = page.split(f"<!-- {mark} -->", 1)
    lines = [head, tuple("---" for _ in head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{before}<!-- {mark} -->\n{table}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"


if __name__ == "__main__":
    sys.exit(main())
