"""How good the tests are: small mistakes in vlm/ and training/, one at a time; does the matching test file notice?

    python -m tests.mutation_check --count 60 --seed 0        # needs cosmic-ray; some 10 minutes
    python -m tests.mutation_check --count 60 --seed 0 --list  # only show them

Cosmic Ray makes the mistakes (`<` for `<=`, `+` for `-`, `and` for `or`, a number off by one, `not` taken away, a
default exchanged ...); a seeded draw takes one line after another, each line at most once.  All this happens in a
copy of the checkout.  Type hints are left alone: no test can see them.  What changes nothing anybody can observe is
drawn over: kinds of mistakes in `is_silent`, and single ones in tests/equivalent_mutants.json, each with the reason.
"""

import argparse
import ast
import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import parso
import parso.tree
from cosmic_ray import plugins
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
COPIED = ("vlm", "training", "demo", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "README.ja.md")
SECONDS = 60  # longer than any of these test files: a mistake that never ends is caught
LEFT_OUT = re.compile(
    r"BinaryOperator_BitOr|Variable"  # int | None; operators that want arguments
    r"|_(RShift|LShift|BitAnd|BitXor|BitOr|Is|IsNot)$"  # of numbers: they raise TypeError, too easy
)
TESTS = {  # beside the file with the module's name
    "training/accumulate.py": "test_distributed.py",
    "training/calibrate.py": "test_calibration.py",
    "training/card.py": "test_evaluate.py test_train_clip.py",
    "training/check.py": "test_check_command.py",
    "training/class_stream.py": "test_classification.py",
    "training/classification.py": "test_train_vit.py",
    "training/command.py": "test_train_clip.py",
    "training/contrastive.py": "test_train_clip.py",
    "training/embed.py": "test_shards.py",
    "training/formats/__init__.py": "test_formats.py",
    "training/formats/columns.py": "test_rows.py",
    "training/formats/folders.py": "test_rows.py",
    "training/formats/table.py": "test_rows.py",
    "training/loop.py": "test_training_precision.py",
    "training/pairs.py": "test_data.py",
    "training/parallel.py": "test_distributed.py",
    "training/record.py": "test_loop.py",
    "training/run_folder.py": "test_train_clip.py",
    "training/state.py": "test_distributed.py",
    "training/stream.py": "test_data.py",
    "training/transforms.py": "test_classification.py",
    "vlm/checkpoint.py": "test_checkpoint_writing.py",
    "vlm/commands/options.py": "test_commands_retrieval.py",
    "vlm/commands/pictures.py": "test_cli.py test_figures.py",
    "vlm/index/vector_store.py": "test_retrieval.py",
    "vlm/interop/__init__.py": "test_interop_openclip.py test_interop_files.py test_interop_vits.py",
    "vlm/interop/big_vision.py": "test_interop_vits.py",
    "vlm/interop/openclip_config.py": "test_interop_openclip.py",
    "vlm/interop/timm.py": "test_interop_vits.py",
    "vlm/interop/tokens.py": "test_interop_tokenizers.py",
    "vlm/interop/torchvision.py": "test_interop_vits.py",
    "vlm/interop/vit_book.py": "test_interop_vits.py",
    "vlm/onnx_towers.py": "test_backends.py",
    "vlm/preprocess.py": "test_large_pictures.py",
    "vlm/retrieval.py": "test_retrieval_options.py test_embedding_files.py",
    "vlm/serving/server.py": "test_api_page.py",
    "vlm/signatures.py": "test_picture_finding.py",
    "vlm/tokenizer_json.py": "test_interop_tokenizers.py",
}


class Mutant(NamedTuple):
    file: str
    line: int
    before: str
    after: str
    code: str  # of the whole file

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    drawn = draw(args.count, random.Random(args.seed))
    if args.list:
        print("\n".join(map(str, drawn)))
        return 0
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        for file in sorted({mutant.file for mutant in drawn}):
            if not passes(copy, file):
                sys.exit(f"{' '.join(test_files(file))} fails without any mistake: put that right first.")
        survivors = [mutant for mutant in drawn if survives(copy, mutant)]
    print(f"{len(drawn) - len(survivors)} of {len(drawn)} caught, seed {args.seed}. Survivors:")
    print("\n".join(map(str, survivors)) or "none")
    return 0


