from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlm.clip import CLIP
from vlm.config import PreprocessConfig
from vlm.embedder import Embedder
from vlm.preprocess import ImageError, Preprocess
from vlm.tokenizer import CLIPTokenizer, Tokenizer

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


def test_paths_pil_images_and_arrays_of_one_picture_give_one_vector(tiny_embedder: Embedder, picture_folder: Path):
    path = picture_folder / "a.png"
    with Image.open(path) as image:
        embeds = tiny_embedder.embed_images([path, str(path), image.copy(), np.array(image)])
    expected = tiny_embedder.model.encode_image(tiny_embedder.preprocess(path)[None])
    assert torch.allclose(embeds, expected.expand(4, -1), atol=1e-6)


def test_pictures_come_back_in_order_whatever_the_batches(tiny_embedder: Embedder, picture_folder: Path):
    paths = sorted(picture_folder.glob("?.*"))
    expected = torch.cat([tiny_embedder.embed_images([path]) for path in paths])
    for batch_size in (2, 5, 32):
        assert torch.allclose(tiny_embedder.embed_images(iter(paths), batch_size), expected, atol=1e-6)


def test_vectors_are_float32_on_the_cpu_of_unit_length_and_autograd_accepts_them(
    tiny_embedder: Embedder, picture_folder: Path
):
    embeds = torch.cat([tiny_embedder.embed_texts(TEXTS), tiny_embedder.embed_images([picture_folder / "a.png"])])
    assert embeds.dtype == torch.float32
    assert embeds.device.type == "cpu"
    assert torch.allclose(embeds.norm(dim=1), torch.ones(len(TEXTS) + 1), atol=1e-6)
    probe = nn.Linear(tiny_embedder.embed_dim, 1)
    probe(tiny_embedder.embed_images([picture_folder / "a.png"])).sum().backward()
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
    assert Embedder(tiny_clip, None, Preprocess(PreprocessConfig(image_size=32)), name="other").fingerprint == first
    squash = Preprocess(PreprocessConfig(image_size=32, resize="squash"))
    assert Embedder(tiny_clip, tiny_tokenizer, squash).fingerprint != first
    with torch.no_grad():
        tiny_clip.vision.blocks[1].get_parameter("mlp.fc2.bias")[3] += 1e-7
    assert tiny_embedder.fingerprint != first


def test_an_absent_part_is_one_clear_line_and_the_other_part_works(tiny_clip: CLIP, tiny_tokenizer: Tokenizer):
    bare = Embedder(tiny_clip, None, None, name="bare")
    with pytest.raises(ValueError, match="bare came without a tokenizer"):
        bare.embed_texts(["a dog"])
    with pytest.raises(ValueError, match="bare came without preprocessing settings"):
        bare.embed_images(["a.png"])
    assert len(Embedder(tiny_clip, tiny_tokenizer, None).embed_texts(["a dog"])) == 1


def test_one_picture_or_one_text_in_place_of_a_list_is_refused(tiny_embedder: Embedder):
    array = np.zeros((8, 8, 3), dtype=np.uint8)
    for picture in ("a.png", Path("a.png"), Image.new("RGB", (8, 8)), array):
        with pytest.raises(ValueError, match="wanted a list of pictures, got one"):
            tiny_embedder.embed_images(picture)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Write \['a dog'\]"):
        tiny_embedder.embed_texts("a dog")
    assert len(tiny_embedder.embed_images(array[None])) == 1  # a batch of one


def test_a_broken_picture_is_named(tiny_embedder: Embedder, picture_folder: Path):
    broken = picture_folder / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(ImageError, match=r"broken\.png: not a picture"):
        tiny_embedder.embed_images([picture_folder / "a.png", broken])


def test_parts_of_different_models_are_refused(tiny_clip: CLIP):
    with pytest.raises(ValueError, match=r"vocab_size 49408, .*tokenizer context_length 77, model 16; .*eot_id"):
        Embedder(tiny_clip, CLIPTokenizer(), None)
    with pytest.raises(ValueError, match=r"image_size \(224, 224\), model \(32, 32\)"):
        Embedder(tiny_clip, None, Preprocess(PreprocessConfig()))
