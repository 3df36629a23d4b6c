import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vlm
from vlm.checkpoint.save import save
from vlm.cli import COMMANDS, main
from vlm.embedder import Embedder
from vlm.zero_shot import classify


@pytest.fixture
def model(tiny_embedder: Embedder, tmp_path: Path) -> str:
    save(tiny_embedder, tmp_path / "model")
    return str(tmp_path / "model")


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_classify_ranks_the_labels_of_each_image(
    model: str, tiny_embedder: Embedder, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    images, labels = [image_folder / "a.png", image_folder / "c.jpg"], ["犬", "cat", "鳥"]
    assert run("classify", *images, "--labels", *labels, "--model", model, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["path"], row["rank"]) for row in rows] == [(str(path), rank) for path in images for rank in (1, 2, 3)]
    for path, probabilities in zip(images, classify(tiny_embedder, images, labels).tolist(), strict=True):
        found = {row["label"]: row["score"] for row in rows if row["path"] == str(path)}
        assert found == pytest.approx(dict(zip(labels, probabilities, strict=True)), abs=1e-6)
        ranked = [row["score"] for row in rows if row["path"] == str(path)]
        assert ranked == sorted(ranked, reverse=True)


def test_classify_uses_the_templates_it_is_given(
    model: str, tiny_embedder: Embedder, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    image = image_folder / "a.png"
    assert run("classify", image, "--labels", "dog", "cat", "--templates", "the {}", "--model", model, "--json") == 0
    found = {row["label"]: row["score"] for row in json.loads(capsys.readouterr().out)}
    expected = classify(tiny_embedder, [image], ["dog", "cat"], ["the {}"])[0].tolist()
    assert [found[label] for label in ("dog", "cat")] == pytest.approx(expected, abs=1e-6)


def test_classify_prints_one_line_per_label_for_people(
    model: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("classify", image_folder / "a.png", "--labels", "犬", "cat", "--model", model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("\t")[2] for line in lines) == ["cat", "犬"]


def test_search_by_text_ranks_all_images_by_cosine(
    model: str, tiny_embedder: Embedder, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("search", "赤いりんご", "--folder", image_folder, "-k", "4", "--model", model, "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    paths = sorted(path for path in image_folder.rglob("*.*") if path.is_file())
    cosines = (tiny_embedder.embed_images(paths) @ tiny_embedder.embed_texts(["赤いりんご"])[0]).tolist()
    expected = sorted(zip(cosines, map(str, paths), strict=True), reverse=True)[:4]
    assert [row["path"] for row in rows] == [path for _, path in expected]
    assert [row["score"] for row in rows] == pytest.approx([score for score, _ in expected], abs=1e-3)  # float16
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]


def test_search_by_a_image_finds_that_image_first(model: str, image_folder: Path, capsys: pytest.CaptureFixture[str]):
    query = image_folder / "deeper" / "f.png"
    assert run("search", query, "--folder", image_folder, "--model", model, "--json") == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["path"] == str(query)
    assert first["score"] == pytest.approx(1, abs=1e-3)


def test_broken_images_are_skipped_listed_by_reason_and_change_no_exit_code(
    model: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
):
    (image_folder / "empty.png").touch()
    (image_folder / "text.jpg").write_text("I am no image")
    whole = (image_folder / "c.jpg").read_bytes()
    (image_folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (image_folder / "photo.jxl").write_bytes(b"\xff\x0a\xfa\x7f")
    assert run("search", "a dog", "--folder", image_folder, "-k", "99", "--model", model, "--json") == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)) == 6
    skipped = output.err[output.err.index("vlm: skipped 4 of 10 images") :].splitlines()[1:]
    reasons = {Path(line.split(":")[0].strip()).name: line.split(": ")[1] for line in skipped}
    assert reasons == {
        "empty.png": "empty file",
        "text.jpg": "not an image",
        "cut.jpg": "truncated",
        "photo.jxl": "unsupported format",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classify", "nowhere.png", "--labels", "dog"], "nowhere.png: missing"),
        (["classify", "IMAGE", "--labels", "dog", "dog"], "labels given more than once: dog"),
        (["classify", "IMAGE", "--labels", "dog", "--templates", "x"], "Put {} where the label goes"),
        (["classify", "IMAGE", "--classifier", "vit"], "--model reads --labels; --classifier is a model of its own"),
        (["search", "a dog", "--folder", "nowhere"], "There is no folder 'nowhere'"),
        (["search", "a dog", "--folder", "EMPTY"], "holds no images"),
        (["search", "nowhere.png", "--folder", "EMPTY"], "nowhere.png: missing"),
        (["search", " ", "--folder", "EMPTY"], "The query is empty"),
    ],
)
def test_what_the_user_can_put_right_is_exit_code_1_and_one_line(
    words: list[str], message: str, model: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "empty").mkdir()
    places = {"IMAGE": str(image_folder / "a.png"), "EMPTY": str(tmp_path / "empty")}
    assert run(*[places.get(word, word) for word in words], "--model", model) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vlm: error: ")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_model_that_does_not_exist_is_exit_code_1(image_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run("classify", image_folder / "a.png", "--labels", "dog", "--model", "mimi") == 1
    assert "'mimi'" in capsys.readouterr().err


def test_a_very_long_text_is_a_text_not_a_path(model: str, image_folder: Path):
    assert run("search", "dog " * 2000, "--folder", image_folder, "--model", model) == 0


@pytest.mark.parametrize(
    "words",
    [[], ["fly"], ["classify"], ["classify", "a.png"], ["search", "x"], ["search", "x", "--folder", "f", "-k", "0"]],
)
def test_wrong_usage_is_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: vlm" in capsys.readouterr().err


def test_file_names_that_are_not_utf8_print_and_stay_valid_json(
    model: str, image_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    odd = os.fsdecode(b"caf\xe9.png")
    (image_folder / "a.png").rename(image_folder / odd)
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="utf-8"))
    assert run("search", "a dog", "--folder", image_folder, "--model", model, "--json") == 0
    sys.stdout.flush()
    assert str(image_folder / odd) in [row["path"] for row in json.loads(output.getvalue().decode())]


