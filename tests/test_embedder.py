import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import nn

from vlm.calibration import Calibration
from vlm.checkpoint.save import save
from vlm.config import PreprocessConfig
from vlm.embedder import Embedder
from vlm.errors import ImageError, InputError
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.protocol import Tokenizer

TEXTS = ["犬", "a drawing of a house", "car", "海に沈む夕日", "a dog", "a red apple on a table"]


def test_texts_come_back_in_order_whatever_the_batches(tiny_embedder: Embedder):
    expected = torch.cat([tiny_embedder.model.encode_text(tiny_embedder.tokenizer([text])) for text in TEXTS])
    for batch_size in (1, 2, 4, 256):
        assert torch.allclose(tiny_embedder.embed_texts(TEXTS, batch_size), expected, atol=1e-6)


def test_no_batch_of_texts_is_wider_than_its_own_longest(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    widths: list[int] = []
    encode = tiny_embedder.model.encode_text
    monkeypatch.setattr(tiny_embedder.model, "encode_text", lambda ids: widths.append(ids.shape[1]) or encode(ids))
    tiny_embedder.embed_texts(TEXTS, batch_size=2)
    lengths = sorted(len(tiny_embedder.tokenizer.encode(text)) for text in TEXTS)
    assert widths == lengths[1::2]


def test_paths_pil_images_and_arrays_of_one_image_give_one_vector(tiny_embedder: Embedder, image_folder: Path):
    path = image_folder / "a.png"
    with Image.open(path) as image:
        embeds = tiny_embedder.embed_images([path, str(path), image.copy(), np.array(image)])
    expected = tiny_embedder.model.encode_image(tiny_embedder.preprocess(path)[None])
    assert torch.allclose(embeds, expected.expand(4, -1), atol=1e-6)


def test_images_come_back_in_order_whatever_the_batches(tiny_embedder: Embedder, image_folder: Path):
    paths = sorted(image_folder.glob("?.*"))
    expected = torch.cat([tiny_embedder.embed_images([path]) for path in paths])
    for batch_size in (2, 5, 32):
        assert torch.allclose(tiny_embedder.embed_images(iter(paths), batch_size), expected, atol=1e-6)


def test_vectors_are_float32_on_the_cpu_of_unit_length_and_autograd_accepts_them(
    tiny_embedder: Embedder, image_folder: Path
):
    embeds = torch.cat([tiny_embedder.embed_texts(TEXTS), tiny_embedder.embed_images([image_folder / "a.png"])])
    assert embeds.dtype == torch.float32
    assert embeds.device.type == "cpu"
    assert torch.allclose(embeds.norm(dim=1), torch.ones(len(TEXTS) + 1), atol=1e-6)
    probe = nn.Linear(tiny_embedder.embed_dim, 1)
    probe(tiny_embedder.embed_images([image_folder / "a.png"])).sum().backward()
    probe(tiny_embedder.embed_texts(["a dog"])).sum().backward()
    assert probe.weight.grad is not None
    assert probe.weight.grad.abs().sum() > 0


def test_nothing_in_gives_nothing_out(tiny_embedder: Embedder):
    assert tiny_embedder.embed_texts([]).shape == (0, 24)
    assert tiny_embedder.embed_images([]).shape == (0, 24)


def test_a_model_in_training_embeds_without_dropout_and_goes_on_training(tiny_embedder: Embedder):
    expected = tiny_embedder.embed_texts(TEXTS)
    for module in tiny_embedder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    tiny_embedder.model.train()
    assert torch.allclose(tiny_embedder.embed_texts(TEXTS), expected, atol=1e-6)
    assert tiny_embedder.model.training


def test_the_fingerprint_changes_with_any_weight_or_setting_and_with_nothing_else(
    tiny_embedder: Embedder, tiny_clip: CLIP, tiny_tokenizer: Tokenizer
):
    first = tiny_embedder.fingerprint
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert Embedder(tiny_clip, None, Preprocess(PreprocessConfig(image_size=32)), name="other").fingerprint == first
    squash = Preprocess(PreprocessConfig(image_size=32, resize="squash"))
    assert Embedder(tiny_clip, tiny_tokenizer, squash).fingerprint != first
    assert Embedder(tiny_clip, tiny_tokenizer, None).fingerprint != first
    with torch.no_grad():
        tiny_clip.vision.blocks[1].get_parameter("mlp.fc2.bias")[3] += 1e-7
    assert tiny_embedder.fingerprint != first


def test_the_fingerprint_is_the_one_that_older_indexes_hold(tiny_embedder: Embedder, tmp_path: Path):
    """sha256 of the settings in the order of their names, then of every weight in the order of theirs."""
    save(tiny_embedder, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    digest = hashlib.sha256(json.dumps([config["model"], config["preprocess"]], sort_keys=True).encode())
    for name, weight in sorted(load_file(tmp_path / "saved" / "model.safetensors").items()):
        digest.update(f"{name} torch.float32 {weight.shape}".encode() + weight.tobytes())
    assert tiny_embedder.fingerprint == digest.hexdigest()[:16]


def test_who_says_how_probable_a_match_is_and_what_none_is(tiny_clip: CLIP):
    """More of it in test_calibration.py."""
    cosines = torch.tensor([[-0.2, 0.4, 0.6]])
    ranking = Embedder(tiny_clip, None, None)
    assert ranking.match_probability(cosines) is None  # a softmax only ranks
    assert not ranking.no_good_match(0.0)
    siglip = Embedder(CLIP(dataclasses.replace(tiny_clip.config, logit_scale=2.0, logit_bias=-3.0)), None, None)
    wanted = 1 / (1 + torch.exp(3 - math.exp(2) * cosines))
    torch.testing.assert_close(siglip.match_probability(cosines), wanted)
    calibrated = Embedder(siglip.model, None, None, calibration=Calibration(scale=20.0, bias=-12.0, line=0.25))
    torch.testing.assert_close(calibrated.match_probability(cosines), 1 / (1 + torch.exp(12 - 20 * cosines)))
    assert [calibrated.no_good_match(p) for p in (0.24, 0.25, 0.26, 0.0, None)] == [True, False, False, True, False]


def test_an_error_inside_leaves_a_model_in_training(tiny_embedder: Embedder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny_embedder.model, "encode_image", lambda pixels: 1 / 0)
    tiny_embedder.model.train()
    with pytest.raises(ZeroDivisionError):
        tiny_embedder.embed_pixels(torch.zeros(1, 3, 32, 32))
    assert tiny_embedder.model.training
    tiny_embedder.model.eval().encode_text(tiny_embedder.tokenizer(["a dog"])).sum().backward()  # gradients are back


def test_an_absent_part_is_one_clear_line_and_the_other_part_works(tiny_clip: CLIP, tiny_tokenizer: Tokenizer):
    bare = Embedder(tiny_clip, None, None, name="bare")
    with pytest.raises(ValueError, match="bare came without a tokenizer"):
        bare.embed_texts(["a dog"])
    with pytest.raises(ValueError, match="bare came without preprocessing settings"):
        bare.embed_images(["a.png"])
    assert len(Embedder(tiny_clip, tiny_tokenizer, None).embed_texts(["a dog"])) == 1


def test_one_image_is_embedded_as_a_list_of_one(tiny_embedder: Embedder, image_folder: Path):
    path = image_folder / "a.png"
    expected = tiny_embedder.embed_images([path])
    with Image.open(path) as image, path.open("rb") as file:
        array = np.array(image)
        for one in (path, str(path), path.read_bytes(), file, image, array):
            torch.testing.assert_close(tiny_embedder.embed_images(one), expected, rtol=0, atol=0)
    torch.testing.assert_close(tiny_embedder.embed_images(array[None]), expected, rtol=0, atol=0)  # a batch of one


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda items: (item for item in items), dict.fromkeys])
def test_any_iterable_of_images_or_texts_is_embedded_in_its_order(kind, tiny_embedder: Embedder, image_folder: Path):
    paths = [image_folder / name for name in ("b.png", "a.png", "c.jpg")]
    expected = torch.cat([tiny_embedder.embed_images(path) for path in paths])
    torch.testing.assert_close(tiny_embedder.embed_images(kind(paths), batch_size=2), expected, rtol=0, atol=1e-6)
    texts = torch.cat([tiny_embedder.embed_texts(text) for text in TEXTS])
    torch.testing.assert_close(tiny_embedder.embed_texts(kind(TEXTS)), texts, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [None, 7])
