"""Train, evaluate and check from Python: `vlm.training.train(recipe, out)`.

Nothing here imports torch before it is needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if __name__ == "training":  # started from a checkout, `python -m training...`: the same package, never a second copy
    import sys

    import vlm.training

    sys.modules[__name__] = vlm.training

if TYPE_CHECKING:
    from vlm.embedder import Embedder
    from vlm.models.vision import ViTClassifier
    from vlm.training.data.rows import ColumnNames
    from vlm.training.measure.measurement import Measurement
    from vlm.training.recipe.config import Recipe, VitRecipe
    from vlm.training.recipe.reading import read_any_recipe as read_recipe

__all__ = ["Recipe", "VitRecipe", "check", "evaluate", "read_recipe", "train"]


def train(
    recipe: "Recipe | VitRecipe",
    out: str | Path,
    *,
    device: str | None = None,
    resume: bool = False,
) -> bool:
    """Train the model that a recipe describes and save it in a folder, as `vlm train` does.

    Args:
        recipe: `Recipe.from_dict({...})`, `VitRecipe.from_dict({...})`, or what `read_recipe` read from a TOML file.
        out: folder for the model, metrics.jsonl and checkpoints.
        device: "cpu", "cuda" or "mps"; None is cuda where there is one, else cpu.
        resume: go on from the newest checkpoint in `out`, if there is one.

    Returns:
        True when the model is trained and saved: `vlm.load(out)` or `vlm.load_classifier(out)` opens it.  False when
        SIGTERM or Ctrl-C stopped the run: it is saved, and goes on with `resume`.

    Raises:
        VlmError: the recipe, its data, its model or the folder cannot be used.
    """
    from vlm.training.engine.distributed import init_from_env, leave
    from vlm.training.tasks.train import train as train_recipe

    try:
        return train_recipe(recipe, Path(out), init_from_env(device), resume=resume) == 0
    finally:
        leave()


@overload
def evaluate(
    model: "ViTClassifier",
    data: str | Path,
    *,
    splits: Sequence[str] = (),
    label: str | None = None,
    columns: "ColumnNames | None" = None,
    root: str | Path | None = None,
) -> dict[str, Any]: ...


@overload
def evaluate(
    model: "str | Path | Embedder",
    data: str | Path,
    *,
    splits: Sequence[str] = (),
    columns: "ColumnNames | None" = None,
    root: str | Path | None = None,
) -> "list[Measurement]": ...


def evaluate(
    model: "str | Path | Embedder | ViTClassifier",
    data: str | Path,
    *,
    splits: Sequence[str] = (),
    label: str | None = None,
    columns: "ColumnNames | None" = None,
    root: str | Path | None = None,
) -> "list[Measurement] | dict[str, Any]":
    """Measure a CLIP on image-text pairs, or a classifier on labelled images, with chance beside every number.

    Args:
        model: an embedder, or what `vlm.load` reads; or a classifier.
        data: a folder, .csv, .jsonl, .parquet, .tar, or the name of a data set on the hub.
        splits: are measured together; empty takes all samples.
        label: of a classifier's data, the column that holds the labels, where it is not called so.
        columns: the columns of a table by their role: {"image": "photo", "caption": ["note"]}.
        root: where the paths of a table begin; None is the table's folder.

    Returns:
        Of a CLIP every retrieval metric in both directions and in each language; of a classifier the numbers of
        metrics.json of `vlm report`.

    Raises:
        VlmError: the model or the data cannot be used.
    """
    from vlm.models.vision import ViTClassifier

    if isinstance(model, ViTClassifier):
        from vlm.training.measure.report import evaluate_classifier

        return evaluate_classifier(model, str(data), splits=splits, label=label, columns=columns, root=root)
    from vlm.checkpoint.load import load
    from vlm.training.measure.retrieval import evaluate_pairs

    embedder = load(str(model)) if isinstance(model, (str, Path)) else model
    return evaluate_pairs(embedder, str(data), splits, columns=columns, root=None if root is None else Path(root))


def check(
    data: str | Path | Sequence[str | Path],
    *,
    tokenizer: str = "mini",
    splits: Sequence[str] = (),
    columns: dict[str, str | list[str]] | None = None,
    root: str | Path | None = None,
    sample: int = 50_000,
    workers: int = 0,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Look for what is wrong with a data set before training on it, as `vlm check` does.

    Args:
        data: one or several of: a folder, .csv, .jsonl, .parquet, .tar, the name of a data set on the hub.
        tokenizer: mini, clip, or a folder.
        splits: only these; empty takes all.
        columns: the columns of a table by their role: {"image": "photo", "caption": ["note"]}.
        root: paths in a table are relative to this folder; None is the table's folder.
        sample: check so many samples at most, drawn at random.
        workers: processes that decode; 0 decodes in this one.
        out: folder for check.json, doubtful.jsonl and contact-sheet.png.

    Returns:
        What check.json holds; the problems are in `["findings"]`.

    Raises:
        VlmError: the data cannot be opened.
    """
    from vlm.training.audit.check import check as check_data
    from vlm.training.audit.check import open_tokenizer

    return check_data(
        [str(data)] if isinstance(data, (str, Path)) else [str(one) for one in data],
        open_tokenizer(tokenizer),
        splits=list(splits),
        columns=columns,
        root=None if root is None else Path(root),
        sample=sample,
        workers=workers,
        out=None if out is None else Path(out),
    )


def __getattr__(name: str) -> Any:
    match name:
        case "Recipe":
            from vlm.training.recipe.config import Recipe

            return Recipe
        case "VitRecipe":
            from vlm.training.recipe.config import VitRecipe

            return VitRecipe
        case "read_recipe":
            from vlm.training.recipe.reading import read_any_recipe

            return read_any_recipe
    raise AttributeError(f"module 'vlm.training' has no attribute '{name}'")
