"""How good a classifier is and how honest: the numbers of `training/measure/report.py`."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor

from vlm.metrics import balanced_accuracy, expected_calibration_error, top_k_accuracy
from vlm.training.data.labelled import ClassSet


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The T > 0 that makes softmax(logits / T) likeliest, 0.05 <= T <= 20; logits (n, M), targets (n,).

    Guo et al. 2017, section 4.2.  The order of the classes stays, so no accuracy changes.
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    limit = np.log(20.0)
    found: Any = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def numbers(logits: Tensor, targets: Tensor, temperature: float, classes: ClassSet, language: str) -> dict[str, Any]:
    """metrics.json: logits (n, M), targets (n,).  Accuracies 0..1 with chance beside, losses in nats."""
    count, total = len(classes.keys), len(targets)
    ks = [k for k in (1, 5) if k < count]
    largest = int(targets.bincount(minlength=count).max())
    calibrated = logits / temperature
    return {
        "n": total,
        **{f"top_{k}": {"value": top_k_accuracy(logits, targets, k), "chance": k / count} for k in ks},
        "balanced_accuracy": {"value": balanced_accuracy(logits, targets), "chance": 1 / count},
        "always_the_largest_class": largest / total,
        "loss": float(F.cross_entropy(logits, targets)),
        "expected_calibration_error": expected_calibration_error(logits.softmax(1), targets),
        "temperature": temperature,
        "with_temperature": {
            "loss": float(F.cross_entropy(calibrated, targets)),
            "expected_calibration_error": expected_calibration_error(calibrated.softmax(1), targets),
        },
        "classes": _per_class(logits, targets, classes, language),
        "confusion": confusion(logits, targets).tolist(),
    }


def confusion(logits: Tensor, targets: Tensor) -> np.ndarray:
    """(M, M) counts: row the true class, column the answer."""
    return confusion_matrix(targets.numpy(), logits.argmax(1).numpy(), labels=range(logits.shape[1]))


def _per_class(logits: Tensor, targets: Tensor, classes: ClassSet, language: str) -> list[dict[str, Any]]:
    answers, words = logits.argmax(1).numpy(), classes.words(language)
    parts = precision_recall_fscore_support(targets.numpy(), answers, labels=range(len(words)), zero_division=0.0)  # type: ignore[arg-type]
    wrong = confusion(logits, targets)
    np.fill_diagonal(wrong, 0)
    rows = []
    for number, (key, name) in enumerate(zip(classes.keys, words, strict=True)):
        precision, recall, f1, n = (part[number] for part in parts)  # type: ignore[index]
        taken_for = words[int(wrong[number].argmax())] if wrong[number].any() else None
        row = {"key": key, "name": name, "n": int(n), "precision": float(precision), "recall": float(recall)}
        rows.append(row | {"f1": float(f1), "most_often_taken_for": taken_for})
    return rows


def most_wrong(probabilities: Tensor, targets: Tensor, count: int) -> list[int]:
    """Places of the wrong answers, the most certain first."""
    certainty, answers = probabilities.max(1)
    certainty = torch.where(answers == targets, -1.0, certainty)
    wrong = int((answers != targets).sum())
    return certainty.argsort(descending=True, stable=True)[: min(count, wrong)].tolist()


def card_part(found: dict[str, Any]) -> str:
    """For a model card, in Markdown; `found` is metrics.json."""
    top = [f"| top-{k} | {found[f'top_{k}']['value']:.3f} | {found[f'top_{k}']['chance']:.3f} |"
           for k in (1, 5) if f"top_{k}" in found]  # fmt: skip
    balanced, after = found["balanced_accuracy"], found["with_temperature"]
    same = " These are the same images, so the second number is a little too good." * (
        found["temperature_fitted_on"] == found["split"]
    )
    classes = "\n".join(
        f"| {row['name']} | {row['n']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} "
        f"| {row['most_often_taken_for'] or ''} |"
        for row in found["classes"]
    )
    return f"""## What it scores

On `{found["split"]}` of {found["data"]}, {found["n"]} images. Always naming the largest class would be right for
{found["always_the_largest_class"]:.3f} of them.

| | value | chance |
|---|---|---|
{chr(10).join(top)}
| balanced accuracy | {balanced["value"]:.3f} | {balanced["chance"]:.3f} |

Expected calibration error {found["expected_calibration_error"]:.3f}; {after["expected_calibration_error"]:.3f} with
temperature {found["temperature"]:.3f}, fitted on `{found["temperature_fitted_on"]}`.{same}

| class | images | precision | recall | F1 | most often taken for |
|---|---|---|---|---|---|
{classes}
"""
