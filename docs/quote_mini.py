"""Write everything on the pages and in the demo that quotes the bundled model `mini` anew.

    python -m docs.quote_mini                     all steps below
    python -m docs.quote_mini numbers outputs     only these
    python -m docs.quote_mini --run runs/mini     also the curves of the training run
    python -m docs.quote_mini --check             write nothing; exit 1 where a number is not the model card's

steps: demo         words and examples of the demo (benchmarks.demo_words, benchmarks.demo_examples)
       outputs      `text` blocks below the commands of README and guide; they are run here
       photos       the same for docs/photos.md, in an empty folder
       figures      figures of `vlm look`
       words        the table of docs/teach-words.md, trained from mini; only when it is named
       notebooks    their outputs, two trainings of minutes; only when it is named
       screenshots  of all tabs of the demo; needs chromium
       numbers      numbers in sentences and tables

In a page, `<!--=KEY-->0.742<!--=-->` marks a number, which keeps its number of decimals.  KEY is one of

    card SPLIT TASK LANGUAGE   the table "What it scores" of the model card
    match LANGUAGE COLUMN      the table "How probable a match is" of the model card
    printed BLOCK LINE NUMBER  a number in a `text` block of the same page, all counted from 1; after the name of a page
                               in the same folder, of that page

A paragraph after `<!--=read-->` interprets what mini does.  No program can check it: the last step lists all of them.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docs.page_blocks import Block, blocks, outputs, printed, with_outputs
from vlm.bundled import BUNDLED

ROOT = Path(__file__).parents[1]
CARD = BUNDLED["mini"] / "README.md"
MARKED = re.compile(r"<!--=(?!-->|read-->)(.+?)-->(.*?)<!--=-->", re.DOTALL)
READ = "<!--=read-->"
STEPS = ("demo", "outputs", "photos", "figures", "screenshots", "numbers")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

# (English page, Japanese page, pattern of the blocks that are run)
GUIDE = ("01-transformer", "03-transformers-in-vision", "05-input-layer", "06-encoder", "07-mhsa", "09-applications")
RUN_PAGES = (
    ("README.md", "README.ja.md", r"vlm (classify|search)"),
    *((f"docs/guide/en/{name}.md", f"docs/guide/ja/{name}.md", "") for name in GUIDE),
)
COW = "demo/samples/fluent-flat/cow-face.webp"
CHAPTER = {
    "attention": "04-attention",
    "relevance": "04-relevance",
    "positions": "05-positions",
    "filters": "05-filters",
}


def pages() -> list[Path]:
    """Every page of the repository that may quote mini."""
    return sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "demo").glob("*.md")})


# ---- numbers -------------------------------------------------------------------------------------------------------


def card_numbers(card: str) -> dict[str, float]:
    """{key: value} of the tables of a model card."""
    values: dict[str, float] = {}
    columns: list[str] = []
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or set(cells[0]) <= {"-"}:
            continue
        if cells[0] in ("split", "language"):
            columns = cells
        elif columns[:1] == ["split"]:
            values[f"card {cells[0]} {cells[1]} {cells[2]}"] = float(cells[3])
        elif columns[:1] == ["language"]:
            for name, before, cell in zip(columns[1:], columns[:-1], cells[1:], strict=True):
                key = f"match {cells[0]} {name}"
                values[f"match {cells[0]} {before} {name}" if key in values else key] = float(cell)
    return values


def printed_numbers(page: str) -> dict[str, float]:
    """{key: value} of all numbers in the `text` blocks of a page."""
    texts = [block.body for block in blocks(page) if block.kind == "text"]
    return {
        f"printed {block} {line} {place}": float(number)
        for block, text in enumerate(texts, start=1)
        for line, content in enumerate(text.splitlines(), start=1)
        for place, number in enumerate(NUMBER.findall(content), start=1)
    }


def quoted(page: str, others: dict[str, float]) -> str:
    """The page with every marked number as it is now.

    Args:
        page: Markdown.
        others: numbers of the model card and of other pages.

    Raises:
        ValueError: a key that neither the card nor the page has.
    """
    values = others | printed_numbers(page)

    def written(found: re.Match[str]) -> str:
        key, text = found[1].strip(), found[2]
        if key not in values:
            raise ValueError(
                f"there is no number '{key}'. A key is card SPLIT TASK LANGUAGE, or printed BLOCK LINE NUMBER."
            )
        fresh = NUMBER.sub(lambda old: _as_before(old[0], values[key], "%" in text), text, count=1)
        return f"<!--={found[1]}-->{fresh}<!--=-->"

    return MARKED.sub(written, page)


def _as_before(old: str, value: float, percent: bool) -> str:
    """The value with as many decimals as before; a share as per cent where the mark holds a %."""
    return f"{100 * value if percent else value:.{len(old.partition('.')[2])}f}"


def write_numbers(check: bool) -> list[str]:
    """Names of the pages whose numbers were not those of the card; they are written unless `check`."""
    card, stale = card_numbers(CARD.read_text(encoding="utf-8")), list[str]()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            fresh = quoted(text, card | _of_neighbours(page, text))
        except ValueError as error:
            raise ValueError(f"{page.relative_to(ROOT)}: {error}") from error
        if fresh != text:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(fresh, encoding="utf-8")
    return stale


def _of_neighbours(page: Path, text: str) -> dict[str, float]:
    """Numbers that another page of the same folder prints: {"NAME.md printed ...": value}."""
    names = {found[1].split()[0] for found in MARKED.finditer(text) if found[1].split()[0].endswith(".md")}
    return {
        f"{name} {key}": value
        for name in sorted(names)
        for key, value in printed_numbers((page.parent / name).read_text(encoding="utf-8")).items()
    }


def to_read_again() -> list[str]:
    """PATH:LINE: first words of each paragraph that interprets what mini does."""
    return [
        f"{page.relative_to(ROOT)}:{number}: {line.removeprefix(READ)[:100]}"
        for page in pages()
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
        if line.startswith(READ)
    ]


# ---- what commands print and draw ----------------------------------------------------------------------------------


def write_outputs() -> None:
    """Run the commands of the English pages; what they print goes into both languages."""
    for english, japanese, wanted in RUN_PAGES:
        text = (ROOT / english).read_text(encoding="utf-8")
        old = iter([block.body for block in blocks(text) if block.kind == "text"])
        _say(f"running {english}")

        def run(block: Block, wanted: str = wanted) -> str:
            return printed(block, ROOT).replace(str(ROOT), "...") if re.search(wanted, block.body) else ""

        fresh = [output or before for output, before in zip(outputs(text, run), old, strict=True)]
        for page in (english, japanese):
            path = ROOT / page
            path.write_text(with_outputs(path.read_text(encoding="utf-8"), fresh), encoding="utf-8")
    _run("-m", "docs.api_examples")


def write_photos_page() -> None:
    """The page of the first evening runs in a folder of its own, against a hub that serves mini's weights."""
    from tests.support.photo_evening import PAGE, evening

    _say(f"running {PAGE.relative_to(ROOT)}")
    with tempfile.TemporaryDirectory() as folder, evening(Path(folder)) as run:
        fresh = outputs(PAGE.read_text(encoding="utf-8"), run.run)
    for path in (PAGE, PAGE.with_suffix(".ja.md")):
        path.write_text(with_outputs(path.read_text(encoding="utf-8"), fresh), encoding="utf-8")


