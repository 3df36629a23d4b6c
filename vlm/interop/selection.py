"""Selects the weight file and config of a repository or folder: one rule for downloads and for opening.

The rule reads the list of files and config.json, never what happens to lie in a cache.  For a CLIP: our own format,
then transformers where config.json names a dual encoder, then OpenCLIP; for a ViT: our own, transformers, timm.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from vlm.errors import CheckpointError, OtherKind
from vlm.interop.formats.timm import named

Purpose = Literal["clip", "vit"]
Family = Literal["vlm", "transformers", "openclip", "timm", "bare"]

OUR_FORMAT = "vlm-1"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".pth.tar")
NATIVE_CLIPS = ("clip", "siglip", "metaclip_2")  # model_type of config.json
EXTERNAL_CLIPS = (
    "align", "altclip", "chinese_clip", "clipseg", "groupvit", "owlv2", "owlvit", "siglip2", "vision-text-dual-encoder",
)  # fmt: skip
NATIVE_VITS = (
    "vit", "deit", "dinov2", "dinov2_with_registers", "vit_mae", "clip_vision_model", "siglip_vision_model",
)  # fmt: skip
CONFIGS = ("config.json", "open_clip_config.json", "modules.json")  # read before the weights are chosen

_TRANSFORMERS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_OPENCLIP = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)  # fmt: skip
_USUAL = (*_TRANSFORMERS, "model.pth", "pytorch_model.pth", "model_best.pth.tar")
_COMPANIONS = frozenset(
    "README.md config.json open_clip_config.json preprocessor_config.json processor_config.json "  # noqa: SIM905
    "image_processor_config.json tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json "
    "vocab.json merges.txt vocab.txt spiece.model sentencepiece.bpe.model tokenizer.model bpe.codes "
    "chat_template.jinja".split()
)
TOKENIZER_FILES = _COMPANIONS - {"README.md", "preprocessor_config.json", "processor_config.json"}


@dataclass(frozen=True)
class Selection:
    """The part of a repository or folder that is read."""

    family: Family
    files: tuple[str, ...]  # what is downloaded, with the subfolder
    weights: str | None  # the file of weights, or the index of its shards; None for a folder of ours
    config: str | None  # the config that belongs to the weights
    subfolder: str  # "" is the top


def choose(
    files: Collection[str],
    read: Callable[[str], dict[str, Any]],
    purpose: Purpose,
    where: str,
    *,
    subfolder: str = "",
    file: str | None = None,
) -> Selection:
    """Choose what is read.

    Args:
        files: names of all files, with "/" between folders.
        read: the content of one of the JSON files of `CONFIGS`.
        purpose: "clip" for images and texts, "vit" for an image encoder or classifier.
        where: the source, for messages.
        subfolder: the folder in which the model lies.
        file: weights that the user named.

    Returns:
        The selection.

    Raises:
        OtherKind: the model is of the other purpose.
        CheckpointError: nothing that can be read is there, or several files and none has a known name.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    here = {name.removeprefix(prefix) for name in files if name.startswith(prefix)}
    if not here:
        raise CheckpointError(f"{where} has no folder '{subfolder}'. Its folders: {_folders(files) or 'none'}.")
    chosen = _Chooser(here, lambda name: read(prefix + name), purpose, where)
    selection = chosen.named(file) if file is not None else chosen.best()
    return Selection(
        selection.family,
        tuple(prefix + name for name in selection.files),
        None if selection.weights is None else prefix + selection.weights,
        None if selection.config is None else prefix + selection.config,
        f"{prefix}{selection.subfolder}".rstrip("/"),
    )


