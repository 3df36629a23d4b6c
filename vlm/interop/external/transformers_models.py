"""Models that transformers computes: ChineseCLIP, AltCLIP, SigLIP 2 NaFlex, VisionTextDualEncoder, CLIPSeg, others."""

import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from vlm.errors import CheckpointError, MissingPackageError
from vlm.images.preprocess import Preprocess
from vlm.interop.external.external_clip import ExternalClip, ExternalTokenizer, files_identity, plain
from vlm.interop.external.naflex import NaflexPreprocess, split_naflex
from vlm.interop.external.own_code import check_trusted, describe_own_code, find_own_code
from vlm.interop.external.own_processor import ProcessorPreprocess
from vlm.interop.formats.foreign import exact, one_line, read_json
from vlm.interop.formats.huggingface_processor import is_known, read_processor
from vlm.interop.selection import TOKENIZER_FILES
from vlm.interop.sources import Files
from vlm.models.external import ExternalModel

_log = logging.getLogger(__name__)
_LIMIT = 1_000_000  # transformers writes 1e30 where a tokenizer has no limit


def open_transformers(files: Files, source: str, *, trust_remote_code: bool) -> ExternalClip:
    """Open a model with `transformers.AutoModel`, from files that are on this machine.

    Args:
        files: of the model.
        source: for messages.
        trust_remote_code: run the Python files that come with the model.

    Raises:
        InputError: the model needs its own code, and `trust_remote_code` is False.
        CheckpointError: transformers refuses the files, or the model has no embeddings of images and texts.
        MissingPackageError: transformers is not installed.
    """
    transformers = _transformers()
    assert files.folder is not None
    assert files.info is not None
    code = find_own_code(files.folder, files.info)
    check_trusted(code, files.folder, source, trust_remote_code=trust_remote_code)
    if code:
        _log.warning("%s: running code that came with it: %s", source, describe_own_code(code, files.folder, source))
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": bool(code)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model: Any = transformers.AutoModel.from_pretrained(str(files.folder), dtype=torch.float32, **options)
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(files.tokenizer or files.folder), **options)
        except Exception as error:  # on a damaged config, or in code of the model's own, almost anything is raised
            raise CheckpointError(
                f"{source}: transformers cannot open this model ({one_line(error)}). Are its files whole, and is "
                "transformers new enough?"
            ) from error
    missing = [name for name in ("get_image_features", "get_text_features") if not callable(getattr(model, name, None))]
    if missing:
        raise CheckpointError(f"{source} is a {type(model).__name__}, which has no {' and no '.join(missing)}.")
    model.eval()
    naflex = str(files.info.get("model_type")) == "siglip2"
    padded = "siglip" in str(files.info.get("model_type"))
    wrapped = _tokenizer(tokenizer, model, padded=padded)
    preprocess = _preprocess(transformers, files, source, options, naflex=naflex)
    pad_id, eot_id, side = wrapped.pad_id, wrapped.eot_id, str(getattr(tokenizer, "padding_side", "right"))

    def images(network: Any, pixels: Tensor) -> Tensor:
        inputs = split_naflex(pixels) if naflex else {"pixel_values": pixels}
        return _embeds(network.get_image_features(**inputs))

    def texts(network: Any, ids: Tensor) -> Tensor:
        if padded:  # SigLIP was trained on padding and reads it
            return _embeds(network.get_text_features(input_ids=ids))
        return _embeds(
            network.get_text_features(input_ids=ids, attention_mask=attention_mask(ids, pad_id, eot_id, side=side))
        )

    scale, bias = getattr(model, "logit_scale", None), getattr(model, "logit_bias", None)
    if scale is None:  # ALIGN has a temperature; others none: CLIP's after training
        temperature = getattr(model, "temperature", None)
        scale = -torch.log(temperature.detach()) if isinstance(temperature, Tensor) else 4.6052
    config = {name: value for name, value in model.config.to_dict().items() if name not in _VERSIONS}
    external = ExternalModel(
        model,
        images=images,
        texts=texts,
        library="transformers",
        name=source,
        identity={
            "library": "transformers",
            "config": plain(config),
            "tokenizer": files_identity(files.tokenizer, TOKENIZER_FILES - {"config.json"}),
            **_processor_identity(preprocess, files.folder),
        },
        embed_dim=_embed_dim(model, images if not naflex else None, texts, wrapped),
        logit_scale=torch.as_tensor(scale),
        logit_bias=bias,
    )
    return ExternalClip(external, wrapped, preprocess)


