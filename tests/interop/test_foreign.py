"""What every conversion asks and says: hints, whole patches, JSON files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlm.config import VisionConfig
from vlm.interop.formats.foreign import HEADS, Hints, one_line, read_json, skeleton, whole_patches, write_json
from vlm.models.vision import ViTClassifier


def test_heads_are_as_said_or_else_as_known_of_the_width() -> None:
    assert Hints(num_heads=2).need_heads(48, {48: 3}, "here") == 2
    assert Hints().need_heads(48, {32: 1, 48: 3, 64: 5}, "here") == 3


@pytest.mark.parametrize("width", [16, 30, 48, 62, 100, 768])
def test_of_an_unknown_width_the_heads_that_fit_are_listed(width: int) -> None:
    """Each divides the width, and is at least 16 wide."""
    fitting = [heads for heads in range(1, 2 * width) if width / heads in range(16, 2 * width)]
    line = f"here: the number of heads is not in the weights; width {width} fits {', '.join(map(str, fitting))}. "
    with pytest.raises(ValueError, match="^" + re.escape(line + "Say num_heads (--num-heads).") + "$"):
        Hints().need_heads(width, {2 * width: 4}, "here")


def test_an_activation_is_as_said_or_the_only_candidate() -> None:
    assert Hints(activation="quick_gelu").need_activation(("gelu",), "here") == "quick_gelu"
    assert Hints(activation="gelu").need_activation(("quick_gelu", "gelu"), "here") == "gelu"
    assert Hints().need_activation(("gelu_tanh",), "here") == "gelu_tanh"
    line = "here: the activation is not in the weights; it may be gelu or quick_gelu. Say activation (--activation)."
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        Hints().need_activation(("gelu", "quick_gelu"), "here")


def test_known_heads_are_those_of_published_models() -> None:
    import open_clip
    import timm

    towers = [config["vision_cfg"] for name in open_clip.list_models() if (config := open_clip.get_model_config(name))]
    taken = open_clip.CLIPVisionCfg()
    widths = [(cfg.get("width", taken.width), cfg.get("head_width", taken.head_width)) for cfg in towers]
    published = {(width, width // head) for width, head in widths}
    for name in ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_so400m_patch14_siglip_224"):
        with torch.device("meta"):
            model: Any = timm.create_model(name, depth=1)
        published.add((model.embed_dim, model.blocks[0].attn.num_heads))
    assert set(HEADS.items()) <= published


@pytest.mark.parametrize("num_classes", [0, 3])
def test_a_skeleton_has_every_name_and_shape_and_no_memory(num_classes: int) -> None:
    config = VisionConfig(image_size=32, width=32, depth=2, num_heads=2, mlp_dim=48)
    whole = ViTClassifier(config, num_classes or 1).state_dict()
    wanted = {name: t.shape for name, t in whole.items() if num_classes or not name.startswith("head.")}
    found = skeleton(config, num_classes).state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == wanted
    assert all(tensor.is_meta for tensor in found.values())


@pytest.mark.parametrize("side", [50, 48, 63, (50, 37), [33, 64], (48, 31), (16, 40)])
def test_whole_patches_are_those_that_a_convolution_makes(side: Any) -> None:
    shape = side if isinstance(side, (tuple, list)) else (side, side)
    made = nn.Conv2d(1, 1, 16, 16)(torch.zeros(1, 1, *shape)).shape[2:]
    height, width = (16 * patches for patches in made)
    assert whole_patches(side, 16) == (height if height == width else (height, width))


def test_json_comes_back_as_it_was_written_and_is_legible(tmp_path: Path) -> None:
    content = {"名": "犬", "sizes": [1, 2], "deep": {"on": True, "none": None}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    text = (tmp_path / "a.json").read_text("utf-8")
    assert '\n  "名": "犬",\n' in text
    assert (text[0], text[-3:]) == ("{", "\n}\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, r"is missing\."),
        ("[1, 2]", r"holds a list; wanted a JSON object\."),
        ("1", r"holds a int; wanted a JSON object\."),
        ('{"a": ', r"is not readable JSON \(Expecting value: line 1 column 7 \(char 6\)\)\."),
        (b'"\xff"', r"is not readable JSON \(.*can't decode byte 0xff.*\)\."),
        ("[" * 100_000, r"is not readable JSON \(.*recursion.*\)\."),
    ],
)
def test_what_is_no_json_object_is_one_line_that_names_the_file(tmp_path: Path, text: Any, line: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {line}$"):
        read_json(path)
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} is not readable JSON \(.*[dD]irectory|denied"):
        read_json(path)


def test_one_line_is_the_beginning_of_what_an_error_says_or_its_name() -> None:
    assert one_line(ValueError("no\n  route\tto host ")) == "no route to host"
    assert one_line(KeyError()) == "KeyError"
    with pytest.raises(json.JSONDecodeError) as refused:
        json.loads("{")
    assert one_line(refused.value) == str(refused.value)
    long = " ".join(map(str, range(1000)))
    assert long.startswith(one_line(ValueError(long)))
    assert len(one_line(ValueError(long))) == 200
