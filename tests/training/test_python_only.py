"""From Python alone: train, evaluate, predict and export, outside a checkout; once more from the wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # each imports everything in a new process
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "support" / "python_only.py"


def run(folder: Path, **environment: str) -> list[str]:
    """The words that the script prints last; it sees nothing of the checkout but the installed package."""
    script = folder / "script.py"
    script.write_text(SCRIPT.read_text(encoding="utf-8"), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], cwd=folder, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()[-4:]


def test_a_classifier_is_trained_measured_used_and_exported_from_python_alone(tmp_path: Path):
    _, accuracy, right, labels = run(tmp_path)
    assert float(accuracy) > 0.9 and int(right) >= 11 and labels == "2"


def test_the_same_from_the_wheel(tmp_path: Path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    installed = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(installed)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    (tmp_path / "work").mkdir()
    module, accuracy, right, _ = run(tmp_path / "work", PYTHONPATH=str(installed))
    assert Path(module).is_relative_to(installed)
    assert float(accuracy) > 0.9 and int(right) >= 11
