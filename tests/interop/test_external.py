"""External models: their own library computes them, `Embedder` is the same; through the hub, against that library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, models, pre_tokenizers, processors

import vlm
from tests.support.fake_hub import FakeHub
from tests.support.foreign_models import randomise
from tests.support.open_clip_models import shallow_timm, small_open_clip
from vlm.errors import InputError

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
VISION: dict[str, Any] = SIZES | {"image_size": 32, "patch_size": 16}
TEXTS = ["a red apple", "赤いりんご", "", "Two DOGS, and a cat's toy!!", "😀 happy", "x " * 100]


def images(folder: Path) -> list[Path]:
    random = np.random.default_rng(0)
    paths: list[Path] = []
    for width, height in ((50, 33), (21, 64), (33, 50), (240, 160)):
        coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        paths.append(folder / f"{width}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def bert_tokenizer(folder: Path, vocab_size: int = 120) -> None:
    """A tokenizer.json of characters, as BERT's: [CLS] text [SEP], padded with [PAD]."""
    letters = sorted({letter for text in TEXTS for letter in text.lower() if letter != " "})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)][:vocab_size]
    made = tokenizers.Tokenizer(models.WordPiece({name: id for id, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens([AddedToken(name, special=True) for name in names[:4]])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=16,
    ).save_pretrained(folder)  # fmt: skip


def _chinese_clip() -> Any:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 20}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.ChineseCLIPModel(config)


def _altclip() -> Any:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 20, "project_dim": 32, "pad_token_id": 0}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    )


def _vision_text() -> Any:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**VISION),
        transformers.BertConfig(**SIZES, vocab_size=120, max_position_embeddings=20),
        projection_dim=24,
    )
    return transformers.VisionTextDualEncoderModel(config)


def _clipseg() -> Any:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    return transformers.CLIPSegModel(
        transformers.CLIPSegConfig(text_config=text, vision_config=VISION, projection_dim=24)
    )


def _group_vit() -> Any:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    groups = {
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 4],
    }
    vision = VISION | groups | {"patch_size": 8}
    config = transformers.GroupViTConfig(
        text_config=text, vision_config=vision, projection_dim=24, projection_intermediate_dim=32
    )
    return transformers.GroupViTModel(config)


def _owl() -> Any:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 16}
    config = transformers.Owlv2Config(text_config=text, vision_config=VISION, projection_dim=24)
    return transformers.Owlv2Model(config)


def _align() -> Any:
    one = {"kernel_sizes": [3], "strides": [2], "num_block_repeats": [1], "expand_ratios": [1], "depthwise_padding": []}
    vision = one | {"image_size": 64, "in_channels": [32], "out_channels": [16], "hidden_dim": 32}
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 20}
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=32)
    return transformers.AlignModel(config)


MODELS = {"ChineseCLIP": _chinese_clip, "AltCLIP": _altclip, "VisionTextDualEncoder": _vision_text, "CLIPSeg": _clipseg,
          "GroupViT": _group_vit}  # fmt: skip


def processor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def published(hub: FakeHub, folder: Path, model: Any, image_processor: Any) -> None:
    """A repository org/model, written by transformers."""
    randomise(model)
    model.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    bert_tokenizer(folder)
    hub.add_folder("org/model", folder)


