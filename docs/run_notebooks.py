"""Run the notebooks of docs/notebooks from top to bottom and keep their outputs, without progress bars and local paths.

python -m docs.run_notebooks            # minutes: two small trainings
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
RUNS = {"own-data.ipynb": "notebook-own", "guide.ipynb": "notebook"}  # -> folder below runs/, made anew
PROGRESS = re.compile(r"\d+%\||^\s*$")
LOCAL = re.compile(r"(?:/[\w.+-]+)+/(?=(?:site-packages|docs|demo|training|runs|vlm)/)")


def main() -> None:
    for name, runs in RUNS.items():
        shutil.rmtree(ROOT / "runs" / runs, ignore_errors=True)
        path = NOTEBOOKS / name
        command = [sys.executable, "-m", "jupyter", "execute", "--inplace", "--timeout=3600", str(path)]
        subprocess.run(command, cwd=ROOT, check=True)
        nbformat.write(tidied(nbformat.read(path, as_version=4)), path)
        print(f"{path.relative_to(ROOT)} written")


def tidied(notebook: Any) -> Any:
    """The notebook with what each cell printed in one piece, as a terminal would show it at the end."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            kept = [output for output in cell.outputs if output.output_type != "stream"]
            if text := _as_shown(printed):
                kept.insert(0, nbformat.v4.new_output("stream", name="stdout", text=text))
            cell.outputs = kept
    return notebook


def _as_shown(printed: str) -> str:
    lines = (line.rsplit("\r", 1)[-1] for line in printed.replace("\r\n", "\n").split("\n"))
    shown = [LOCAL.sub("", line).rstrip() for line in lines if not PROGRESS.search(line)]
    return "\n".join(line for line in shown if "Warning" not in line and "notebook_tqdm" not in line) + "\n" * bool(
        shown
    )


if __name__ == "__main__":
    main()
