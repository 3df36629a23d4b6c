"""A stranger installs what we build: sdist, the wheel from it, an environment without a checkout and a network."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import time
import tomllib
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlm
from tests.support.wheel import DATA, PACKAGES, ROOT, borrowing, build, install, site
from vlm.errors import DISTRIBUTION

IMAGE = ROOT / "demo" / "samples" / "fxemoji" / "dog.webp"
LABELS = ["犬", "a car", "りんご"]
RECIPE = """task = "clip"

[data]
train = "photos"
train_splits = ["train"]
validation_split = "validation"
"""
long = [pytest.mark.long, pytest.mark.timeout(3600)]


def test_nothing_tells_a_user_to_install_the_package_called_vlm():
    """On PyPI `vlm` is another project."""
    wrong = re.compile(r"(?:pip|uv|pipx) (?:install|add)[^\n`]*[ '\"]vlm(?=[ \[`'\"]|$)|\bvlm\[", re.M)
    assert wrong.search("pip install vlm") and wrong.search("uv pip install 'vlm[train]'")
    assert not wrong.search(f"pip install '{DISTRIBUTION}[train]'")
    kinds = {".md", ".py", ".toml", ".ipynb", ".txt", ".html", ".js", ".json", ""}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    files = [ROOT / name for name in listed if Path(name).suffix in kinds and not name.startswith("tests/test_wheel")]
    assert len(files) > 300 or not listed
    assert not [
        str(file) for file in files if file.exists() and wrong.search(file.read_text(encoding="utf-8", errors="ignore"))
    ]


def test_the_distribution_has_one_name_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    own = {name for extra in project["optional-dependencies"].values() for name in extra if name.startswith("vlm")}
    assert {name.partition("[")[0] for name in own} == {DISTRIBUTION}
    assert set(re.findall(r"\w+", project["optional-dependencies"]["all"][0])) >= {
        "train",
        "demo",
        "retrieval",
        "interop",
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `python -m build` left an sdist and a wheel made from that sdist."""
    return build(tmp_path_factory.mktemp("built")).parent


def library() -> set[str]:
    """What a wheel holds, by its path there: code, assets, recipes and the demo's gallery, but not picture-words."""
    found: set[str] = set()
    for package, place in PACKAGES.items():
        for path in (ROOT / package).rglob("*"):
            inner = path.relative_to(ROOT / package)
            if path.is_file() and "__pycache__" not in inner.parts and inner.parts[0] not in DATA:
                found.add(f"{place}/{inner.as_posix()}")
    return found - {f"vlm/demo/{name}" for name in ("README.md", "requirements.txt")}


@pytest.mark.long
def test_the_wheel_holds_the_library_training_and_the_demo(built: Path):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"{DISTRIBUTION.replace('-', '_')}-{vlm.__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == library()
    licences = {name.partition(".dist-info/licenses/")[2] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "vlm/assets/clip_bpe/LICENSE", "vlm/assets/mini/ATTRIBUTION.md",
                        "vlm/assets/mini/LICENSES.txt"}  # fmt: skip


