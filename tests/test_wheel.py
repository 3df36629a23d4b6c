"""A stranger installs what we build: sdist, then the wheel from it, then a bare environment without a network."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlm

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "demo" / "samples" / "fxemoji" / "dog.webp"
LABELS = ["犬", "a car", "りんご"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]  # PyTorch is downloaded


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `python -m build` left an sdist and a wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source / path.name)
    for name in ("vlm", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def library() -> set[str]:
    paths = (path for path in (ROOT / "vlm").rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_library_and_its_licences_only(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == library()
    licences = {name.partition(".dist-info/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "vlm/assets/clip_bpe/LICENSE"}


def test_the_sdist_holds_the_library_and_no_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert {name for name in names if name.startswith("vlm/")} == library()
    assert not [name for name in names if name.startswith(("tests/", "training/", "demo/"))]
    assert {"LICENSE", "README.md", "README.ja.md", "CHANGELOG.md", "SECURITY.md"} <= names


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Path]:
    """The interpreter of a new environment with pip and nothing else; some GB of PyTorch go again afterwards."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=True)
    yield folder / "bin" / "python"
    shutil.rmtree(folder)


def test_a_bare_environment_classifies_offline(built: Path, python: Path, tmp_path: Path) -> None:
    """The command from the wheel says of an image what the library in this checkout says."""
    needs_an_index(python, tmp_path)
    (wheel,) = built.glob("*.whl")
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    image = shutil.copy(IMAGE, tmp_path / "dog.webp")
    command = [python.with_name("vlm"), "classify", image, "--labels", *LABELS, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=offline(tmp_path))
    found = {row["label"]: row["score"] for row in json.loads(done.stdout)}
    wanted = vlm.classify(vlm.load("mini"), [IMAGE], LABELS)[0].tolist()
    assert found == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-4)
    assert max(found, key=found.__getitem__) == "犬"


def needs_an_index(python: Path, tmp_path: Path) -> None:
    """Skips, and says why, where pip cannot download so much as a small package."""
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--timeout", "30"]
    tried = subprocess.run([*command, "-d", tmp_path / "tried", "tqdm"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"pip reaches no index, so nothing can be installed: {tried.stderr.strip().splitlines()[-1]}")


def offline(home: Path) -> dict[str, str]:
    """No way out: proxies that answer nothing, the hub told to stay offline, no cache and no checkout of ours."""
    nowhere = "http://127.0.0.1:9"
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept.pop("PYTHONPATH", None)
    return kept | {"http_proxy": nowhere, "https_proxy": nowhere, "HF_HUB_OFFLINE": "1", "HOME": str(home)}
