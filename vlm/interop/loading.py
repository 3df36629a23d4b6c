"""Foreign weights, both ways, by tables: read once, at the door, into our config and our names.

The weights' names tell the layout, the config beside them what weights cannot tell; where both are silent we refuse.
"""

import dataclasses
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from vlm.config import Activation, CLIPConfig, PreprocessConfig, VisionConfig
from vlm.errors import CheckpointError, OtherKind
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
from vlm.interop.formats.foreign import Foreign, ForeignClassifier, Hints, read_json
from vlm.interop.formats.huggingface_processor import read_processor, whole_image
from vlm.interop.formats.tables import State
from vlm.interop.hub import downloads as hub
from vlm.interop.tensor_files import find_weights, read_tensors
from vlm.interop.tokenizer_files import read_tokenizer
from vlm.models.clip import CLIP
from vlm.models.vision import ViTClassifier, resize_pos_embed
from vlm.tokenizers.clip_bpe import CLIP_VOCAB, CLIPTokenizer
from vlm.tokenizers.protocol import Tokenizer

__all__ = ["Foreign", "ForeignClassifier", "load_foreign", "load_foreign_classifier"]

_LAYOUTS = {  # a name that only this layout has
    "openclip": r"(module\.|_orig_mod\.)*visual\.(conv1\.weight|trunk\..+)",
    "huggingface": r"vision_model\.embeddings\.patch_embedding\.weight",
    "huggingface_vit": r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight",
    "timm": r"patch_embed\.proj\.weight",
    "torchvision": r"conv_proj\.weight",
    "vit_book": r"input_layer\.patch_emb_layer\.weight",
    "big_vision": r"(params/)?(img/)?embedding/kernel",
}
_BESIDE = {
    "openclip": "open_clip_config.json",
    "huggingface": "config.json",
    "huggingface_vit": "config.json",
    "timm": "config.json",
}
_CLIPS = ("openclip", "huggingface", "big_vision")


