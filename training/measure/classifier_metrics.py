"""Numbers of a single-label classifier: accuracy, calibration and confusion, from logits (n, M) and targets (n,)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from vlm.metrics import balanced_accuracy, expected_calibration_error, top_k_accuracy

TEMPERATURES = (0.05, 20.0)  # range that is searched
WHOLE_CONFUSION = 100  # classes up to which metrics.json holds the whole matrix
_TOP_CONFUSIONS = 100  # most frequent confusions in metrics.json
_EXTREMES = 20  # worst and best classes on a card that cannot show all


class Temperature(NamedTuple):
    """Divisor of the logits that calibrates their softmax."""

    value: float
    at_limit: bool  # the likelihood still rises at the end of the range that is searched

    def __str__(self) -> str:
        limits = f" (at the limit of {TEMPERATURES[0]:g} to {TEMPERATURES[1]:g})" if self.at_limit else ""
        return f"{self.value:.3f}{limits}"


def fit_temperature(logits: Tensor, targets: Tensor) -> Temperature:
    """Fit the temperature that maximises the likelihood of softmax(logits / T), 0.05 <= T <= 20.

    Guo et al. 2017, section 4.2.  The order of the classes stays, so no accuracy changes.

    Args:
        logits: (n, M).
        targets: (n,), class numbers.
    """
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / np.exp(log_temperature), targets))

    low, high = np.log(TEMPERATURES)
    found: Any = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    at_limit = min(found.x - low, high - found.x) < 1e-3
    return Temperature(float(np.exp(found.x)), bool(at_limit))


def classifier_metrics(
    logits: Tensor, targets: Tensor, temperature: Temperature, keys: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    """All numbers of the report, as metrics.json holds them.

    Args:
        logits: (n, M).
        targets: (n,), class numbers.
        temperature: fitted to validation images.
        keys: of the M classes, as the data has them.
        names: of the M classes, as people read them.

    Returns:
        Accuracies 0..1 with chance beside them, losses in nats.  A share of no images at all is None.
    """
    count, total = len(keys), len(targets)
    ks = [k for k in (1, 5) if k < count]
    calibrated = logits / temperature.value
    confusions = count_confusions(logits, targets)
    found = {
        "n": total,
        **{f"top_{k}": {"value": top_k_accuracy(logits, targets, k), "chance": k / count} for k in ks},
        "balanced_accuracy": {"value": balanced_accuracy(logits, targets), "chance": 1 / count},
        "always_the_largest_class": int(targets.bincount(minlength=count).max()) / total,
        "loss": float(F.cross_entropy(logits, targets)),
        "expected_calibration_error": expected_calibration_error(logits.softmax(1), targets),
        "temperature": temperature.value,
        "temperature_at_limit": temperature.at_limit,
        "with_temperature": {
            "loss": float(F.cross_entropy(calibrated, targets)),
            "expected_calibration_error": expected_calibration_error(calibrated.softmax(1), targets),
        },
        "classes": _per_class(logits, targets, confusions, keys, names),
        "most_frequent_confusions": [
            {"true": names[true], "answer": names[answer], "count": times}
            for (true, answer), times in confusions.most_common(_TOP_CONFUSIONS)
        ],
    }
    if count <= WHOLE_CONFUSION:
        found["confusion"] = confusion_matrix(logits, targets, range(count)).tolist()
    return found


def count_confusions(logits: Tensor, targets: Tensor) -> Counter[tuple[int, int]]:
    """(true class, answer) of the wrong answers -> how often, in the order of the classes; logits (n, M)."""
    answers = logits.argmax(1)
    wrong = answers != targets
    return Counter(sorted(zip(targets[wrong].tolist(), answers[wrong].tolist(), strict=True)))


def confusion_matrix(logits: Tensor, targets: Tensor, classes: Sequence[int]) -> np.ndarray:
    """Counts (m, m) of m of the M classes: a row is the true class, a column the answer; logits (n, M)."""
    place = torch.full((logits.shape[1],), -1)
    place[torch.as_tensor(list(classes))] = torch.arange(len(classes))
    rows, columns = place[targets], place[logits.argmax(1)]
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    shown = (rows >= 0) & (columns >= 0)
    np.add.at(counts, (rows[shown].numpy(), columns[shown].numpy()), 1)
    return counts


def most_confused(logits: Tensor, targets: Tensor, count: int) -> list[int]:
    """The `count` classes with most wrong answers, as true class or as answer, ascending; logits (n, M)."""
    errors: Counter[int] = Counter()
    for (true, answer), times in count_confusions(logits, targets).items():
        errors[true] += times
        errors[answer] += times
    return sorted(number for number, _ in errors.most_common(count))


def most_wrong(probabilities: Tensor, targets: Tensor, count: int) -> list[int]:
    """Image numbers of at most `count` wrong answers, highest probability first; probabilities (n, M)."""
    certainty, answers = probabilities.max(1)
    certainty = torch.where(answers == targets, -1.0, certainty)
    wrong = int((answers != targets).sum())
    return certainty.argsort(descending=True, stable=True)[: min(count, wrong)].tolist()


def _per_class(
    logits: Tensor, targets: Tensor, confusions: Counter[tuple[int, int]], keys: Sequence[str], names: Sequence[str]
) -> list[dict[str, Any]]:
    answers = logits.argmax(1)
    parts: Any = precision_recall_fscore_support(
        targets.numpy(),
        answers.numpy(),
        labels=range(len(names)),
        zero_division=np.nan,  # type: ignore[arg-type]
    )
    taken_for: dict[int, str] = {}
    for (true, answer), _ in confusions.most_common():
        taken_for.setdefault(true, names[answer])
    rows = []
    for number, (key, name) in enumerate(zip(keys, names, strict=True)):
        precision, recall, f1, n = (part[number] for part in parts)
        shares = {"precision": precision, "recall": recall, "f1": f1 if n else np.nan}
        rows.append(
            {"key": key, "name": name, "n": int(n)}
            | {kind: None if np.isnan(value) else float(value) for kind, value in shares.items()}
            | {"most_often_taken_for": taken_for.get(number)}
        )
    return rows


def card_section(found: dict[str, Any]) -> str:
    """The part of a model card, in Markdown.

    Args:
        found: what `classifier_metrics` returned, with "split", "data" and "temperature_fitted_on".
    """
    top = [f"| top-{k} | {found[f'top_{k}']['value']:.3f} | {found[f'top_{k}']['chance']:.3f} |"
           for k in (1, 5) if f"top_{k}" in found]  # fmt: skip
    balanced, after = found["balanced_accuracy"], found["with_temperature"]
    temperature = Temperature(found["temperature"], found["temperature_at_limit"])
    same = " These are the same images, so the second number is a little too good." * (
        found["temperature_fitted_on"] == found["split"]
    )
    return f"""## What it scores

