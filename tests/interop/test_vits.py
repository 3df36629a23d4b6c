"""ViTs of timm, torchvision, big_vision and the book give their outputs."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.convert import load_big_vision_weights
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from tests.support.foreign_models import odd_images, pixels, randomise, rows, small_timm
from vlm.config import VisionConfig
from vlm.images.preprocess import Preprocess
from vlm.interop.formats import big_vision
from vlm.interop.formats import timm as timm_layout
from vlm.interop.formats.foreign import ForeignClassifier, Hints
from vlm.interop.loading import load_foreign, load_foreign_classifier
from vlm.models.clip import CLIP
from vlm.models.vision import ViTClassifier

_SIZES: dict[str, Any] = {"img_size": 48, "depth": 2, "num_classes": 7}


def ours_of(foreign: ForeignClassifier) -> ViTClassifier:
    model = ViTClassifier(foreign.config, foreign.num_classes)
    model.load_state_dict(foreign.state, strict=True)
    return model.eval()


def saved(folder: Path, model: nn.Module, info: dict[str, Any] | None = None) -> str:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    if info is not None:
        (folder / "config.json").write_text(json.dumps(info))
    return str(folder)


# ---- timm ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48}),
        ("vit_base_patch32_clip_224", {"embed_dim": 96, "img_size": 96}),
        ("vit_base_patch32_clip_quickgelu_224", {"embed_dim": 96, "img_size": 96}),
        ("vit_base_patch16_224", {"embed_dim": 96, "global_pool": "avg"}),
        ("vit_base_patch16_224", {"embed_dim": 96, "global_pool": "avg", "class_token": False, "fc_norm": False}),
        ("vit_medium_patch16_gap_256", {"embed_dim": 64}),
        ("vit_medium_patch16_reg4_gap_256", {"embed_dim": 64}),
        ("vit_base_patch16_siglip_224", {"embed_dim": 96, "num_classes": 5}),
        ("vit_base_patch32_siglip_256", {"embed_dim": 96, "img_size": 96}),
        ("vit_small_patch16_224", {"embed_dim": 48, "num_heads": 3, "act_layer": "gelu_tanh", "img_size": [32, 64]}),
    ],
)
def test_timm_weights_give_timm_outputs(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    arguments = _SIZES | arguments
    theirs: Any = timm.create_model(name, **arguments)
    randomise(theirs)
    foreign = load_foreign_classifier(saved(tmp_path, theirs, {"architecture": name, "model_args": arguments}))
    images = pixels(foreign.config)
    with torch.inference_mode():
        assert torch.allclose(theirs(images), ours_of(foreign)(images), atol=1e-4, rtol=1e-5)


def test_bare_timm_weights_are_told_by_their_names_and_shapes(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    randomise(theirs)
    ours = ours_of(load_foreign_classifier(saved(tmp_path, theirs)))
    assert ours.vision.config.num_heads == 3
    images = pixels(ours.vision.config)
    with torch.inference_mode():
        assert torch.allclose(theirs(images), ours(images), atol=1e-4, rtol=1e-5)


def test_bare_clip_towers_of_timm_need_their_activation_said(tmp_path: Path) -> None:
    theirs: Any = timm.create_model("vit_base_patch32_clip_224", img_size=64, depth=1, num_classes=3)
    with pytest.raises(ValueError, match=r"gelu or quick_gelu.*--activation"):
        load_foreign_classifier(saved(tmp_path, theirs))


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "swin_base", "vit_base_r50_s16_224"])
def test_timm_models_that_are_no_plain_vits_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no plain ViT"):
        timm_layout.named(name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "activation": "quick_gelu"},
        {"pool": "mean", "norm_after_pool": True, "class_token": False},
        {
            "pool": "attention",
            "class_token": False,
            "activation": "gelu_tanh",
            "image_size": (32, 64),
            "qkv_bias": False,
        },
    ],
)
def test_ours_to_timm_and_back_is_bit_identical_and_timm_gives_our_outputs(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = VisionConfig.from_dict(
        {"image_size": 48, "width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 80} | changes
    )
    ours = ViTClassifier(config, 3)
    randomise(ours)
    timm_layout.write_vision(tmp_path, config, ours.state_dict(), ("a", "b", "c"), None)
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.allclose(theirs(pixels(config)), ours(pixels(config)), atol=1e-4, rtol=1e-5)
    back = load_foreign_classifier(str(tmp_path))
    assert (back.config, back.labels) == (config, ("a", "b", "c"))
    assert all(torch.equal(back.state[name], tensor) for name, tensor in ours.state_dict().items())


def test_timm_pools_by_attention_without_the_class_token_so_the_two_together_are_refused(tmp_path: Path) -> None:
    config = VisionConfig(image_size=48, width=32, depth=1, num_heads=4, mlp_dim=80, pool="attention")
    ours = ViTClassifier(config, 3)
    with pytest.raises(ValueError, match="attention pooling beside a class token"):
        timm_layout.write_vision(tmp_path, config, ours.state_dict(), None, None)
    theirs: Any = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, embed_dim=48, global_pool="map")
    info = {"architecture": "vit_tiny_patch16_224", "global_pool": "map"}
    with pytest.raises(ValueError, match="attention pooling beside a class token"):
        load_foreign_classifier(saved(tmp_path, theirs, info | {"model_args": {"img_size": 48}}))


@pytest.mark.parametrize("mode", ["center", "squash"])
def test_pixels_equal_those_of_timm(tmp_path: Path, mode: str) -> None:
    theirs: Any = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=1, num_classes=3)
    data = {
        "input_size": [3, 48, 48],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "crop_pct": 0.9,
        "crop_mode": mode,
    }
    info = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": data | {"interpolation": "bicubic"}}
    foreign = load_foreign_classifier(saved(tmp_path, theirs, info))
    assert foreign.preprocess is not None
    transform: Any = create_transform(
        input_size=(3, 48, 48), interpolation="bicubic", crop_pct=0.9, crop_mode=mode, mean=(0, 0, 0), std=(1, 1, 1)
    )
    for image in odd_images():
        assert (transform(image) - Preprocess(foreign.preprocess).pixels(image) / 255).abs().max() <= 1.01 / 255


# ---- torchvision, the book ------------------------------------------------------------------------------------------


def test_torchvision_weights_give_torchvision_outputs(tmp_path: Path) -> None:
    theirs: Any = torchvision.models.VisionTransformer(48, 16, 2, 12, 768, 96, num_classes=7)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = ours_of(load_foreign_classifier(str(tmp_path / "vit.pth")))
    images = pixels(ours.vision.config)
    with torch.inference_mode():
        assert torch.allclose(theirs(images), ours(images), atol=1e-4, rtol=1e-5)


class BookVit(nn.Module):
    """The book's equations (3)-(17) with the book's names, written anew."""

    def __init__(self, width: int, heads: int, side: int, patch: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layer = nn.Module()
        self.input_layer.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.input_layer.pos_emb = nn.Parameter(torch.randn(1, (side // patch) ** 2 + 1, width))
        self.input_layer.patch_emb_layer = nn.Conv2d(3, width, patch, patch)
        self.encoder = nn.Sequential(*(self._block(width) for _ in range(blocks)))
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def _block(self, width: int) -> nn.Module:
        block: Any = nn.Module()
        block.ln1, block.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        block.msa = nn.Module()
        block.msa.w_q, block.msa.w_k, block.msa.w_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        block.msa.w_o = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))
        block.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.0), nn.Linear(2 * width, width))
        return block

    def forward(self, images: Tensor) -> Tensor:
        layer: Any = self.input_layer
        block: Any
        z = layer.patch_emb_layer(images).flatten(2).transpose(1, 2)
        z = torch.cat([layer.cls_token.expand(len(z), -1, -1), z], dim=1) + layer.pos_emb
        for block in self.encoder:
            normed = block.ln1(z)
            q, k, v = (
                w(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
                for w in (block.msa.w_q, block.msa.w_k, block.msa.w_v)
            )
            attention = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
            z = block.msa.w_o((attention @ v).transpose(1, 2).flatten(2)) + z
            z = block.mlp(block.ln2(z)) + z
        return self.mlp_head(z[:, 0])


def test_the_books_weights_give_the_books_outputs_once_the_heads_are_said(tmp_path: Path) -> None:
    theirs: Any = BookVit(width=48, heads=4, side=32, patch=16, blocks=3, classes=10)
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"number.*heads.*weights.*num_heads"):
        load_foreign_classifier(str(tmp_path / "vit.pth"))
    ours = ours_of(load_foreign_classifier(str(tmp_path / "vit.pth"), num_heads=4))
    images = pixels(ours.vision.config)
    with torch.inference_mode():
        assert torch.allclose(theirs(images), ours(images), atol=1e-5)
        wrong = ours_of(load_foreign_classifier(str(tmp_path / "vit.pth"), num_heads=3))
        assert not torch.allclose(theirs(images), wrong(images), atol=1e-2)


# ---- big_vision ----------------------------------------------------------------------------------------------------


_CUSTOM: Any = open_clip.model.CustomTextCLIP
_savez: Any = np.savez


def flax_block(
    random: np.random.Generator, prefix: str, width: int, heads: int, mlp: int, *, older: bool = False
) -> dict[str, np.ndarray]:
    """A block's arrays as flax keeps them."""
    attention, norm, dense = (
        ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if older
        else ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "LayerNorm_0/scale": (width,),
        "LayerNorm_0/bias": (width,),
        f"{norm}/scale": (width,),
        f"{norm}/bias": (width,),
        f"{attention}/out/kernel": (heads, width // heads, width),
        f"{attention}/out/bias": (width,),
        f"{dense}/Dense_0/kernel": (width, mlp),
        f"{dense}/Dense_0/bias": (mlp,),
        f"{dense}/Dense_1/kernel": (mlp, width),
        f"{dense}/Dense_1/bias": (width,),
    }
    for name in ("query", "key", "value"):
        shapes |= {
            f"{attention}/{name}/kernel": (width, heads, width // heads),
            f"{attention}/{name}/bias": (heads, width // heads),
        }
    return {f"{prefix}{name}": noise(random, *shape) for name, shape in shapes.items()}


def noise(random: np.random.Generator, *shape: int) -> np.ndarray:
    return (random.standard_normal(shape) * 0.3).astype(np.float32)


def flax_vit(random: np.random.Generator, width: int, heads: int, *, older: bool = False) -> dict[str, np.ndarray]:
    arrays = {"embedding/kernel": noise(random, 16, 16, 3, width), "embedding/bias": noise(random, width)}
    for layer in range(2):
        arrays |= flax_block(random, f"Transformer/encoderblock_{layer}/", width, heads, 4 * width, older=older)
    return arrays | {f"Transformer/encoder_norm/{part}": noise(random, width) for part in ("scale", "bias")}


def flax_siglip(*, stacked: bool) -> dict[str, np.ndarray]:
    random, width, heads, text = np.random.default_rng(0), 96, 12, 64
    image = flax_vit(random, width, heads) | {
        "pos_embedding": noise(random, 1, 9, width),
        "MAPHead_0/probe": noise(random, 1, 1, width),
    }
    pool = {
        name.replace("LayerNorm_1", "LayerNorm_0"): array
        for name, array in flax_block(random, "MAPHead_0/", width, heads, 4 * width).items()
    }
    words = {"Embed_0/embedding": noise(random, 120, text), "pos_embedding": noise(random, 1, 12, text)}
    for layer in range(2):
        words |= flax_block(random, f"Encoder_0/encoderblock_{layer}/", text, 4, 4 * text)
    words |= {f"Encoder_0/encoder_norm/{part}": noise(random, text) for part in ("scale", "bias")}
    words |= {"head/kernel": noise(random, text, width), "head/bias": noise(random, width)}
    arrays = {f"params/img/{name}": array for name, array in (image | pool).items()}
    arrays |= {f"params/txt/{name}": array for name, array in words.items()}
    arrays |= {"params/t": np.array([2.1], np.float32), "params/b": np.array([-9.5], np.float32)}
    return stack(arrays) if stacked else arrays


def stack(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Two blocks along a first axis, as big_vision's scan keeps them."""
    first = {name: array for name, array in arrays.items() if "encoderblock_0" in name}
    rest = {name: array for name, array in arrays.items() if "encoderblock_" not in name}
    return rest | {
        n.replace("block_0/", "block/"): np.stack([a, arrays[n.replace("block_0", "block_1")]])
        for n, a in first.items()
    }


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_siglip_gives_what_openclip_reads_from_it(tmp_path: Path, stacked: bool) -> None:
    path = tmp_path / "siglip.npz"
    arrays = flax_siglip(stacked=stacked)
    _savez(path, **arrays)
    text = {
        "context_length": 12,
        "vocab_size": 120,
        "width": 64,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "pool_type": "last",
    }
    with small_timm(img_size=48, depth=2, embed_dim=96):
        theirs: Any = _CUSTOM(
            embed_dim=96,
            vision_cfg={
                "image_size": 48,
                "timm_model_name": "vit_base_patch16_siglip_224",
                "timm_pool": "map",
                "timm_proj": "none",
            },
            text_cfg=text | {"proj_bias": True, "norm_kwargs": {"eps": 1e-6}},
            init_logit_bias=-10,
        ).eval()
    load_big_vision_weights(theirs, str(path))
    foreign = load_foreign(str(path), activation="gelu")  # OpenCLIP's reading; JAX's own GELU is the tanh form
    assert load_foreign(str(path)).config.vision.activation == "gelu_tanh"
    ours = CLIP(foreign.config).eval()
    ours.load_state_dict(foreign.state)
    images, ids = pixels(foreign.config.vision), rows(foreign.config.text)
    with torch.inference_mode():
        assert torch.allclose(theirs.encode_image(images, normalize=True), ours.encode_image(images), atol=1e-5)
        assert torch.allclose(theirs.encode_text(ids, normalize=True), ours.encode_text(ids), atol=1e-5)
    assert (foreign.config.text.eot_id, foreign.config.text.pad_id) == (1, 1)  # T5's end-of-text is its padding too
    assert (foreign.config.logit_scale, foreign.config.logit_bias) == (math.log(10), -10)  # before training
    assert (ours.logit_scale.item(), ours.logit_bias.item()) == pytest.approx((2.1, -9.5))  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("older", [False, True])
def test_npz_vits_give_what_timm_reads_from_them(tmp_path: Path, older: bool) -> None:
    random = np.random.default_rng(1)
    arrays = flax_vit(random, 48, 3, older=older) | {"cls": noise(random, 1, 1, 48)}
    arrays["Transformer/posembed_input/pos_embedding" if older else "pos_embedding"] = noise(random, 1, 10, 48)
    bare = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert big_vision.read_classifier(bare, Hints()).num_classes == 0
    arrays |= {"head/kernel": noise(random, 48, 7), "head/bias": noise(random, 7)}
    path = tmp_path / "vit.npz"
    _savez(path, **arrays)
    theirs: Any = timm.create_model("vit_tiny_patch16_224", embed_dim=48, **_SIZES).eval()
    if older:
        theirs.load_pretrained(str(path))
        foreign = load_foreign_classifier(str(path), activation="gelu")
        images = pixels(foreign.config)
        with torch.inference_mode():
            assert torch.allclose(theirs(images), ours_of(foreign)(images), atol=1e-4)
    else:  # the same numbers under big_vision's newer names
        newer = load_foreign_classifier(str(path))
        _savez(
            tmp_path / "older.npz",
            **(
                flax_vit(np.random.default_rng(1), 48, 3, older=True)
                | {k: v for k, v in arrays.items() if "Transformer" not in k and "embedding/" not in k}
            ),
        )
        again = load_foreign_classifier(str(tmp_path / "older.npz"))
        assert newer.state.keys() == again.state.keys()
        assert torch.equal(
            newer.state["vision.blocks.1.attn.qkv.weight"], again.state["vision.blocks.1.attn.qkv.weight"]
        )


def test_what_a_big_vision_siglip_holds_beyond_or_less_is_seen() -> None:
    state = {name: torch.from_numpy(array) for name, array in flax_siglip(stacked=False).items()}
    gemma = state | {"params/txt/Embed_0/embedding": torch.zeros(256_000, 64, device="meta")}
    assert big_vision.read_clip(gemma, Hints())[0].text.pad_id == 0  # SigLIP 2's
    bare, _ = big_vision.read_clip({name: t for name, t in state.items() if name != "params/b"}, Hints())
    assert bare.logit_bias is None
    head = {"params/img/head/kernel": torch.randn(96, 96), "params/img/head/bias": torch.randn(96)}
    config, ours = big_vision.read_clip(state | head, Hints(norm_eps=1e-3, activation="gelu"))
    assert torch.equal(ours["vision_proj.weight"], head["params/img/head/kernel"].T)
    assert config.vision_proj == config.text_proj == "linear_bias"
    for tower in (config.vision, config.text):
        assert (tower.norm_eps, tower.activation) == (1e-3, "gelu")


def test_big_vision_positions_are_resized_bilinearly(tmp_path: Path) -> None:
    path = tmp_path / "siglip.npz"
    arrays = flax_siglip(stacked=False)
    _savez(path, **arrays)
    grid = torch.from_numpy(arrays["params/img/pos_embedding"]).view(1, 3, 3, -1).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(grid, (4, 4), mode="bilinear", antialias=True, align_corners=False)
    positions = load_foreign(str(path), image_size=64).state["vision.pos_embed"]
    assert torch.allclose(positions, expected.flatten(2).transpose(1, 2))