def load_foreign(
    source: str,
    *,
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Foreign:
    """A CLIP or SigLIP of another library, in our terms.

    `source`: "openclip:NAME/TAG", "openclip:NAME/FILE", "hf:org/name", a folder or a file.  The options say what
    neither the weights nor a config do; `image_size` resizes the position embeddings.  Raises `CheckpointError`.
    """
    hints = Hints(num_heads=num_heads, activation=activation, norm_eps=norm_eps)
    with _one_line(source):
        found = _open(source)
        if found.layout not in _CLIPS or (
            found.layout == "big_vision" and not any("txt/" in name for name in found.state)
        ):
            raise OtherKind(f"{source} is a ViT without texts ({found.layout}). Open it with vlm.load_classifier.")
        readers = {"openclip": _openclip, "huggingface": _huggingface, "big_vision": _big_vision}
        foreign = _with_tokenizer_ids(readers[found.layout](found, hints))
        if image_size is not None:
            foreign = _resized(foreign, image_size, bicubic=found.layout != "big_vision")
        _check_clip(foreign)
        return foreign


def load_foreign_classifier(
    source: str,
    *,
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ForeignClassifier:
    """A ViT of timm, Hugging Face, torchvision, big_vision or the book, in our terms; the rest as `load_foreign`."""
    hints = Hints(num_heads=num_heads, activation=activation, norm_eps=norm_eps)
    with _one_line(source):
        found = _open(source)
        match found.layout:
            case "timm":
                foreign = timm.read_classifier(found.state, found.info, hints)
            case "huggingface_vit":
                foreign = _huggingface_vit(found, hints)
            case "torchvision":
                foreign = torchvision.read_classifier(found.state, hints)
            case "vit_book":
                foreign = vit_book.read_classifier(found.state, hints)
            case "big_vision" if not any("txt/" in name for name in found.state):
                foreign = big_vision.read_classifier(found.state, hints)
            case _:
                raise CheckpointError(
                    f"{source} is a CLIP ({found.layout}), not a ViT with classes. Open it with vlm.load."
                )
        if image_size is not None:
            foreign = _resized(foreign, image_size, bicubic=found.layout != "big_vision")
        _check_classifier(foreign)
        return foreign


@dataclasses.dataclass(frozen=True)
class _Found:
    """A source, opened."""

    layout: str
    state: State
    info: dict[str, Any] | None  # the config of this layout, None for bare weights
    folder: Path | None  # where tokenizer and processor files may be


def _open(source: str) -> _Found:
    if source.startswith("openclip:"):
        known = hub.openclip(source.removeprefix("openclip:"))
        info = {"model_cfg": known.model, "preprocess_cfg": known.preprocess}
        return _Found("openclip", read_tensors(known.weights), info, known.tokenizer)
    path = hub.fetch(source.removeprefix("hf:")) if source.startswith("hf:") else Path(source).expanduser()
    if not path.exists():
        raise CheckpointError(f"There is no '{source}': wanted openclip:NAME/TAG, hf:org/name, a folder or a file.")
    weights = find_weights(path) if path.is_dir() else path
    state = read_tensors(weights)
    layout = _layout(state, weights)
    named_as_usual = path.is_dir() or find_weights(path.parent, (path.name,)) == path
    beside = weights.parent / _BESIDE.get(layout, "")
    info = read_json(beside) if named_as_usual and layout in _BESIDE and beside.is_file() else None
    return _Found(layout, state, _of_layout(layout, info, beside), weights.parent if named_as_usual else None)


def _layout(state: State, path: Path) -> str:
    for layout, mark in _LAYOUTS.items():
        if any(re.fullmatch(mark, name) for name in state):
            return layout
    names = ", ".join(list(state)[:5])
    raise CheckpointError(
        f"{path} holds {len(state)} tensors of no layout known here ({names} ...). Known: {', '.join(_LAYOUTS)}."
    )


def _of_layout(layout: str, info: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """A config.json may belong to other weights in the same folder, or to a model that only shares the names."""
    if info is None or layout == "openclip":
        return info
    kind = info.get("model_type")
    wanted = {"huggingface": ("clip", "siglip"), "huggingface_vit": ("vit",), "timm": (None,)}[layout]
    if kind not in wanted or (layout == "timm" and "architecture" not in info):
        raise CheckpointError(
            f"{path}: model_type is {kind!r}; of this layout only {', '.join(map(str, wanted))} is known here."
        )
    return info


@contextmanager
def _one_line(source: str) -> Generator[None]:
    """A config of an unexpected form raises these from wherever it is read; all become one line."""
    try:
        yield
    except OtherKind:
        raise
    except ValueError as error:
        raise CheckpointError(" ".join(str(error).split())) from error
    except (
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RuntimeError,
        OverflowError,
        OSError,
        ZeroDivisionError,
    ) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{source} cannot be read: its config or tensors have an unexpected form ({detail})."
        ) from error


# ---- one reader per layout -----------------------------------------------------------------------------------------


def _openclip(found: _Found, hints: Hints) -> Foreign:
    if found.info is None:
        configs = [(name, openclip_config.ModelCfg.from_dict(config)) for name, config in hub.openclip_models()]
        model, given = openclip.guess(found.state, configs, hints), None
    else:
        model, given = openclip_config.ModelCfg.from_dict(found.info["model_cfg"]), found.info.get("preprocess_cfg")
    config, state = openclip.read_model(found.state, model)
    config = _hinted(config, hints)
    preprocess = None
    if given is not None or model.is_plain_clip:  # OpenCLIP's own default where nothing is said
        preprocess = whole_image(
            openclip_config.to_preprocess(given or {}, model.vision_cfg.image_size), config.vision.image_size
        )
    return Foreign(config, state, _openclip_tokenizer(model, config, found.folder), preprocess)


def _hinted(config: CLIPConfig, hints: Hints) -> CLIPConfig:
    """What the caller says, over what the config says."""
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


def _huggingface(found: _Found, hints: Hints) -> Foreign:
    config, state = huggingface.read_clip(found.state, found.info, hints)
    kind = "siglip" if config.vision.pool == "attention" else "clip"
    return Foreign(
        config, state, _huggingface_tokenizer(config, found.folder), _processor(found.folder, kind, config.vision)
    )


def _huggingface_tokenizer(config: CLIPConfig, folder: Path | None) -> Tokenizer | None:
    if folder is None:
        return None
    text, path = config.text, folder / "tokenizer_config.json"
    kind = str(read_json(path).get("tokenizer_class")).removesuffix("Fast") if path.is_file() else None
    if kind == "CLIPTokenizer" and text.vocab_size == CLIP_VOCAB:
        return CLIPTokenizer(text.context_length)
    clean = {"SiglipTokenizer": "siglip", "GemmaTokenizer": "siglip2", "Siglip2Tokenizer": "siglip2"}.get(
        str(kind), "none"
    )
    return read_tokenizer(folder, text.context_length, text.vocab_size, clean=clean, pad_to_context=text.pad_to_context)


def _processor(folder: Path | None, kind: str, vision: VisionConfig) -> PreprocessConfig | None:
    """Of preprocessor_config.json, or of processor_config.json (transformers 5)."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if folder is not None and (folder / name).is_file():
            given = read_json(folder / name)
            return read_processor(given.get("image_processor", given), kind, vision.image_size)
    return None


def _huggingface_vit(found: _Found, hints: Hints) -> ForeignClassifier:
    foreign = huggingface_vit.read_classifier(found.state, found.info, hints)
    return dataclasses.replace(foreign, preprocess=_processor(found.folder, "vit", foreign.config))


def _big_vision(found: _Found, hints: Hints) -> Foreign:
    config, state = big_vision.read_clip(found.state, hints)
    return Foreign(config, state, None, None)


# ---- what every conversion ends with -------------------------------------------------------------------------------


def _with_tokenizer_ids(foreign: Foreign) -> Foreign:
    """The tokenizer has the last word on padding; on end-of-text it must agree, where the model looks for it."""
    tokenizer, text = foreign.tokenizer, foreign.config.text
    if tokenizer is None:
        return foreign
    if text.pool == "eot" and tokenizer.eot_id != text.eot_id:
        raise CheckpointError(
            f"the config's end-of-text id is {text.eot_id}, the tokenizer's {tokenizer.eot_id}: no pair."
        )
    text = dataclasses.replace(text, eot_id=tokenizer.eot_id, pad_id=tokenizer.pad_id)
    return dataclasses.replace(foreign, config=dataclasses.replace(foreign.config, text=text))


_F = TypeVar("_F", Foreign, ForeignClassifier)


def _resized(foreign: _F, image_size: int | tuple[int, int], *, bicubic: bool) -> _F:
    """For images of another size: position embeddings resized, preprocessing told."""
    vision = foreign.config.vision if isinstance(foreign, Foreign) else foreign.config
    positions = resize_pos_embed(foreign.state["vision.pos_embed"], vision, image_size, bicubic=bicubic)
    state = foreign.state | {"vision.pos_embed": positions}
    preprocess = foreign.preprocess
    if preprocess is not None:
        cut = {"crop_pct": 1.0, "crop_rounding": "even"} if preprocess.crop_rounding == "first" else {}
        preprocess = dataclasses.replace(preprocess, image_size=image_size, **cut)
    vision = dataclasses.replace(vision, image_size=image_size)
    config = dataclasses.replace(foreign.config, vision=vision) if isinstance(foreign, Foreign) else vision
    return dataclasses.replace(foreign, config=config, state=state, preprocess=preprocess)  # type: ignore[arg-type]


def _check_clip(foreign: Foreign) -> None:
    """Every tensor finite; an image and a text come out as unit vectors."""
    _check_finite(foreign.state)
    with torch.device("meta"):
        model = CLIP(foreign.config)
    model.load_state_dict(foreign.state, strict=True, assign=True)
    text = foreign.config.text
    ids = torch.full((1, min(4, text.context_length)), text.eot_id)
    with torch.inference_mode():
        vectors = torch.cat([model.eval().encode_image(_image(foreign.config.vision)), model.encode_text(ids)])
    if not torch.allclose(vectors.square().sum(1).sqrt(), torch.ones(2), atol=1e-3):
        raise CheckpointError("the converted model does not give unit vectors: the weights are damaged.")


def _check_classifier(foreign: ForeignClassifier) -> None:
    _check_finite(foreign.state)
    with torch.device("meta"):
        model = ViTClassifier(foreign.config, max(1, foreign.num_classes)).vision
    model.load_state_dict(
        {n.removeprefix("vision."): t for n, t in foreign.state.items() if n.startswith("vision.")}, assign=True
    )
    with torch.inference_mode():
        if not bool(model.eval()(_image(foreign.config)).isfinite().all()):
            raise CheckpointError("the converted model does not give finite features: the weights are damaged.")


def _check_finite(state: State) -> None:
    if broken := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(
            f"{len(broken)} tensors hold values that are not finite (our names): {', '.join(broken)}."
        )


def _image(config: VisionConfig) -> torch.Tensor:
    """A grey ramp, (1, C, H, W)."""
    height, width = config.image_shape
    return torch.linspace(-1, 1, config.in_channels * height * width).view(1, config.in_channels, height, width)