def write_words_page() -> None:
    """Train from mini and measure: the table of docs/teach-words.md."""
    folder = ROOT / "runs" / "teach"
    if not folder.is_dir():
        _run("docs/german_words.py", str(folder))
    _say("python -m benchmarks.teach_words: two trainings and ten evaluations")
    command = [sys.executable, "-m", "benchmarks.teach_words", "--photos", str(folder)]
    table = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    for name in ("teach-words.md", "teach-words.ja.md"):
        path = ROOT / "docs" / name
        page = path.read_text(encoding="utf-8")
        old = [block.body for block in blocks(page) if block.kind == "text"]
        path.write_text(with_outputs(page, [old[0], table]), encoding="utf-8")


def run_notebooks() -> None:
    """Their outputs; minutes."""
    _run("-m", "docs.run_notebooks")


def draw_figures() -> None:
    """The figures of `vlm look` on the pages; chapter 9's own is drawn by its page (step outputs)."""
    with tempfile.TemporaryDirectory() as folder:
        for language, place in (("en", "docs/images"), ("ja", "docs/images/ja")):
            words = ("dog", "car") if language == "en" else ("犬", "車")
            _look("docs/images/dog-and-car.png", *words, language=language, out=ROOT / place)
            _look(COW, "cow", "牛", language=language, out=Path(folder, language))
            for name, target in CHAPTER.items():
                shutil.copy(
                    Path(folder, language, f"look-{name}.png"), ROOT / f"docs/guide/images/{target}-{language}.png"
                )
    if (where := ROOT / "runs/guide/where.png").is_file():
        shutil.copy(where, ROOT / "docs/guide/images/09-where.png")