def draw(count: int, chance: random.Random) -> list[Mutant]:
    """Each line with something to exchange is equally likely, and so is each exchange in it."""
    lines = [
        (path.relative_to(ROOT).as_posix(), line)
        for package in ("vlm", "training")
        for path in sorted((ROOT / package).rglob("*.py"))
        if test_files(path.relative_to(ROOT).as_posix())
        for line in sorted(mutants(path.relative_to(ROOT).as_posix()))
    ]
    equivalent = {(row["file"], row["before"], row["after"]) for row in json.loads(EQUIVALENT.read_text("utf-8"))}
    found: list[Mutant] = []
    for file, line in chance.sample(lines, len(lines)):
        mutant = build(file, *chance.choice(mutants(file)[line]))
        if mutant and not is_silent(mutant) and (mutant.file, mutant.before, mutant.after) not in equivalent:
            found.append(mutant)
        if len(found) == count:
            break
    return found


EQUIVALENT = ROOT / "tests/equivalent_mutants.json"


def test_files(file: str) -> list[str]:
    """test_training_config.py for training/config.py, test_loss.py for vlm/loss.py; and those of TESTS."""
    *packages, stem = Path(file).with_suffix("").parts
    options = [f"test_{packages[-1]}_{stem}.py", f"test_{stem}.py"]
    if packages[0] == "training" and packages[1:]:
        options.append(f"test_training_{packages[1]}.py")
    named = [option for option in options if (ROOT / "tests" / option).exists()]
    return [f"tests/{name}" for name in dict.fromkeys(named[:1] + TESTS.get(file, "").split())]


@cache
def mutants(file: str) -> dict[int, list[tuple[str, int, int]]]:
    """Line -> (operator, its how manieth occurrence in the file, line)."""
    text = (ROOT / file).read_text(encoding="utf-8")
    tree, found = parso.parse(text), dict[int, list[tuple[str, int, int]]]()
    hints = set(type_hint_lines(text))
    for name in sorted(plugins.operator_names()):
        if LEFT_OUT.search(name):
            continue
        operator, number = plugins.get_operator(name)(), 0
        for node in every(tree):
            for start, _ in operator.mutation_positions(node):
                if start[0] not in hints:
                    found.setdefault(start[0], []).append((name, number, start[0]))
                number += 1
    return found


def every(node: parso.tree.NodeOrLeaf) -> Iterator[parso.tree.NodeOrLeaf]:
    """In the order in which Cosmic Ray counts."""
    yield node
    for child in getattr(node, "children", ()):
        yield from every(child)


def type_hint_lines(text: str) -> Iterator[int]:
    """Lines of signatures without defaults, and of fields without values."""
    for node in ast.walk(ast.parse(text)):
        hints = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs]
            hints = [node.returns, *(argument.annotation for argument in arguments)]
            if node.args.defaults or any(node.args.kw_defaults):
                continue
        elif isinstance(node, ast.AnnAssign) and node.value is None:
            hints = [node.annotation]
        for hint in filter(None, hints):
            yield from range(hint.lineno, (hint.end_lineno or hint.lineno) + 1)


def build(file: str, name: str, number: int, line: int) -> Mutant | None:
    text = (ROOT / file).read_text(encoding="utf-8")
    try:
        code = mutate_code(text, plugins.get_operator(name)(), number)
    except AttributeError:  # Cosmic Ray 8.7 at `except module.Error`
        return None
    if code is None or code == text or not is_python(code):
        return None
    before, after = text.splitlines(), code.splitlines()
    changed = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), line - 1)
    place = next(i for i in range(changed, len(before)) if before[i].strip())  # a decorator goes with blank lines above
    return Mutant(file, place + 1, before[place].strip(), after[changed].strip(), code)


def is_silent(mutant: Mutant) -> bool:
    """Rules for whoever writes or checks code, an alarm that is silent while the code is right, what is only slower."""
    before, after = mutant.before, mutant.after
    return (
        before.startswith(("@dataclass(", "@dataclasses.dataclass("))  # frozen, kw_only, slots ...
        or "TYPE_CHECKING" in before
        or after == before.replace("strict=True", "strict=False")  # zip: of lists that are equally long
        or after == before.replace("*,", "/,")  # no operator, though Cosmic Ray takes it for one
        or after == 'if __name__ <= "__main__":'  # the name of a module that is imported comes after it
        or before.split("(")[0] in ("@cache", "@lru_cache")
    )


def is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def survives(copy: Path, mutant: Mutant) -> bool:
    target = copy / mutant.file
    original = target.read_text(encoding="utf-8")
    target.write_text(mutant.code, encoding="utf-8")
    start = time.perf_counter()
    alive = passes(copy, mutant.file)
    target.write_text(original, encoding="utf-8")
    print(f"{'SURVIVES' if alive else 'caught'} {time.perf_counter() - start:5.1f} s  {mutant}", flush=True)
    return alive


def passes(copy: Path, file: str) -> bool:
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *test_files(file)]
    try:
        return subprocess.run(command, cwd=copy, capture_output=True, timeout=SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    sys.exit(main())
