"""Images of a classifier's recipe with their targets: one class, several labels or a number."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlm.config import Problem
from vlm.errors import DataError
from vlm.training.data.division import AUTOMATIC, open_training_rows, validation_split_of
from vlm.training.data.labelled import ClassSet, Labelled, classes_of_rows, label_rows, labels_if_any, read_class_set
from vlm.training.data.rows import Renamed, Rows, class_names
from vlm.training.data.sources import open_rows
from vlm.training.recipe.sections import LabelledSection, SourceSection

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassifierData:
    """Training and validation data of a classifier."""

    classes: ClassSet | None  # of a single-label or multi-label task
    labels: tuple[str, ...]  # of the M outputs
    training: Labelled
    validation: Labelled
    validation_name: str  # of the split, for tables


def open_classifier_data(data: LabelledSection, problem: Problem) -> ClassifierData:
    """Open the training and the validation images of a recipe, with their targets.

    Args:
        data: [data] of the recipe.
        problem: what the targets are: class numbers (n,), 0 or 1 for each label (n, M), or values (n, M).

    Raises:
        DataError: the data cannot be read, or has no such targets.
    """
    own = SourceSection(path=data.train, splits=data.train_splits, columns=data.columns, root=data.root)
    other = data.validation_source(data.train)
    classes = None if problem == "regression" else open_classes(data, problem)
    training = _with_targets(
        renamed(open_training_rows(_named(own, classes)), data), problem, classes, own, keep_broken=True
    )
    named = bool(data.validation or data.validation_split)
    split = "" if named or data.held_out else validation_split_of(own)
    if named or split:
        wanted = other if named else replace(own, splits=(split,))
        if "label" not in (data.validation_columns or {}):  # else its own table says where the classes are
            wanted = _named(wanted, classes)
        rows = renamed(open_rows(wanted.path, wanted.splits, wanted.columns, wanted.root), data)
        validation, name = _with_targets(rows, problem, classes, wanted), data.validation_split or split or "validation"
    else:
        count = data.held_out or AUTOMATIC
        training, validation = training.hold_out(count, data.hold_out_by)
        name = f"{count} held out"
    if not named and not data.held_out:
        _log.warning("validation on %s of %s", name, data.train)
    for remark in training.rows.remarks():
        _log.warning("%s", remark.text)
    labels = classes.words(data.language) if classes else (_label_column(data.columns),)
    return ClassifierData(classes, labels, training, validation, name)


def renamed(rows: Rows, data: LabelledSection) -> Rows:
    """The rows, their classes called as the recipe's `rename` says."""
    return Renamed(rows, data.rename) if data.rename else rows


def _check_rename(rows: Rows, names: Mapping[str, str]) -> None:
    known = class_names(rows)
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"[data] rename names {', '.join(unknown)}; {rows.name} has: {', '.join(known[:20])}.")
    twice = [name for name, count in Counter(names.get(name, name) for name in known).items() if count > 1]
    if twice:
        raise DataError(f"[data] rename makes one class of several: {', '.join(twice)}. Give each a name of its own.")


def open_classes(data: LabelledSection, problem: Problem = "single_label") -> ClassSet:
    """The classes or labels of a recipe, in the order of the model's outputs.

    Args:
        data: [data] of the recipe.
        problem: of several labels an image, only the most frequent ones may be wanted.
    """
    if data.classes is not None:
        return read_class_set(data.train, data.classes)
    source = SourceSection(path=data.train, splits=data.train_splits, columns=data.columns, root=data.root)
    rows = open_training_rows(source)
    if data.rename:
        _check_rename(rows, data.rename)
    rows = renamed(rows, data)
    if problem == "multi_label":
        return ClassSet(keys=most_frequent_labels(rows, data.columns, data.most_frequent))
    return classes_of_rows(rows, (data.columns or {}).get("label"))


def most_frequent_labels(rows: Rows, columns: dict[str, Any] | None, count: int = 0) -> tuple[str, ...]:
    """The labels of a multi-label data set, sorted.

    Args:
        rows: the data set.
        columns: as the recipe names them.
        count: only this many, those that most images have; 0 takes all.
    """
    found = Counter(label for own in labels_of_rows(rows, columns) for label in own)
    if not found:
        raise DataError(f"{rows.name} has no labels. Name their column: columns = {{ label = ... }}.")
    ranked = sorted(found, key=lambda label: (-found[label], label))
    return tuple(sorted(ranked[: count or None]))


def labels_of_rows(rows: Rows, columns: dict[str, Any] | None) -> list[list[str]]:
    """The labels of each sample."""
    return [labels_if_any(rows, index) for index in range(len(rows))]


def open_multi_label(rows: Rows, classes: ClassSet, columns: dict[str, Any] | None) -> Labelled:
    """All samples of a multi-label data set; targets (n, M) are 1 where an image has the label.

    Args:
        rows: the data set.
        classes: the M labels; others are not asked for.
        columns: as the recipe names them.
    """
    number = {key: target for target, key in enumerate(classes.keys)}
    targets = torch.zeros(len(rows), len(number))
    for row, labels in enumerate(labels_of_rows(rows, columns)):
        for label in labels:
            if label in number:
                targets[row, number[label]] = 1
    if not bool(targets.any()):
        raise DataError(f"No sample of {rows.name} has any of these labels: {', '.join(classes.keys[:8])}.")
    return Labelled(rows, list(range(len(rows))), targets, {})


def open_values(rows: Rows, columns: dict[str, Any] | None) -> Labelled:
    """The samples of a regression data set that have a number; targets (n, 1).

    Args:
        rows: the data set.
        columns: as the recipe names them; "label" is the column of numbers.
    """
    name = _label_column(columns)
    values = [_number(value) for value in rows.column(name)]
    index = [i for i, value in enumerate(values) if value is not None]
    if not index:
        raise DataError(f"Column {name} of {rows.name} has no numbers. Name another column.")
    left_out = {"no number": len(values) - len(index)} if len(index) < len(values) else {}
    for reason, count in left_out.items():
        _log.warning("%s: %d of %d samples left out: %s in column %s", rows.name, count, len(values), reason, name)
    return Labelled(rows, index, torch.tensor([[values[i]] for i in index], dtype=torch.float32), left_out)


def _number(value: Any) -> float | None:
    if isinstance(value, list):  # as tables of text have their labels
        items: list[Any] = value
        return _number(items[0]) if len(items) == 1 else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _named(source: SourceSection, classes: ClassSet | None) -> SourceSection:
    """The source with the column that a class set goes by."""
    if classes is None or classes.column is None:
        return source
    return replace(source, columns=dict(source.columns or {}) | {"label": classes.column})


def _with_targets(
    rows: Rows, problem: Problem, classes: ClassSet | None, source: SourceSection, *, keep_broken: bool = False
) -> Labelled:
    if classes is None:
        return open_values(rows, source.columns)
    if problem == "single_label":
        return label_rows(rows, classes, keep_broken=keep_broken, name=", ".join(source.splits))
    return open_multi_label(rows, classes, source.columns)


def _label_column(columns: dict[str, Any] | None) -> str:
    column = (columns or {}).get("label", "label")
    if isinstance(column, str):
        return column
    if isinstance(column, Sequence) and len(column) == 1:
        return str(column[0])
    raise DataError(f"columns.label is {column!r}; wanted the name of one column.")
