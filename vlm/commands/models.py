"""`vlm models`: the curated models, their download, removal and the default."""

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from vlm.commands.options import Run, add_json, user_language

if TYPE_CHECKING:
    from vlm.interop.names.catalog import CatalogEntry
    from vlm.interop.names.installed import Measured


def models(parser: ArgumentParser) -> Run:
    """List models by short name; download one, remove it, or make it the default.

        vlm models                  the list; * marks the default model
        vlm models get NAME         download a model, or go on where a download stopped, and measure its speed
        vlm models remove NAME      delete a downloaded model
        vlm models use NAME         make a model the default of all commands and of the demo

    NAME of `use` may also be a folder, openclip:NAME/TAG or hf:ORG/NAME. Sizes marked ~ are computed from the number of
    parameters. Accuracies are published ones, with the source in --json. A dash: not known, or not measured here.
    """
    parser.add_argument("action", nargs="?", choices=["get", "remove", "use"], help="default: list")
    parser.add_argument("name", metavar="NAME", nargs="?", help="a short name of the list")
    add_json(parser)

    def run(args: Namespace) -> None:
        if (args.action is None) != (args.name is None):
            parser.error(f"{args.action} needs NAME: a short name of `vlm models`")
        match args.action:
            case "get":
                _get(_entry(args.name))
            case "remove":
                _remove(_entry(args.name))
            case "use":
                _use(args.name)
            case _:
                _list(args.json)

    return run


def _list(as_json: bool) -> None:
    from vlm.commands.options import print_rows
    from vlm.interop.names.catalog import catalog
    from vlm.interop.names.default_model import resolve_model

    default = resolve_model()
    rows = [_row(entry, default.name == entry.name) for entry in catalog().values()]
    if not as_json:
        print(
            f"  {'name':<14}{'download':>10}{'params':>9}{'pixels':>8}  {'languages':<14}{'licence':<12}"
            f"{'zero-shot':>10}{'images/s':>10} {'by':<6}here  for"
        )
    print_rows(rows, as_json, _line)
    if not as_json:
        print(f"\ndefault: {default.name} ({default.origin}). Zero-shot: published top-1 on ImageNet-1k, chance 0.1 %.")


def _row(entry: "CatalogEntry", is_default: bool) -> dict[str, Any]:
    from vlm.interop.names.installed import is_here, read_speed

    measured = read_speed(entry)
    return {
        "name": entry.name,
        "source": entry.source,
        "purpose": entry.purpose[user_language()],
        "languages": list(entry.languages),
        "download_bytes": 0 if entry.repository is None else entry.size,
        "download_bytes_from": "bundled" if entry.repository is None else "computed from parameters, float32",
        "parameters": entry.parameters,
        "image_size": entry.image_size,
        "licence": entry.licence,
        "licence_source": entry.licence_source,
        "accuracy": entry.accuracy and entry.accuracy.value,
        "accuracy_measure": entry.accuracy and entry.accuracy.measure,
        "accuracy_source": entry.accuracy and entry.accuracy.source,
        "here": is_here(entry),
        "images_per_second": measured and measured.images_per_second,
        "backend": measured and measured.backend,
        "default": is_default,
    }


def _line(row: dict[str, Any]) -> str:
    size = "bundled" if row["download_bytes"] == 0 else f"~{row['download_bytes'] / 1e9:.1f} GB"
    accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
    speed = "-" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}"
    return (
        f"{'*' if row['default'] else ' '} {row['name']:<14}{size:>10}{row['parameters'] / 1e6:>8.0f}M"
        f"{row['image_size']:>8}  {', '.join(row['languages']):<14}{row['licence']:<12}{accuracy:>10}{speed:>10} "
        f"{row['backend'] or '-':<6}{'yes' if row['here'] else 'no':<4}  {row['purpose']}"
    )


def _entry(name: str) -> "CatalogEntry":
    from vlm.errors import InputError
    from vlm.interop.names.catalog import catalog

    if name not in catalog():
        raise InputError(f"'{name}' is no short name; wanted one of {', '.join(catalog())}. vlm models lists them.")
    return catalog()[name]


def _get(entry: "CatalogEntry") -> None:
    from vlm.checkpoint.load import load
    from vlm.commands.printing import note
    from vlm.interop.names.installed import Measured, write_speed
    from vlm.models.clip import CLIP

    if entry.repository is not None:
        from vlm.interop.sources import plan

        planned = plan(entry.source, "clip")
        size = planned.size
        note(f"{entry.name} is {entry.source}: {_bytes(size)} to download, licence {entry.licence}")
        planned.fetch()
    embedder = load(entry.name)
    found = Measured(_measure(embedder), "torch")
    if entry.repository is not None and embedder.device.type == "cpu" and isinstance(embedder.model, CLIP):
        found = _with_onnx(entry, found)
    write_speed(entry, found)
    print(f"{entry.name} is on this machine: {found.images_per_second:.1f} images/s, computed by {found.backend}")


def _with_onnx(entry: "CatalogEntry", torch: "Measured") -> "Measured":
    """Returns the faster of torch and ONNX Runtime, which gives the same vectors; torch where that is not there."""
    from vlm.checkpoint.load import load
    from vlm.commands.printing import note
    from vlm.errors import VlmError
    from vlm.interop.names.installed import Measured

    note(f"{entry.name}: {torch.images_per_second:.1f} images/s by torch; exporting it once to compare ONNX Runtime")
    try:
        found = Measured(_measure(load(entry.name, backend="onnx")), "onnx")
    except VlmError as error:  # the package is not installed, the texts have no ONNX form, the cache is full
        note(f"{entry.name} stays with torch: {error}")
        return torch
    note(f"{entry.name}: {found.images_per_second:.1f} images/s by ONNX Runtime")
    return max(torch, found)


def _bytes(size: int | None) -> str:
    return "an unknown number of bytes" if size is None else f"{size / 1e6:,.1f} MB"


def _measure(embedder: Any) -> float:
    """Images per second of `embed_images`, batches of 16 images already in memory, for about a second."""
    import time

    import numpy as np

    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (256, 256, 3), dtype=np.uint8) for _ in range(16)]
    embedder.embed_images(images)
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < 1:
        embedder.embed_images(images)
        count += len(images)
    return count / (time.perf_counter() - start)


def _remove(entry: "CatalogEntry") -> None:
    from vlm.interop.names.installed import remove

    print(f"{entry.name} is removed: {_bytes(remove(entry))} freed")


def _use(name: str) -> None:
    from vlm.interop.names.default_model import write_default

    path = write_default(name)
    print(f"{name} is now the default model ({path})")
