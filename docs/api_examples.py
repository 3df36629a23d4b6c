"""Fills the outputs of docs/api-examples.md and docs/api-examples.ja.md: every line after >>> is run, in order.

    python -m docs.api_examples            write the pages anew
    python -m docs.api_examples --check    exit 1 and name each page whose outputs are not what the code prints

Both pages run the same code; a comment may differ.
"""

import argparse
import contextlib
import doctest
import re
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (DOCS / "api-examples.md", DOCS / "api-examples.ja.md")
SESSION = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class _Filling(doctest.DocTestRunner):
    """Keeps what each example prints."""

    def __init__(self) -> None:
        super().__init__(verbose=False)
        self.printed: list[str] = []

    def report_success(self, out: object, test: object, example: doctest.Example, got: str) -> None:
        self.printed.append(got)

    def report_failure(self, out: object, test: object, example: doctest.Example, got: str) -> None:
        self.printed.append(got)

    def report_unexpected_exception(
        self, out: object, test: object, example: doctest.Example, exc_info: object
    ) -> None:
        error = exc_info[1]  # type: ignore[index]
        raise RuntimeError(f"docs/api-examples.md: '{example.source.strip()}' raised {type(error).__name__}: {error}")


def filled(page: str) -> str:
    """The page with the output of every example, run in one empty folder from top to bottom."""
    names: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return SESSION.sub(lambda found: f"```pycon\n{_run(found[1], names)}```", page)


def _run(session: str, names: dict[str, object]) -> str:
    examples = doctest.DocTestParser().get_examples(session)
    test = doctest.DocTest(examples, names, "session", None, None, None)
    test.globs = names  # not a copy: the next block goes on with them
    runner = _Filling()
    runner.run(test, out=lambda _: None, clear_globs=False)
    lines: list[str] = []
    for example, printed in zip(examples, runner.printed, strict=True):
        first, *rest = example.source.rstrip("\n").split("\n")
        lines += [f">>> {first}", *(f"... {line}".rstrip() for line in rest), *printed.splitlines()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.api_examples", description="The outputs of the API examples.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the pages that are stale")
    check = parser.parse_args().check
    stale = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (fresh := filled(text)) == text:
            continue
        if check:
            print(f"{page.name} is not what the code prints. Run: python -m docs.api_examples", file=sys.stderr)
            stale = 1
        else:
            page.write_text(fresh, encoding="utf-8")
            print(f"{page.name} written")
    return stale


if __name__ == "__main__":
    sys.exit(main())
