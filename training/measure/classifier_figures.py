"""Figures of a classifier's report, in the user's language: confusion matrix, reliability diagram, worst mistakes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageFont

from vlm.inspect.drawing import Language, choose_lettering
from vlm.metrics import Reliability

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "confusion": "Confusion matrix",
        "true": "true class",
        "answer": "answer",
        "reliability": "Reliability diagram",
        "sure": "confidence (probability of the answer)",
        "right": "accuracy",
        "perfect": "perfectly calibrated",
        "wrong": "Most confident mistakes",
        "none wrong": "No mistakes",
        "before": "as trained",
        "after": "with temperature",
        "error": "calibration error",
        "class": "class",
    },
    "ja": {
        "confusion": "混同行列",
        "true": "正解のクラス",
        "answer": "予測",
        "reliability": "信頼度図",
        "sure": "確信度（予測クラスの確率）",
        "right": "正解率",
        "perfect": "完全に較正された状態",
        "wrong": "確信度の高い誤答",
        "none wrong": "誤答なし",
        "before": "学習したまま",
        "after": "温度補正後",
        "error": "較正誤差",
        "class": "クラス",
    },
}
SHOWN = 40  # classes whose names and counts are readable


class Mistake(NamedTuple):
    """An image that was classified wrongly."""

    image: Image.Image
    true: str
    answer: str
    probability: float  # of the answer


class Letters(NamedTuple):
    """Words of a language, and a font file that has its glyphs; None is matplotlib's own font."""

    words: dict[str, str]
    font: str | None

    def writable(self, names: Sequence[str]) -> list[str]:
        """The class names, with a number in place of each that no installed font can write."""
        return [
            name if self.font or name.isascii() else f"{self.words['class']} {number}"
            for number, name in enumerate(names)
        ]


def letters(language: Language) -> Letters:
    """The words and the font of a language; English where the machine has no Japanese font."""
    pen = choose_lettering(language)
    font = pen.font(12)
    if pen.japanese and isinstance(font, ImageFont.FreeTypeFont):
        return Letters(WORDS[language], str(font.path))
    return Letters(WORDS["en"], None)


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], letters: Letters, path: Path) -> None:
    """Draw a confusion matrix: the colour is the share of the true class's images, the number their count.

    Args:
        confusion: counts (m, m); a row is the true class, a column the answer.
        names: of the m classes; written where they are at most `SHOWN`.
        letters: words and font.
        path: PNG file to write.
    """
    counts = np.asarray(confusion)
    side = max(4.0, min(len(counts), SHOWN) * 0.45)
    with _figure((side + 2.5, side + 1.5), letters, path) as figure:
        axes = figure.subplots()
        share = counts / counts.sum(1, keepdims=True).clip(1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=letters.words["confusion"], xlabel=letters.words["answer"], ylabel=letters.words["true"])
        if len(counts) > SHOWN:
            return
        axes.set_xticks(range(len(names)), letters.writable(names), rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), letters.writable(names))
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)


def draw_reliability(
    before: Reliability, after: Reliability, errors: tuple[float, float], letters: Letters, path: Path
) -> None:
    """Draw a reliability diagram: accuracy over confidence, one dot per bin that has images, its area their count.

    Args:
        before: of the logits as trained.
        after: of the logits divided by the temperature.
        errors: expected calibration errors of the two.
        letters: words and font.
        path: PNG file to write.
    """
    words = letters.words
    with _figure((5.5, 5.2), letters, path) as figure:
        axes = figure.subplots()
        axes.plot((0, 1), (0, 1), color="grey", linestyle="--", label=words["perfect"])
        for bins, error, name, colour in zip(
            (before, after), errors, ("before", "after"), ("tab:red", "tab:blue"), strict=True
        ):
            filled = bins.count > 0
            sure, right, count = (
                part[filled].numpy(force=True) for part in (bins.confidence, bins.accuracy, bins.count)
            )
            label = f"{words[name]}: {words['error']} {error:.3f}"
            axes.plot(sure, right, color=colour, label=label)
            axes.scatter(sure, right, s=10 + 300 * count / count.sum(), color=colour, alpha=0.5)
        axes.set(title=words["reliability"], xlabel=words["sure"], ylabel=words["right"], xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")


def draw_mistakes(mistakes: Sequence[Mistake], letters: Letters, path: Path, columns: int = 6) -> None:
    """Draw a contact sheet of mistakes: the true class above each image, the answer and its probability below.

    Args:
        mistakes: in the order of the sheet.
        letters: words and font.
        path: PNG file to write.
        columns: images in a row.
    """
    rows = max(1, -(-len(mistakes) // columns))
    with _figure((2.0 * columns, 2.4 * rows + 0.6), letters, path) as figure:
        figure.suptitle(letters.words["wrong"] if mistakes else letters.words["none wrong"])
        for place, mistake in enumerate(mistakes, 1):
            axes = figure.add_subplot(rows, columns, place, xticks=[], yticks=[])
            axes.imshow(mistake.image)
            axes.set_title(mistake.true, fontsize=8)
            axes.set_xlabel(f"{mistake.answer} {mistake.probability:.0%}", fontsize=8, color="tab:red")
        figure.tight_layout()


@contextmanager
def _figure(inches: tuple[float, float], letters: Letters, path: Path) -> Iterator[Figure]:
    """A figure to draw on, written as PNG at the end of the block."""
    settings: dict[str, object] = {}
    if letters.font:
        font_manager.fontManager.addfont(letters.font)
        settings["font.family"] = font_manager.FontProperties(fname=letters.font).get_name()
    with rc_context(settings):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=inches)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=100, bbox_inches="tight")
