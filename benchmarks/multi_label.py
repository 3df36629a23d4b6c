"""Multi-label on the 50 most frequent English keywords of picture-words: mAP on val_style, beside chance and a probe.

    python -m benchmarks.multi_label runs/keywords --steps 400

Trains `mini`'s image encoder with binary cross-entropy, and fits scikit-learn's logistic regression of each keyword to
the frozen features of `mini`.
"""

import argparse
import time
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import vlm
from vlm.training import VitRecipe, train
from vlm.training.data.labelled import ask
from vlm.training.data.targets import open_classifier_data
from vlm.training.measure.multi_label import average_precisions, multi_label_metrics

COUNT = 50
GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of the probe


def recipe(steps: int) -> VitRecipe:
    """Fine-tuning of mini for the keywords."""
    return VitRecipe.from_dict({
        "model": {"source": "mini"},
        "data": {"train": "training/picture_words", "train_splits": ["train"], "validation_split": "val_style",
                 "columns": {"label": "keywords_en"}, "most_frequent": COUNT, "patch_dropout": 0.5, "dense_share": 0.2},
        "loss": {"problem": "multi_label"},
        "transform": {"scale": [0.6, 1.0], "flip": 0.5, "fill": 255},
        "optim": {"lr": 1e-3, "muon_lr": 0.004, "layer_decay": 0.8, "warmup_steps": 10},
        "run": {"steps": steps, "batch_size": 64, "ema_decay": 0.95, "eval_every": steps, "save_every": steps},
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    settings, start = recipe(arguments.steps), time.perf_counter()
    train(settings, arguments.out)
    trained, seconds = vlm.load_classifier(arguments.out), time.perf_counter() - start
    data = open_classifier_data(settings.data, "multi_label")
    answers = ask(trained, trained.prepare(), data.validation, what="val_style")
    found = multi_label_metrics(answers.outputs.sigmoid(), answers.targets, trained.labels, trained.thresholds)
    print(f"fine-tuned   mAP {found['mAP']['value']:.3f}  chance {found['mAP']['chance']:.3f}  n {found['n']}  "
          f"{arguments.steps} steps, {seconds / 60:.1f} min")  # fmt: skip

    backbone = vlm.load_backbone("mini")
    assert backbone.preprocess is not None
    training, validation = (
        ask(backbone.vision, backbone.preprocess, part, what="features") for part in (data.training, data.validation)
    )
    fifth = torch.arange(len(training.targets)) % 5 == 0  # chooses C
    parts = [(training.outputs[part], training.targets[part]) for part in (~fifth, fifth)]
    chosen = max(GRID, key=lambda c: probe(*parts[0], *parts[1], c))
    value = probe(training.outputs, training.targets, validation.outputs, validation.targets, chosen)
    print(f"linear probe mAP {value:.3f}  C {chosen:g}, chosen on a fifth of the training images; features of mini")


def probe(features: Tensor, targets: Tensor, others: Tensor, wanted: Tensor, c: float) -> float:
    """The mAP of scikit-learn's logistic regression of each keyword.

    Args:
        features: (n, D) to fit to.
        targets: (n, M).
        others: (m, D) to measure on.
        wanted: (m, M).
        c: inverse regularisation strength.
    """
    each = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000))
    fitted = make_pipeline(StandardScaler(), each).fit(features.double().numpy(), targets.numpy())
    scores = torch.from_numpy(fitted.predict_proba(others.double().numpy()))
    return float(average_precisions(scores, wanted).nanmean())


if __name__ == "__main__":
    main()