@pytest.mark.long
def test_the_sdist_holds_the_code_and_no_tests(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    for package, place in PACKAGES.items():
        held = {name for name in names if name.startswith(f"{package}/")}
        assert held == {name.replace(place, package, 1) for name in library() if name.startswith(f"{place}/")
                        and (package != "vlm" or not name.startswith(("vlm/training/", "vlm/demo/")))}  # fmt: skip
    assert not [name for name in names if name.startswith("tests/")]
    assert {"LICENSE", "README.md", "README.ja.md", "CHANGELOG.md", "SECURITY.md"} <= names


@pytest.fixture(scope="module")
def borrowed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with our wheel, and the other packages of the one that runs the tests."""
    return borrowing(next(built.glob("*.whl")), tmp_path_factory.mktemp("borrowed") / "env")


@pytest.fixture(scope="module")
def bare(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of a new environment with WHEEL[all] and what pip brings for it: some GB, deleted afterwards."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    needs_an_index(python, folder)
    install(next(built.glob("*.whl")), python)
    yield python
    shutil.rmtree(folder)


def needs_an_index(python: Path, folder: Path) -> None:
    """Skips, and says why, where pip cannot download so much as a small package."""
    command = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "0", "--timeout", "30"]
    tried = subprocess.run([*command, "-d", folder / "tried", "tqdm"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"pip reaches no index, so nothing can be installed: {tried.stderr.strip().splitlines()[-1]}")


ENVIRONMENTS = [
    pytest.param("borrowed", marks=long, id="borrowed"),
    pytest.param("bare", marks=long, id="bare"),
]


@pytest.fixture(params=ENVIRONMENTS)
def python(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's folder: photos/ with captions and splits, and a recipe that names nothing but them."""
    rng, photos = np.random.default_rng(0), tmp_path / "photos"
    photos.mkdir()
    lines = ["file_name,caption,split"]
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(photos / f"{number}.jpg")
        lines.append(f"{number}.jpg,square number {number},{'train' if number < 8 else 'validation'}")
    (photos / "metadata.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "short.toml").write_text(RECIPE + "\n[run]\nsteps = 2\nbatch_size = 8\n")
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """No cache, no checkout, no hub and no proxy of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    kept.pop("PYTHONPATH", None)
    return kept | {"HF_HUB_OFFLINE": "1", "HOME": str(home), "OMP_NUM_THREADS": "1"}


def command(python: Path, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python.with_name("vlm"), *words], cwd=home, env=environment(home), capture_output=True, text=True, check=False
    )


def test_the_wheel_works_far_from_a_checkout_and_a_network(python: Path, home: Path):
    """Train, evaluate, index and search, classify as this checkout does, and open the demo on the new model."""
    where = [python, "-c", "import vlm, vlm.training, vlm.demo; print(vlm.__file__, vlm.training.__file__)"]
    said = subprocess.run(where, cwd=home, env=environment(home), capture_output=True, text=True, check=True).stdout
    assert all(str(site(python)) in path for path in said.split())
    refused = [python, "-c", "import urllib.request; urllib.request.urlopen('http://192.0.2.1')"]
    assert "this test has no network" in subprocess.run(refused, capture_output=True, text=True, check=False).stderr
    for name in ("training", "demo"):
        alone = [python, "-c", f"import {name}"]
        assert "No module named" in subprocess.run(alone, cwd="/", capture_output=True, text=True, check=False).stderr

    stopped_by_hand(python, home)  # a recipe that names only the data: mini's 200 steps of 128 take long
    trained = command(python, home, "train", "short.toml", "--out", "model")
    assert trained.returncode == 0, trained.stderr
    measured = command(python, home, "evaluate", "model", "--data", "photos", "--split", "validation", "--json")
    assert measured.returncode == 0, measured.stderr
    assert {row["n"] for row in json.loads(measured.stdout)} == {4}
    checked = command(python, home, "check", "photos", "--workers", "0")
    assert checked.returncode == 0, checked.stderr
    assert command(python, home, "index", "photos", "--index", "i", "--model", "model").returncode == 0
    found = command(python, home, "search", "photos/3.jpg", "--index", "i", "--model", "model", "--json")
    assert Path(json.loads(found.stdout)[0]["path"]).name == "3.jpg"

    shutil.copy(IMAGE, home / "dog.webp")
    done = command(python, home, "classify", "dog.webp", "--labels", *LABELS, "--json")
    probabilities = {row["label"]: row["score"] for row in json.loads(done.stdout)}
    wanted = vlm.classify(vlm.load("mini"), [IMAGE], LABELS)[0].tolist()
    assert probabilities == pytest.approx(dict(zip(LABELS, wanted, strict=True)), abs=1e-4)
    demo_answers(python, home)


def stopped_by_hand(python: Path, home: Path) -> None:
    words = [python.with_name("vlm"), "train", "recipe.toml", "--out", "whole"]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=home, env=environment(home), stdout=log, stderr=log)
        try:
            _wait(lambda: "/200" in (home / "log").read_text(), process, home / "log")  # the bar of the steps
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 75, (home / "log").read_text()
        finally:
            process.kill()
            process.wait()
    assert list((home / "whole" / "checkpoints").iterdir())


def demo_answers(python: Path, home: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [python.with_name("vlm"), "demo", "--model", "model", "--folder", "photos", "--port", str(port)]
    with (home / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=home, env=environment(home), stdout=log, stderr=log)
        try:
            _wait(lambda: "answers at" in (home / "log").read_text(), process, home / "log")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
                assert b"gradio" in page.read()
        finally:
            process.terminate()
            process.wait(60)
    assert "Traceback" not in (home / "log").read_text()


def _wait(ready, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(3000):
        if ready():
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"it did not start:\n{log.read_text()}")


def test_what_needs_picture_words_says_so_in_one_line(python: Path, home: Path):
    recipe = site(python) / "vlm" / "training" / "recipes" / "mini-icons.toml"
    for words in (["evaluate", "mini"], ["train", recipe, "--out", "model"], ["train", recipe, "--dry-run"]):
        done = command(python, home, *words)
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1 and "picture" in done.stderr and "repository" in done.stderr, done.stderr
    assert not (home / "model").exists()


def test_the_version_is_that_of_the_wheel(python: Path, home: Path):
    assert f"vlm {vlm.__version__}, torch " in command(python, home, "--version").stdout
