"""Which file and which config are read: a rule over names and config.json, the same for downloads and for folders."""

from typing import Any

import pytest

from vlm.errors import CheckpointError, OtherKind
from vlm.interop.selection import Purpose, Selection, choose

CLIP = {"config.json": {"model_type": "clip"}}
TIMM = {"config.json": {"architecture": "vit_base_patch16_clip_224"}}
OPENCLIP = ("open_clip_model.safetensors", "open_clip_config.json")


def chosen(
    files: list[str], purpose: Purpose = "clip", configs: dict[str, Any] | None = None, **named: Any
) -> Selection:
    configs = configs or {}
    return choose([*files, *configs], lambda name: configs[name], purpose, "it", **named)


@pytest.mark.parametrize(
    ("files", "purpose", "configs", "family", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], "clip", CLIP, "transformers", "model.safetensors"),
        (["model.safetensors", *OPENCLIP], "clip", CLIP, "transformers", "model.safetensors"),  # laion's repositories
        (["pytorch_model.bin", "model.safetensors.index.json"], "clip", CLIP, "transformers",
         "model.safetensors.index.json"),
        (["model.safetensors", *OPENCLIP], "clip", TIMM, "openclip", "open_clip_model.safetensors"),  # timm's
        (["model.safetensors", *OPENCLIP], "vit", TIMM, "timm", "model.safetensors"),
        (["model_best.pth.tar"], "vit", TIMM, "timm", "model_best.pth.tar"),
        (list(OPENCLIP), "clip", {}, "openclip", "open_clip_model.safetensors"),
        (["open_clip_pytorch_model.bin", "other.safetensors"], "clip", {}, "openclip", "open_clip_pytorch_model.bin"),
        (["epoch_3.pt", "open_clip_config.json"], "clip", {}, "openclip", "epoch_3.pt"),
        (["0_CLIPModel/model.safetensors", "modules.json"], "clip",
         {"0_CLIPModel/config.json": {"model_type": "clip"}}, "transformers", "0_CLIPModel/model.safetensors"),
        (["vit.npz"], "vit", {}, "bare", "vit.npz"),
        (["pytorch_model.bin"], "vit", {"config.json": {"model_type": "vit_mae"}}, "transformers", "pytorch_model.bin"),
        (["model.safetensors"], "vit",
         {"config.json": {"model_type": "siglip", "architectures": ["SiglipForImageClassification"]}},
         "transformers", "model.safetensors"),
        (["model.safetensors", "manifest.json"], "clip", {"config.json": {"format": "vlm-1"}}, "vlm", None),
        (["model.safetensors", "manifest.json"], "clip", CLIP, "transformers", "model.safetensors"),
    ],
)  # fmt: skip
def test_one_rule_says_what_is_read(
    files: list[str], purpose: Purpose, configs: dict[str, Any], family: str, weights: str | None
) -> None:
    found = chosen(files, purpose, configs)
    assert (found.family, found.weights) == (family, weights)
    assert weights is None or weights in found.files


def test_shards_come_with_their_index_and_companions_with_the_weights() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    beside = ["tokenizer.json", "preprocessor_config.json", "README.md"]
    found = chosen(["model.safetensors.index.json", *shards, *beside, "pytorch_model.bin", "notes.pdf"], "clip", CLIP)
    assert set(found.files) == {"model.safetensors.index.json", *shards, *beside, "config.json"}


def test_a_file_or_a_subfolder_may_be_named() -> None:
    files = ["a.safetensors", "b.safetensors", "deep/model.safetensors"]
    assert chosen(files, file="b.safetensors").weights == "b.safetensors"
    configs = {"deep/config.json": {"model_type": "clip"}}
    inside = chosen(files, "clip", configs, subfolder="deep")
    assert (inside.weights, inside.config) == ("deep/model.safetensors", "deep/config.json")
    with pytest.raises(CheckpointError, match=r"no file 'c\.safetensors'.*a\.safetensors, b\.safetensors"):
        chosen(files, file="c.safetensors")
    with pytest.raises(CheckpointError, match=r"no folder 'none'.*deep"):
        chosen(files, subfolder="none")


@pytest.mark.parametrize("files", [["a.safetensors", "b.safetensors"], ["x.pth", "y.bin", "z.npz"]])
def test_several_files_without_a_known_name_are_listed_and_none_is_taken(files: list[str]) -> None:
    with pytest.raises(CheckpointError) as refused:
        chosen(files)
    assert all(name in str(refused.value) for name in files) and "hf:ORG/NAME/FILE" in str(refused.value)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "beit", "architectures": ["BeitForImageClassification"]},
        {"model_type": "swin", "architectures": ["SwinModel"]},
        {"architecture": "convnext_atto"},
    ],
)
def test_an_image_encoder_that_is_no_vit_of_ours_is_refused_from_its_config(config: dict[str, Any]) -> None:
    name = config.get("model_type") or config["architecture"]
    with pytest.raises(CheckpointError, match=f"it.*'{name}'.*Known"):
        chosen(["model.safetensors"], "vit", {"config.json": config})


@pytest.mark.parametrize("purpose", ["clip", "vit"])
def test_a_folder_without_weights_says_what_is_wanted(purpose: Purpose) -> None:
    with pytest.raises(CheckpointError, match=r"weights: wanted.*\.safetensors"):
        chosen(["README.md"], purpose)


@pytest.mark.parametrize(
    ("purpose", "configs", "files"),
    [
        ("clip", {"config.json": {"model_type": "dinov2"}}, ["model.safetensors"]),
        ("clip", TIMM, ["model.safetensors"]),
        ("vit", CLIP, ["model.safetensors"]),
        ("vit", {}, list(OPENCLIP)),
    ],
)
def test_the_other_kind_names_what_opens_it(purpose: Purpose, configs: dict[str, Any], files: list[str]) -> None:
    with pytest.raises(OtherKind, match="load_classifier" if purpose == "clip" else r"vlm\.load"):
        chosen(files, purpose, configs)
