"""The house stays as the README draws it: imports go down, every module is on the map, nothing is vague or too long."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("vlm", "training", "demo")
OURS = (*PACKAGES, "tests", "benchmarks")
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "core", "misc", "tools", "stuff"}
READMES = ("README.md", "README.ja.md")
FORBIDDEN = {"vlm": {"training", "demo", "tests", "benchmarks"}, "training": {"demo", "tests", "benchmarks"},
             "demo": {"training", "tests", "benchmarks"}}  # fmt: skip


class Import(NamedTuple):
    source: str  # dotted module that imports
    target: str  # dotted module that is imported
    local: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.source} imports {self.target}"


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[Import]:
    """All of them: at the top, under TYPE_CHECKING and inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    in_functions = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the root, `from vlm.layers import ...`"
            targets = [module_of(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(dotted(path), target, id(node) in in_functions)


def module_of(module: str, name: str) -> str:
    """`from vlm import layers` names a module, `from vlm.layers import Block` does not."""
    inner = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if inner.with_suffix(".py").exists() or (inner / "__init__.py").exists() else module


def inside(package: str) -> list[Import]:
    return [found for path in files(package) for found in imports(path)]


def readme_map(readme: str) -> dict[str, int | None]:
    """The README's tree: "vlm/layers.py" -> floor, or None outside of vlm.  A folder's line ends in a slash."""
    blocks = re.findall(r"^```\w*\n(.*?)^```\n", (ROOT / readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    tree = next(block for block in blocks if block.startswith("vlm/"))
    found: dict[str, int | None] = {}
    package = ""
    for line in tree.splitlines():
        name, *words = line.split()
        if not line.startswith(" "):
            package = name
        else:
            found[package + name] = int(words[-1]) if words[-1].isdigit() else None
    return found


def floor_of(module: str, floors: dict[str, int | None]) -> int:
    """`vlm.interop.timm` stands on the floor of `vlm/interop/`."""
    part = module.split(".")[1]
    floor = floors.get(f"vlm/{part}.py", floors.get(f"vlm/{part}/"))
    assert floor is not None, f"README.md gives vlm/{part} no floor: end its line in the tree with the number"
    return floor


def test_the_library_imports_only_its_own_floor_and_those_below() -> None:
    floors = readme_map("README.md")
    climbing = [
        str(found)
        for found in inside("vlm")
        if found.source != "vlm"  # vlm/__init__.py opens every floor to the user
        and found.target.startswith("vlm.")
        and floor_of(found.target, floors) > floor_of(found.source, floors)
    ]
    assert not climbing


def test_inside_the_library_nobody_imports_the_public_face() -> None:
    """It sits above all floors."""
    assert not [str(found) for found in inside("vlm") if found.target == "vlm"]


def test_no_two_modules_need_each_other() -> None:
    """Imports within functions aside: TopologicalSorter raises CycleError, which names the circle."""
    graph: dict[str, set[str]] = {}
    for package in PACKAGES:
        for found in inside(package):
            if found.target.split(".")[0] in PACKAGES and not found.local and found.source != "vlm":
                graph.setdefault(found.source, set()).add(found.target)
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("vlm.config") < order.index("vlm.layers") < order.index("vlm.clip")


@pytest.mark.parametrize("package", PACKAGES)
def test_training_and_demo_import_the_library_and_never_the_reverse(package: str) -> None:
    assert not [str(found) for found in inside(package) if found.target.split(".")[0] in FORBIDDEN[package]]


def test_the_import_reader_sees_all_three_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing must be able to find something."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "layers.py").write_text("")
    (tmp_path / "vlm" / "late.py").write_text(
        "from vlm import layers\nif TYPE_CHECKING:\n    from vlm.clip import CLIP\ndef f():\n    import demo.app\n"
    )
    assert sorted(inside("vlm")) == [
        Import("vlm.late", "demo.app", True),
        Import("vlm.late", "vlm.clip", False),
        Import("vlm.late", "vlm.layers", False),
    ]


@pytest.mark.parametrize("readme", READMES)
def test_every_module_is_on_the_readmes_map(readme: str) -> None:
    drawn = readme_map(readme)
    folders = tuple(name for name in drawn if name.endswith("/"))
    modules = [path.relative_to(ROOT).as_posix() for path in files(*PACKAGES) if not path.name.startswith("__")]
    assert not [name for name in modules if name not in drawn and not name.startswith(folders)]


@pytest.mark.parametrize("readme", READMES)
def test_everything_on_the_readmes_map_exists(readme: str) -> None:
    assert not [name for name in readme_map(readme) if not (ROOT / name).exists()]


def test_both_readmes_draw_the_same_map() -> None:
    assert readme_map("README.md") == readme_map("README.ja.md")


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*OURS)}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > 400}


def test_no_module_has_a_vague_name() -> None:
    assert not [str(path.relative_to(ROOT)) for path in files(*OURS) if VAGUE & set(path.stem.split("_"))]


def test_every_test_file_is_named_after_a_module() -> None:
    """test_layers.py: vlm/layers.py; or after a package and what of it: test_interop_vits.py, test_demo_browser.py."""
    modules = {"architecture", "demo", "guide", "interop", "notebooks", "site", "wheel"} | {
        path.stem for path in files(*PACKAGES)
    }
    tests = [path.stem.removeprefix("test_") for path in files("tests") if path.stem.startswith("test_")]
    begun = tuple(f"{module}_" for module in modules)  # a long test file is two: test_retrieval_options.py
    packages = ("interop_", "commands_", "training_", "demo_", "formats")
    assert not [name for name in tests if name not in modules and not name.startswith((*begun, *packages))]


def test_mistakes_that_change_nothing_are_in_lines_that_are_there() -> None:
    rows = json.loads((ROOT / "tests/equivalent_mutants.json").read_text(encoding="utf-8"))
    lines = {file: (ROOT / file).read_text(encoding="utf-8") for file in {row["file"] for row in rows}}
    present = {file: {line.strip() for line in text.splitlines()} for file, text in lines.items()}
    assert not [row for row in rows if row["before"] not in present[row["file"]] or not row["reason"]]


def test_the_library_does_not_probe_objects_or_import_by_string() -> None:
    """`hasattr` and `importlib` hide what a thing is; vlm/__init__.py alone is lazy by a table."""
    probing = re.compile(r"\bhasattr\(|\bimport_module\(|\b__import__\(")
    users = [dotted(path) for path in files("vlm") if probing.search(path.read_text(encoding="utf-8"))]
    assert users == ["vlm"]


def test_every_public_name_has_a_docstring_of_its_own() -> None:
    import vlm

    values = {name: getattr(vlm, name) for name in vlm.__all__}
    generated = {name: f"{name}(" for name in values}  # what @dataclass writes where we wrote nothing
    assert not [
        name for name, value in values.items() if not value.__doc__ or value.__doc__.startswith(generated[name])
    ]


def test_every_public_method_of_a_public_class_has_a_docstring() -> None:
    import vlm

    classes = [value for name in vlm.__all__ if isinstance(value := getattr(vlm, name), type)]
    methods = {
        f"{cls.__name__}.{name}": method
        for cls in classes
        for name, method in vars(cls).items()
        if not name.startswith("_") and isinstance(method, (FunctionType, property, classmethod, staticmethod))
    }
    assert "Embedder.embed_images" in methods
    assert "Embedder.device" in methods
    assert not [name for name, method in methods.items() if not method.__doc__]


def test_type_checkers_and_the_lazy_table_know_the_same_public_names() -> None:
    import vlm

    tree = ast.parse((ROOT / "vlm" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: (node.module or "").removeprefix("vlm.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlm.")
        for alias in node.names
    }
    assert typed == vlm._HOME  # pyright: ignore[reportPrivateUsage]
    assert sorted(typed) == sorted(vlm.__all__)


def test_the_wheel_is_told_to_hold_the_library_only() -> None:
    from setuptools import find_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    assert sorted(packages) == sorted({dotted(path.parent) for path in files("vlm")})


def test_no_code_of_others_is_trusted() -> None:
    """A pickle is opened by torch.load(weights_only=True) alone; no model brings code along."""
    danger = re.compile(
        r"trust_remote_code|allow_pickle=True|weights_only=False|\bpickle\.loads?\(|(?<![.`\w])(eval|exec)\("
    )
    assert danger.search("AutoModel.from_pretrained(name, trust_remote_code=True)")
    sources = {dotted(path): path.read_text(encoding="utf-8") for path in files(*PACKAGES)}
    assert not [name for name, text in sources.items() if danger.search(text)]
    loads = [line for text in sources.values() for line in text.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)