def test_what_is_no_image_and_no_iterable_is_refused(wrong: object, tiny_embedder: Embedder):
    with pytest.raises(InputError, match=type(wrong).__name__):
        tiny_embedder.embed_images(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=type(wrong).__name__):
        tiny_embedder.embed_texts(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=type(wrong).__name__):
        tiny_embedder.embed_texts(["a dog", wrong])  # type: ignore[list-item]


def test_an_encoder_in_eval_stays_in_eval_and_the_rest_goes_on_training(tiny_embedder: Embedder):
    tiny_embedder.model.train()
    tiny_embedder.model.vision.eval()
    before = {name: module.training for name, module in tiny_embedder.model.named_modules()}
    tiny_embedder.embed_texts(TEXTS)
    tiny_embedder.embed_images([Image.new("RGB", (8, 8))])
    assert {name: module.training for name, module in tiny_embedder.model.named_modules()} == before
    assert set(before.values()) == {True, False}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
def test_weights_in_16_bits_give_nearly_the_same_embeddings_under_the_same_fingerprint(
    dtype: str | torch.dtype, tiny_embedder: Embedder, image_folder: Path
):
    texts, images = tiny_embedder.embed_texts(TEXTS), tiny_embedder.embed_images(image_folder / "a.png")
    fingerprint, scale = tiny_embedder.fingerprint, tiny_embedder.model.logit_scale.clone()
    assert tiny_embedder.to(dtype=dtype) is tiny_embedder
    assert str(tiny_embedder.dtype).removeprefix("torch.") in str(dtype)
    for exact, found in (
        (texts, tiny_embedder.embed_texts(TEXTS)),
        (images, tiny_embedder.embed_images(image_folder / "a.png")),
    ):
        assert found.dtype == torch.float32 and not torch.equal(found, exact)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
        assert float((found * exact).sum(1).min()) > 0.999
    assert tiny_embedder.fingerprint == fingerprint
    assert torch.equal(tiny_embedder.model.logit_scale, scale)  # a temperature in 16 bits would be 1 % off
    with torch.no_grad():
        tiny_embedder.model.vision.blocks[0].get_parameter("mlp.fc2.bias").add_(1)
    assert tiny_embedder.fingerprint != fingerprint  # other weights


