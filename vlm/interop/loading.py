"""Opens models of other libraries: reads them into our config and our names, or lets their own library compute them.

The names of the tensors tell the layout, the config beside them what tensors cannot tell; where both are silent the
model is refused.
"""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.config import Activation, CLIPConfig, PreprocessConfig, VisionConfig
from vlm.errors import CheckpointError, InputError, OtherKind, VlmError
from vlm.interop.checks import check_clip, check_vit, resized, with_tokenizer_ids
from vlm.interop.external.external_clip import ExternalClip
from vlm.interop.external.opening import load_external
from vlm.interop.formats import (
    big_vision,
    huggingface,
    huggingface_vit,
    openclip,
    openclip_config,
    timm,
    torchvision,
    vit_book,
)
from vlm.interop.formats.foreign import Foreign, ForeignClassifier, Hints, exact, read_json
from vlm.interop.formats.huggingface_processor import read_processor, whole_image
from vlm.interop.formats.tables import State
from vlm.interop.hub.openclip_registry import all_models
from vlm.interop.layouts import check_config, config_beside, recognise
from vlm.interop.selection import NATIVE_CLIPS
from vlm.interop.sources import Files, plan
from vlm.interop.tensor_files import read_tensors
from vlm.interop.tokenizer_files import read_tokenizer
from vlm.tokenizers.clip_bpe import CLIP_VOCAB, CLIPTokenizer
from vlm.tokenizers.protocol import Tokenizer

_WITHOUT_ANTIALIAS = ("vit", "deit", "dinov2", "vit_mae")  # interpolate_pos_encoding of these models
_CLIPS = ("openclip", "huggingface", "big_vision")


def load_dual_encoder(
    source: str,
    *,
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    trust_remote_code: bool = False,
    files: Files | None = None,
) -> Foreign | ExternalClip:
    """Open a dual encoder of another library.

    Args:
        source: "openclip:NAME/TAG", "openclip:NAME/FILE", "hf:ORG/NAME", a folder or a file (`vlm/interop/sources.py`).
        num_heads: of the image encoder, where neither the weights nor a config say it.
        activation: of both encoders, likewise.
        norm_eps: of the LayerNorms, likewise.
        image_size: pixels; resizes the position embeddings.
        trust_remote_code: run code that comes with the model, where it needs such code.
        files: the source's files, where they have been fetched already.

    Returns:
        `Foreign` where this library has the layers, else an `ExternalClip`, which its own library computes.

    Raises:
        CheckpointError: the files cannot be read, or are of no kind known here.
        OtherKind: the source is a ViT without texts.
        HubError: the files cannot be had.
    """
    hints = Hints(num_heads=num_heads, activation=activation, norm_eps=norm_eps)
    files = files or plan(source, "clip").fetch()
    if _is_external(files.family, files.info or {}):
        said = [name for name, value in (*vars(hints).items(), ("image_size", image_size)) if value is not None]
        if said:
            raise InputError(
                f"{source} is an external model, computed by its own library: leave out {', '.join(said)}."
            )
        return load_external(files, source, trust_remote_code=trust_remote_code)
    opened = _open(files, source)
    if opened.layout not in _CLIPS or (opened.layout == "big_vision" and not _has_texts(opened)):
        raise OtherKind(
            f"{source} is a ViT without texts ({opened.layout}). Open it with vlm.load_classifier or load_backbone."
        )
    readers = {"openclip": _openclip, "huggingface": _huggingface, "big_vision": _big_vision}
    with _about(source):
        foreign = with_tokenizer_ids(readers[opened.layout](opened, hints))
        if image_size is not None:
            foreign = resized(foreign, image_size, bicubic=opened.layout != "big_vision")
        check_clip(foreign)
    return dataclasses.replace(foreign, preprocess=exact(foreign.preprocess))


