"""A run's metrics.jsonl, read and drawn."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> (step, value) pairs, of a metrics.jsonl."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        entry: dict[str, Any] = json.loads(line)
        for name, value in entry.items():
            if name != "step":
                curves[name].append((entry["step"], value))
    return dict(curves)


def draw_curves(folder: Path) -> None:
    """metrics.jsonl -> curves.png: one panel per number, those of validation in one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(dict)
    for name, points in read_metrics(folder / "metrics.jsonl").items():
        panels["validation" if name.startswith("val ") else name][name.removeprefix("val ")] = points
    figure = Figure(figsize=(4.5 * max(1, len(panels)), 3.5))
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(
        figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items(), strict=False
    ):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else "")
        axes.set(title=title.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend()
    figure.savefig(folder / "curves.png", dpi=100, bbox_inches="tight")
