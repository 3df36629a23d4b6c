"""ViTs without texts give the features of their own library, at the trained size and at a larger one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn

import vlm
from tests.support.foreign_models import randomise
from vlm.errors import OtherKind

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_MLP: dict[str, Any] = _SIZES | {"intermediate_size": 64}
_DINO: dict[str, Any] = _SIZES | {"mlp_ratio": 2, "layerscale_value": 0.7}
HUGGING_FACE: dict[str, Any] = {
    "DINOv2": (transformers.Dinov2Config(**_DINO), transformers.Dinov2Model),
    "DINOv2 with registers": (
        transformers.Dinov2WithRegistersConfig(**_DINO, num_register_tokens=4),
        transformers.Dinov2WithRegistersModel,
    ),
    "DINOv2 with a head": (transformers.Dinov2Config(**_DINO), transformers.Dinov2ForImageClassification),
    "DeiT": (transformers.DeiTConfig(**_MLP), transformers.DeiTModel),
    "DeiT with two heads": (transformers.DeiTConfig(**_MLP), transformers.DeiTForImageClassificationWithTeacher),
    "ViT": (transformers.ViTConfig(**_MLP), transformers.ViTModel),
    "MAE": (
        transformers.ViTMAEConfig(**_MLP, decoder_hidden_size=16, decoder_num_hidden_layers=1,
                                  decoder_num_attention_heads=2, decoder_intermediate_size=16, mask_ratio=0.0),
        transformers.ViTMAEForPreTraining,
    ),
    "CLIP's image encoder": (transformers.CLIPVisionConfig(**_MLP), transformers.CLIPVisionModel),
    "SigLIP's image encoder": (transformers.SiglipVisionConfig(**_MLP), transformers.SiglipVisionModel),
}  # fmt: skip
TIMM = {
    "DINOv2": "vit_small_patch14_dinov2",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DeiT III": "deit3_small_patch16_224",
    "DeiT": "deit_tiny_patch16_224",
    "DeiT distilled": "deit_tiny_distilled_patch16_224",
    "MAE": "vit_base_patch16_224.mae",
}


def pixels(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def class_features(name: str, model: Any, images: torch.Tensor, *, resized: bool) -> torch.Tensor:
    """What transformers' own model makes of the class token, behind its last norm."""
    inner = getattr(model, model.base_model_prefix, model) if "image encoder" not in name else model
    settings: dict[str, Any] = {"interpolate_pos_encoding": True} if resized and "DINO" not in name else {}
    if "MAE" in name:
        patches = (images.shape[-1] // 8) ** 2
        settings["noise"] = torch.arange(patches, dtype=torch.float32).repeat(2, 1)  # the order stays
    out = inner(pixel_values=images, **settings)
    return out.pooler_output if "image encoder" in name else out.last_hidden_state[:, 0]


@pytest.mark.parametrize("name", HUGGING_FACE)
@pytest.mark.parametrize("side", [32, 48])
def test_hugging_face_backbones_give_hugging_faces_features(tmp_path: Path, name: str, side: int) -> None:
    if side != 32 and "image encoder" in name:
        pytest.skip("resized as OpenCLIP does: a known difference in docs/interop.md")
    config, kind = HUGGING_FACE[name]
    theirs: Any = kind(config)
    with torch.no_grad():
        kept = {n: p.clone() for n, p in theirs.named_parameters() if "MAE" in name and "position" in n}
        randomise(theirs)
        for parameter, values in kept.items():
            theirs.get_parameter(parameter).copy_(values)
    theirs.save_pretrained(tmp_path)
    ours = vlm.load_backbone(tmp_path, image_size=None if side == 32 else side)
    images = pixels(side)
    with torch.inference_mode():
        expected, found = class_features(name, theirs, images, resized=side != 32), ours.vision(images)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("grow", [0, 2])
def test_timms_backbones_give_timms_features(tmp_path: Path, name: str, grow: int) -> None:
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    theirs: Any = timm.create_model(TIMM[name], img_size=3 * (14 if "DINO" in name else 16), **sizes)
    randomise(theirs)
    side = theirs.patch_embed.patch_size[0] * 3
    timm.models.save_for_hf(  # writes config.json as timm's own repositories have it
        theirs, str(tmp_path), model_args=sizes | {"img_size": side}
    )
    backbone = vlm.load_backbone(tmp_path, image_size=side + grow * side // 3 if grow else None)
    images = pixels(side + grow * side // 3)
    if grow:
        larger: Any = timm.create_model(TIMM[name], img_size=images.shape[-1], **sizes).eval()
        larger.load_state_dict(checkpoint_filter_fn(theirs.state_dict(), larger))
        theirs = larger
    with torch.inference_mode():
        expected, found = theirs.forward_features(images)[:, 0], backbone.vision(images)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("library", ["CLIP", "Siglip"])
def test_classifiers_on_clips_image_encoder_give_their_logits(tmp_path: Path, library: str) -> None:
    config = getattr(transformers, f"{library}Config")(vision_config=_MLP, id2label={0: "犬", 1: "cat", 2: "鳥"})
    theirs: Any = getattr(transformers, f"{library}ForImageClassification")(config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = vlm.load_classifier(tmp_path)
    assert ours.labels == ("犬", "cat", "鳥")
    with torch.inference_mode():
        expected, found = theirs(pixel_values=pixels(32)).logits, ours(pixels(32))
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_a_vit_without_a_head_names_what_opens_it_and_reads_images(tmp_path: Path) -> None:
    config, kind = HUGGING_FACE["DINOv2 with registers"]
    kind(config).save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    with pytest.raises(OtherKind, match="load_backbone"):
        vlm.load_classifier(tmp_path)
    backbone = vlm.load_backbone(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert backbone.features([image, image]).shape == (2, 32)
    assert backbone.vision.features(pixels(32)).patches.shape == (2, 32, 4, 4)


def test_every_model_of_ours_is_a_backbone(tiny_embedder: vlm.Embedder, tmp_path: Path) -> None:
    vlm.save(tiny_embedder, tmp_path / "clip")
    backbone = vlm.load_backbone(tmp_path / "clip")
    images = torch.zeros(1, 3, *tiny_embedder.model.config.vision.image_shape)
    with torch.inference_mode():
        assert torch.equal(backbone.vision(images), tiny_embedder.model.vision(images))


def test_swiglu_layers_are_refused_by_name(tmp_path: Path) -> None:
    model = transformers.Dinov2Model(transformers.Dinov2Config(**_DINO, use_swiglu_ffn=True))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SwiGLU"):
        vlm.load_backbone(tmp_path)