def test_a_model_cast_by_hand_takes_pixels_of_its_own_format(tiny_embedder: Embedder):
    exact = tiny_embedder.embed_images(Image.new("RGB", (8, 8), "red"))
    tiny_embedder.model.double()
    torch.testing.assert_close(tiny_embedder.embed_images(Image.new("RGB", (8, 8), "red")), exact)


@pytest.mark.parametrize("wrong", [{"device": "gpu"}, {"device": "cuda:99"}, {"dtype": "int8"}, {"dtype": torch.int8}])
def test_a_device_or_format_that_is_not_there_is_named(wrong: dict[str, Any], tiny_embedder: Embedder):
    with pytest.raises(InputError, match=str(*wrong.values()).removeprefix("torch.")):
        tiny_embedder.to(**wrong)


def test_its_repr_says_what_it_is(tiny_embedder: Embedder):
    shown = repr(tiny_embedder)
    for fact in ("'tiny'", "CLIP", "24 dimensions", "32 x 32", "16 tokens", "float32 on cpu"):
        assert fact in shown
    assert "images" not in repr(Embedder(tiny_embedder.model, None, None))


def test_a_broken_image_is_named(tiny_embedder: Embedder, image_folder: Path):
    broken = image_folder / "broken.png"
    broken.write_text("no image")
    with pytest.raises(ImageError, match=r"broken\.png: not an image"):
        tiny_embedder.embed_images([image_folder / "a.png", broken])


def test_parts_of_different_models_are_refused_all_at_once(tiny_clip: CLIP):
    vocab_size, eot_id = tiny_clip.config.text.vocab_size, tiny_clip.config.text.eot_id
    with pytest.raises(ValueError, match="do not belong together") as error:
        Embedder(tiny_clip, CLIPTokenizer(), Preprocess(PreprocessConfig(image_size=(32, 48))))
    assert str(error.value) == (
        f"These parts do not belong together: tokenizer vocab_size 49408, model {vocab_size}; "
        f"tokenizer context_length 77, model 16; tokenizer eot_id 49407, model {eot_id}; "
        "preprocess image_size (32, 48), model (32, 32). Take all three from one model."
    )
    with pytest.raises(ValueError, match=r"preprocess image_size \(224, 224\).*\(32, 32\)"):
        Embedder(tiny_clip, None, Preprocess(PreprocessConfig()))


def test_a_model_may_know_more_words_and_longer_texts_and_pool_without_their_end(
    tiny_clip: CLIP, tiny_tokenizer: Tokenizer
):
    text = dataclasses.replace(tiny_clip.config.text, vocab_size=tiny_tokenizer.vocab_size + 1, context_length=17)
    mean = dataclasses.replace(text, pool="mean", pad_to_context=True, eot_id=tiny_tokenizer.eot_id + 1)
    for config in (text, mean):
        model = CLIP(dataclasses.replace(tiny_clip.config, text=config)).eval()
        assert Embedder(model, tiny_tokenizer, None).embed_texts(TEXTS).isfinite().all()
    with pytest.raises(ValueError, match=r"together: tokenizer eot_id 2, model 3\."):
        Embedder(
            CLIP(dataclasses.replace(tiny_clip.config, text=dataclasses.replace(text, eot_id=3))), tiny_tokenizer, None
        )
