"""Repository layouts as they exist on the hub, written small by the libraries themselves, and what those make of them.

Each layout is a function that fills a fake hub and returns the peer: (image files -> vectors, texts -> unit vectors).
`tests/interop/test_layouts.py` compares them with ours, `benchmarks/interop_table.py` writes the table of
docs/interop.md from them.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import timm
import torch
import torch.nn.functional as F
import transformers
from open_clip.tokenizer import default_bpe
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import vlm
from tests.support.fake_hub import FakeHub
from tests.support.foreign_models import randomise
from tests.support.hub_peers import Peer, openclip_peer, opened, timm_peer, transformers_peer
from tests.support.open_clip_models import shallow_timm, shrunk, write

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TEXTS = ("a red apple", "赤いりんごが一つ、机の上に。", "", "Two DOGS, and a cat's toy!!", "😀 happy", "x y " * 100)
SIZES = ((500, 333), (211, 640), (333, 500), (2400, 1600))
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip
_VISION: dict[str, Any] = _SMALL | {"image_size": 32, "patch_size": 16}


@dataclass(frozen=True)
class Layout:
    """One row of the table."""

    write: Callable[[FakeHub, Path], Peer]
    source: str = "hf:org/model"
    kind: Literal["clip", "classifier", "backbone"] = "clip"
    known: str = ""  # names the known difference of docs/interop.md
    largest: float = 1e-5  # that the difference may be


def image_files(folder: Path) -> list[Path]:
    """Images of 500x333, 211x640, 333x500 and 2400x1600 pixels."""
    random = np.random.default_rng(0)
    paths: list[Path] = []
    for width, height in SIZES:
        coarse = Image.fromarray(random.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8))
        paths.append(folder / f"{width}x{height}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1], compress_level=1)
    return paths


@dataclass(frozen=True)
class Difference:
    """The largest differences of unit vectors; of logits and features as a share of the largest."""

    images: float
    large: float  # of the image of 2400x1600
    texts: float | None


def difference(layout: Layout, hub: FakeHub, folder: Path) -> Difference:
    """Write a layout, open it through the hub, and compare with the peer."""
    (folder / "theirs").mkdir(parents=True)
    paths = image_files(folder)
    with shallow_timm():
        peer = layout.write(hub, folder / "theirs")
        ours_images, ours_texts = _ours(layout, paths, peer.texts is not None)
    theirs = peer.images(paths)
    theirs = F.normalize(theirs, dim=-1) if layout.kind == "clip" else theirs
    of_images = (ours_images - theirs).abs().amax(1) / (1 if layout.kind == "clip" else theirs.abs().max())
    texts = None
    if peer.texts is not None and ours_texts is not None:
        texts = float((ours_texts - F.normalize(peer.texts(TEXTS), dim=-1)).abs().max())
    return Difference(float(of_images[:-1].max()), float(of_images[-1]), texts)


def _ours(layout: Layout, paths: list[Path], has_texts: bool) -> tuple[Tensor, Tensor | None]:
    if layout.kind == "backbone":
        return vlm.load_backbone(layout.source).features(paths), None
    if layout.kind == "classifier":
        classifier = vlm.load_classifier(layout.source)
        with torch.inference_mode():
            return classifier(torch.stack([classifier.prepare()(path) for path in paths])), None
    embedder = vlm.load(layout.source)
    return embedder.embed_images(paths), embedder.embed_texts(list(TEXTS)) if has_texts else None


# ---- parts of repositories -----------------------------------------------------------------------------------------


def _openai_vocabulary() -> tuple[dict[str, int], Any]:
    """Names and merges in the package of OpenCLIP, which spells the two symbols in another way."""
    openai: Any = open_clip.SimpleTokenizer(default_bpe())
    spelt = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary: dict[str, int] = {spelt.get(name, str(name)): id for name, id in openai.encoder.items()}
    return vocabulary, sorted(openai.bpe_ranks, key=openai.bpe_ranks.get)


def clip_tokenizer(folder: Path, added: Sequence[str] = ()) -> Any:
    """CLIP's own vocabulary, from the merges in OpenCLIP's package; at most 16 ids a text."""
    vocabulary, merges = _openai_vocabulary()
    tokenizer: Any = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def plain_clip_files(folder: Path) -> None:
    """vocab.json and merges.txt in the place of tokenizer.json, as OpenAI's first repositories."""
    vocabulary, merges = _openai_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def word_tokenizer(folder: Path, kind: str = "bert", vocab_size: int = 120) -> Any:
    """Letters: [CLS] text [SEP] as BERT, `<s> text </s>` as XLM-R, or `text </s>` as SigLIP; at most 16 ids a text."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    symbols = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "xlm-r": ["<s>", "<pad>", "</s>", "<unk>"],
        "siglip": ["<pad>", "</s>", "<unk>"],
    }[kind]  # fmt: skip
    letters = sorted({letter for text in TEXTS for letter in text.lower() if letter != " "})
    names = [*symbols, *letters, *(f"##{letter}" for letter in letters)][:vocab_size]
    unknown = next(name for name in symbols if "unk" in name.lower())
    made = Tokenizer(models.WordPiece({name: id for id, name in enumerate(names)}, unk_token=unknown))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    form = {"bert": "[CLS] $A [SEP]", "xlm-r": "<s> $A </s>", "siglip": "$A </s>"}[kind]
    ends = [(name, names.index(name)) for name in form.split() if name != "$A"]
    made.post_processor = processors.TemplateProcessing(form, special_tokens=ends)
    made.add_special_tokens([AddedToken(name, special=True) for name in symbols])
    said: dict[str, Any] = {"unk_token": unknown, "pad_token": "[PAD]" if kind == "bert" else "<pad>"}
    said |= {"bert": {"cls_token": "[CLS]", "sep_token": "[SEP]"}, "siglip": {"eos_token": "</s>"}}.get(
        kind, {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=16, **said)
    tokenizer.save_pretrained(folder)
    return tokenizer


def saved(model: Any, folder: Path, processor: Any, **settings: Any) -> Any:
    """A model of transformers with random weights and its processor, in a folder."""
    randomise(model)
    model.save_pretrained(folder, **settings)
    processor.save_pretrained(folder)
    return model


def clip_processor(size: int = 36, crop: int = 32) -> Any:
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": crop, "width": crop})


def clip_model(vision: dict[str, Any] | None = None, **text: Any) -> Any:
    words = {"vocab_size": 49408, "max_position_embeddings": 16, "bos_token_id": 49406, "eos_token_id": 49407}
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=_SMALL | words | text, vision_config=_VISION | (vision or {}), projection_dim=24
        )
    )


def hugging_face_clip(
    change: Callable[[Path], None] = lambda folder: None,
    *,
    vision: dict[str, Any] | None = None,
    processor: Any = None,
    added: Sequence[str] = (),
    shards: str = "5GB",
    **text: Any,
) -> Callable[[FakeHub, Path], Peer]:
    """`CLIPModel` as transformers saves it; `change` alters the files after the peer has been opened."""

    def write_files(hub: FakeHub, folder: Path) -> Peer:
        made = processor or clip_processor()
        model = saved(clip_model(vision, **text), folder, made, max_shard_size=shards)
        peer = transformers_peer(model, made, clip_tokenizer(folder, added))
        change(folder)
        hub.add_folder("org/model", folder)
        return peer

    return write_files


def hugging_face(
    make: Callable[[], Any], processor: Callable[[], Any] = clip_processor, *, tokenizer: str = "bert",
    padding: str = "longest",
) -> Callable[[FakeHub, Path], Peer]:  # fmt: skip
    """Any dual encoder of transformers with a tokenizer of letters."""

    def write_files(hub: FakeHub, folder: Path) -> Peer:
        made = processor()
        model = saved(make(), folder, made)
        word_tokenizer(folder, tokenizer)
        peer = transformers_peer(model, made, transformers.AutoTokenizer.from_pretrained(folder), padding=padding)
        hub.add_folder("org/model", folder)
        return peer

    return write_files


def image_classifier(
    make: Callable[[], Any], processor: Callable[[], Any], *, headless: bool = False
) -> Callable[[FakeHub, Path], Peer]:
    """A classifier or an image encoder of transformers; of the latter the class token behind the last norm."""

    def write_files(hub: FakeHub, folder: Path) -> Peer:
        made = processor()
        model = saved(make(), folder, made).eval()
        hub.add_folder("org/model", folder)

        def images(paths: Sequence[Path]) -> Tensor:
            with torch.inference_mode():
                out = model(**made(opened(paths), return_tensors="pt"))
            return out.last_hidden_state[:, 0] if headless else out.logits

        return Peer(images)

    return write_files


def openclip(
    name: str,
    change: Callable[[Path], None] = lambda folder: None,
    *,
    preprocess: dict[str, Any] | None = None,
    tokenizer: str = "",
    **text: Any,
) -> Callable[[FakeHub, Path], Peer]:
    """A model of OpenCLIP, one block deep; with a tokenizer of letters where it is no CLIP's."""

    def write_files(hub: FakeHub, folder: Path) -> Peer:
        config = shrunk(name)
        config["text_cfg"] |= text
        if tokenizer:
            place = folder.parent / "words"
            word_tokenizer(place, tokenizer)
            config["text_cfg"] |= {"hf_tokenizer_name": str(place), "vocab_size": 120}
        write(config, folder, preprocess)
        if tokenizer:
            word_tokenizer(folder, tokenizer)
            hub.add_folder("org/words", folder.parent / "words")
        peer = openclip_peer(folder)
        if tokenizer:  # the published config names a repository
            settings = json.loads((folder / "open_clip_config.json").read_text())
            settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
            (folder / "open_clip_config.json").write_text(json.dumps(settings))
        change(folder)
        hub.add_folder("org/model", folder)
        return peer

    return write_files


