"""Opens a model: a folder of ours, or foreign weights."""

from pathlib import Path
from typing import Any

import torch

from vlm.calibration import Calibration
from vlm.checkpoint.sources import own_folder, read_config
from vlm.checkpoint.weights import fill, read_weights, unfilled
from vlm.config import Activation, CLIPConfig, CosineHeadConfig, Json, PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.onnx.backends import Backend, check, run_by
from vlm.tokenizers.load import load_tokenizer


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    backend: Backend = "torch",
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Embedder:
    """`mini`, a folder we saved, or a foreign model (`vlm/interop`) -> Embedder, float32, ready to use.

    `backend`: "onnx" and "int8" run the encoders by ONNX Runtime (`vlm/onnx/backends.py`), on the CPU; int8 rounds.
    The options after it are for foreign models: what neither weights nor config say, and another image size.
    """
    check(backend)
    folder = own_folder(source)
    if folder is None:
        from vlm.interop.loading import load_foreign  # only those who need it wait for it

        foreign = load_foreign(
            str(source), num_heads=num_heads, activation=activation, norm_eps=norm_eps, image_size=image_size
        )
        with unfilled():
            model = CLIP(foreign.config)
        fill(model, foreign.state, str(source))
        tokenizer, preprocess, calibration = foreign.tokenizer, foreign.preprocess, None
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        config = read_config(folder, "clip")
        model_config = CLIPConfig.from_dict(config["model"])
        with unfilled():
            model = CLIP(model_config)
        fill(model, read_weights(folder / "model.safetensors"), str(folder))
        tokenizer = load_tokenizer(folder) if config["tokenizer"] else None
        preprocess = _preprocess_config(config)
        calibration = Calibration.from_dict(config["calibration"]) if config.get("calibration") else None
    name = str(source) if ":" in str(source) else Path(source).expanduser().absolute().name  # "hf:org/name" stays whole
    prepare = Preprocess(preprocess) if preprocess else None
    embedder = Embedder(model.to(device).eval(), tokenizer, prepare, name=name, calibration=calibration)
    if backend != "torch":
        embedder.model = run_by(embedder.model, backend, key=embedder.fingerprint)
    return embedder


def load_classifier(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    num_heads: int | None = None,
    activation: Activation | None = None,
    norm_eps: float | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ViTClassifier:
    """A folder we saved, or a foreign ViT -> ViTClassifier with `.labels` and `.preprocess`.

    The options are those of `load`; the book's `vit.pth` needs `num_heads`.
    """
    folder = own_folder(source)
    if folder is None:
        from vlm.interop.loading import load_foreign_classifier

        foreign = load_foreign_classifier(
            str(source), num_heads=num_heads, activation=activation, norm_eps=norm_eps, image_size=image_size
        )
        if not foreign.num_classes:
            raise ValueError(
                f"{source} is a ViT without a head, so it names no classes. Train one on it, or use its features."
            )
        config, num_classes, labels, head = foreign.config, foreign.num_classes, foreign.labels, None
        answers: dict[str, Any] = {}
        preprocess, weights = foreign.preprocess, foreign.state
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        saved = read_config(folder, "vit_classifier")
        config, num_classes, labels = VisionConfig.from_dict(saved["model"]), len(saved["labels"]), saved["labels"]
        head: Json = saved.get("head")  # None is linear
        if not isinstance(head, dict | None):
            raise ValueError(f"{folder}: head is {head!r}; wanted the settings of a CosineHead, or null.")
        preprocess, weights = _preprocess_config(saved), read_weights(folder / "model.safetensors")
        answers = {name: saved[name] for name in ("problem", "thresholds") if name in saved}
    prepare = Preprocess(preprocess) if preprocess else None
    with unfilled():
        cosine = CosineHead(CosineHeadConfig.from_dict(head), config.width, num_classes) if head else None
        model = ViTClassifier(config, num_classes, labels=labels, preprocess=prepare, head=cosine, **answers)
    fill(model, weights, str(source))
    return model.to(device).eval()


def _preprocess_config(config: dict[str, Any]) -> PreprocessConfig | None:
    return PreprocessConfig.from_dict(config["preprocess"]) if config["preprocess"] else None


def _check_no_options(source: str | Path, *options: object) -> None:
    if any(option is not None for option in options):
        raise ValueError(
            f"{source} is a model of ours and says everything itself: leave out num_heads, activation, norm_eps and "
            "image_size."
        )
