"""What docs/comparison says of other libraries and can be run: small random models, one CPU thread, no network.

python -m benchmarks.comparison > benchmarks/comparison.md
"""

import inspect
import itertools
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import open_clip
import pyarrow.parquet as pq
import timm
import torch
import transformers
from open_clip.factory import create_model
from open_clip_train import params
from open_clip_train.train import get_clip_metrics
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

import vlm
from benchmarks.machine import about
from vlm.config import CLIPConfig, TextConfig, VisionConfig
from vlm.tokenizers.clip_bpe import CLIPTokenizer
from vlm.training.engine.accumulate import accumulate

PACKAGES = ("open_clip_torch", "transformers", "timm")
SITE = Path(open_clip.__file__).parent.parent
OURS = Path(vlm.__file__).parent
SIZES = {"width": 32, "depth": 2, "num_heads": 4, "mlp_dim": 64}
Rows = list[tuple[Any, ...]]


def main() -> None:
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print("# What the comparison says, run\n")
    print(about("python -m benchmarks.comparison", ["torch", *PACKAGES]))
    print("Random models, so that nothing is downloaded.\n")
    with tempfile.TemporaryDirectory() as place:
        folder = write_models(Path(place))
        section("Models that a name opens", ("library", "architectures", "sets of weights"), zoo())
        section("Between the user and attention", WALK, walks(folder))
        section("Connections tried", ("what", "who", "connections"), connections(folder))
    section("Tokens computed for 1,300 captions in batches of 256, CLIP's tokenizer", PADDING, padding())
    section("A batch of 16 pairs in m parts: gradient of logit_scale / that of the whole batch", ACCUMULATED, parts())
    section("8 images with 5 captions each, all vectors right: R@1", ("who", "image to text", "text to image"), many())
    section("Resumed at step 4 of 8, against 8 in one go", RESUMED, resumed())


WALK = ("library", "functions on the stack", "functions run", "lines run", "files")
PADDING = ("who", "tokens", "of them padding")
MANY = ("who", "image to text", "text to image")
ACCUMULATED = ("m", "`vlm.training.engine.accumulate`", "Hugging Face `Trainer`, `gradient_accumulation_steps`")
RESUMED = ("Hugging Face `Trainer`", "weights equal bit for bit", "largest difference")


def section(title: str, head: tuple[str, ...], rows: Rows) -> None:
    print(f"## {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |")
    print(flush=True)


def zoo() -> Rows:
    mapped = (modeling_auto.MODEL_MAPPING_NAMES, modeling_auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)
    every, zero_shot = (len(names) for names in mapped)
    return [
        ("OpenCLIP", len(open_clip.list_models()), len(open_clip.list_pretrained())),
        ("timm", len(timm.list_models()), len(timm.list_pretrained())),
        ("Transformers", f"{every}, {zero_shot} of them for zero-shot image classification", "those of the hub"),
        ("vlm", "plain ViT with text Transformer: [interop](../docs/interop.md)", "1 of its own, and theirs"),
    ]


def clip_of(context_length: int = 77) -> vlm.CLIP:
    torch.manual_seed(0)
    vision = VisionConfig(image_size=48, patch_size=16, pre_norm=True, patch_bias=False, norm_eps=1e-5, **SIZES)  # type: ignore[arg-type]
    ids = {"vocab_size": 49408, "context_length": context_length, "eot_id": 49407, "pad_id": 0}
    text = TextConfig(norm_eps=1e-5, **SIZES, **ids)  # type: ignore[arg-type]
    return vlm.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)).eval()


def write_models(place: Path) -> Path:
    """One model in four formats: ours, openclip, huggingface, timm."""
    preprocess = vlm.Preprocess(vlm.PreprocessConfig(image_size=48))
    embedder = vlm.Embedder(clip_of(), CLIPTokenizer(77), preprocess, name="small")
    vlm.save(embedder, place / "ours")
    for to in ("openclip", "huggingface", "timm"):
        vlm.export(embedder, place / to, to)
    return place


def image() -> Any:
    from PIL import Image

    return Image.radial_gradient("L").convert("RGB")


Use = Callable[[], Any]


def open_openclip(folder: Path) -> Use:
    opened: Any = open_clip.create_model_and_transforms(f"local-dir:{folder / 'openclip'}")
    model, _, transform = opened
    open_clip.get_tokenizer(f"local-dir:{folder / 'openclip'}")
    model.eval()
    return lambda: model.encode_image(transform(image())[None], normalize=True)