def timm_vit(
    name: str, change: Callable[[Path, Any, dict[str, Any]], None] | None = None, **arguments: Any
) -> Callable[[FakeHub, Path], Peer]:
    """A ViT of timm with its config.json; `change` writes the files in another way."""

    def write_files(hub: FakeHub, folder: Path) -> Peer:
        settings: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_classes": 7} | arguments
        model: Any = timm.create_model(name, **settings)
        randomise(model)
        data = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
                "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "num_classes": 7}  # fmt: skip
        config = {"architecture": name, "num_classes": 7, "model_args": settings, "pretrained_cfg": data}
        (folder / "config.json").write_text(json.dumps(config))
        save_file({key: part.contiguous() for key, part in model.state_dict().items()}, folder / "model.safetensors")
        if change is not None:
            change(folder, model, config)
        hub.add_folder("org/model", folder)
        return timm_peer(model, data)

    return write_files


# ---- changes to what a library has written ---------------------------------------------------------------------------


def as_pickle(
    place: str, *, prefix: str = "", weights: str = "model.safetensors", wrap: str | None = None
) -> Callable[[Path], None]:
    """The tensors in a pickle of another name, each name behind a prefix, alone or below a key beside an optimizer."""

    def change(folder: Path) -> None:
        from safetensors.torch import load_file

        state = {prefix + name: part for name, part in load_file(folder / weights).items()}
        content: Any = state if wrap is None else {wrap: state, "epoch": 3, "optimizer": {"state": {}}}
        (folder / weights).unlink()
        torch.save(content, folder / place)

    return change


