"""Opens a model: a folder of ours, or foreign weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.calibration import Calibration
from vlm.checkpoint.sources import locate, read_config
from vlm.checkpoint.weights import fill, read_weights, unfilled
from vlm.config import Activation, CLIPConfig, CosineHeadConfig, Json, PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.errors import CheckpointError, InputError, OtherKind
from vlm.images.preprocess import Preprocess
from vlm.interop.formats.foreign import Foreign
from vlm.interop.names.catalog import source_of
from vlm.models.clip import CLIP
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.onnx.backends import Backend, check, run_by
from vlm.onnx.classifier import run_classifier_by
from vlm.precision import cast_weights, choose_device, weight_dtype
from vlm.tokenizers.load import load_tokenizer
from vlm.user_folders import expanded

if TYPE_CHECKING:
    from vlm.interop.external.external_clip import ExternalClip


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    backend: Backend = "torch",
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Open a model, ready to embed.

    Args:
        source: `mini` or another short name (`vlm models`), a folder that `save` wrote, or a model of another library:
            "openclip:NAME/TAG", "hf:ORG/NAME", a folder or file (`vlm/interop/sources.py`).
        device: "auto" is a CUDA GPU where there is one, else the CPU.
        dtype: of the weights: "float32", "bfloat16" or "float16".  "auto" keeps float32 and computes in 16 bits on a
            GPU (autocast); see `Embedder.to`.
        backend: "onnx" and "int8" run the encoders by ONNX Runtime on the CPU (`vlm/onnx/backends.py`); int8 rounds.
        num_heads: of a foreign image encoder, where neither its weights nor its config say it.
        activation: likewise.
        norm_eps: likewise.
        image_size: pixels; resizes the position embeddings of a foreign model.
        trust_remote_code: run Python code that comes with a model of the hub, where it needs such code.

    Returns:
        An `Embedder`.  Its `model` is a `CLIP`, or an `ExternalModel` where another library computes it.

    Raises:
        CheckpointError: the model is missing, damaged or of no known kind.
        OtherKind: the source is a ViT without texts.
        HubError: the hub cannot be reached, or refuses.
    """
    check(backend)
    named, source = source, source_of(str(source)) if isinstance(source, str) else source
    found = locate(source, "clip")
    if not isinstance(found, Path):
        from vlm.interop.loading import load_dual_encoder  # only those who need it wait for it

        foreign = load_dual_encoder(
            str(source),
            num_heads=num_heads,
            activation=activation,
            norm_eps=norm_eps,
            image_size=image_size,
            trust_remote_code=trust_remote_code,
            files=found,
        )
        if not isinstance(foreign, Foreign):
            return _external(foreign, _name(named), device, dtype, backend)
        with unfilled():
            model = CLIP(foreign.config)
        fill(model, foreign.state, str(source))
        tokenizer, preprocess, calibration = foreign.tokenizer, foreign.preprocess, None
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        folder, config = found, read_config(found, "clip")
        model_config = CLIPConfig.from_dict(config["model"])
        with unfilled():
            model = CLIP(model_config)
        fill(model, read_weights(folder / "model.safetensors"), str(folder))
        tokenizer = load_tokenizer(folder) if config["tokenizer"] else None
        preprocess = _preprocess_config(config)
        calibration = Calibration.from_dict(config["calibration"]) if config.get("calibration") else None
    prepare = Preprocess(preprocess) if preprocess else None
    embedder = Embedder(model.eval(), tokenizer, prepare, name=_name(named), calibration=calibration)
    embedder.to("cpu" if backend != "torch" and str(device) == "auto" else device, dtype)
    if backend != "torch":
        embedder.model = run_by(model, backend, key=embedder.fingerprint)
    return embedder


def load_classifier(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    backend: Backend = "torch",
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ViTClassifier:
    """Open a ViT with classes; `.labels` and `.preprocess` come with it.

    Args:
        source: a folder that `save` wrote, or a ViT of timm, Hugging Face, torchvision, big_vision or the book.
        device: "cpu", "cuda" ..., or "auto" as in `load`.
        dtype: of the weights; "auto" is float32.
        backend: "onnx" and "int8" run it by ONNX Runtime on the CPU; int8 rounds.
        num_heads: as in `load`; the book's `vit.pth` needs it.
        activation: as in `load`.
        norm_eps: as in `load`.
        image_size: as in `load`.

    Returns:
        A `ViTClassifier`, in `eval()`.

    Raises:
        OtherKind: the source is a CLIP, or a ViT without a head (`load_backbone`).
        CheckpointError: the model is missing, damaged or of no known kind.
        HubError: the hub cannot be reached, or refuses.
    """
    check(backend)
    found = locate(source, "vit")
    if not isinstance(found, Path):
        from vlm.interop.loading import load_foreign_classifier

        foreign = load_foreign_classifier(
            str(source),
            num_heads=num_heads,
            activation=activation,
            norm_eps=norm_eps,
            image_size=image_size,
            files=found,
        )
        if not foreign.num_classes:
            raise OtherKind(
                f"{source} has no head that can be read here (none, or one of two parts as DINOv2 and DeiT have). It "
                "names no classes. Open it with vlm.load_backbone, or train a head on it: vlm probe, vlm train."
            )
        config, num_classes, labels, head = foreign.config, foreign.num_classes, foreign.labels, None
        answers: dict[str, Any] = {}
        preprocess, weights = foreign.preprocess, foreign.state
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        folder, saved = found, read_config(found, "vit_classifier")
        config, num_classes, labels = VisionConfig.from_dict(saved["model"]), len(saved["labels"]), saved["labels"]
        head: Json = saved.get("head")  # None is linear
        if not isinstance(head, dict | None):
            raise CheckpointError(f"{folder}: head is {head!r}; wanted the settings of a CosineHead, or null.")
        preprocess, weights = _preprocess_config(saved), read_weights(folder / "model.safetensors")
        answers = {name: saved[name] for name in ("problem", "thresholds") if name in saved}
    prepare = Preprocess(preprocess) if preprocess else None
    with unfilled():
        cosine = CosineHead(CosineHeadConfig.from_dict(head), config.width, num_classes) if head else None
        model = ViTClassifier(config, num_classes, labels=labels, preprocess=prepare, head=cosine, **answers)
    fill(model, weights, str(source))
    if (wanted := weight_dtype(dtype)) is not None:
        cast_weights(model, wanted)
    return run_classifier_by(model.to(choose_device(device)).eval(), backend)


def _name(source: str | Path) -> str:
    """A folder's name; "hf:org/name" and its like stay whole."""
    return str(source) if ":" in str(source) else expanded(source).absolute().name


def _external(
    found: "ExternalClip", name: str, device: str | torch.device, dtype: str | torch.dtype, backend: Backend
) -> Embedder:
    if backend != "torch":
        raise InputError(
            f"{name} is an external model, computed by {found.model.library}: backend {backend} needs layers of this "
            "library. Use backend torch."
        )
    return Embedder(found.model.eval(), found.tokenizer, found.preprocess, name=name).to(device, dtype)


def _preprocess_config(config: dict[str, Any]) -> PreprocessConfig | None:
    return PreprocessConfig.from_dict(config["preprocess"]) if config["preprocess"] else None


def _check_no_options(source: str | Path, *options: object) -> None:
    if any(option is not None for option in options):
        raise CheckpointError(
            f"{source} is a model of ours and says everything itself: leave out num_heads, activation, norm_eps and "
            "image_size."
        )
