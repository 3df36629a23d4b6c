"""Does clip-benchmark, through OpenCLIP's loader, measure the same on our exported model as we do ourselves?

    python -m benchmarks.clip_benchmark_check mini

Retrieval with one image and one caption of each concept, and the zero-shot classification of one class set, both in
one language and on one split, as local WebDatasets.  Needs: pip install clip-benchmark
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import ftfy
import torch

import vlm
from vlm.images.open import open_image
from vlm.metrics import top_k_accuracy
from vlm.training.data.pairs import Pairs, open_pairs
from vlm.training.data.rows import Selected
from vlm.training.measure.drawings import PICTURE_WORDS
from vlm.training.measure.retrieval import embed_all_images, measure_retrieval
from vlm.zero_shot import ZeroShotClassifier, label_sentences

RECALLS = (1, 5, 10)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clip_benchmark_check", description=__doc__)
    parser.add_argument("model", help="mini, or a model folder")
    parser.add_argument("--split", default="val_style")
    parser.add_argument("--language", default="en", choices=["en", "ja"])
    parser.add_argument("--classes", default="", help="a set of classes.json; default: the one with most classes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        theirs, ours = check(args.model, args.split, args.language, args.classes, Path(root))
    for name, value in ours.items():
        print(f"{name:32s} clip-benchmark {theirs[name]:.4f}   ours {value:.4f}")
    return 0 if all(abs(theirs[name] - value) < 1e-6 for name, value in ours.items()) else 1


def check(model: str, split: str, language: str, classes: str, root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """({metric: their value}, {metric: our value})."""
    embedder = vlm.load(model)
    vlm.export(embedder, root / "model", "openclip")
    file = "test" if split.startswith("test") else "validation"
    pairs = open_pairs(PICTURE_WORDS / f"{file}.parquet", embedder.preprocess, (split,))

    one_each = AsOpenClip(Selected(pairs.rows, first_of_each_concept(pairs, language)), embedder.preprocess)
    captions = [row[0] for row in one_each.texts(language)]
    write_dataset(root / "retrieval", one_each, "txt", captions)
    (root / "retrieval" / "dataset_type.txt").write_text("retrieval")
    theirs = run(root, "retrieval", "zeroshot_retrieval")
    measured = {
        (row.task, row.language): row.value
        for row in measure_retrieval(embedder, one_each, embed_all_images(embedder, one_each), split, "")
    }
    ours = {}
    for k in RECALLS:
        ours[f"image_retrieval_recall@{k}"] = measured[f"text->image R@{k}", language]
        ours[f"text_retrieval_recall@{k}"] = measured[f"image->text R@{k}", language]

    labels, chosen, targets = class_set(pairs, language, classes)
    images = pairs.select(chosen)
    write_dataset(root / "classes", images, "cls", map(str, targets))
    (root / "classes" / "classnames.txt").write_text("\n".join(labels), encoding="utf-8")
    templates = [sentence.replace(labels[0], "{c}") for sentence in label_sentences(labels[0])]
    (root / "classes" / "zeroshot_classification_templates.txt").write_text("\n".join(templates), encoding="utf-8")
    theirs |= run(root, "classes", "zeroshot_classification")
    classifier = ZeroShotClassifier(embedder, labels, [template.replace("{c}", "{}") for template in templates])
    scores = embed_all_images(embedder, images) @ classifier.class_embeds.T
    return theirs, ours | {"acc1": top_k_accuracy(scores, torch.tensor(targets))}


class AsOpenClip(Pairs):
    """Captions as OpenCLIP reads them: curly quotes straight."""

    def texts(self, language: str) -> list[list[str]]:
        return [[ftfy.fix_text(text) for text in row] for row in super().texts(language)]


def first_of_each_concept(pairs: Pairs, language: str) -> list[int]:
    first: dict[int, int] = {}
    for row, (group, captions) in enumerate(zip(pairs.groups.tolist(), pairs.texts(language), strict=True)):
        if captions:
            first.setdefault(group, row)
    return list(first.values())


def class_set(pairs: Pairs, language: str, name: str) -> tuple[list[str], list[int], list[int]]:
    """(labels, rows, their classes) of one set of classes.json, restricted to what the images show."""
    sets = json.loads((PICTURE_WORDS / "classes.json").read_text(encoding="utf-8"))
    found = []
    for classes in [sets[name]] if name else sets.values():
        of_uid = {uid: key for key, value in classes["classes"].items() for uid in value.get("uids", ())}
        truth = [of_uid.get(uid) for uid in pairs.uids] if classes["by"] == "uids" else pairs.rows.column(classes["by"])
        present = [key for key, value in classes["classes"].items() if key in set(truth) and value.get(language)]
        labels = [classes["classes"][key][language][0] for key in present]
        if len(present) > 1 and len(set(labels)) == len(labels):
            rows = [row for row, key in enumerate(truth) if key in present]
            found.append((labels, rows, [present.index(truth[row]) for row in rows]))
    return max(found, key=lambda labelled: len(labelled[0]))


def write_dataset(folder: Path, pairs: Pairs, suffix: str, contents: Iterable[str]) -> None:
    """One shard in clip-benchmark's layout; images as RGB, so that both sides see transparency on white."""
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text("1")
    with tarfile.open(folder / "test" / "0.tar", "w") as shard:
        for row, (image, content) in enumerate(zip(pairs.rows.column("image"), contents, strict=True)):
            image = io.BytesIO()
            open_image(image["bytes"]).save(image, "PNG")
            for name, data in ((f"{row:06d}.png", image.getvalue()), (f"{row:06d}.{suffix}", content.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


# clip-benchmark 1.6.2's accuracy() makes a float of a 1-D array, which NumPy 2.4 refuses; the rest is its own.
_CLIP_BENCHMARK = """
from clip_benchmark.metrics import zeroshot_classification
from clip_benchmark.cli import main
def accuracy(logits, target, topk=(1,)):
    return [float((logits.topk(k)[1] == target[:, None]).any(1).float().mean()) for k in topk]
zeroshot_classification.accuracy = accuracy
main()
"""


def run(root: Path, dataset: str, task: str) -> dict[str, float]:
    """clip-benchmark's command line, on the CPU in float32."""
    command = [sys.executable, "-c", _CLIP_BENCHMARK, "eval", "--dataset", f"wds/{dataset}", "--task", task]
    command += ["--dataset_root", str(root / dataset), "--model", f"local-dir:{root / 'model'}", "--pretrained", "none"]
    command += ["--output", str(root / f"{dataset}.json"), "--no_amp", "--num_workers", "0", "--batch_size", "64"]
    command += ["--recall_k", *map(str, RECALLS)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics: dict[str, float] = json.loads((root / f"{dataset}.json").read_text())["metrics"]
    return metrics


if __name__ == "__main__":
    sys.exit(main())
