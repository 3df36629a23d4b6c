"""The one model format: a folder that is whole, checked and free of code.

config.json         kind, architecture, preprocessing, labels
model.safetensors   the weights; matrices may be float16, loaded as float32
(tokenizer files)   as `vlm/tokenizers/tokenizer.py` writes them
README.md           the model card
manifest.json       sha256 of every file above, and of itself
"""

import hashlib
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vlm.calibration import Calibration
from vlm.checkpoint.card import short_card
from vlm.config import Activation, CLIPConfig, CosineHeadConfig, Json, PreprocessConfig, VisionConfig
from vlm.embedder import Embedder
from vlm.errors import OtherKind
from vlm.images.preprocess import Preprocess
from vlm.models.clip import CLIP
from vlm.models.vision import CosineHead, ViTClassifier
from vlm.onnx.backends import Backend, check, run_by
from vlm.tokenizers.tokenizer import load_tokenizer

BUNDLED = {"mini": Path(__file__).parents[1] / "assets" / "mini"}
FORMAT = "vlm-1"
_STORED = {torch.float32, torch.float16, torch.bfloat16}


def save(
    model: Embedder | ViTClassifier, folder: str | Path, card: str | None = None, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write a folder that `load` or `load_classifier` reads back; an older model of ours there is replaced, whole.

    `card`: the text of README.md, None writes a short one.  `dtype`: how matrices are stored; float16 halves the file.
    """
    folder = Path(folder).expanduser().absolute()
    if isinstance(model, Embedder):
        weights, (tokenizer, preprocess) = model.model, model.parts()
        config: dict[str, Any] = {"format": FORMAT, "kind": "clip", "model": weights.config.to_dict()}
        config["calibration"] = model.calibration.to_dict() if model.calibration else None
    else:
        weights, tokenizer, preprocess = model, None, model.preprocess
        config = {"format": FORMAT, "kind": "vit_classifier", "model": model.vision.config.to_dict()}
        config["labels"] = list(model.labels)
        config["head"] = model.head.config.to_dict() if isinstance(model.head, CosineHead) else None
    config["preprocess"] = preprocess.config.to_dict() if preprocess else None
    config["tokenizer"] = tokenizer is not None
    stored = {name: _stored(name, weight, dtype) for name, weight in weights.state_dict().items()}
    with _replacing(folder) as new:
        if tokenizer is not None:
            tokenizer.save(new)
        safetensors.torch.save_file(stored, new / "model.safetensors", metadata={"format": "pt"})
        _write_json(new / "config.json", config)
        (new / "README.md").write_text(card or short_card(folder.name, config, weights), encoding="utf-8")
        names = sorted(str(path.relative_to(new)) for path in new.rglob("*") if path.is_file())
        (new / "manifest.json").write_text(_manifest({name: _sha256(new / name) for name in names}), encoding="utf-8")


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
    folder = _own_folder(source)
    if folder is None:
        from vlm.interop.loading import load_foreign  # only those who need it wait for it

        foreign = load_foreign(
            str(source), num_heads=num_heads, activation=activation, norm_eps=norm_eps, image_size=image_size
        )
        with _Unfilled():
            model = CLIP(foreign.config)
        _fill(model, foreign.state, str(source))
        tokenizer, preprocess, calibration = foreign.tokenizer, foreign.preprocess, None
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        config = _read_config(folder, "clip")
        model_config = CLIPConfig.from_dict(config["model"])
        with _Unfilled():
            model = CLIP(model_config)
        _fill(model, _read_weights(folder / "model.safetensors"), str(folder))
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
    folder = _own_folder(source)
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
        preprocess, weights = foreign.preprocess, foreign.state
    else:
        _check_no_options(source, num_heads, activation, norm_eps, image_size)
        saved = _read_config(folder, "vit_classifier")
        config, num_classes, labels = VisionConfig.from_dict(saved["model"]), len(saved["labels"]), saved["labels"]
        head: Json = saved.get("head")  # None is linear
        if not isinstance(head, dict | None):
            raise ValueError(f"{folder}: head is {head!r}; wanted the settings of a CosineHead, or null.")
        preprocess, weights = _preprocess_config(saved), _read_weights(folder / "model.safetensors")
    with _Unfilled():
        model = ViTClassifier(
            config,
            num_classes,
            labels=labels,
            preprocess=Preprocess(preprocess) if preprocess else None,
            head=CosineHead(CosineHeadConfig.from_dict(head), config.width, num_classes) if head else None,
        )
    _fill(model, weights, str(source))
    return model.to(device).eval()


def save_calibration(folder: str | Path, calibration: Calibration, card: str) -> None:
    """Into a folder of ours, with what the card now says; the weights stay as they are."""
    folder = Path(folder).expanduser().absolute()
    config = {**_read_config(folder, "clip"), "calibration": calibration.to_dict()}
    _write_json(folder / ".config.json", config)
    (folder / ".README.md").write_text(card, encoding="utf-8")
    sums = {name: _sha256(folder / f".{name}") for name in ("config.json", "README.md")}
    (folder / ".manifest.json").write_text(_manifest({**_listed_files(folder), **sums}), encoding="utf-8")
    for name in (*sums, "manifest.json"):
        _to_disk(folder / f".{name}")
        (folder / f".{name}").replace(folder / name)


# ---- reading -------------------------------------------------------------------------------------------------------


def _own_folder(source: str | Path) -> Path | None:
    """The folder of a model in our format, None for a foreign one.  `./mini` is a folder, `mini` the bundled model."""
    if str(source) in BUNDLED:
        return BUNDLED[str(source)]
    if str(source).startswith("hf:"):
        from vlm.interop.hub import downloads as hub

        folder = hub.fetch(str(source).removeprefix("hf:"))
    elif str(source).startswith("openclip:"):
        return None
    else:
        folder = Path(source).expanduser().absolute()
        folder = folder if folder.exists() else _old(folder)
        if not folder.exists():
            known = ", ".join(f"'{name}'" for name in BUNDLED)
            raise ValueError(
                f"There is no model '{source}': not {known}, not a path. Remote models begin with openclip: or hf:."
            )
    if (folder / "manifest.json").is_file():
        return folder
    config = folder / "config.json"
    if config.is_file() and f'"format": "{FORMAT}"' in config.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder / 'manifest.json'} is missing. Copy the model folder again, whole.")
    return None


def _read_config(folder: Path, kind: str) -> dict[str, Any]:
    """config.json of a folder whose every file has been compared with its checksum."""
    _verify(folder)
    config: Json = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{folder / 'config.json'} is not of format {FORMAT!r}, the one this version of vlm reads.")
    if config.get("kind") != kind:
        opener = {"clip": "vlm.load", "vit_classifier": "vlm.load_classifier"}.get(
            str(config.get("kind")), "a newer vlm"
        )
        raise OtherKind(
            f"{folder} holds a model of kind {config.get('kind')!r}, wanted {kind!r}. Open it with {opener}."
        )
    missing = {"model", "preprocess", "tokenizer", *(["labels"] if kind == "vit_classifier" else [])} - config.keys()
    if missing:
        raise ValueError(
            f"{folder / 'config.json'} lacks {', '.join(sorted(missing))}. Save the model again with vlm.save."
        )
    return config


def _verify(folder: Path) -> None:
    """Any byte that differs from what `save` wrote, in any file, is an error that names the file."""
    files = _listed_files(folder)
    for name in ("config.json", "model.safetensors"):
        if name not in files:
            raise ValueError(f"{folder / 'manifest.json'} does not list {name}: this is no model folder.")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing. Copy the model folder again, whole.")
        if _sha256(path) != expected:
            raise ValueError(
                f"{path} is not what was saved: its sha256 differs from manifest.json. Copy the folder again."
            )


def _listed_files(folder: Path) -> dict[str, str]:
    """{file: sha256} of manifest.json, which vouches for itself too."""
    path = folder / "manifest.json"
    try:
        text = path.read_bytes().decode("utf-8")
        files: dict[str, str] = dict(json.loads(text)["files"])
        if text == _manifest(files):
            return files
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} is not what was saved: its own checksum is wrong. Copy the model folder again.")


def _preprocess_config(config: dict[str, Any]) -> PreprocessConfig | None:
    return PreprocessConfig.from_dict(config["preprocess"]) if config["preprocess"] else None


class _Unfilled(TorchFunctionMode):
    """Modules built inside keep raw memory: no time, no random number is spent on weights that `_fill` replaces."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}.") from error


