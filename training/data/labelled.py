"""Images with classes: which samples count, what the classes are called, and what a model says of each image."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vlm.errors import DataError, ImageError
from vlm.images.preprocess import Preprocess
from vlm.precision import autocast_on_gpu, dtype_of
from vlm.training.data.formats.idx import FASHION
from vlm.training.data.held_out import drawn, groups_of, stratified
from vlm.training.data.rows import BrokenSample, ColumnNames, Rows, Selected, class_names, in_blocks
from vlm.training.data.sources import open_rows
from vlm.training.recipe.sections import HoldOutBy

Splits = str | Sequence[str] | None  # one, several, or all
NO_CLASS = -1  # target of a sample whose class is missing or cannot be read


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """M classes in order: what the data calls them, and what people do."""

    keys: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # language -> M names
    column: str | None = None  # that holds the keys; None: the one that `open_rows` recognises

    def __post_init__(self) -> None:
        if len(self.keys) < 2:
            raise DataError(f"Two or more classes are wanted, got {len(self.keys)}: {', '.join(self.keys)}.")
        if len(set(self.keys)) < len(self.keys):
            twice = [key for key, count in Counter(self.keys).items() if count > 1]
            raise DataError(
                f"Several classes have one name: {', '.join(twice)}. Give each class its own name, such as its key."
            )

    def words(self, language: str) -> tuple[str, ...]:
        """Names in a language, the keys where there are none; a name of several classes gets the key behind it."""
        names = self.names.get(language, self.keys)
        counts = Counter(names)
        return tuple(
            f"{name} ({key})" if counts[name] > 1 else name for name, key in zip(names, self.keys, strict=True)
        )

    def in_order_of(self, labels: Sequence[str]) -> "ClassSet":
        """The same classes as a classifier numbers them, whether its labels are keys or names of some language."""
        for words in (self.keys, *(self.words(language) for language in self.names)):
            if sorted(words) == sorted(labels):
                order = [words.index(label) for label in labels]
                names = {language: tuple(names[i] for i in order) for language, names in self.names.items()}
                return dataclasses.replace(self, keys=tuple(self.keys[i] for i in order), names=names)
        raise DataError(
            f"The classifier's labels ({_some(labels)}) are neither the keys nor the names of these classes "
            f"({_some(self.keys)})."
        )


def read_class_set(data: str | Path, name: str) -> ClassSet:
    """Reads `classes.json` in or beside the data: {name: {"by": column, "classes": {key: {"en": [name, ...]}}}}."""
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    path = folder / "classes.json"
    if not path.is_file():
        raise DataError(f"There is no {path}, which would name the classes of '{name}'.")
    sets = json.loads(path.read_text(encoding="utf-8"))
    if name not in sets:
        raise DataError(f"{path} has no class set '{name}'. It has: {', '.join(sets)}.")
    column, classes = sets[name]["by"], sets[name]["classes"]
    if column == "uids":
        raise DataError(f"Class set '{name}' of {path} lists images one by one; wanted one that goes by a column.")
    languages = [language for language in ("en", "ja") if all(value.get(language) for value in classes.values())]
    names = {language: tuple(value[language][0] for value in classes.values()) for language in languages}
    return ClassSet(keys=tuple(classes), names=names, column=column)


FASHION_MNIST = ClassSet(keys=tuple(FASHION), names={"en": tuple(FASHION), "ja": tuple(FASHION.values())})


def classes_of(
    data: str,
    splits: Splits = (),
    column: str | None = None,
    *,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
) -> ClassSet:
    """All classes that occur in some splits, sorted; their names are their keys.

    Args:
        data: a folder, a file or a hub data set.
        splits: one or several; None or empty takes all rows.
        column: that holds the classes, where it is not called label.
        columns, root: as `open_rows` has them.

    Raises:
        DataError: the data cannot be read, or has samples without a class.
    """
    return classes_of_rows(_open(data, splits, column, columns, root), column)


def classes_of_rows(rows: Rows, column: str | None = None) -> ClassSet:
    """The same of a data set that is open."""
    return _of_labels(class_names(rows), column)


def classes_of_classifier(labels: Sequence[str], data: str, name: str | None, column: str | None) -> ClassSet:
    """Numbered as the classifier does: of the class set `name`, or else its labels are what the data says."""
    return read_class_set(data, name).in_order_of(labels) if name else _of_labels(labels, column)


def _of_labels(labels: Sequence[str], column: str | None) -> ClassSet:
    if set(labels) in (set(words) for words in FASHION_MNIST.names.values()):
        return FASHION_MNIST.in_order_of(labels)
    return ClassSet(keys=tuple(labels), column=column)


@dataclass(frozen=True)
class Labelled:
    """The samples of `rows` that have one of M classes."""

    rows: Rows
    index: list[int]  # their numbers, n of them
    targets: Tensor  # (n,), 0..M-1
    left_out: dict[str, int]  # why a sample does not count -> how many

    def hold_out(self, count: float, by: HoldOutBy = "concept") -> tuple["Labelled", "Labelled"]:
        """(the rest, the samples held out), the same at every call.

        Args:
            count: how many are held out, or below 1 which share.
            by: "concept" takes its share of each class, and leaves samples of one concept, or of the same image, on one
                side; "sample" draws them one by one.
        """
        if by == "sample":
            rest, held = drawn(len(self.index), count)
        else:
            strata = self.strata()
            rest, held = stratified(strata, groups_of(Selected(self.rows, self.index), strata), count)
        return self.part(rest), self.part(held)

    def strata(self) -> list[int | None]:
        """What each gives its share of held-out samples: the class of a sample, the rarest of its labels, or which
        tenth its number is in; None where its class is missing."""
        if self.targets.ndim == 1:
            return [None if target == NO_CLASS else target for target in self.targets.tolist()]
        if bool(((self.targets == 0) | (self.targets == 1)).all()):
            frequent = self.targets.sum(0)  # (M,)
            rarest = torch.where(self.targets > 0, frequent, torch.inf).argmin(1)
            return torch.where(self.targets.any(1), rarest, -1).tolist()
        values = self.targets[:, 0]
        return torch.bucketize(values, values.quantile(torch.arange(1, 10) / 10)).tolist()

    def part(self, numbers: Sequence[int]) -> "Labelled":
        """These samples only; `numbers` are places in `index`."""
        return Labelled(self.rows, [self.index[i] for i in numbers], self.targets[list(numbers)], self.left_out)


def open_labelled(
    data: str,
    splits: Splits,
    classes: ClassSet,
    *,
    columns: ColumnNames | None = None,
    root: str | Path | None = None,
    keep_broken: bool = False,
) -> Labelled:
    """The samples of some splits that belong to the classes; the others are counted, and named on stderr.

    Args:
        data: a folder, a file or a hub data set.
        splits: one or several; None or empty takes all rows.
        classes: the M classes, in the order of the targets.
        columns, root: as `open_rows` has them.
        keep_broken: whether samples whose class is missing or cannot be read stay, with the target `NO_CLASS`: a
            training run lists them in its quarantine.

    Raises:
        DataError: the data cannot be read, no sample belongs to the classes, or samples belong to several.
    """
    rows = _open(data, splits, classes.column, columns, root)
    return label_rows(rows, classes, keep_broken=keep_broken, name=_listed(splits))


def label_rows(rows: Rows, classes: ClassSet, *, keep_broken: bool = False, name: str = "") -> Labelled:
    """The same of a data set that is open; `name` stands in its messages."""
    number = {key: target for target, key in enumerate(classes.keys)}
    keep_broken = keep_broken and classes.column is None  # of a class set samples may well belong to no class
    index: list[int] = []
    targets: list[int] = []
    several: list[int] = []
    left_out: Counter[str] = Counter()
    for i in range(len(rows)):
        labels, reason = _labels(rows, i)
        own = [number[label] for label in labels if label in number]
        if len(own) > 1:
            several.append(i)
        elif own or (not labels and keep_broken):
            index.append(i)
            targets.append(own[0] if own else NO_CLASS)
        else:
            left_out[f"class {', '.join(labels)} is not asked for" if labels else reason] += 1
    if several:
        first = f"{rows.uid(several[0])}: {', '.join(rows.labels(several[0]))}"
        raise DataError(
            f"{rows.name}: {len(several)} samples have several classes ({first}), and this task takes one a sample. "
            "Give each its class, or train for several labels (multi-label)."
        )
    if not any(target != NO_CLASS for target in targets):
        raise DataError(f"{rows.name} has no sample of these classes ({_some(classes.keys)}), only: {_some(left_out)}.")
    for reason, count in left_out.items():
        print(f"{name or rows.name}: {count} of {len(rows)} samples left out: {reason}", file=sys.stderr)
    return Labelled(rows, index, torch.tensor(targets), dict(left_out))


def labels_if_any(rows: Rows, index: int) -> list[str]:
    """The classes of a sample; none where they cannot be read."""
    return _labels(rows, index)[0]


def _labels(rows: Rows, index: int) -> tuple[list[str], str]:
    """(classes of a sample, why it has none)."""
    try:
        return rows.labels(index), "no class"
    except BrokenSample as error:
        return [], error.reason


@dataclass(frozen=True)
class Answers:
    """Predictions of a model for the images that could be opened."""

    outputs: Tensor  # (n, ...), float32: logits or features
    targets: Tensor  # (n,)
    index: list[int]  # (n,), sample numbers in `Labelled.rows`
    left_out: dict[str, int]  # of the data, and what could not be opened


@torch.no_grad()
def ask(
    model: Callable[[Tensor], Tensor], preprocess: Preprocess, data: Labelled, *, what: str, batch_size: int = 64
) -> Answers:
    """`model` of every image; broken images are left out, counted and named.  `what` is for the progress bar."""
    outputs: list[Tensor] = []
    device, dtype = _place(model)
    kept: list[int] = []
    reasons: Counter[str] = Counter()

    def pixels() -> Iterator[Tensor]:
        for place, index in enumerate(
            tqdm(in_blocks(data.rows, data.index), total=len(data.index), desc=what, unit="image", file=sys.stderr)
        ):
            try:
                yield preprocess(data.rows.image(index))
                kept.append(place)
            except ImageError as error:
                reasons[error.reason] += 1
                print(f"{data.rows.uid(index)} left out: {error}", file=sys.stderr)

    remaining = pixels()
    while batch := list(islice(remaining, batch_size)):
        with autocast_on_gpu(device):
            outputs.append(model(torch.stack(batch).to(device, dtype)).float().cpu())
    if not outputs:
        raise DataError(f"None of the {len(data.index)} images of {data.rows.name} can be opened.")
    left_out = data.left_out | dict(reasons)
    return Answers(torch.cat(outputs), data.targets[kept], [data.index[place] for place in kept], left_out)


def _place(model: Callable[[Tensor], Tensor]) -> tuple[torch.device, torch.dtype]:
    """Where and in which format a model takes its images."""
    weight = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weight is None or not isinstance(model, nn.Module):  # a function, or a model that ONNX Runtime computes
        return torch.device("cpu"), torch.float32
    return weight.device, dtype_of(model)


def _open(data: str, splits: Splits, column: str | None, columns: ColumnNames | None, root: str | Path | None) -> Rows:
    named = dict(columns or {}) | ({"label": column} if column else {})
    return open_rows(data, [splits] if isinstance(splits, str) else splits or (), named, root)


def _listed(splits: Splits) -> str:
    return splits if isinstance(splits, str) else ", ".join(splits or ())


def _some(words: Sequence[str] | Mapping[str, int]) -> str:
    return ", ".join(list(words)[:8]) + (", ..." if len(words) > 8 else "")
