"""What 8 bits change in a classifier: accuracy on a split and speed, beside torch's own dynamic quantisation.

    python -m benchmarks.classifier_int8 runs/fashion /usr/share/datasets/fashion-mnist --split test

Every variant answers the same pixels.  Speed is that of the network alone, in rounds A B C A B C.
"""

import argparse
import copy
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import vlm
from benchmarks.machine import about
from benchmarks.side_by_side import QUICK_ROUNDS, ROUNDS, head, in_turns, row
from vlm.models.vision import ViTClassifier
from vlm.onnx.backends import Backend
from vlm.training.data.class_stream import ClassImages
from vlm.training.data.labelled import classes_of_classifier, open_labelled

BATCHES = (1, 8, 64)
VARIANTS: dict[str, Backend] = {"`vlm`, float32": "torch", "`vlm`, onnx": "onnx", "`vlm`, int8": "int8"}
DYNAMIC = "torch, `quantize_dynamic`"
Network = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier")
    parser.add_argument("data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain = vlm.load_classifier(arguments.classifier, device="cpu")
    networks: dict[str, Network] = {
        name: vlm.load_classifier(arguments.classifier, device="cpu", backend=backend)
        for name, backend in VARIANTS.items()
    }
    networks[DYNAMIC] = torch_dynamic(plain)
    classes = classes_of_classifier(plain.labels, arguments.data, None, None)
    images = ClassImages(open_labelled(arguments.data, arguments.split, classes), plain.prepare())
    command = f"python -m benchmarks.classifier_int8 {os.path.basename(arguments.classifier)} --split {arguments.split}"
    print(about(command, ["torch", "onnxruntime"], 1))
    print_accuracy(networks, plain, images)
    print_speed(networks, plain, images, QUICK_ROUNDS if arguments.quick else ROUNDS)


def torch_dynamic(model: ViTClassifier) -> Network:
    """The model with torch's own dynamic quantisation of its linear layers, which knows `nn.Linear` alone."""
    found = copy.deepcopy(model).eval()
    for module in list(found.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and type(child) is not nn.Linear:
                ours = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                ours.load_state_dict(child.state_dict())
                setattr(module, name, ours)
    return torch.ao.quantization.quantize_dynamic(found, {nn.Linear}, dtype=torch.qint8)


@torch.inference_mode()
def print_accuracy(networks: dict[str, Network], plain: ViTClassifier, images: ClassImages) -> None:
    """Top-1 of every variant, and how many answers differ from those of float32."""
    answers: dict[str, list[Tensor]] = {name: [] for name in networks}
    targets = []
    for pixels, wanted in images.batches():
        batch = plain.prepare().normalize(pixels)
        for name, network in networks.items():
            answers[name].append(network(batch).argmax(1))
        targets.append(wanted)
    wanted, first = torch.cat(targets), torch.cat(next(iter(answers.values())))
    print("| | top-1 | change, points | other answers than float32 |\n|---|---:|---:|---:|")
    right = float((first == wanted).float().mean())
    for name, parts in answers.items():
        said = torch.cat(parts)
        top = float((said == wanted).float().mean())
        other = int((said != first).sum())
        print(f"| {name} | {top:.4f} | {100 * (top - right):+.2f} | {other} of {len(wanted):,} |")


@torch.inference_mode()
def print_speed(networks: dict[str, Network], plain: ViTClassifier, images: ClassImages, rounds: int) -> None:
    pixels, _ = next(images.batches(max(BATCHES)))
    batch = plain.prepare().normalize(pixels)
    for size in BATCHES:
        work = {name: partial(network, batch[:size]) for name, network in networks.items()}
        taken = in_turns(work, rounds, calls=max(1, 256 // size))
        print(f"\n{head(f'batch {size}')}")
        ours = taken[next(iter(networks))]
        for name, seconds in taken.items():
            print(row(name, seconds, ours))


if __name__ == "__main__":
    main()
