"""Every set of OpenCLIP's registry: its architecture, and of all tags config, preprocessing and tokenizer."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F

import vlm
from tests.interop.test_external import TEXTS, images
from tests.support.fake_hub import FakeHub
from tests.support.hub_layouts import word_tokenizer
from tests.support.open_clip_models import shallow_timm, shrunk, write
from vlm.config import PreprocessConfig
from vlm.interop.formats.openclip_config import is_native, to_preprocess
from vlm.interop.sources import plan

SETS = open_clip.list_pretrained()
ARCHITECTURES = sorted({name for name, _ in SETS})
_SMALL: dict[str, dict[str, Any]] = {  # text encoders that OpenCLIP would fetch, by the name in its config
    "roberta-base": {"model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 90},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "pad_token_id": 1, "max_position_embeddings": 90},
    "xlm-roberta-large": {"model_type": "xlm-roberta", "pad_token_id": 1, "max_position_embeddings": 90},
}
_MT5 = {"model_type": "mt5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 300}
_NLLB = {
    "model_type": "m2m_100", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 300,
    "max_position_embeddings": 90,
}  # fmt: skip
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 300,
}


def text_encoder(name: str) -> dict[str, Any]:
    """A small config of the family that OpenCLIP names."""
    if name in _SMALL:
        return _BERT | _SMALL[name]
    return _MT5 if "mt5" in name else _NLLB


def test_there_are_as_many_sets_as_the_documentation_says() -> None:
    assert (len(SETS), len(ARCHITECTURES)) == (196, 115)


EXAMPLES = [("ViT-B-32", "openai"), ("ViT-B-16-SigLIP2", "webli"), ("ViT-L-14-CLIPA", "datacomp1b")]


@pytest.mark.parametrize(("name", "tag"), EXAMPLES)
def test_a_set_has_openclips_config_and_preprocessing(fake_hub: FakeHub, name: str, tag: str) -> None:
    check_set(fake_hub, name, tag)


@pytest.mark.long
@pytest.mark.parametrize(("name", "tag"), SETS, ids=["/".join(both) for both in SETS])
def test_every_set_has_openclips_config_and_preprocessing(fake_hub: FakeHub, name: str, tag: str) -> None:
    check_set(fake_hub, name, tag)


def check_set(fake_hub: FakeHub, name: str, tag: str) -> None:
    """Config, preprocessing, weights and tokenizer of a set, from a hub that also has other files."""
    known: Any = open_clip.get_pretrained_cfg(name, tag)
    config: Any = open_clip.get_model_config(name)
    repository, file = known["hf_hub"].rsplit("/", 1)
    there = {file or "open_clip_model.safetensors": b"weights", "README.md": b"", "other.bin": b"x"}
    fake_hub.add(repository, there | {"tokenizer.json": b"{}", "config.json": b"{}"})
    for other in ("hf_tokenizer_name", "hf_model_name"):
        if (named := config["text_cfg"].get(other)) and named != repository:
            fake_hub.add(named, {"config.json": b"{}", "tokenizer.json": b"{}", "pytorch_model.bin": b"x" * 99})
    wanted = plan(f"openclip:{name}/{tag}", "clip")
    found = wanted.fetch()
    assert found.weights is not None and found.weights.read_bytes() == b"weights"
    assert not [name for name in fake_hub.downloads() if name.endswith((".bin", "README.md")) and name != file]
    assert found.info is not None
    quick = {} if "timm_model_name" in config["vision_cfg"] else {"quick_gelu": known.get("quick_gelu", False)}
    assert found.info["model_cfg"] == config | quick
    theirs = open_clip.transform.PreprocessCfg(
        size=224, **{k: known[k] for k in ("mean", "std", "interpolation", "resize_mode") if k in known}
    )
    ours = to_preprocess(found.info["preprocess_cfg"] or {}, 224)
    wanted_settings: dict[str, Any] = {
        "mean": theirs.mean,
        "std": theirs.std,
        "fill": theirs.fill_color,
        "resize": {"shortest": "crop", "longest": "pad", "squash": "squash"}[theirs.resize_mode],
        "interpolation": theirs.interpolation,
    }
    assert ours == PreprocessConfig(image_size=224, **wanted_settings)
    if config["text_cfg"].get("hf_tokenizer_name"):
        assert found.tokenizer is not None and (found.tokenizer / "tokenizer.json").is_file()


def prepared(hub: FakeHub, folder: Path, name: str) -> dict[str, Any]:
    """The small config; what OpenCLIP would fetch for it is in `folder`, and on the hub."""
    config = shrunk(name)
    text = config["text_cfg"]
    if named := text.get("hf_model_name"):
        place = folder / "text"
        place.mkdir()
        (place / "config.json").write_text(json.dumps(text_encoder(named)))
        text["hf_model_name"] = str(place)
        config["embed_dim"] = 32
    if named := text.get("hf_tokenizer_name"):
        word_tokenizer(folder / "theirs", tokenizer_kind(named))
        text |= {"hf_tokenizer_name": str(folder / "theirs"), "vocab_size": 120}
    return config


def published_preprocessing(name: str) -> dict[str, Any]:
    """`preprocess_cfg` of the first published set of an architecture."""
    known: Any = open_clip.get_pretrained_cfg(name, open_clip.list_pretrained_tags_by_model(name)[0])
    return {part: known[part] for part in ("mean", "std", "interpolation", "resize_mode") if part in known}


def tokenizer_kind(name: str) -> str:
    """The symbols around a text: those of BERT, of SigLIP and T5, or of RoBERTa and what follows it."""
    if name.startswith("bert"):
        return "bert"
    return "siglip" if "SigLIP" in name or "t5" in name else "xlm-r"


def same_ids(ours: torch.Tensor, theirs: torch.Tensor, pad_id: int) -> bool:
    """Whether rows are equal once ours, which end with the longest text, are padded to the context."""
    return torch.equal(F.pad(ours, (0, theirs.shape[1] - ours.shape[1]), value=pad_id), theirs)


def check_architecture(hub: FakeHub, folder: Path, name: str) -> tuple[str, float, float]:
    """(native or the library, largest difference of images, of texts) of a small model of this architecture."""
    (folder / "theirs").mkdir()
    with shallow_timm():
        config = prepared(hub, folder, name)
        theirs = write(config, folder / "theirs", published_preprocessing(name))
        hub.add_folder("org/model", folder / "theirs")
        embedder = vlm.load("hf:org/model")
    paths = images(folder)
    model = embedder.model
    size = theirs.visual.image_size
    side = size if isinstance(size, int) else size[0]
    if embedder.parts()[1] is None:  # of CLIPA and SigLIP without preprocess_cfg
        pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    else:
        pixels = torch.stack([embedder.preprocess(path) for path in paths])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'theirs'}")
    if name.startswith("nllb"):
        tokenizer.tokenizer.src_lang = None  # pyright: ignore[reportAttributeAccessIssue]  # an HFTokenizer
    with torch.inference_mode():
        image, text = (
            F.normalize(theirs.encode_image(pixels), dim=-1),
            F.normalize(theirs.encode_text(tokenizer(TEXTS)), dim=-1),
        )
        ours = model.eval().encode_image(pixels[..., :side, :side])
    own = embedder.parts()[0]
    assert own is None or same_ids(own(TEXTS), tokenizer(TEXTS), own.pad_id)
    texts = embedder.embed_texts(TEXTS) if own is not None else text
    library = str(model.library) if isinstance(model, vlm.ExternalModel) else "native"
    return library, float((ours - image).abs().max()), float((texts - text).abs().max())


@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_an_architecture_answers_as_openclip_does(fake_hub: FakeHub, tmp_path: Path, name: str) -> None:
    library, image, text = check_architecture(fake_hub, tmp_path, name)
    assert library == ("native" if is_native(shrunk(name)) else "open_clip")
    assert max(image, text) < (1e-5 if library == "native" else 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_answers_as_openclip_does(fake_hub: FakeHub, tmp_path: Path, name: str) -> None:
    library, image, text = check_architecture(fake_hub, tmp_path, name)
    assert max(image, text) < (1e-5 if library == "native" else 1e-6), (library, image, text)