def _fill(model: nn.Module, weights: dict[str, Tensor], origin: str) -> None:
    """Every weight of a model, float32; all misfits in one error."""
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        weight = weights[name]
        if weight.shape != wanted[name].shape:
            problems.append(f"{name} is {tuple(weight.shape)}, wanted {tuple(wanted[name].shape)}")
        elif weight.dtype not in _STORED:
            problems.append(f"{name} is {weight.dtype}, wanted float32, float16 or bfloat16")
    if problems:
        raise ValueError(f"The weights of {origin} do not fit its config: {'; '.join(sorted(problems))}.")
    model.load_state_dict({name: weight.to(torch.float32, copy=True) for name, weight in weights.items()}, assign=True)


def _check_no_options(source: str | Path, *options: object) -> None:
    if any(option is not None for option in options):
        raise ValueError(
            f"{source} is a model of ours and says everything itself: leave out num_heads, activation, norm_eps and "
            "image_size."
        )


# ---- writing -------------------------------------------------------------------------------------------------------


def _stored(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices in `dtype`; vectors and the temperature are small and stay float32."""
    stored = weight.detach().cpu().contiguous().to(dtype if weight.ndim > 1 else torch.float32)
    if not bool(stored.isfinite().all()):
        raise ValueError(f"{name} has values that are not finite in {stored.dtype}; a broken model is not saved.")
    return stored


@contextmanager
def _replacing(folder: Path) -> Generator[Path]:
    """An empty folder beside; it takes `folder`'s place when all is on disk, and goes away when anything fails."""
    new, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    _put_back(folder)
    _check_replaceable(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        for path in [*new.rglob("*"), new]:
            _to_disk(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)  # from here to the next line `load` reads `old`
        new.rename(folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        _put_back(folder)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _put_back(folder: Path) -> None:
    """A save that died between its two renames left the older model beside."""
    if not folder.exists() and _old(folder).exists():
        _old(folder).rename(folder)


def _check_replaceable(folder: Path) -> None:
    """Only a model of ours and nothing else, or nothing at all, may be replaced."""
    if not folder.exists():
        return
    ours = _listed_files(folder) if (folder / "manifest.json").is_file() else ()
    foreign = sorted(
        {path.name for path in folder.iterdir()} - {Path(name).parts[0] for name in ours} - {"manifest.json"}
    )
    if foreign:
        raise ValueError(
            f"{folder} holds other files, which would be lost: {', '.join(foreign[:5])}. Name a new or empty folder."
        )


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(files: dict[str, str]) -> str:
    """The one text for these checksums, its own among them."""
    body = json.dumps(files, sort_keys=True)
    return (
        json.dumps({"files": files, "sha256": hashlib.sha256(body.encode()).hexdigest()}, indent=1, sort_keys=True)
        + "\n"
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