def expected(folder: Path, paths: list[Path], *, padding: str = "longest") -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers itself makes of the files and texts."""
    model: Any = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    prepare: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        pixels = prepare(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
        found = model.get_image_features(**pixels)
        given = tokenizer(TEXTS, padding=padding, truncation=True, max_length=16, return_tensors="pt")
        given = {name: given[name] for name in (["input_ids"] if padding == "max_length" else given)}
        texts = model.get_text_features(**given)
    both = (x if isinstance(x, torch.Tensor) else x.pooler_output for x in (found, texts))
    image, text = (F.normalize(x, dim=-1) for x in both)
    return image, text


@pytest.mark.parametrize("name", MODELS)
def test_dual_encoders_of_transformers_give_their_own_embeddings_and_classify(
    fake_hub: FakeHub,
    tmp_path: Path,
    name: str,
) -> None:
    published(fake_hub, tmp_path / "theirs", MODELS[name](), processor())
    paths = images(tmp_path)
    embedder = vlm.load("hf:org/model")
    assert isinstance(embedder.model, vlm.ExternalModel) and embedder.model.library == "transformers"
    image, text = expected(tmp_path / "theirs", paths)
    assert torch.allclose(embedder.embed_images(paths), image, atol=2e-3)  # Pillow's filter, not torchvision's
    assert torch.allclose(embedder.embed_texts(TEXTS), text, atol=1e-5)
    assert torch.allclose(vlm.classify(embedder, paths, ["a cat", "犬"]).sum(1), torch.ones(4))
    assert vlm.load("hf:org/model").fingerprint == embedder.fingerprint


def test_siglip_2_naflex_keeps_the_shape_of_images(fake_hub: FakeHub, tmp_path: Path) -> None:
    text = SIZES | {"vocab_size": 120, "max_position_embeddings": 16, "projection_size": 32}
    vision = SIZES | {"patch_size": 16, "num_patches": 16}
    config = transformers.Siglip2Config(text_config=text, vision_config=vision)
    prepare = transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    published(fake_hub, tmp_path / "theirs", transformers.Siglip2Model(config), prepare)
    paths = images(tmp_path)
    embedder = vlm.load("hf:org/model")
    image, text = expected(tmp_path / "theirs", paths, padding="max_length")
    assert torch.allclose(embedder.embed_images(paths), image, atol=1e-5)
    assert torch.allclose(embedder.embed_texts(TEXTS), text, atol=1e-5)


@pytest.mark.parametrize("name", ["OWLv2", "ALIGN", "VisionTextDualEncoder"])
def test_an_image_processor_that_is_not_known_here_is_run_by_transformers(
    fake_hub: FakeHub, tmp_path: Path, name: str
) -> None:
    make, prepare = {
        "OWLv2": (_owl, transformers.Owlv2ImageProcessor(size={"height": 32, "width": 32})),
        "ALIGN": (_align, transformers.EfficientNetImageProcessor(size={"height": 64, "width": 64})),
        "VisionTextDualEncoder": (_vision_text, transformers.ConvNextImageProcessor(size={"shortest_edge": 32})),
    }[name]
    published(fake_hub, tmp_path / "theirs", make(), prepare)
    paths = images(tmp_path)
    embedder = vlm.load("hf:org/model")
    image, text = expected(tmp_path / "theirs", paths)
    assert torch.allclose(embedder.embed_images(paths), image, atol=1e-5)
    assert torch.allclose(embedder.embed_texts(TEXTS), text, atol=1e-5)
    if name == "ALIGN":
        temperature = load_file(tmp_path / "theirs" / "model.safetensors")["temperature"]
        assert torch.allclose(embedder.model.logit_scale.exp(), 1 / temperature)


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own_clip"
    def __init__(self, width=8, **kwargs):
        self.width = width
        super().__init__(**kwargs)

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.image = torch.nn.Linear(3, config.width)
        self.words = torch.nn.Embedding(120, config.width)
        self.post_init()
    def get_image_features(self, pixel_values):
        return self.image(pixel_values.mean((2, 3)))
    def get_text_features(self, input_ids, attention_mask=None):
        return (self.words(input_ids) * attention_mask[..., None]).sum(1)
"""


def with_own_code(hub: FakeHub, folder: Path, code_of: str = "") -> dict[str, torch.Tensor]:
    """A repository org/model that comes with own.py, or names that of the repository `code_of`; its weights."""
    folder = folder / "theirs"
    folder.mkdir()
    if code_of:
        hub.add(code_of, {"own.py": CODE.encode(), "model.safetensors": b"not ours"})
        code_of += "--"
    else:
        (folder / "own.py").write_text(CODE)
    auto = {"AutoConfig": f"{code_of}own.OwnConfig", "AutoModel": f"{code_of}own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own_clip", "auto_map": auto, "width": 8}))
    generator = torch.Generator().manual_seed(0)
    sizes = {"image.weight": (8, 3), "image.bias": (8,), "words.weight": (120, 8)}
    weights = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    processor().save_pretrained(folder)
    bert_tokenizer(folder)
    hub.add_folder("org/model", folder)
    return weights


