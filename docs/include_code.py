"""Fills the code of the study guide from the source, so that what a page shows is what runs.

    python -m docs.include_code            write the pages anew
    python -m docs.include_code --check    exit 1 and name each page that is not as the source is

In a page, `<!-- code: vlm/models/layers.py Attention.weights -->` stands above a ```python block: the function,
method or class of that name, without its docstrings.
"""

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide"
MARKED = re.compile(r"^<!-- code: (\S+) (\S+) -->\n(```python\n.*?^```\n)?", re.MULTILINE | re.DOTALL)

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def pages() -> list[Path]:
    """All of the guide, both languages."""
    return sorted(GUIDE.rglob("*.md"))


def filled(page: str, root: Path = ROOT) -> str:
    """The page with every marked block as the source under `root` is now.

    ValueError names a file or a name that is not there.
    """
    return MARKED.sub(lambda found: f"{_marker(found)}```python\n{code(root / found[1], found[2])}```\n", page)


def code(file: Path, name: str) -> str:
    """Source lines of `function`, `Class` or `Class.method`, dedented, without docstrings, ending in a line break."""
    try:
        source = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"there is no source file {file}: correct the path in the page.") from error
    definition = _find(ast.parse(source), name, file)
    first = min([definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)])
    left_out = {number for inner in ast.walk(definition) for number in _docstring_lines(inner)}
    lines = source.splitlines()
    kept: list[str] = []
    for number in range(first, (definition.end_lineno or first) + 1):
        line = lines[number - 1]
        if number in left_out or (not line.strip() and number - 1 in left_out):
            continue  # the docstring, and the empty line below it
        kept.append(line)
    return textwrap.dedent("\n".join(kept)) + "\n"


def _marker(found: re.Match[str]) -> str:
    return f"<!-- code: {found[1]} {found[2]} -->\n"


def _find(tree: ast.Module, name: str, file: Path) -> _Definition:
    inside: ast.Module | _Definition = tree
    for part in name.split("."):
        named = [node for node in inside.body if isinstance(node, _Definition) and node.name == part]
        if not named:
            raise ValueError(f"{file} defines no {name}: correct the name in the page.")
        inside = named[-1]
    assert isinstance(inside, _Definition)
    return inside


def _docstring_lines(node: ast.AST) -> range:
    """Line numbers of its docstring, none where the docstring is all there is."""
    if not isinstance(node, _Definition) or len(node.body) < 2 or ast.get_docstring(node) is None:
        return range(0)
    return range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.include_code", description="The code of the study guide.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the pages that are stale")
    check = parser.parse_args().check
    stale = 0
    for page in pages():
        name, text = page.relative_to(ROOT), page.read_text(encoding="utf-8")
        try:
            fresh = filled(text)
        except ValueError as error:
            print(f"{name}: error: {error}", file=sys.stderr)
            return 1
        if fresh == text:
            continue
        if check:
            print(f"{name} is not as the source is. Run: python -m docs.include_code", file=sys.stderr)
            stale = 1
        else:
            page.write_text(fresh, encoding="utf-8")
            print(f"{name} written")
    return stale


if __name__ == "__main__":
    sys.exit(main())
