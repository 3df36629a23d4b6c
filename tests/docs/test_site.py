"""The site of docs/ leaves nothing out, and what SECURITY.md promises is tested.  `make docs` checks the links."""

import argparse
import re
import runpy
from pathlib import Path

import pytest

import vlm
from vlm.cli import _parser  # pyright: ignore[reportPrivateUsage]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(
        r"^ *- (?:[^:\n]+: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE
    )
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(name for name in listed if not name.startswith("source/")) == sorted(pages)


def test_the_reference_has_every_public_name_once() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    assert sorted(re.findall(r"^::: vlm\.(\w+)$", text, re.MULTILINE)) == sorted(vlm.__all__)


def test_the_page_of_commands_says_what_the_commands_say() -> None:
    writer = runpy.run_path(str(DOCS / "write_command_reference.py"))
    page = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert page == writer["page"](_parser()), "Run: python docs/write_command_reference.py"


def test_the_page_of_commands_shows_names_values_and_help() -> None:
    parser = argparse.ArgumentParser()
    command = parser.add_subparsers().add_parser("draw", description="Draws.")
    command.add_argument("shapes", nargs="+", metavar="SHAPE", help="square | circle")
    command.add_argument("-n", type=int, default=3, help="how many, default %(default)s")
    command.add_argument("--ink", choices=["red", "blue"], required=True)
    page = runpy.run_path(str(DOCS / "write_command_reference.py"))["page"](parser)
    assert "## vlm draw\n\nDraws." in page
    for row in (
        "| `SHAPE...` | square \\| circle |",
        "| `-n N` | how many, default 3 |",
        "| `--ink {red,blue}`, needed |",
    ):
        assert row in page


def test_what_security_promises_is_tested_by_tests_that_exist() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    written = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(promised) > 30
    assert not promised - written


@pytest.mark.parametrize("page", ["index", "reference/index"])
def test_the_start_pages_name_no_public_name_that_is_gone(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert not [name for name in re.findall(r"\bvlm\.(\w+)\(", text) if name not in vlm.__all__]