@pytest.mark.parametrize(("code_of", "said"), [("", r"own\.py"), ("other/code", "the code of other/code")])
def test_code_of_a_model_runs_only_where_the_user_says_so(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code_of: str, said: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    weights = with_own_code(fake_hub, tmp_path, code_of)
    with pytest.raises(InputError, match=rf"{said}.*written by .*--trust-remote-code.*trust_remote_code=True"):
        vlm.load("hf:org/model")
    paths = images(tmp_path)
    embedder = vlm.load("hf:org/model", trust_remote_code=True)
    pixels = torch.stack([embedder.preprocess(path) for path in paths])
    wanted = F.normalize(pixels.mean((2, 3)) @ weights["image.weight"].T + weights["image.bias"], dim=-1)
    assert torch.allclose(embedder.embed_images(paths), wanted, atol=1e-6)
    assert embedder.embed_texts(TEXTS).shape == (len(TEXTS), 8)


PROCESSOR = """
import numpy as np, torch
from transformers import BaseImageProcessor

class OwnProcessor(BaseImageProcessor):
    def __init__(self, side=20, **settings):
        super().__init__(**settings)
        self.side = side
    def __call__(self, images, return_tensors=None):
        levels = np.array(images.resize((self.side, self.side))).transpose(2, 0, 1)
        return {"pixel_values": torch.from_numpy(levels / 127 - 1).float()[None]}
"""


def test_an_image_processor_of_the_models_own_code_is_run_too(
    fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    weights = with_own_code(fake_hub, tmp_path)
    (tmp_path / "theirs" / "own_processor.py").write_text(PROCESSOR)
    settings = {"image_processor_type": "OwnProcessor", "side": 24}
    settings["auto_map"] = {"AutoImageProcessor": "own_processor.OwnProcessor"}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(settings))
    fake_hub.add_folder("org/model", tmp_path / "theirs")
    with pytest.raises(InputError, match=r"own_processor\.py.*--trust-remote-code"):
        vlm.load("hf:org/model")
    embedder = vlm.load("hf:org/model", trust_remote_code=True)
    paths = images(tmp_path)
    levels = [np.array(Image.open(path).resize((24, 24))).transpose(2, 0, 1) for path in paths]
    pixels = torch.tensor(np.stack(levels) / 127 - 1).float()
    wanted = F.normalize(pixels.mean((2, 3)) @ weights["image.weight"].T + weights["image.bias"], dim=-1)
    assert torch.allclose(embedder.embed_images(paths), wanted, atol=1e-6)
    (tmp_path / "images").mkdir()
    images(tmp_path / "images")
    with vlm.EmbeddingIndex.open(tmp_path / "an.index", embedder) as index:
        assert index.add_folder(tmp_path / "images").embedded == 4


def test_an_external_model_is_searched_with_and_says_what_it_cannot_do(
    fake_hub: FakeHub,
    tmp_path: Path,
) -> None:
    published(fake_hub, tmp_path / "theirs", _chinese_clip(), processor())
    embedder = vlm.load("hf:org/model")
    (tmp_path / "images").mkdir()
    images(tmp_path / "images")
    with vlm.EmbeddingIndex.open(tmp_path / "an.index", embedder) as index:
        index.add_folder(tmp_path / "images")
        assert len(index.search(text="a red apple", k=4)) == 4
    for use in (
        lambda: embedder.model.vision,
        lambda: vlm.export(embedder, tmp_path / "out", "onnx"),
        lambda: vlm.export(embedder, tmp_path / "out", "huggingface"),
        lambda: vlm.save(embedder, tmp_path / "saved"),
        lambda: vlm.load("hf:org/model", backend="int8"),
        lambda: vlm.load("hf:org/model", image_size=64),
        lambda: vlm.load_backbone("hf:org/model"),
    ):
        with pytest.raises(ValueError, match=r"external model|is a CLIP|no backbone"):
            use()


@pytest.mark.parametrize("name", ["RN50", "coca_ViT-B-32", "convnext_tiny"])
def test_models_of_open_clip_without_a_native_layout_are_computed_by_it(
    fake_hub: FakeHub,
    tmp_path: Path,
    name: str,
) -> None:
    with shallow_timm():
        theirs, preprocess, tokenizer = small_open_clip(name, tmp_path / "theirs")
        fake_hub.add_folder("org/model", tmp_path / "theirs")
        embedder = vlm.load("hf:org/model")
    paths = images(tmp_path)
    assert isinstance(embedder.model, vlm.ExternalModel) and embedder.model.library == "open_clip"
    with torch.inference_mode():
        image = theirs.encode_image(torch.stack([preprocess(Image.open(p).convert("RGB")) for p in paths]))
        text = theirs.encode_text(tokenizer(TEXTS))
    assert torch.allclose(embedder.embed_images(paths), F.normalize(image, dim=-1), atol=1e-6)
    assert torch.allclose(embedder.embed_texts(TEXTS), F.normalize(text, dim=-1), atol=1e-6)
