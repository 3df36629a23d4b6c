"""`vlm convert` and `vlm export`: other libraries' models in, ours out."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any


def convert(parser: ArgumentParser) -> Callable[[Namespace], None]:
    """Turn a model of OpenCLIP, Hugging Face, timm, torchvision, big_vision or the book into a folder of ours."""
    parser.add_argument(
        "source", metavar="SOURCE", help="openclip:NAME/TAG, openclip:NAME/FILE, hf:ORG/NAME, a folder or a file"
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="to write")
    parser.add_argument("--classifier", action="store_true", help="the source is a ViT with classes, not a CLIP")
    parser.add_argument("--num-heads", type=int, metavar="N", help="where the weights come without a config")
    parser.add_argument("--activation", choices=["gelu", "gelu_tanh", "quick_gelu"], help="where nothing else says it")
    parser.add_argument("--norm-eps", type=float, metavar="EPS", help="of the LayerNorms, where nothing else says it")
    parser.add_argument(
        "--image-size", type=_size, metavar="SIDE", help="224, or 224x320 (height, width): resizes the positions"
    )

    def run(args: Namespace) -> None:
        from vlm.checkpoint.load import load, load_classifier
        from vlm.checkpoint.save import save

        said = {
            "num_heads": args.num_heads,
            "activation": args.activation,
            "norm_eps": args.norm_eps,
            "image_size": args.image_size,
        }
        save(load_classifier(args.source, **said) if args.classifier else load(args.source, **said), args.folder)
        print(args.folder)

    return run


def export(parser: ArgumentParser) -> Callable[[Namespace], None]:
    """Write a model for OpenCLIP, Hugging Face, timm or ONNX Runtime."""
    parser.add_argument("model", metavar="MODEL", help="mini, or a folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write, new or empty")
    parser.add_argument("--to", required=True, choices=["openclip", "huggingface", "timm", "onnx"])
    parser.add_argument("--classifier", action="store_true", help="MODEL is a ViT with classes, not a CLIP")

    def run(args: Namespace) -> None:
        from vlm.checkpoint.load import load, load_classifier
        from vlm.interop.exports import export as write

        model: Any = load_classifier(args.model) if args.classifier else load(args.model)
        write(model, args.out, args.to)
        print(args.out)

    return run


def _size(text: str) -> int | tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ArgumentTypeError(f"must be a number of pixels, or HEIGHTxWIDTH, got {text}")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