_VERSIONS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


def attention_mask(ids: Tensor, pad_id: int, eot_id: int, *, side: str = "right") -> Tensor:
    """1 for the tokens of each row, 0 for its padding; where both ids are one, the first behind the text is a token.

    Args:
        ids: (B, T), padded.
        pad_id: the id of padding.
        eot_id: the id that ends a text.
        side: where the padding is, "right" or "left".

    Returns:
        (B, T), int64.
    """
    if side == "left":
        return 1 - (ids == pad_id).int().cumprod(1).long()
    behind = (ids.flip(1) == pad_id).int().cumprod(1).flip(1)  # 1 in the run of padding at the end of a row
    if pad_id == eot_id:
        first = (behind.cumsum(1) == 1) & (behind == 1)
        behind = behind * (~first)
    return 1 - behind.long()


def _embeds(output: Any) -> Tensor:
    """transformers 4 returns a tensor, 5 an output whose pooler_output is the embedding."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _embed_dim(model: Any, images: Any, texts: Any, tokenizer: ExternalTokenizer) -> int:
    named = getattr(model.config, "projection_dim", None)
    if isinstance(named, int) and images is not None:
        return named
    with torch.inference_mode():
        return int(texts(model, tokenizer(["a"])).shape[1])


def _tokenizer(tokenizer: Any, model: Any, *, padded: bool) -> ExternalTokenizer:
    text = getattr(model.config, "text_config", None)
    limits = [getattr(tokenizer, "model_max_length", None), getattr(text, "max_position_embeddings", None)]
    kind = str(getattr(text, "model_type", ""))
    if "roberta" in kind and limits[1]:
        limits[1] -= 2  # RoBERTa's positions begin behind the padding id
    length = min([int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < _LIMIT], default=77)
    pad = tokenizer.pad_token_id
    eot = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = eot if pad is None else pad

    def tokenize(texts: list[str]) -> Tensor:
        padding = "max_length" if padded else True
        return tokenizer(texts, padding=padding, truncation=True, max_length=length, return_tensors="pt").input_ids

    return ExternalTokenizer(
        tokenize,
        context_length=length,
        vocab_size=max(len(tokenizer), int(eot or 0) + 1, int(pad or 0) + 1),
        eot_id=int(eot or 0),
        pad_id=int(pad or 0),
        decode=lambda ids: str(tokenizer.decode(ids)),
    )


def _preprocess(
    transformers: Any, files: Files, source: str, options: dict[str, Any], *, naflex: bool
) -> Preprocess | None:
    assert files.folder is not None
    assert files.info is not None
    given = _processor_settings(files.folder)
    if given is None:
        return None
    if naflex:
        return NaflexPreprocess(files.folder, given)
    if not is_known(given):
        return ProcessorPreprocess(files.folder, source, options)
    vision: Any = files.info.get("vision_config") or {}
    size: Any = cast(Any, vision).get("image_size") if isinstance(vision, dict) else None
    return Preprocess(exact(read_processor(given, "clip", size)))


def _processor_identity(preprocess: Preprocess | None, folder: Path) -> dict[str, Any]:
    """What the config of a `ProcessorPreprocess` does not say."""
    return {"processor": plain(_processor_settings(folder))} if isinstance(preprocess, ProcessorPreprocess) else {}


def _processor_settings(folder: Path) -> dict[str, Any] | None:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            given = read_json(folder / name)
            inner: Any = given.get("image_processor", given)
            return inner if isinstance(inner, dict) else None  # pyright: ignore[reportUnknownVariableType]
    return None


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            f"This model needs transformers ({one_line(error)}). Run: pip install transformers, or install the extra "
            "interop."
        ) from error
    return transformers
