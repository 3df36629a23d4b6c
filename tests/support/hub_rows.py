"""The rows of the table of layouts in docs/interop.md: title -> layout, in groups."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

import vlm
from tests.support import hub_layouts as hub
from tests.support.fake_hub import FakeHub
from tests.support.foreign_models import randomise
from tests.support.hub_layouts import Layout
from tests.support.hub_peers import Peer, openclip_peer, timm_peer, transformers_peer

_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_VISION: dict[str, Any] = _SMALL | {"image_size": 32, "patch_size": 16}
_WORDS: dict[str, Any] = _SMALL | {"vocab_size": 120, "max_position_embeddings": 20}
_VIT: dict[str, Any] = _VISION | {"num_labels": 7}
_DINO: dict[str, Any] = {name: value for name, value in _VISION.items() if name != "intermediate_size"}
_SEVEN: dict[str, Any] = {"num_labels": 7}
_PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear", "resize_mode": "squash"}


def _vit_processor() -> Any:
    return transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})


def _siglip_processor() -> Any:
    return transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})


def _bit_processor() -> Any:
    return transformers.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})


def _deit_processor() -> Any:
    return transformers.DeiTImageProcessorPil(
        size={"height": 37, "width": 37}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )


def _siglip(**text: Any) -> Any:
    words = _WORDS | {"max_position_embeddings": 16, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=words | text, vision_config=_VISION))


def _metaclip2() -> Any:
    words = _WORDS | {"max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    return transformers.MetaClip2Model(
        transformers.MetaClip2Config(text_config=words, vision_config=_VISION, projection_dim=24)
    )


def _chinese_clip() -> Any:
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(text_config=_WORDS, vision_config=_VISION, projection_dim=24)
    )


def _altclip() -> Any:
    words = _WORDS | {"project_dim": 32, "pad_token_id": 0}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(text_config=words, vision_config=_VISION, projection_dim=24)
    )


def _vision_text() -> Any:
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        transformers.ViTConfig(**_VISION), transformers.BertConfig(**_WORDS), projection_dim=24
    )
    return transformers.VisionTextDualEncoderModel(config)


def _clipseg() -> Any:
    words = _WORDS | {"max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2}
    return transformers.CLIPSegModel(
        transformers.CLIPSegConfig(text_config=words, vision_config=_VISION, projection_dim=24)
    )


def _naflex() -> Any:
    words = _WORDS | {"max_position_embeddings": 16, "projection_size": 32}
    vision = _SMALL | {"patch_size": 16, "num_patches": 16}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=words, vision_config=vision))


def _of_two(fake: FakeHub, folder: Path, second: Callable[[FakeHub, Path], Peer]) -> tuple[Peer, Peer]:
    """OpenCLIP's files of one model and those of another library in one repository: the two peers."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    peers = hub.openclip("ViT-B-32", preprocess=_PREPROCESS)(fake, folder / "a"), second(fake, folder / "b")
    for path in [*(folder / "a").iterdir(), *(folder / "b").iterdir()]:
        path.rename(folder / path.name)
    fake.add_folder("org/model", folder)
    return peers


def _hugging_face_of_two(fake: FakeHub, folder: Path) -> Peer:
    """OpenCLIP's files already lie in the cache."""
    _, peer = _of_two(fake, folder, hub.hugging_face_clip())
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        huggingface_hub.hf_hub_download("org/model", name)
    return peer


def _openclip_of_two(fake: FakeHub, folder: Path) -> Peer:
    return _of_two(fake, folder, hub.hugging_face_clip())[0]


def _in_subfolder(fake: FakeHub, folder: Path) -> Peer:
    """Two models, one in a folder of its own."""
    inner = folder / "second"
    inner.mkdir()
    peer = hub.hugging_face_clip()(FakeHub(), inner)
    hub.saved(hub.clip_model(), folder, hub.clip_processor())
    fake.add_folder("org/model", folder)
    return peer


def _openclip_of_timm(fake: FakeHub, folder: Path) -> Peer:
    """timm/vit_*_clip_*: timm's ViT in model.safetensors, OpenCLIP's whole CLIP beside it."""
    return _of_two(fake, folder, hub.timm_vit("vit_base_patch16_clip_224"))[0]


def _vit_of_timm(fake: FakeHub, folder: Path) -> Peer:
    return _of_two(fake, folder, hub.timm_vit("vit_base_patch16_clip_224"))[1]


def _sharded(fake: FakeHub, folder: Path) -> Peer:
    """An index and shards, and beside them a whole pytorch_model.bin of other weights."""

    def add_other(folder: Path) -> None:
        other = randomise(hub.clip_model(), seed=9).state_dict()
        torch.save(dict(other), folder / "pytorch_model.bin")

    return hub.hugging_face_clip(add_other, shards="2MB")(fake, folder)


def _exported(first: Callable[[FakeHub, Path], Peer], to: Any, second: Callable[[Path], Peer]) -> Any:
    """A model that vlm has exported, opened by the other library; ours is the one it was made of."""

    def write_files(fake: FakeHub, folder: Path) -> Peer:
        first(fake, folder)
        vlm.export(vlm.load("hf:org/model"), folder / "exported", to)
        return second(folder / "exported")

    return write_files


