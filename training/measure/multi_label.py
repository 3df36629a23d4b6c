"""Numbers of a multi-label classifier, from probabilities (n, M) and targets (n, M), and of a regression model."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.metrics import mean_average_precision


def average_precisions(outputs: Tensor, targets: Tensor) -> Tensor:
    """Average precision of each label over the images, (M,); NaN for a label that no image has.

    Args:
        outputs: (n, M), any scores.
        targets: (n, M), 0 or 1.
    """
    correct = targets.bool().T  # (M, n)
    found = torch.full((len(correct),), torch.nan, dtype=torch.float64)
    for label in correct.any(1).nonzero().flatten().tolist():
        found[label] = mean_average_precision(outputs.T[label : label + 1], correct[label : label + 1])
    return found


def best_thresholds(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The threshold of each label with the highest F1, (M,); 0.5 for a label that no image has.

    It lies between two neighbouring probabilities, so that images like these fall on the same sides again.

    Args:
        probabilities: of validation images, (n, M).
        targets: (n, M), 0 or 1.
    """
    found = torch.full((probabilities.shape[1],), 0.5, dtype=torch.float64)
    for label, (column, wanted) in enumerate(zip(probabilities.double().T, targets.bool().T, strict=True)):
        if not bool(wanted.any()):
            continue
        levels, order = column.sort(descending=True)
        hits = wanted[order].double().cumsum(0)  # among the k most probable
        f1 = 2 * hits / (torch.arange(1, len(levels) + 1) + wanted.sum())
        lower = torch.cat([levels[1:], levels.new_zeros(1)])
        f1[levels == lower] = -1  # a threshold cannot divide equal probabilities
        best = int(f1.argmax())
        found[label] = (levels[best] + lower[best]) / 2
    return found


def multi_label_metrics(
    probabilities: Tensor, targets: Tensor, labels: Sequence[str], thresholds: Sequence[float] | None
) -> dict[str, Any]:
    """All numbers of the report, as metrics.json holds them.

    Args:
        probabilities: (n, M).
        targets: (n, M), 0 or 1.
        labels: of the M outputs.
        thresholds: from which a label counts as present; None is 0.5 for all.

    Returns:
        Mean average precision over the labels that occur, with chance (that of equal scores) beside it, and for each
        label its average precision, and F1, precision and recall at its threshold.  A share of no images is None.
    """
    precisions = average_precisions(probabilities, targets)
    chance = average_precisions(torch.zeros_like(probabilities), targets)
    limits = torch.tensor(thresholds or [0.5] * len(labels), dtype=torch.float64)
    present, wanted = probabilities.double() >= limits, targets.bool()
    right, said, there = (part.sum(0).double() for part in (present & wanted, present, wanted))
    rows = [
        {
            "name": name,
            "n": int(there[i]),
            "average_precision": _share(precisions[i]),
            "chance": _share(chance[i]),
            "threshold": float(limits[i]),
            "precision": _share(right[i] / said[i]),
            "recall": _share(right[i] / there[i]),
            "f1": _share(2 * right[i] / (said[i] + there[i])) if there[i] else None,
        }
        for i, name in enumerate(labels)
    ]
    found = [row["f1"] for row in rows if row["f1"] is not None]
    return {
        "n": len(targets),
        "mAP": {"value": float(precisions.nanmean()), "chance": float(chance.nanmean())},
        "macro_f1": sum(found) / len(found) if found else None,
        "micro_f1": _share(2 * right.sum() / (said.sum() + there.sum())),
        "labels": rows,
    }


def regression_metrics(values: Tensor, targets: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Errors of predicted values, with those of the mean of the targets beside them.

    Args:
        values: predicted, (n, M).
        targets: (n, M).
        labels: of the M values.
    """
    errors, deviations = (values - targets).double(), (targets - targets.double().mean(0)).double()
    rows = [
        {
            "name": name,
            "MAE": float(errors[:, i].abs().mean()),
            "RMSE": float(errors[:, i].square().mean().sqrt()),
            "R2": _share(1 - errors[:, i].square().sum() / deviations[:, i].square().sum()),
            "MAE_of_the_mean": float(deviations[:, i].abs().mean()),
        }
        for i, name in enumerate(labels)
    ]
    return {"n": len(targets), "values": rows}


def _share(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def multi_label_section(found: dict[str, Any]) -> str:
    """The part of a model card, in Markdown; `found` has "split" and "data" too."""
    rows = "\n".join(
        f"| {row['name']} | {row['n']} | {_cell(row['average_precision'])} | {_cell(row['chance'])} "
        f"| {row['threshold']:.3f} | {_cell(row['precision'])} | {_cell(row['recall'])} | {_cell(row['f1'])} |"
        for row in found["labels"]
    )
    return f"""## What it scores

On `{found["split"]}` of {found["data"]}, {found["n"]} images: mean average precision {_cell(found["mAP"]["value"])},
chance {_cell(found["mAP"]["chance"])}; F1 at the thresholds {_cell(found["macro_f1"])} (mean of the labels) and
{_cell(found["micro_f1"])} (all labels together). The thresholds were fitted to the validation images of the training.

| label | images | average precision | chance | threshold | precision | recall | F1 |
|---|---|---|---|---|---|---|---|
{rows}
"""


def regression_section(found: dict[str, Any]) -> str:
    """The part of a model card, in Markdown; `found` has "split" and "data" too."""
    rows = "\n".join(
        f"| {row['name']} | {row['MAE']:.4g} | {row['MAE_of_the_mean']:.4g} | {row['RMSE']:.4g} | {_cell(row['R2'])} |"
        for row in found["values"]
    )
    return f"""## What it scores

On `{found["split"]}` of {found["data"]}, {found["n"]} images.

| value | mean absolute error | of the mean of the targets | root mean squared error | R2 |
|---|---|---|---|---|
{rows}
"""


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
