"""Divides data into training and validation: by their splits, or by samples held out."""

from vlm.errors import RecipeError
from vlm.training.data.formats.splits import canonical_split, is_held_out, splits_to_train_on
from vlm.training.data.held_out import hold_out
from vlm.training.data.rows import Rows, Selected
from vlm.training.data.sources import open_rows
from vlm.training.recipe.sections import DataSettings, SourceSection

AUTOMATIC = 0.1  # share that is held out where a recipe does not say what to validate on


def open_training_rows(source: SourceSection) -> Rows:
    """A part of the training data; splits that are held out are left out unless the recipe names them."""
    rows = open_rows(source.path, source.splits, source.columns, source.root)
    chosen = splits_to_train_on(rows.name, source.splits, rows.splits())
    return rows if source.splits or not chosen else open_rows(source.path, chosen, source.columns, source.root)


def validation_split_of(source: SourceSection) -> str:
    """The split to validate on where the recipe does not say it: validation, else test; "" where there is none."""
    there = [split for split in open_rows(source.path, (), source.columns, source.root).splits() if is_held_out(split)]
    return next((name for wanted in ("validation", "test") for name in there if canonical_split(name) == wanted), "")


def divide(data: DataSettings, train: str) -> tuple[Rows, Rows, str]:
    """Open the training data of one source and the validation data.

    Args:
        data: the [data] section.
        train: where the training data are.

    Returns:
        (to train on, to validate on, one line that says how they were divided).

    Raises:
        DataError: data cannot be read, or too few are left.
        RecipeError: the recipe says two things at once.
    """
    source = SourceSection(path=train, splits=data.train_splits, columns=data.columns, root=data.root)
    named = bool(data.validation or data.validation_split)
    if data.held_out and named:
        raise RecipeError("held_out and validation are two ways to the validation data. Leave out one of them.")
    rows = open_training_rows(source)
    if named:
        return rows, open_validation_rows(data, train), ""
    if not data.held_out and (split := validation_split_of(source)):
        return rows, open_rows(train, (split,), data.columns, data.root), f"validation on the split {split} of {train}"
    count = data.held_out or AUTOMATIC
    rest, held = hold_out(rows, count, whole=data.hold_out_by == "concept")
    said = "" if data.held_out else f"validation on {len(held)} samples of {train} that are held out ({AUTOMATIC:.0%})"
    return Selected(rows, rest), Selected(rows, held), said


def open_validation_rows(data: DataSettings, train: str) -> Rows:
    """The validation data that a recipe names."""
    wanted = data.validation_source(train)
    return open_rows(wanted.path, wanted.splits, wanted.columns, wanted.root)
