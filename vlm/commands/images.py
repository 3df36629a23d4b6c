"""vlm classify and vlm look: what a model makes of images that are named one by one."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.commands.options import (
    MODEL_HELP,
    Run,
    add_backend,
    add_device,
    add_json,
    add_trust,
    chosen_backend,
    chosen_model,
    positive,
    print_rows,
    user_language,
)
from vlm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from vlm.images.preprocess import Preprocess
    from vlm.inspect.relevance import Score
    from vlm.models.vision import VisionTransformer, ViTClassifier
    from vlm.onnx.backends import Backend


def classify(parser: ArgumentParser) -> Run:
    """Classify images by labels in any language, or by a trained classifier."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", type=Path)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--labels", nargs="+", metavar="LABEL", help="in any language the model reads")
    which.add_argument("--classifier", metavar="FOLDER", help="a trained ViT, which has labels of its own")
    parser.add_argument(
        "--templates", nargs="+", metavar="SENTENCE", help="with {} where the label goes; default: by language"
    )
    parser.add_argument("-k", type=positive, help="labels per image; default all of --labels, 5 of a classifier")
    parser.add_argument("--model", help="that reads --labels: " + MODEL_HELP)
    add_trust(parser)
    add_backend(parser)
    add_device(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        from vlm.zero_shot import ZeroShotClassifier, ranked

        if args.classifier is not None:
            if args.templates:
                raise InputError("--templates make sentences of --labels; a classifier reads none. Leave them out.")
            if args.model:
                raise InputError("--model reads --labels; --classifier is a model of its own. Leave one of them out.")
            classifier, _ = _open_classifier(args.classifier, args, chosen_backend(args, ""))
            found = classifier.predict(args.images, top=args.k)
        else:
            from vlm.checkpoint.load import load

            name = chosen_model(args.model)
            embedder = load(
                name,
                backend=chosen_backend(args, name),
                device=args.device,
                dtype=args.dtype,
                trust_remote_code=args.trust_remote_code,
            )
            zero_shot = ZeroShotClassifier(embedder, args.labels, args.templates)
            count = args.k or len(zero_shot.labels)
            found = [ranked(zero_shot.labels, row, count) for row in zero_shot(args.images)]
        rows = [
            {"path": str(path), "label": label, "score": score, "rank": rank}
            for path, own in zip(args.images, found, strict=True)
            for rank, (label, score) in enumerate(own, 1)
        ]
        print_rows(rows, args.json, lambda row: f"{row['path']}\t{row['score']:7.1%}\t{row['label']}")

    return run


def look(parser: ArgumentParser) -> Run:
    """Draw what a model sees in an image: attention, positions, filters, and where in it a text is.

    Blocks and heads are counted from 1, as in the demo.
    """
    parser.add_argument("image", metavar="IMAGE", type=Path)
    parser.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="what to look for; a classifier's labels")
    parser.add_argument("--out", type=Path, default=Path("look"), metavar="FOLDER", help="default %(default)s")
    parser.add_argument("--lang", choices=["en", "ja"], default=user_language(), help="of the words in the images")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help=MODEL_HELP)
    source.add_argument("--classifier", metavar="MODEL", help="a trained ViT instead; no --text: its own answer")
    add_device(parser)
    add_json(parser)

    def run(args: Namespace) -> None:
        from vlm.inspect import figures
        from vlm.inspect.drawing import choose_lettering, image_seen

        if args.classifier is not None:
            vision, preprocess, scores = _inside_classifier(args, args.classifier)
        else:
            vision, preprocess, scores = _inside_model(args, chosen_model(args.model))
        pixels = preprocess.pixels(args.image)  # (3, H, W)
        lettering = choose_lettering(args.lang)
        if not lettering.japanese:
            japanese = {text: f"text {n}" for n, text in enumerate(scores, 1) if not text.isascii()}
            scores = {japanese.get(text, text): score for text, score in scores.items()}
            if args.lang == "ja" or japanese:
                named = "".join(f"; {caption} is {text}" for text, caption in japanese.items())
                print(f"vlm: no font with Japanese on this machine: the images are in English{named}", file=sys.stderr)
        image = image_seen(pixels)
        images = preprocess.normalize(pixels)[None].to(vision.patch_embed.proj.weight)
        args.out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for name, figure in figures.draw_all(vision, images, image, scores, lettering).items():
            path = args.out / f"look-{name}.png"
            figure.save(path)
            rows.append({"path": str(path), "question": lettering.words[name]})
        print_rows(rows, args.json, lambda row: f"{row['path']}\t{row['question']}")

    return run


def _open_classifier(
    source: str, args: Namespace, backend: "Backend" = "torch"
) -> tuple["ViTClassifier", "Preprocess"]:
    from vlm.checkpoint.load import load_classifier

    device = "cpu" if backend != "torch" and args.device == "auto" else args.device
    classifier = load_classifier(source, backend=backend, device=device, dtype=args.dtype)
    return classifier, classifier.prepare()


def _classify(classifier: "ViTClassifier", preprocess: "Preprocess", images: list[Path]) -> "Tensor":
    """Probabilities (B, M)."""
    import torch

    from vlm.precision import dtype_of

    with torch.inference_mode():
        device, dtype = next(classifier.parameters()).device, dtype_of(classifier)
        return torch.cat(
            [classifier(preprocess(image)[None].to(device, dtype)).float().softmax(-1) for image in images]
        )


def _inside_model(args: Namespace, source: str) -> tuple["VisionTransformer", "Preprocess", dict[str, "Score"]]:
    """Returns what `vlm look` draws: the image encoder, its preprocessing, and a score for each text."""
    from vlm.bundled import BUNDLED
    from vlm.checkpoint.backbone import load_backbone
    from vlm.checkpoint.load import load
    from vlm.checkpoint.sources import is_own
    from vlm.errors import CheckpointError, OtherKind
    from vlm.inspect.relevance import text_score
    from vlm.interop.names.catalog import source_of
    from vlm.models.clip import CLIP
    from vlm.zero_shot import class_embeddings

    texts: list[str] = args.text
    named = source_of(source)
    if named not in BUNDLED and not (Path(named).is_dir() and is_own(Path(named))):
        from vlm.interop.loading import check_native

        check_native(named)
    try:
        embedder = load(source, device=args.device, dtype=args.dtype)
    except OtherKind:
        if texts:
            raise
        backbone = load_backbone(source, device=args.device, dtype=args.dtype)
        if backbone.preprocess is None:
            raise CheckpointError(
                f"{source} came without preprocessing settings, so it cannot read images. Convert it with its config."
            ) from None
        return backbone.vision, backbone.preprocess, {}
    assert isinstance(embedder.model, CLIP)
    embeds = class_embeddings(embedder, texts) if texts else ()
    scores = {text: text_score(embedder.model.vision_proj, embed) for text, embed in zip(texts, embeds, strict=True)}
    return embedder.model.vision, embedder.preprocess, scores


def _inside_classifier(args: Namespace, source: str) -> tuple["VisionTransformer", "Preprocess", dict[str, "Score"]]:
    """The same of a classifier; without labels its own answer to the image."""
    from vlm.inspect.relevance import label_score

    classifier, preprocess = _open_classifier(source, args)
    labels: list[str] = args.text or [classifier.labels[int(_classify(classifier, preprocess, [args.image]).argmax())]]
    return classifier.vision, preprocess, {label: label_score(classifier, label) for label in labels}