def open_transformers(folder: Path) -> Use:
    model: Any = transformers.CLIPModel.from_pretrained(folder / "huggingface").eval()
    read: Any = transformers.CLIPProcessor.from_pretrained(folder / "huggingface", backend="pil")
    return lambda: model.get_image_features(**read(images=[image()], return_tensors="pt"))


def open_timm(folder: Path) -> Use:
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    model: Any = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    return lambda: model(transform(image())[None])


def open_ours(folder: Path) -> Use:
    embedder = vlm.load(folder / "ours")
    return lambda: embedder.embed_images([image()])


OPENERS: dict[str, tuple[Callable[[Path], Use], Path]] = {
    "OpenCLIP": (open_openclip, SITE / "open_clip"),
    "Transformers": (open_transformers, SITE / "transformers"),
    "timm": (open_timm, SITE / "timm"),
    "vlm": (open_ours, OURS),
}


def walks(folder: Path) -> Rows:
    """One image, from the call to its vector, the model being loaded: code of the library itself, not of torch."""
    return [(name, *walk(opener(folder), home)) for name, (opener, home) in OPENERS.items()]


def walk(use: Use, home: Path) -> tuple[int, int, int, int]:
    lines: set[tuple[str, int]] = set()
    functions: set[Any] = set()
    depths: list[int] = []
    inside = f"{home}/"

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def calls(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(inside):
            return None
        functions.add(frame.f_code)
        return local

    def seen(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            depths.append(sum(f.filename.startswith(inside) for f in traceback.extract_stack()))
            return real(*args, **settings)

        return call

    use()  # what is done once is not counted
    where = nn.functional
    with (
        mock.patch.object(where, "scaled_dot_product_attention", seen(where.scaled_dot_product_attention)),
        mock.patch.object(where, "multi_head_attention_forward", seen(where.multi_head_attention_forward)),
    ):
        sys.settrace(calls)
        try:
            use()
        finally:
            sys.settrace(None)
    return depths[0], len(functions), len(lines), len({path for path, _ in lines})


@contextmanager
def listening() -> Iterator[list[Any]]:
    """Every connection that is tried; none succeeds."""
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        tried.append(args)
        raise OSError("no network here")

    with mock.patch.object(socket, "getaddrinfo", refuse), mock.patch.object(socket.socket, "connect", refuse):
        yield tried


def connections(folder: Path) -> Rows:
    rows: Rows = []
    for name, (opener, _) in OPENERS.items():
        with listening() as tried:
            opener(folder)()
        rows.append(("a folder on this machine, loaded, one image embedded", name, len(tried)))
    with listening() as tried:
        vlm.classify(vlm.load("mini"), [image()], labels=["sun", "月"])
    rows.append(("the bundled model, zero-shot", "vlm", len(tried)))
    return rows


def padding() -> Rows:
    table = pq.read_table("training/picture_words/train.parquet", columns=["captions_en"])
    every = (caption for row in table.to_pylist() for caption in row["captions_en"])
    captions = list(itertools.islice(every, 1300))
    lengths = [len(CLIPTokenizer(77).encode(caption)) for caption in captions]
    real = sum(lengths)
    batches = [lengths[i : i + 256] for i in range(0, len(lengths), 256)]
    longest = sum(max(batch) * len(batch) for batch in batches)
    computed = {
        "OpenCLIP: always 77": 77 * len(lengths),
        "Transformers, `padding=True`: the longest of the batch": longest,
        "vlm: packed": real,
    }
    return [(who, f"{tokens:,}", f"{1 - real / tokens:.0%}") for who, tokens in computed.items()]


def parts() -> Rows:
    """float64; each measured against its own whole batch."""
    images, ids = torch.randn(16, 3, 48, 48).double(), torch.randint(5, 49400, (16, 12))
    ids[:, -1] = 49407
    rows: Rows = []
    with tempfile.TemporaryDirectory() as place:
        wholes = gradient(images, ids, 1), gradient_of_trainer(Path(place), 1)
        for m in (1, 2, 4, 8):
            tried = gradient(images, ids, m), gradient_of_trainer(Path(place), m)
            rows.append((m, *(f"{found / whole:.6f}" for found, whole in zip(tried, wholes, strict=True))))
    return rows


def gradient(images: Tensor, ids: Tensor, m: int) -> float:
    """Of logit_scale, by `vlm.training.engine.accumulate`."""
    model = clip_of(12).double()
    scale = model.logit_scale
    chunks = [*zip(images.chunk(m), ids.chunk(m), strict=True)]
    accumulate(model, chunks, lambda m, c: m(*c), lambda image, text: vlm.clip_loss(image, text, scale), [scale])
    assert scale.grad is not None
    return float(scale.grad)


def gradient_of_trainer(place: Path, m: int) -> float:
    """Of logit_scale before the optimizer's only step, by the `Trainer` itself."""
    found: list[float] = []

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            found.append(float(parts["model"].logit_scale.grad))

    trainer = trainer_of(
        place, Pairs(16, double=True), max_steps=1, per_device_train_batch_size=16 // m, gradient_accumulation_steps=m
    )
    trainer.model.double()
    trainer.add_callback(Look())
    run(trainer)
    (only,) = found
    return only


def many() -> Rows:
    torch.manual_seed(0)
    vectors = nn.functional.normalize(torch.randn(8, 24), dim=-1)
    texts = vectors.repeat_interleave(5, 0)  # every caption lies exactly on its image
    theirs = get_clip_metrics(texts, texts, torch.tensor(1.0))  # a row per pair, as its CSV and tars give them
    ways = ("image_to_text", "text_to_image")
    correct = torch.arange(8)[:, None] == torch.arange(40) // 5
    scores = vectors @ texts.T
    ours = vlm.recall_at_k(scores, correct, 1), vlm.recall_at_k(scores.T, correct.T, 1)
    return [
        (
            "OpenCLIP, `get_clip_metrics`",
            *(f"{theirs[f'{way}_R@1']:.3f}" for way in ways),
        ),
        ("vlm, `recall_at_k`", *(f"{recall:.3f}" for recall in ours)),
        ("chance", *(f"{vlm.chance_recall_at_k(hits, 1):.3f}" for hits in (correct, correct.T))),
    ]


class Pairs(torch.utils.data.Dataset[dict[str, Tensor]]):
    """`noisy`: each image is drawn with noise, as augmentation would."""

    def __init__(self, count: int, *, noisy: bool = False, double: bool = False):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(count, 3, 48, 48, generator=generator)
        self.images = images.double() if double else images
        self.ids = torch.randint(5, 90, (count, 12), generator=generator)
        self.ids[:, -1] = 99
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        image = image + 0.1 * torch.randn(image.shape) if self.noisy else image
        return {"pixel_values": image, "input_ids": self.ids[index]}


def resumed() -> Rows:
    """24 pairs: 6 steps of 4 are an epoch, so step 4 is inside the first one."""
    rows: Rows = []
    for noisy, what in ((False, "images as they are"), (True, "images with random augmentation")):
        with tempfile.TemporaryDirectory() as place:
            once, again = (eight_steps(Path(place), noisy=noisy, resume=resume) for resume in (False, True))
        apart = max(float((once[name] - again[name]).abs().max()) for name in once)
        rows.append((what, "yes" if all(torch.equal(once[n], again[n]) for n in once) else "no", f"{apart:.0e}"))
    return rows


def eight_steps(place: Path, *, noisy: bool, resume: bool) -> dict[str, Tensor]:
    trainer = trainer_of(place, Pairs(24, noisy=noisy), max_steps=8, per_device_train_batch_size=4)
    run(trainer, resume_from_checkpoint=str(place / "checkpoint-4") if resume else None)
    return {name: weight.detach().clone() for name, weight in trainer.model.state_dict().items()}


def trainer_of(place: Path, pairs: Pairs, **settings: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = sizes | {"vocab_size": 100, "max_position_embeddings": 12, "bos_token_id": 98, "eos_token_id": 99}
    vision = sizes | {"image_size": 48, "patch_size": 16}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    arguments = transformers.TrainingArguments(
        output_dir=str(place), save_steps=4, seed=0, use_cpu=True, learning_rate=1e-3, max_grad_norm=0.0,
        report_to="none", remove_unused_columns=False, disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip

    def collate(samples: list[dict[str, Tensor]]) -> dict[str, Any]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]} | {"return_loss": True}

    return transformers.Trainer(model, arguments, data_collator=collate, train_dataset=pairs)


def run(trainer: Any, **settings: Any) -> None:
    with mock.patch("sys.stdout", sys.stderr):  # its own summary
        trainer.train(**settings)


if __name__ == "__main__":
    print(
        f"OpenCLIP's create_model: {len(inspect.getsource(create_model).splitlines())} lines, "
        f"{len(inspect.signature(create_model).parameters)} arguments; "
        f"{inspect.getsource(params).count('add_argument(')} command-line flags",
        file=sys.stderr,
    )
    main()