def _hugging_face_peer(folder: Path) -> Peer:
    model = transformers.AutoModel.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    return transformers_peer(model, processor, transformers.AutoTokenizer.from_pretrained(folder))


def _padded(fake: FakeHub, folder: Path) -> Peer:
    return hub.hugging_face_clip(vocab_size=49472, eos_token_id=2)(fake, folder)


def _bare_timm(fake: FakeHub, folder: Path) -> Peer:
    """DINOv2 of timm without a head."""
    model: Any = timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=2, embed_dim=48, num_heads=6)
    randomise(model)
    arguments = {"img_size": 28, "depth": 2, "embed_dim": 48, "num_heads": 6}
    data = {"input_size": [3, 28, 28], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": "vit_small_patch14_dinov2", "num_classes": 0, "model_args": arguments}
    hub.write_json(folder / "config.json", config | {"pretrained_cfg": data})
    fake.add_folder("org/model", folder)
    return timm_peer(model, data)


def _lightning(fake: FakeHub, folder: Path) -> Peer:
    return hub.openclip("ViT-B-32", hub.as_pickle("open_clip_pytorch_model.bin", prefix="module.", wrap="state_dict",
                                                  weights="open_clip_model.safetensors"))(fake, folder)  # fmt: skip


def _edges(edge: int, crop: int, patch: int) -> Layout:
    vision = {"image_size": crop, "patch_size": patch}
    return Layout(hub.hugging_face_clip(vision=vision, processor=hub.clip_processor(edge, crop)))


_CROP = "a crop that leaves an odd number of pixels"
GROUPS: dict[str, dict[str, Layout]] = {
    "Preprocessing and the choice of files": {
        **{f"Hugging Face CLIP, `shortest_edge` {edge}, crop {crop}": _edges(edge, crop, patch)
           for edge, crop, patch in ((400, 224, 32), (225, 192, 32), (450, 384, 64), (400, 299, 23), (491, 448, 64))},
        "Hugging Face CLIP, OpenCLIP's files of another model in the cache": Layout(_hugging_face_of_two),
        "the same repository, `hf:ORG/NAME/FILE`": Layout(
            _openclip_of_two, "hf:org/model/open_clip_model.safetensors"),
        "two models, `hf:ORG/NAME//SUBFOLDER`": Layout(_in_subfolder, "hf:org/model//second"),
        "OpenCLIP CLIPA, texts of more than its context": Layout(hub.openclip("ViT-L-14-CLIPA", tokenizer="bert")),
        "OpenCLIP CLIPA exported to OpenCLIP, the same texts": Layout(
            _exported(hub.openclip("ViT-L-14-CLIPA", tokenizer="bert"), "openclip", openclip_peer)),
        "Hugging Face CLIP exported to OpenCLIP": Layout(
            _exported(hub.hugging_face_clip(processor=hub.clip_processor(32, 32)), "openclip", openclip_peer),
            known=_CROP),
        "OpenCLIP exported to Hugging Face": Layout(
            _exported(hub.openclip("ViT-B-32", context_length=16), "huggingface", _hugging_face_peer), known=_CROP),
    },
    "CLIPs": {
        "Hugging Face `CLIPModel`": Layout(hub.hugging_face_clip()),
        "`eos_token_id` 2": Layout(hub.hugging_face_clip(eos_token_id=2)),
        "`eos_token_id` 2, padded vocabulary": Layout(_padded),
        "`eos_token_id` 2, extended vocabulary": Layout(
            hub.hugging_face_clip(vocab_size=49411, eos_token_id=2, added=("<new>", "<other>"))),
        "only `vocab.json` and `merges.txt`": Layout(hub.hugging_face_clip(hub.plain_clip_files)),
        "only `tokenizer.json`": Layout(hub.hugging_face_clip(hub.only_tokenizer_json)),
        "shards beside a whole `pytorch_model.bin` of other weights": Layout(_sharded),
        "`pytorch_model.bin`": Layout(hub.hugging_face_clip(hub.as_pickle("pytorch_model.bin"))),
        "a `manifest.json` of another program": Layout(
            hub.hugging_face_clip(hub.beside("manifest.json", b'{"version": 1, "files": ["model.safetensors"]}'))),
        "sentence-transformers, `0_CLIPModel/`": Layout(hub.hugging_face_clip(hub.below("0_CLIPModel"))),
        "every name behind `model.`": Layout(
            hub.hugging_face_clip(hub.as_pickle("pytorch_model.bin", prefix="model."))),
        "every name behind `_orig_mod.module.`, below `state_dict`": Layout(
            hub.hugging_face_clip(hub.as_pickle("pytorch_model.bin", prefix="_orig_mod.module.", wrap="state_dict"))),
        "Hugging Face `SiglipModel`": Layout(
            hub.hugging_face(_siglip, _siglip_processor, tokenizer="siglip", padding="max_length")),
        "Hugging Face MetaCLIP 2": Layout(hub.hugging_face(_metaclip2, tokenizer="xlm-r", padding="max_length")),
        "OpenCLIP `CLIP`": Layout(hub.openclip("ViT-B-32", preprocess=_PREPROCESS)),
        "OpenCLIP, a training checkpoint: names behind `module.`": Layout(_lightning),
        "OpenCLIP SigLIP": Layout(hub.openclip("ViT-B-16-SigLIP", preprocess=_PREPROCESS, tokenizer="siglip")),
        "`timm/vit_*_clip_*`: OpenCLIP's CLIP beside timm's ViT": Layout(_openclip_of_timm),
    },
    "Classifiers and backbones": {
        "the same repository: timm's ViT": Layout(_vit_of_timm, kind="classifier"),
        "timm ViT": Layout(hub.timm_vit("vit_tiny_patch16_224"), kind="classifier"),
        "timm `model_best.pth.tar` with its average of weights": Layout(
            hub.timm_vit("vit_tiny_patch16_224", hub.best_of_timm), kind="classifier"),
        "timm, flat config": Layout(hub.timm_vit("vit_tiny_patch16_224", hub.flat_config), kind="classifier"),
        "timm DeiT III": Layout(hub.timm_vit("deit3_small_patch16_224", num_heads=6), kind="classifier"),
        "timm DINOv2": Layout(_bare_timm, kind="backbone"),
        "Hugging Face `ViTForImageClassification`": Layout(hub.image_classifier(
            lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT)), _vit_processor),
            kind="classifier"),
        "Hugging Face DeiT; height, width and a centre crop": Layout(hub.image_classifier(
            lambda: transformers.DeiTForImageClassification(transformers.DeiTConfig(**_VIT)), _deit_processor),
            kind="classifier"),
        "`CLIPForImageClassification`": Layout(hub.image_classifier(
            lambda: transformers.CLIPForImageClassification(
                transformers.CLIPConfig(vision_config=_VISION, text_config=_WORDS, **_SEVEN)), hub.clip_processor),
            kind="classifier"),
        "`SiglipForImageClassification`": Layout(hub.image_classifier(
            lambda: transformers.SiglipForImageClassification(
                transformers.SiglipConfig(vision_config=_VISION, text_config=_WORDS, **_SEVEN)),
            _siglip_processor), kind="classifier"),
        "Hugging Face DINOv2": Layout(hub.image_classifier(
            lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_DINO, mlp_ratio=2)), _bit_processor,
            headless=True), kind="backbone"),
        "Hugging Face DINOv2 with registers": Layout(hub.image_classifier(
            lambda: transformers.Dinov2WithRegistersModel(
                transformers.Dinov2WithRegistersConfig(**_DINO, mlp_ratio=2, num_register_tokens=4)), _bit_processor,
            headless=True), kind="backbone"),
    },
    "External models": {
        "Hugging Face ChineseCLIP": Layout(hub.hugging_face(_chinese_clip)),
        "Hugging Face AltCLIP": Layout(hub.hugging_face(_altclip)),
        "Hugging Face VisionTextDualEncoder": Layout(hub.hugging_face(_vision_text)),
        "Hugging Face CLIPSeg": Layout(hub.hugging_face(_clipseg)),
        "Hugging Face SigLIP 2 NaFlex": Layout(hub.hugging_face(
            _naflex, lambda: transformers.Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
            tokenizer="siglip", padding="max_length")),
        **{f"OpenCLIP {name}": Layout(hub.openclip(name))
           for name in ("RN50", "convnext_tiny", "coca_ViT-B-32", "ViTamin-S", "MobileCLIP2-S0", "EVA02-B-16")},
    },
}  # fmt: skip
ROWS = {title: layout for group in GROUPS.values() for title, layout in group.items()}
assert len(ROWS) == sum(len(group) for group in GROUPS.values())

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 605247071\n"


