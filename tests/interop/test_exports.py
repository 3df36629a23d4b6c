"""What we export is opened by the peers' own loaders, with our outputs, our ids and our pixels."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import torch
import transformers
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from tests.support.foreign_models import (
    captions,
    clip_config,
    odd_images,
    pixels,
    randomise,
    rows,
    sentencepiece_model,
    siglip_config,
)
from vlm.checkpoint.load import load_classifier
from vlm.config import CLIPConfig, CosineHeadConfig, PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.interop.exports import Format, export
from vlm.interop.formats.foreign import exact
from vlm.interop.loading import load_foreign, load_foreign_classifier
from vlm.models.clip import CLIP
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.tokenizers.protocol import Tokenizer
from vlm.tokenizers.sentencepiece import SentencePieceTokenizer

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def sentencepiece() -> SentencePieceTokenizer:
    return SentencePieceTokenizer(sentencepiece_model(), 24)


def embedder(config: CLIPConfig, tokenizer: Tokenizer, preprocess: PreprocessConfig | None = None) -> Embedder:
    ids = {
        "vocab_size": tokenizer.vocab_size,
        "context_length": tokenizer.context_length,
        "eot_id": tokenizer.eot_id,
        "pad_id": tokenizer.pad_id,
    }
    model = CLIP(dataclasses.replace(config, text=dataclasses.replace(config.text, **ids)))
    randomise(model)
    return Embedder(model, tokenizer, Preprocess(preprocess or PreprocessConfig(image_size=48)), name="model")


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_openclip_opens_our_export_with_our_outputs_ids_and_pixels(
    sentencepiece: SentencePieceTokenizer, tmp_path: Path, resize: str, own_tokenizer: bool
) -> None:
    tokenizer = sentencepiece if own_tokenizer else CLIPTokenizer(12)
    preprocess = PreprocessConfig.from_dict(
        {"image_size": 48, "resize": resize, "interpolation": "bilinear", "fill": 200}
    )
    ours = embedder(clip_config(), tokenizer, preprocess)
    export(ours, tmp_path / "out", "openclip")
    opened: Any = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    theirs, _, transform = opened
    tokenize = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    texts = [text for text in captions() if not set(text) & set("“”&—…～")]  # OpenCLIP's ftfy changes these
    images = odd_images(6)
    ids = tokenize(texts)
    for text, row in zip(texts, ids.tolist(), strict=True):
        assert row[: len(tokenizer.encode(text))] == tokenizer.encode(text)
    with torch.inference_mode():
        image = theirs.eval().encode_image(torch.stack([transform(one) for one in images]), normalize=True)
        text = theirs.encode_text(ids, normalize=True)
    assert torch.allclose(image, ours.embed_images(images), atol=1e-5)
    assert torch.allclose(text, ours.embed_texts(texts), atol=1e-5)


@pytest.mark.parametrize("own_tokenizer", [True, False])
def test_clip_of_hugging_face_opens_our_export_with_our_outputs_ids_and_pixels(
    sentencepiece: SentencePieceTokenizer, tmp_path: Path, own_tokenizer: bool
) -> None:
    tokenizer = sentencepiece if own_tokenizer else CLIPTokenizer(12)
    ours = embedder(clip_config(), tokenizer, PreprocessConfig(image_size=48, crop_rounding="down"))
    export(ours, tmp_path / "out", "huggingface")
    theirs: Any = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    sources = odd_images(6)
    texts = [text for text in captions() if own_tokenizer or not set(text) & set("“”&—…ｶ～<")]
    batch = processor(text=texts, images=sources, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = theirs(**batch)
    assert torch.allclose(out.image_embeds, ours.embed_images(sources), atol=1e-5)
    assert torch.allclose(out.text_embeds, ours.embed_texts(texts), atol=1e-5)


def test_siglip_of_hugging_face_opens_our_export(sentencepiece: SentencePieceTokenizer, tmp_path: Path) -> None:
    preprocess = PreprocessConfig(image_size=48, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ours = embedder(siglip_config(), sentencepiece, preprocess)
    export(ours, tmp_path / "out", "huggingface")
    theirs: Any = transformers.SiglipModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    sources, texts = odd_images(6), captions()
    batch = processor(text=texts, images=sources, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        out = theirs(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])
    image, text = ours.embed_images(sources), ours.embed_texts(texts)
    assert torch.allclose(out.image_embeds, image, atol=1e-5)
    assert torch.allclose(out.text_embeds, text, atol=1e-5)
    logits = ours.model.logits(image, text)
    assert torch.allclose(out.logits_per_image, logits, atol=1e-5 * float(ours.model.logit_scale.detach().exp()))


@pytest.mark.parametrize("to", ["openclip", "huggingface"])
def test_an_export_read_back_embeds_as_before(sentencepiece: SentencePieceTokenizer, tmp_path: Path, to: str) -> None:
    ours = embedder(clip_config(), sentencepiece, PreprocessConfig(image_size=48, crop_rounding="down"))
    export(ours, tmp_path / "out", to)  # type: ignore[arg-type]
    foreign = load_foreign(str(tmp_path / "out"))
    assert foreign.preprocess is not None
    model = CLIP(foreign.config)
    model.load_state_dict(foreign.state)
    back = Embedder(model.eval(), foreign.tokenizer, Preprocess(foreign.preprocess), name="back")
    texts = [text for text in captions() if not set(text) & set("“”&—…～")]
    assert torch.equal(ours.embed_texts(texts), back.embed_texts(texts))
    images = odd_images(4)
    assert torch.allclose(ours.embed_images(images), back.embed_images(images), atol=0.1)  # half a pixel of the crop
    same = Embedder(model, foreign.tokenizer, ours.preprocess, name="back")
    assert torch.equal(ours.embed_images(images), same.embed_images(images))


def test_a_model_without_a_tokenizer_is_exported_without_one(tmp_path: Path) -> None:
    model = CLIP(clip_config())
    randomise(model)
    ours = Embedder(model, None, Preprocess(PreprocessConfig(image_size=48)), name="model")
    export(ours, tmp_path / "out", "openclip")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    back = load_foreign(str(tmp_path / "out")).state
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())


def test_timm_opens_the_image_tower(sentencepiece: SentencePieceTokenizer, tmp_path: Path) -> None:
    ours = embedder(clip_config(), sentencepiece)
    export(ours, tmp_path / "out", "timm")
    theirs: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = pixels(ours.model.config.vision)
    with torch.inference_mode():
        assert torch.allclose(theirs(images), ours.model.vision(images), atol=1e-5)
    data = resolve_model_data_config(theirs)
    transform: Any = create_transform(**data, is_training=False)
    for image in odd_images(5):
        assert torch.allclose(transform(image), ours.preprocess(image), atol=1.01 / 255 / 0.26)


def classifier(norm_eps: float) -> ViTClassifier:
    config = VisionConfig(image_size=48, patch_size=16, width=32, depth=2, num_heads=4, mlp_dim=80, norm_eps=norm_eps)
    preprocess = Preprocess(PreprocessConfig(image_size=48, resize="squash", interpolation="bilinear"))
    model = ViTClassifier(config, 3, labels=("犬", "猫", "a bird"), preprocess=preprocess)
    randomise(model)
    return model


def test_vit_of_hugging_face_opens_our_classifier_with_its_labels(tmp_path: Path) -> None:
    ours = classifier(1e-12)
    export(ours, tmp_path / "out", "huggingface")
    theirs: Any = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    assert theirs.config.id2label == {0: "犬", 1: "猫", 2: "a bird"}
    images = odd_images(5)
    assert ours.preprocess is not None
    with torch.inference_mode():
        logits = theirs(**processor(images, return_tensors="pt")).logits
        assert torch.allclose(logits, ours(torch.stack([ours.preprocess(image) for image in images])), atol=1e-4)
    assert load_foreign_classifier(str(tmp_path / "out")).preprocess == exact(ours.preprocess.config)


def test_a_vit_whose_patches_do_not_cover_its_images_goes_back_as_it_came(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=4, image_size=52)
    theirs: Any = transformers.ViTForImageClassification(config)
    theirs.save_pretrained(tmp_path / "in")
    processor = transformers.ViTImageProcessorPil(size={"height": 52, "width": 52})
    processor.save_pretrained(tmp_path / "in")
    ours = load_classifier(str(tmp_path / "in"))
    assert ours.vision.config.image_shape == (48, 48)
    export(ours, tmp_path / "out", "huggingface")
    again: Any = transformers.ViTForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert again.config.image_size == 52
    images = torch.randn(2, 3, 52, 52, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(images).logits, theirs.eval()(images).logits)


def test_timm_opens_our_classifier_with_its_labels(tmp_path: Path) -> None:
    ours = classifier(1e-6)
    export(ours, tmp_path / "out", "timm")
    theirs: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == ["犬", "猫", "a bird"]
    with torch.inference_mode():
        images = pixels(ours.vision.config)
        assert torch.allclose(theirs(images), ours(images), atol=1e-4)
    foreign = load_foreign_classifier(str(tmp_path / "out"))
    assert (foreign.labels, foreign.preprocess) == (
        ours.labels,
        exact(ours.preprocess.config if ours.preprocess else None),
    )


@pytest.mark.parametrize(("to", "library"), [("huggingface", "Hugging Face"), ("timm", "timm")])
def test_a_cosine_head_is_not_exported_as_the_linear_one_it_is_not(tmp_path: Path, to: Format, library: str) -> None:
    config = VisionConfig(image_size=32, patch_size=8, width=32, depth=1, num_heads=2, mlp_dim=64)
    model = ViTClassifier(config, 3, head=CosineHead(CosineHeadConfig(embed_dim=16), 32, 3))
    with pytest.raises(ValueError, match=f"{library}'s.*classifier compares"):
        export(model, tmp_path / "out", to)
    assert list(tmp_path.iterdir()) == []


def run(session: onnxruntime.InferenceSession, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(session.run(None, inputs)[0])


@pytest.mark.parametrize("config", [clip_config(), pytest.param(siglip_config(), marks=pytest.mark.long)])
def test_onnx_runtime_gives_our_outputs_for_any_batch_and_text_length(
    sentencepiece: SentencePieceTokenizer, tmp_path: Path, config: CLIPConfig
) -> None:
    ours = embedder(config, sentencepiece)
    export(ours, tmp_path / "out", "onnx")
    image, text = (onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx") for name in ("image", "text"))
    for batch in (1, 4):
        images, ids = pixels(ours.model.config.vision, batch), rows(ours.model.config.text, batch)
        ids = ids[:, : max(ours.model.text.lengths(ids).tolist())]
        with torch.inference_mode():
            expected = ours.model.encode_image(images), ours.model.encode_text(ids)
        assert np.allclose(run(image, {"pixels": images.numpy()}), expected[0], atol=1e-4)
        assert np.allclose(run(text, {"ids": ids.numpy()}), expected[1], atol=1e-4)


@pytest.mark.long
def test_onnx_runtime_gives_the_logits_of_a_classifier(tmp_path: Path) -> None:
    ours = classifier(1e-6)
    export(ours, tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "image.onnx")
    for batch in (1, 5):
        images = pixels(ours.vision.config, batch)
        with torch.inference_mode():
            assert np.allclose(run(session, {"pixels": images.numpy()}), ours(images), atol=1e-4)


def test_an_export_is_whole_or_absent_and_never_overwrites(
    sentencepiece: SentencePieceTokenizer, tmp_path: Path
) -> None:
    ours = embedder(clip_config(vision={"patch_bias": True}), sentencepiece)
    with pytest.raises(ValueError, match=r"express.*model.*patch"):
        export(ours, tmp_path / "out", "openclip")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export(ours, tmp_path / "out", "huggingface")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    with pytest.raises(ValueError, match="no format 'tensorflow'"):
        export(ours, tmp_path / "new", "tensorflow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="OpenCLIP holds images and texts"):
        export(classifier(1e-6), tmp_path / "new", "openclip")