class _Chooser:
    """The rule, for the files of one folder."""

    def __init__(
        self, files: Collection[str], read: Callable[[str], dict[str, Any]], purpose: Purpose, where: str
    ) -> None:
        self.files, self.read, self.where = files, read, where
        self.purpose: Purpose = purpose
        self.config = read("config.json") if "config.json" in files else {}
        kind = self.config.get("model_type")
        self.kind = kind if isinstance(kind, str) else None
        self.pickled_openclip = [name for name in _OPENCLIP if name in files]
        self.is_openclip = bool(self.pickled_openclip) or "open_clip_config.json" in files

    def best(self) -> Selection:
        if self.config.get("format") == OUR_FORMAT:
            own = tuple(sorted(name for name in self.files if "/" not in name and not name.startswith(".")))
            return Selection("vlm", own, None, "config.json", "")
        return self._clip() if self.purpose == "clip" else self._vit()

    def named(self, file: str) -> Selection:
        """Weights that the user named, with the config that lies beside them."""
        if file not in self.files:
            raise CheckpointError(
                f"{self.where}: there is no file '{file}'. Weights there: {self._listed() or 'none'}."
            )
        family: Family = "openclip" if file in _OPENCLIP else "bare"
        return self._of(family, file, None)

    def _clip(self) -> Selection:
        dual = self.kind in (*NATIVE_CLIPS, *EXTERNAL_CLIPS) or "auto_map" in self.config
        if dual and (weights := self._first(_TRANSFORMERS)) is not None:
            return self._of("transformers", weights, "config.json")
        if self.is_openclip:
            return self._openclip()
        if "0_CLIPModel/config.json" in self.files and self.kind is None:  # sentence-transformers
            return self._inside("0_CLIPModel")
        if self.kind in NATIVE_VITS or "architecture" in self.config:
            raise OtherKind(f"{self.where} is a ViT without texts. Open it with vlm.load_classifier or load_backbone.")
        if self.kind is not None and not dual:
            raise CheckpointError(
                f"{self.where} is a '{self.kind}' of transformers, which has no image and text embeddings that can be "
                f"read here. Known: {', '.join((*NATIVE_CLIPS, *EXTERNAL_CLIPS))}."
            )
        return self._of("transformers" if dual else "bare", self._only(), "config.json" if self.kind else None)

    def _vit(self) -> Selection:
        if self.kind in NATIVE_VITS or (self.kind in NATIVE_CLIPS and self._classifies()):
            return self._of("transformers", self._first(_TRANSFORMERS) or self._only(), "config.json")
        if "architecture" in self.config:
            try:
                named(str(self.config["architecture"]))
            except CheckpointError as error:  # before its weights are downloaded
                raise CheckpointError(f"{self.where}: {error}") from error
            return self._of("timm", self._first(_USUAL) or self._only(_OPENCLIP), "config.json")
        if self.is_openclip or self.kind in (*NATIVE_CLIPS, *EXTERNAL_CLIPS) or "0_CLIPModel/config.json" in self.files:
            raise OtherKind(f"{self.where} is a CLIP, not a ViT with classes. Open it with vlm.load.")
        if self.kind is not None:
            raise CheckpointError(
                f"{self.where} is a '{self.kind}' of transformers, which is no ViT that can be read here. Known: "
                f"{', '.join(NATIVE_VITS)}."
            )
        return self._of("bare", self._only(), None)

    def _classifies(self) -> bool:
        """`CLIPForImageClassification` and its like: the image encoder with a head."""
        named: Any = self.config.get("architectures")
        return isinstance(named, list) and any("ForImageClassification" in str(name) for name in named)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

    def _openclip(self) -> Selection:
        weights = self.pickled_openclip[0] if self.pickled_openclip else self._first(_USUAL) or self._only()
        return self._of("openclip", weights, "open_clip_config.json" if "open_clip_config.json" in self.files else None)

    def _inside(self, folder: str) -> Selection:
        inner = choose(self.files, self.read, self.purpose, self.where, subfolder=folder)
        return Selection(inner.family, inner.files, inner.weights, inner.config, folder)

    def _of(self, family: Family, weights: str, config: str | None) -> Selection:
        companions = sorted(name for name in self.files if name in _COMPANIONS)
        if family == "transformers" and self.kind not in (*NATIVE_CLIPS, *NATIVE_VITS):  # code of their own, read first
            companions += sorted(name for name in self.files if name.endswith(".py") and "/" not in name)
        return Selection(family, (*companions, *self._whole(weights)), weights, config, "")

    def _whole(self, weights: str) -> tuple[str, ...]:
        """The file itself, or the index and its shards."""
        if not weights.endswith(".index.json"):
            return (weights,)
        stem, suffix = weights.removesuffix(".index.json").rsplit(".", 1)
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
        return (weights, *sorted(name for name in self.files if shard.fullmatch(name)))

    def _first(self, names: Collection[str]) -> str | None:
        return next((name for name in names if name in self.files), None)

    def _only(self, besides: Collection[str] = ()) -> str:
        """The one file of weights."""
        known = self._first(_USUAL)
        if known is not None:
            return known
        found = [name for name in self._weights() if name not in besides]
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(
                f"{self.where} holds several weight files: {', '.join(found)}. Name one of them: hf:ORG/NAME/FILE, or "
                "the path of the file."
            )
        raise CheckpointError(f"{self.where} holds no weights: wanted a file ending in {', '.join(SUFFIXES)}.")

    def _weights(self) -> list[str]:
        return sorted(name for name in self.files if name.endswith(SUFFIXES) and "/" not in name)

    def _listed(self) -> str:
        return ", ".join(sorted(name for name in self.files if name.endswith(SUFFIXES)))


def code_repositories(config: dict[str, Any]) -> tuple[str, ...]:
    """Other repositories whose code a config of transformers names: "org/code--module.Class"."""
    given: Any = config.get("auto_map")
    if not isinstance(given, dict):
        return ()
    named = re.findall(r"'([\w.-]+/[\w.-]+?)--", str(list(given.values())))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return tuple(dict.fromkeys(named))


def _folders(files: Collection[str]) -> str:
    return ", ".join(sorted({name.rpartition("/")[0] for name in files if "/" in name}))