def _look(image: str, *texts: str, language: str, out: Path) -> None:
    _run("-m", "vlm", "look", image, "--text", *texts, "--lang", language, "--out", str(out))


def write_demo() -> None:
    """Words that mini knows, and the examples that it gets right."""
    _run("-m", "benchmarks.demo_words", "--write")
    _run("-m", "benchmarks.demo_examples", "--write")


def take_screenshots() -> None:
    """Of a demo on mini with a classifier made of class names."""
    from docs.take_screenshots import main as take
    from tests.support.demo_server import serving

    with tempfile.TemporaryDirectory() as folder:
        _run("-c", CLASSIFIER, f"{folder}/models/eight-groups")
        with serving("mini", Path(folder), "--models", f"{folder}/models") as server:
            take(server.address)


CLASSIFIER = """
import sys, vlm
from vlm.zero_shot import classifier_from_names
names = ["an animal", "a plant", "food", "a vehicle", "a building", "a musical instrument", "a face", "a symbol"]
vlm.save(classifier_from_names(vlm.load("mini"), names), sys.argv[1])
"""


def _run(*arguments: str) -> None:
    _say("python " + " ".join(arguments[:3]))
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.quote_mini", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; default: all, in this order")
    parser.add_argument("--run", type=Path, help="folder of mini's training run, whose curves.png is copied")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 and name the pages that are stale")
    args = parser.parse_args()
    if unknown := set(args.steps) - {*STEPS, "words", "notebooks"}:
        parser.error(f"there is no step {', '.join(sorted(unknown))}. Steps: {', '.join(STEPS)}")
    if args.check:
        stale = write_numbers(check=True)
        for page in stale:
            print(f"{page} quotes another model. Run: python -m docs.quote_mini numbers", file=sys.stderr)
        return int(bool(stale))
    steps = {
        "demo": write_demo,
        "outputs": write_outputs,
        "photos": write_photos_page,
        "figures": draw_figures,
        "screenshots": take_screenshots,
        "words": write_words_page,
        "notebooks": run_notebooks,
    }
    chosen = args.steps or STEPS
    for name, step in steps.items():
        if name in chosen:
            step()
    if args.run is not None:
        shutil.copy(args.run / "curves.png", ROOT / "docs/images/mini-curves.png")
    if "numbers" in chosen:
        for page in write_numbers(check=False):
            print(f"{page} written")
    print("\nRead these again; they interpret what mini does:", *to_read_again(), sep="\n")
    print("\nTrained from mini, so trained again by hand: docs/eight-groups.md, docs/tutorial-classification.md")
    print(
        "(the commands stand on each page), docs/teach-words.md and the notebooks: "
        "python -m docs.quote_mini words notebooks"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
