"""CLIP: unit vectors, one temperature, and SigLIP's variations."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.loss import clip_loss, siglip_loss
from vlm.models.clip import CLIP

EOT = 2
VISION = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3, mlp_dim=48)
TEXT = TextConfig(vocab_size=50, context_length=8, width=16, depth=2, num_heads=2, mlp_dim=32, eot_id=EOT)
PLAIN = CLIPConfig(embed_dim=20, vision=VISION, text=TEXT)
SIGLIP = CLIPConfig(
    embed_dim=24,
    vision=dataclasses.replace(VISION, pool="attention", class_token=False, activation="gelu_tanh"),
    text=dataclasses.replace(TEXT, causal=False, pool="last", pad_to_context=True, activation="gelu_tanh"),
    vision_proj="none",
    text_proj="linear_bias",
    logit_scale=math.log(10),
    logit_bias=-10.0,
)
both = pytest.mark.parametrize("config", [PLAIN, SIGLIP], ids=["CLIP", "SigLIP"])


def model_of(config: CLIPConfig) -> CLIP:
    torch.manual_seed(0)
    return CLIP(config).double().eval()


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.randint(3, 50, (size, 6))
    ids[:, -1] = EOT
    return torch.randn(size, 3, 16, 16, dtype=torch.float64), ids


@both
def test_both_encoders_give_unit_vectors_in_one_space(config: CLIPConfig) -> None:
    images, texts = model_of(config)(*batch())
    assert images.shape == texts.shape == (4, config.embed_dim)
    for embeds in (images, texts):
        torch.testing.assert_close((embeds * embeds).sum(1), torch.ones(4, dtype=torch.float64))


@both
def test_embeds_are_projected_features_made_one_long(config: CLIPConfig) -> None:
    model, (images, ids) = model_of(config), batch()
    features, words = model.vision(images), model.text(ids)
    if config is PLAIN:
        features, words = features @ model.vision_proj.weight.T, words @ model.text_proj.weight.T
    else:
        words = words @ model.text_proj.weight.T + model.text_proj.bias
    torch.testing.assert_close(model.encode_image(images), features / features.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model.encode_text(ids), words / words.norm(dim=1, keepdim=True))


def test_forward_is_both_encoders_and_passes_kept_patches_on() -> None:
    model, (images, ids) = model_of(PLAIN), batch()
    keep = torch.tensor([[0, 3], [1, 2], [2, 0], [3, 1]])
    torch.testing.assert_close(model(images, ids), (model.encode_image(images), model.encode_text(ids)))
    torch.testing.assert_close(model(images, ids, keep)[0], model.encode_image(images, keep))
    assert not torch.equal(model(images, ids, keep)[0], model(images, ids)[0])


@both
def test_logits_are_scaled_cosines_plus_bias(config: CLIPConfig) -> None:
    model = model_of(config)
    images, texts = (F.normalize(torch.randn(n, config.embed_dim, dtype=torch.float64), dim=1) for n in (3, 5))
    cosines = F.cosine_similarity(images[:, None], texts[None], dim=-1)  # 3 images, 5 texts
    wanted = math.exp(config.logit_scale) * cosines + (config.logit_bias or 0)
    torch.testing.assert_close(model.logits(images, texts), wanted, rtol=1e-6, atol=1e-6)  # scale is kept in float32


def test_the_temperature_starts_at_0_07_and_has_a_bias_only_if_asked() -> None:
    plain, siglip = model_of(PLAIN), model_of(SIGLIP)
    assert 1 / plain.logit_scale.exp().item() == pytest.approx(0.07)
    assert plain.logit_bias is None
    assert siglip.logit_bias is not None
    assert "logit_bias" in dict(siglip.named_parameters())


def test_projections_start_at_the_towers_scale() -> None:
    """D^-1/2 of the tower that is read (openai/CLIP model.py), within five standard errors; biases at zero."""
    model = CLIP(dataclasses.replace(PLAIN, embed_dim=400, text_proj="linear_bias"))
    for projection, width in ((model.vision_proj, 24), (model.text_proj, 16)):
        weight, std = projection.get_parameter("weight").detach(), width**-0.5
        assert abs(float(weight.std()) - std) < 5 * std / math.sqrt(2 * weight.numel())
    assert not bool(model.text_proj.get_parameter("bias").any())


@both
def test_every_parameter_learns(config: CLIPConfig) -> None:
    model, (images, ids) = model_of(config), batch()
    x, y = model(images, ids)
    if model.logit_bias is None:
        clip_loss(x, y, model.logit_scale).backward()
    else:
        siglip_loss(x, y, model.logit_scale, model.logit_bias).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.any()), name


@both
def test_a_few_steps_teach_a_tiny_model_its_pairs(config: CLIPConfig) -> None:
    torch.manual_seed(0)
    model, (images, ids) = CLIP(config), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        x, y = model(images.float(), ids)
        loss = (
            clip_loss(x, y, model.logit_scale)
            if model.logit_bias is None
            else siglip_loss(x, y, model.logit_scale, model.logit_bias)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = model(images.float(), ids)
    assert model.logits(x, y).argmax(1).tolist() == model.logits(x, y).argmax(0).tolist() == [0, 1, 2, 3]