def _pointer(fake: FakeHub, folder: Path) -> None:
    hub.hugging_face_clip(hub.beside("model.safetensors", POINTER))(fake, folder)


def _several(fake: FakeHub, folder: Path) -> None:
    state = load_file(_saved_clip(folder))
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    for name in ("best.safetensors", "last.safetensors", "swa.bin"):
        save_file(state, folder / name)
    fake.add_folder("org/model", folder)


def _saved_clip(folder: Path) -> Path:
    hub.saved(hub.clip_model(), folder, hub.clip_processor())
    return folder / "model.safetensors"


def _other_family(fake: FakeHub, folder: Path) -> None:
    hub.write_json(folder / "config.json", {"model_type": "blip-2"})
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    fake.add_folder("org/model", folder)


REFUSED: dict[str, tuple[Callable[[FakeHub, Path], None], tuple[str, ...]]] = {  # what the one line says
    "a Git LFS pointer in the place of the weights": (_pointer, ("Git LFS pointer", "605247071", "git lfs pull")),
    "several weight files, none with a known name": (
        _several, ("best.safetensors, last.safetensors, swa.bin", "hf:ORG/NAME/FILE"),
    ),
    "a family that cannot be read, before its weights are downloaded": (_other_family, ("blip-2", "Known: clip")),
}  # fmt: skip
