"""docs/guide: the code of a page is the source's, its commands run, and both languages say the same."""

import ast
import importlib
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.include_code import GUIDE, MARKED, code, filled, pages
from docs.page_blocks import Block, blocks, printed

ROOT = Path(__file__).parents[2]
CHAPTERS = (
    "01-transformer", "02-vision-and-language", "03-transformers-in-vision", "04-vit-overview", "05-input-layer",
    "06-encoder", "07-mhsa", "08-mlp-head", "09-applications", "10-hugging-face",
)  # fmt: skip
NAMES = ("README.md", *(f"{chapter}.md" for chapter in CHAPTERS))
LEFT_BEHIND = (".git", ".venv*", "runs", "site", "__pycache__", "*.index", "*.egg-info", ".*_cache", "build", "dist")
NUMBER = re.compile(r"-?\d+\.\d+")


def read(language: str, name: str) -> str:
    return (GUIDE / language / name).read_text(encoding="utf-8")


def same_in_both_languages(block: Block) -> str:
    """What is left when comments, what strings say, and the language of a figure's words are taken away."""
    if block.kind == "python":
        tree = ast.parse(block.body)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        return ast.dump(tree)
    without_comments = re.sub(r"(^|\s+)#.*", "", block.body)
    return re.sub(r"--lang (en|ja)", "--lang", without_comments)


def outside_code(page: str) -> str:
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S))


def links(page: str) -> list[str]:
    """Where links and images lead, the web and places within the page left out."""
    text = outside_code(page)
    found = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [link.split("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_chapter_and_the_contents_are_there(language: str) -> None:
    assert sorted(path.name for path in (GUIDE / language).glob("*.md")) == sorted(NAMES)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_contents_lead_to_every_chapter_in_order(language: str) -> None:
    listed = [link for link in links(read(language, "README.md")) if re.match(r"\d\d-", link)]
    assert listed == [f"{chapter}.md" for chapter in CHAPTERS]


@pytest.mark.parametrize("path", pages(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_code_on_a_page_is_the_sources(path: Path) -> None:
    """python -m docs.include_code puts it right."""
    page = path.read_text(encoding="utf-8")
    assert filled(page) == page


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_an_equation_our_code_an_experiment_an_exercise_and_sources(chapter: str, language: str) -> None:
    page = read(language, f"{chapter}.md")
    assert re.search(r"^\$\$$.+?^\$\$$", page, re.M | re.S)
    assert MARKED.search(page)
    assert {block.kind for block in blocks(page)} & {"sh", "python"}
    assert re.search(r"^<details>$.+?^</details>$", page, re.M | re.S)
    assert "Vision Transformer 入門" in page


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_have_the_same_code_commands_and_outputs(name: str) -> None:
    english, japanese = read("en", name), read("ja", name)
    assert [found.groups()[:2] for found in MARKED.finditer(english)] == [
        found.groups()[:2] for found in MARKED.finditer(japanese)
    ]
    assert len(blocks(english)) == len(blocks(japanese))
    for one, other in zip(blocks(english), blocks(japanese), strict=True):
        assert one.kind == other.kind
        assert same_in_both_languages(one) == same_in_both_languages(other)


def python_pages() -> list[Path]:
    return [path for path in documents() if any(block.kind == "python" for block in blocks(path.read_text("utf-8")))]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_name_that_a_page_imports_of_vlm_exists(language: str) -> None:
    """The long tests run the pages; this one finds at once that a module was renamed."""
    missing: list[str] = []
    for path in python_pages():
        if (path.name.endswith(".ja.md") or path.parent.name == "ja") != (language == "ja"):
            continue
        for block in blocks(path.read_text(encoding="utf-8")):
            if block.kind == "python":
                missing += [f"{path.name}: {name}" for name in imported(block.body) if not exists(*name)]
    assert not missing


def imported(program: str) -> list[tuple[str, str]]:
    """(module, name) of each `from vlm... import name`."""
    nodes = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.ImportFrom)]
    return [
        (node.module, alias.name)
        for node in nodes
        if node.module and node.module.startswith("vlm")
        for alias in node.names
    ]


def exists(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name) or find_spec(f"{module}.{name}") is not None
    except ModuleNotFoundError:
        return False


def documents() -> list[Path]:
    return [*ROOT.glob("README*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_and_image_is_there(path: Path) -> None:
    found = links(path.read_text(encoding="utf-8"))
    assert not [link for link in found if not (path.parent / link).exists()]


def test_the_link_reader_sees_links_and_images_and_no_code() -> None:
    """A check that finds nothing must be able to find something."""
    page = '[a](b.md#part) ![c](d.png) <img src="e.png"> [web](https://x) `[f](g)`\n```python\nh[0](i)\n```\n'
    assert links(page) == ["b.md", "d.png", "e.png"]


def test_code_comes_without_docstrings_and_as_long_as_the_name_says(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        'class A:\n    """What.\n\n    More.\n    """\n\n    x = 1\n\n    @property\n    def f(self):\n'
        '        """Doc."""\n        return "犬"  # (B,)\n\n\ndef g(): ...\n',
        encoding="utf-8",
    )
    f = '@property\ndef f(self):\n    return "犬"  # (B,)\n'
    assert code(tmp_path / "model.py", "A.f") == f
    assert code(tmp_path / "model.py", "A") == "class A:\n    x = 1\n\n    " + f.replace("\n", "\n    ").rstrip() + "\n"
    g, f_marker = "<!-- code: model.py g -->\n```python\n{}```\nand\n", "<!-- code: model.py A.f -->\n"
    page = g.format("stale\n") + f_marker
    assert filled(page, tmp_path) == g.format("def g(): ...\n") + f_marker + f"```python\n{f}```\n"


@pytest.mark.parametrize(("name", "message"), [("model.py A.h", "defines no A.h"), ("gone.py A", "no source file")])
def test_a_name_the_source_does_not_have_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class A: ...\n")
    with pytest.raises(ValueError, match=message):
        filled(f"<!-- code: {name} -->\n", tmp_path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, so that what the pages write stays out of it; all pages run in it, in order."""
    copy = tmp_path_factory.mktemp("guide") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    return copy


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapters_commands_run_and_print_what_it_says(chapter: str, checkout: Path) -> None:
    """Words and whole numbers exactly; numbers with a point to 2 per cent, or 0.02."""
    output, ran = "", 0
    for block in blocks(read("en", f"{chapter}.md")):
        if block.kind in ("sh", "python"):
            output, ran = printed(block, checkout), ran + 1
        elif block.kind == "text":
            assert NUMBER.sub("0.0", output).split() == NUMBER.sub("0.0", block.body).split(), output
            numbers = [[float(number) for number in NUMBER.findall(text)] for text in (output, block.body)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)
    assert ran
