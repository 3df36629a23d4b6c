"""Builds the sdist and the wheel, and installs the wheel where no checkout is."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ("picture_words", "icon_words")  # of the repository, not of the package
PACKAGES = {"vlm": "vlm", "training": "vlm/training", "demo": "vlm/demo"}  # in the checkout -> in the wheel
NO_NETWORK = """import sys

def refuse(event, values):
    if event == "socket.connect" and isinstance(values[1], tuple) and values[1][0] not in ("127.0.0.1", "::1"):
        raise OSError(f"this test has no network: {values[1]}")
    if event == "socket.getaddrinfo" and values[0] not in ("127.0.0.1", "::1", "localhost", None, b"127.0.0.1"):
        raise OSError(f"this test has no network: {values[0]}")

sys.addaudithook(refuse)
"""


def build(folder: Path) -> Path:
    """Write an sdist, and a wheel made from that sdist, into a folder -> the wheel."""
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    skipped = shutil.ignore_patterns("__pycache__", *DATA)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in DATA:
        shutil.copytree(ROOT / "training" / name, source / "training" / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def borrowing(wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment with the wheel, and the other packages of the one that runs the tests."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    places = [place for place in sys.path if place.endswith("site-packages")]
    site(python).joinpath("borrowed.pth").write_text("\n".join(places) + "\n")  # no .pth file in them is read
    install(wheel, python, "--no-deps")
    return python


@pytest.fixture(scope="session")
def wheel_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    return borrowing(build(folder), folder / "env")


def site(python: Path) -> Path:
    (place,) = (python.parent.parent / "lib").glob("python*/site-packages")
    return place


def install(wheel: Path, python: Path, *options: str) -> None:
    """WHEEL[all] into an environment, whose processes then reach this machine only."""
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", *options, f"{wheel}[all]"], check=True)
    (site(python) / "no_network.py").write_text(NO_NETWORK)
    (site(python) / "zz_no_network.pth").write_text("import no_network\n")  # in every process of this environment