def test_help_answers_at_once_and_without_torch():
    script = "import sys, vlm.cli; vlm.cli._parser().format_help(); sys.exit('torch' in sys.modules)"
    started = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    assert time.perf_counter() - started < 2  # 0.1 s on an idle machine; the promise is 0.5
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0


WITHOUT_EXTRAS = """
import re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def add(name, found):
    name = re.sub("[-_.]+", "-", name).lower()
    if name not in found:
        found.add(name)
        try:
            needed = [line for line in requires(name) or () if "extra ==" not in line]
        except PackageNotFoundError:
            return  # for another system
        for line in needed:
            add(re.match("[A-Za-z0-9._-]+", line)[0], found)

base = set()
add("vlm-clip", base)
extra = {module for module, names in packages_distributions().items()
         if not base & {re.sub("[-_.]+", "-", name).lower() for name in names}}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in extra:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

assert {"transformers", "tokenizers", "gradio", "datasets", "fastapi"} <= extra
assert not {"torch", "numpy", "PIL", "sentencepiece"} & extra
sys.meta_path.insert(0, Missing())
from vlm.cli import main
for command in COMMANDS:
    if main(command) != 0:
        sys.exit(f"{command} failed")
"""


def test_what_needs_no_extra_runs_without_any(model: str, image_folder: Path, tmp_path: Path):
    image, index = str(image_folder / "a.png"), str(tmp_path / "an.index")
    commands = [
        ["classify", image, "--labels", "犬", "cat", "--model", model],
        ["search", "a dog", "--folder", str(image_folder), "--model", model],
        ["index", str(image_folder), "--index", index, "--model", model],
        ["search", image, "--index", index, "--model", model],
        ["look", image, "--text", "犬", "--model", model, "--out", str(tmp_path / "look")],
    ]
    code = WITHOUT_EXTRAS.replace("COMMANDS", repr(commands))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_listed_once():
    assert sorted(vlm.__all__) == sorted(vlm._HOME)  # pyright: ignore[reportPrivateUsage]
    for name in vlm.__all__:
        assert getattr(vlm, name).__name__ == name
        assert name in dir(vlm)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        vlm.lode  # type: ignore[attr-defined]  # noqa: B018