def beside(name: str, content: bytes) -> Callable[[Path], None]:
    """One more file."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def below(subfolder: str) -> Callable[[Path], None]:
    """All files in a subfolder; modules.json says so, as sentence-transformers writes it."""

    def change(folder: Path) -> None:
        files = [path for path in folder.iterdir() if path.is_file()]
        (folder / subfolder).mkdir()
        for path in files:
            path.rename(folder / subfolder / path.name)
        module = {"idx": 0, "name": "0", "path": subfolder, "type": "sentence_transformers.models.CLIPModel"}
        (folder / "modules.json").write_text(json.dumps([module]))

    return change


def only_tokenizer_json(folder: Path) -> None:
    """Neither tokenizer_config.json nor special_tokens_map.json."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def best_of_timm(folder: Path, model: Any, config: dict[str, Any]) -> None:
    """model_best.pth.tar as timm's train.py writes it: arguments, optimizer, and the average of weights that counts."""
    (folder / "model.safetensors").unlink()
    other = {name: part + 1 for name, part in model.state_dict().items()}
    content = {
        "epoch": 9, "arch": config["architecture"], "state_dict": other, "state_dict_ema": model.state_dict(),
        "optimizer": {"state": {}, "param_groups": []}, "args": argparse.Namespace(lr=0.1, opt="adamw"), "version": 2,
        "metric": 71.5,
    }  # fmt: skip
    torch.save(content, folder / "model_best.pth.tar")


def flat_config(folder: Path, model: Any, config: dict[str, Any]) -> None:
    """config.json of timm's first uploads: what is in pretrained_cfg stands at the top."""
    flat = {"architecture": config["architecture"], "model_args": config["model_args"], **config["pretrained_cfg"]}
    (folder / "config.json").write_text(json.dumps(flat))
