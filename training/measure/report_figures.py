"""The figures of `report.py`, words in the user's language: confusion, reliability, what was surely wrong."""

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
        "confusion": "What is taken for what?",
        "true": "true class",
        "answer": "answer",
        "reliability": "Is it as often right as it is sure?",
        "sure": "how sure (probability of the answer)",
        "right": "how often right",
        "perfect": "perfectly honest",
        "wrong": "Most confidently wrong",
        "none wrong": "no wrong answer",
        "before": "as trained",
        "after": "with temperature",
        "error": "calibration error",
        "class": "class",
    },
    "ja": {
        "confusion": "何を何と間違えるか",
        "true": "正解のクラス",
        "answer": "予測",
        "reliability": "自信の分だけ当たっているか",
        "sure": "自信（予測クラスの確率）",
        "right": "正解率",
        "perfect": "自信と正解率が一致",
        "wrong": "自信をもって間違えた画像",
        "none wrong": "誤答なし",
        "before": "学習したまま",
        "after": "温度補正後",
        "error": "較正誤差",
        "class": "クラス",
    },
}
_SHOWN = 40  # classes whose names and counts are still readable


class Mistake(NamedTuple):
    image: Image.Image
    true: str
    answer: str
    probability: float


class Letters(NamedTuple):
    """A language, and a font file that can write it; None is matplotlib's own."""

    words: dict[str, str]
    font: str | None

    def writable(self, names: Sequence[str]) -> list[str]:
        """The class names, or numbers for those that no font here can write."""
        return [
            name if self.font or name.isascii() else f"{self.words['class']} {number}"
            for number, name in enumerate(names)
        ]


def letters(language: Language) -> Letters:
    """Japanese where the machine has a font for it, else English."""
    pen = choose_lettering(language)
    font = pen.font(12)
    if pen.japanese and isinstance(font, ImageFont.FreeTypeFont):
        return Letters(WORDS[language], str(font.path))
    return Letters(WORDS["en"], None)


def draw_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], letters: Letters, path: Path) -> None:
    """Colour: share of the true class's images; number: how many.  confusion (M, M), rows are true classes."""
    counts = np.asarray(confusion)
    side = max(4.0, min(len(counts), _SHOWN) * 0.45)
    with _figure((side + 2.5, side + 1.5), letters, path) as figure:
        axes = figure.subplots()
        share = counts / counts.sum(1, keepdims=True).clip(1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=letters.words["confusion"], xlabel=letters.words["answer"], ylabel=letters.words["true"])
        if len(counts) > _SHOWN:
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
    """One dot per bin that has images, its area by how many; `errors` are the calibration errors of the two."""
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
    """A contact sheet, the surest first; over each image the true class, under it the answer."""
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
    """Drawn on inside, written as PNG at the end."""
    settings: dict[str, object] = {}
    if letters.font:
        font_manager.fontManager.addfont(letters.font)
        settings["font.family"] = font_manager.FontProperties(fname=letters.font).get_name()
    with rc_context(settings):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=inches)
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(path, dpi=100, bbox_inches="tight")