On `{found["split"]}` of {found["data"]}, {found["n"]} images. Always naming the largest class would be right for
{found["always_the_largest_class"]:.3f} of them.

| | value | chance |
|---|---|---|
{chr(10).join(top)}
| balanced accuracy | {balanced["value"]:.3f} | {balanced["chance"]:.3f} |

Expected calibration error {found["expected_calibration_error"]:.3f}; {after["expected_calibration_error"]:.3f} with
temperature {temperature}, fitted on `{found["temperature_fitted_on"]}`.{same}

{_class_tables(found["classes"])}
"""


def _class_tables(rows: Sequence[dict[str, Any]]) -> str:
    """All classes, or the worst and the best by F1 where they are many."""
    if len(rows) <= 2 * _EXTREMES:
        return _class_table(rows)
    measured = sorted((row for row in rows if row["f1"] is not None), key=lambda row: row["f1"])
    absent = len(rows) - len(measured)
    return (
        f"{len(rows)} classes, {absent} of them without images here; metrics.json has all.\n\n"
        f"The {_EXTREMES} classes with the lowest F1:\n\n{_class_table(measured[:_EXTREMES])}\n\n"
        f"The {_EXTREMES} classes with the highest F1:\n\n{_class_table(measured[: -_EXTREMES - 1 : -1])}"
    )


def _class_table(rows: Sequence[dict[str, Any]]) -> str:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    lines = ["| class | images | precision | recall | F1 | most often taken for |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {row['n']} | {cell(row['precision'])} | {cell(row['recall'])} | {cell(row['f1'])} "
        f"| {row['most_often_taken_for'] or ''} |"
        for row in rows
    ]
    return "\n".join(lines)