def load_foreign(
    source: str,
    *,
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Foreign:
    """Open a dual encoder that this library has the layers for; arguments and errors as `load_dual_encoder`.

    Raises:
        InputError: the source is an external model.
    """
    found = load_dual_encoder(
        source, num_heads=num_heads, activation=activation, norm_eps=norm_eps, image_size=image_size
    )
    if isinstance(found, ExternalClip):
        raise InputError(f"{source} is an external model, computed by {found.model.library}. Open it with vlm.load.")
    return found


def load_foreign_classifier(
    source: str,
    *,
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    files: Files | None = None,
) -> ForeignClassifier:
    """Open a ViT of timm, Hugging Face, torchvision, big_vision or the book; the rest as `load_dual_encoder`.

    Returns:
        The ViT; `num_classes` is 0 where the source has no head.
    """
    hints = Hints(num_heads=num_heads, activation=activation, norm_eps=norm_eps)
    opened = _open(files or plan(source, "vit").fetch(), source)
    with _about(source):
        foreign = _classifier(opened, hints, source)
        if image_size is not None:
            plain = opened.layout == "huggingface_vit" and (opened.info or {}).get("model_type") in _WITHOUT_ANTIALIAS
            foreign = resized(foreign, image_size, bicubic=opened.layout != "big_vision", antialias=not plain)
        check_vit(foreign)
    return dataclasses.replace(foreign, preprocess=exact(foreign.preprocess))


def load_foreign_backbone(source: str, *, image_size: int | tuple[int, int] | None = None) -> ForeignClassifier:
    """Open an image encoder: a ViT with or without a head, or that of a CLIP.

    Args:
        source: as for `load_dual_encoder`.
        image_size: pixels; resizes the position embeddings.

    Raises:
        InputError: the source is an external model, whose layers are not ours.
    """
    try:
        return load_foreign_classifier(source, image_size=image_size)
    except OtherKind:
        check_native(source)
    foreign = load_dual_encoder(source, image_size=image_size)
    assert isinstance(foreign, Foreign)
    vision = {name: tensor for name, tensor in foreign.state.items() if name.startswith("vision.")}
    return ForeignClassifier(foreign.config.vision, 0, None, vision, foreign.preprocess)


def check_native(source: str) -> None:
    """Refuse an external model from its config alone, before weights are downloaded or code of its own is run.

    Raises:
        InputError: another library would compute the model.
        HubError: the hub cannot be asked.
    """
    try:
        planned = plan(source, "clip")
    except OtherKind:  # a ViT
        return
    family = "openclip" if planned.known is not None else planned.selection and planned.selection.family
    info = {"model_cfg": planned.known.model} if planned.known is not None else planned.info
    if _is_external(family, info or {}):
        raise InputError(
            f"{source} is an external model, computed by its own library: there are no layers to look into or to "
            "start from. Use a native one, such as hf:openai/clip-vit-base-patch16 or hf:facebook/dinov2-base."
        )


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A source whose tensors have been read."""

    layout: str
    state: State
    info: dict[str, Any] | None  # the config of this layout, None for bare weights
    folder: Path | None  # where processor files may be
    tokenizer: Path | None  # where tokenizer files may be


def _open(files: Files, source: str) -> _Opened:
    if files.weights is None:
        raise CheckpointError(f"{source} is a model of ours without its manifest.json. Copy the model folder, whole.")
    layout, state = recognise(read_tensors(files.weights), files.weights)
    info = files.info if files.info is not None else config_beside(layout, files.folder)
    check_config(layout, info, source)
    return _Opened(layout, state, info, files.folder, files.tokenizer)


def _has_texts(opened: _Opened) -> bool:
    return any("txt/" in name for name in opened.state)


@contextmanager
def _about(source: str) -> Generator[None]:
    """Names the source in the errors of a conversion, which know only the part they read."""
    try:
        yield
    except OtherKind:
        raise
    except VlmError as error:
        said = " ".join(str(error).split())
        kind = InputError if isinstance(error, InputError) else CheckpointError
        raise kind(said if source in said else f"{source}: {said}") from error


def _is_external(family: str | None, info: dict[str, Any]) -> bool:
    """Returns True if another library computes a dual encoder of this config."""
    if family == "transformers":
        return info.get("model_type") not in NATIVE_CLIPS
    if family == "openclip" and isinstance(info.get("model_cfg"), dict):
        return not openclip_config.is_native(info["model_cfg"])
    return False


# ---- one reader per layout -----------------------------------------------------------------------------------------


def _openclip(opened: _Opened, hints: Hints) -> Foreign:
    if opened.info is None:
        configs = [(name, openclip_config.ModelCfg.from_dict(config)) for name, config in all_models()
                   if openclip_config.is_native(config)]  # fmt: skip
        model, given = openclip.guess(opened.state, configs, hints), None
    else:
        model = openclip_config.ModelCfg.from_dict(openclip_config.section(opened.info, "model_cfg"))
        given = opened.info.get("preprocess_cfg")
    config, state = openclip.read_model(opened.state, model)
    config = _hinted(config, hints)
    preprocess = None
    if given is not None or model.is_plain_clip:  # OpenCLIP's own default where nothing is said
        preprocess = whole_image(
            openclip_config.to_preprocess(given or {}, model.vision_cfg.image_size), config.vision.image_size
        )
    return Foreign(config, state, _openclip_tokenizer(model, config, opened.tokenizer), preprocess)


def _hinted(config: CLIPConfig, hints: Hints) -> CLIPConfig:
    """Applies the caller's settings over those of the config."""
    both = {name: value for name in ("activation", "norm_eps") if (value := getattr(hints, name)) is not None}
    heads = {} if hints.num_heads is None else {"num_heads": hints.num_heads}
    vision, text = dataclasses.replace(config.vision, **both, **heads), dataclasses.replace(config.text, **both)
    return dataclasses.replace(config, vision=vision, text=text)


def _openclip_tokenizer(model: openclip_config.ModelCfg, config: CLIPConfig, folder: Path | None) -> Tokenizer | None:
    """CLIP's byte-pair encoding where OpenCLIP uses it: where no other tokenizer is named."""
    text = config.text
    if not model.text_cfg.hf_tokenizer_name:
        return (
            CLIPTokenizer(text.context_length, pad_to_context=text.pad_to_context)
            if text.vocab_size == CLIP_VOCAB
            else None
        )
    if folder is None:
        return None
    given = model.text_cfg.tokenizer_kwargs or {}
    return read_tokenizer(
        folder,
        text.context_length,
        text.vocab_size,
        clean=given.get("clean", "whitespace"),
        pad_to_context=text.pad_to_context,
        without_end=bool(given.get("strip_sep_token")),
    )


def _huggingface(opened: _Opened, hints: Hints) -> Foreign:
    config, state = huggingface.read_clip(opened.state, opened.info, hints)
    kind = "siglip" if config.vision.pool == "attention" else "clip"
    preprocess = _processor(opened.folder, kind, config.vision)
    return Foreign(config, state, _huggingface_tokenizer(config, opened.tokenizer), preprocess)


def _huggingface_tokenizer(config: CLIPConfig, folder: Path | None) -> Tokenizer | None:
    if folder is None:
        return None
    text, path = config.text, folder / "tokenizer_config.json"
    kind = str(read_json(path).get("tokenizer_class")).removesuffix("Fast") if path.is_file() else None
    if text.vocab_size == CLIP_VOCAB and (kind == "CLIPTokenizer" or (kind is None and _is_clip_bpe(folder))):
        return CLIPTokenizer(text.context_length)
    clean = {"SiglipTokenizer": "siglip", "GemmaTokenizer": "siglip2", "Siglip2Tokenizer": "siglip2"}.get(
        str(kind), "none"
    )
    return read_tokenizer(folder, text.context_length, text.vocab_size, clean=clean, pad_to_context=text.pad_to_context)


def _is_clip_bpe(folder: Path) -> bool:
    """Returns True if vocab.json, without a config, is the vocabulary of CLIP's byte-pair encoding."""
    path = folder / "vocab.json"
    return path.is_file() and read_json(path).get("<|endoftext|>") == CLIP_VOCAB - 1


def _processor(folder: Path | None, kind: str, vision: VisionConfig) -> PreprocessConfig | None:
    """Reads preprocessor_config.json, or processor_config.json (transformers 5)."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if folder is not None and (folder / name).is_file():
            given = read_json(folder / name)
            return read_processor(given.get("image_processor", given), kind, vision.image_size)
    return None


def _big_vision(opened: _Opened, hints: Hints) -> Foreign:
    config, state = big_vision.read_clip(opened.state, hints)
    return Foreign(config, state, None, None)


def _classifier(opened: _Opened, hints: Hints, source: str) -> ForeignClassifier:
    match opened.layout:
        case "timm":
            return timm.read_classifier(opened.state, opened.info, hints)
        case "huggingface_vit":
            foreign = huggingface_vit.read_classifier(opened.state, opened.info, hints)
            return dataclasses.replace(foreign, preprocess=_processor(opened.folder, "vit", foreign.config))
        case "huggingface" if not any(name.startswith("text_model.") for name in opened.state):
            foreign = huggingface.read_image_encoder(opened.state, opened.info, hints)
            kind = "clip" if foreign.config.class_token else "siglip"
            return dataclasses.replace(foreign, preprocess=_processor(opened.folder, kind, foreign.config))
        case "torchvision":
            return torchvision.read_classifier(opened.state, hints)
        case "vit_book":
            return vit_book.read_classifier(opened.state, hints)
        case "big_vision" if not _has_texts(opened):
            return big_vision.read_classifier(opened.state, hints)
        case _:
            raise OtherKind(f"{source} is a CLIP ({opened.layout}), not a ViT with classes. Open it with vlm.load.")
