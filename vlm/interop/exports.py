"""Our models in other libraries' formats: folders that OpenCLIP, Hugging Face, timm and ONNX Runtime open."""

from pathlib import Path
from typing import Literal, get_args

import safetensors.torch
from torch import nn

from vlm import atomic
from vlm.embedder import Embedder
from vlm.errors import InputError
from vlm.interop.formats import huggingface, huggingface_vit, openclip, openclip_config, openclip_writing, timm
from vlm.interop.formats.foreign import write_json
from vlm.interop.formats.huggingface_processor import full_side, write_processor
from vlm.interop.formats.tables import State
from vlm.interop.tokenizer_files import ends_with_padding, write_tokenizer
from vlm.models.external import ExternalModel
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.onnx import towers as onnx_towers
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.user_folders import expanded

Format = Literal["openclip", "huggingface", "timm", "onnx"]


def export(model: Embedder | ViTClassifier, folder: str | Path, to: Format) -> None:
    """Writes `folder`, new or empty, for another library; what that library cannot express is an error that names it.

    openclip:     open_clip.create_model_and_transforms("local-dir:FOLDER"), open_clip.get_tokenizer("local-dir:FOLDER")
    huggingface:  CLIPModel, SiglipModel or ViTForImageClassification.from_pretrained(FOLDER), and AutoProcessor
    timm:         timm.create_model("local-dir:FOLDER", pretrained=True), the image tower
    onnx:         FOLDER/image.onnx and FOLDER/text.onnx, any batch, any text length
    """
    if to not in get_args(Format):
        raise InputError(f"There is no format '{to}'; it must be one of {', '.join(get_args(Format))}.")
    folder = expanded(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder. Name a new one.")
    with atomic.replacing_folder(folder) as new:
        _WRITERS[to](model, new)


def _openclip(model: Embedder | ViTClassifier, folder: Path) -> None:
    embedder = _need_clip(model, "OpenCLIP")
    tokenizer, preprocess = embedder.parts()
    model_cfg, tensors = openclip.write_model(embedder.model.config, _weights(embedder.model))
    if tokenizer is not None and not isinstance(tokenizer, CLIPTokenizer):  # CLIP's own is OpenCLIP's default
        model_cfg["text_cfg"]["hf_tokenizer_name"] = "."  # of a local folder, OpenCLIP takes the folder itself
        clean = tokenizer.config.clean
        model_cfg["text_cfg"]["tokenizer_kwargs"] = {
            "clean": clean if clean in openclip_config.CLEANING else "whitespace"
        }
        if strip := ends_with_padding(tokenizer):  # CLIPA: OpenCLIP replaces the symbol that ends a text by padding
            model_cfg["text_cfg"]["tokenizer_kwargs"]["strip_sep_token"] = True
        write_tokenizer(folder, tokenizer, cleaned=clean in openclip_config.CLEANING, strip_end=strip)
    settings = {"model_cfg": model_cfg}
    if preprocess is not None:
        settings["preprocess_cfg"] = openclip_writing.write_preprocess(preprocess.config)
    write_json(folder / "open_clip_config.json", settings)
    safetensors.torch.save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


def _huggingface(model: Embedder | ViTClassifier, folder: Path) -> None:
    """CLIP's rule for id 2 ("the highest id") cannot find an end-of-text that is 2: ids 1 and 2 then change places."""
    if isinstance(model, ViTClassifier):
        _need_linear_head(model, "Hugging Face")
        config, preprocess, kind = model.vision.config, model.preprocess, "vit"
        side = full_side(preprocess.config if preprocess else None, config.image_shape[0])
        info, tensors = huggingface_vit.write_classifier(config, _weights(model), model.labels, side)
    else:
        tokenizer, preprocess = model.parts()
        config, state, order = huggingface.without_end_2(model.model.config, _weights(model.model))
        kind = "siglip" if config.vision.pool == "attention" else "clip"
        side = full_side(preprocess.config if preprocess else None, config.vision.image_shape[0])
        info, tensors = huggingface.write_clip(config, state, side)
        if tokenizer is not None:
            write_tokenizer(folder, tokenizer, order)
    write_json(folder / "config.json", info)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if preprocess is not None:
        processor = write_processor(preprocess.config, kind)
        names = {"clip": "CLIPProcessor", "siglip": "SiglipProcessor"}
        write_json(
            folder / "preprocessor_config.json", processor | ({"processor_class": names[kind]} if kind in names else {})
        )


def _timm(model: Embedder | ViTClassifier, folder: Path) -> None:
    if isinstance(model, ViTClassifier):
        _need_linear_head(model, "timm")
        config, labels, preprocess, state = model.vision.config, model.labels, model.preprocess, _weights(model)
    else:
        config, labels, preprocess = model.model.config.vision, None, model.parts()[1]
        state = {name: tensor for name, tensor in _weights(model.model).items() if name.startswith("vision.")}
    timm.write_vision(folder, config, state, labels, preprocess.config if preprocess else None)


def _onnx(model: Embedder | ViTClassifier, folder: Path) -> None:
    if isinstance(model, ViTClassifier):
        onnx_towers.write_classifier(model, folder / "image.onnx")
        return
    clip = model.model
    if isinstance(clip, ExternalModel):
        raise InputError(f"{clip.name} is an external model: {clip.library} computes it, and it has no ONNX form here.")
    onnx_towers.write_images(clip, folder / "image.onnx")
    onnx_towers.write_texts(clip, folder / "text.onnx")


_WRITERS = {"openclip": _openclip, "huggingface": _huggingface, "timm": _timm, "onnx": _onnx}


def _need_clip(model: Embedder | ViTClassifier, library: str) -> Embedder:
    if isinstance(model, ViTClassifier):
        raise InputError(
            f"{library} holds images and texts; this is a ViT with classes. Export it to huggingface or timm."
        )
    return model


def _need_linear_head(model: ViTClassifier, library: str) -> None:
    if isinstance(model.head, CosineHead):
        raise InputError(
            f"{library}'s ViT has a linear head; this classifier compares unit vectors, which no linear head does. "
            "Export it to onnx, or train with a linear head."
        )


def _weights(model: nn.Module) -> State:
    return {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
