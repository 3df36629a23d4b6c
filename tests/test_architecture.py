"""Structure: imports go to lower levels, every folder has a level, names are specific, files are short."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import FunctionType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("vlm", "training", "demo")
OURS = (*PACKAGES, "tests", "benchmarks")
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "core", "misc", "tools", "stuff"}


class Import(NamedTuple):
    source: str  # dotted module that imports
    target: str  # dotted module that is imported

    def __str__(self) -> str:
        return f"{self.source} imports {self.target}"


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[Import]:
    """All of them: at the top, under TYPE_CHECKING and inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the root, `from vlm.layers import ...`"
            targets = [module_of(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(dotted(path), checkout(target))


def checkout(module: str) -> str:
    """`vlm.training.engine` stands in training/engine."""
    return re.sub(r"^vlm\.(?=(training|demo)\b)", "", module)


def module_of(module: str, name: str) -> str:
    """`from vlm import layers` names a module, `from vlm.layers import Block` does not."""
    inner = ROOT.joinpath(*checkout(module).split("."), name)
    return f"{module}.{name}" if inner.with_suffix(".py").exists() or (inner / "__init__.py").exists() else module


def inside(*packages: str) -> list[Import]:
    """Imports of modules of ours.  A package that imports itself under its other name is no other module."""
    found = (one for path in files(*packages) for one in imports(path))
    return [one for one in found if one.target.split(".")[0] in PACKAGES and one.target != one.source]


def levels(page: str = "CONTRIBUTING.md") -> dict[str, int]:
    """The module map: "vlm.models" -> its level.  A line begins with a level or goes on with the one above."""
    text = (ROOT / page).read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) if block.startswith("level "))
    found: dict[str, int] = {}
    level = -1
    for word in block.split("\n", 1)[1].split():
        if word.isdigit():
            level = int(word)
        else:
            found[word.replace("/", ".")] = level
    return found


def level_of(module: str, known: dict[str, int]) -> int:
    """`vlm.interop.formats.timm` has the level of `vlm.interop`."""
    assert folder(module, known) in known, f"CONTRIBUTING.md gives {module} no level: add its folder to the module map"
    return known[folder(module, known)]


def folder(module: str, known: dict[str, int]) -> str:
    """The entry of the module map that a module belongs to; `vlm.__init__` is an entry of its own."""
    if f"{module}.__init__" in known:
        return f"{module}.__init__"
    parts = module.split(".")
    return next((name for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in known), module)


def climbing(found: Iterable[Import], known: dict[str, int]) -> list[str]:
    """Imports of another folder that is not on a lower level."""
    return [
        str(one)
        for one in found
        if folder(one.source, known) != folder(one.target, known)
        and level_of(one.target, known) >= level_of(one.source, known)
    ]


def in_order(found: Iterable[Import]) -> list[str]:
    """Modules in the order in which they can be imported.  A circle raises CycleError, which names it."""
    graph: dict[str, set[str]] = {}
    for one in found:
        graph.setdefault(one.source, set()).add(one.target)
    return list(TopologicalSorter(graph).static_order())


def test_imports_go_to_lower_levels_only() -> None:
    """Those inside functions too."""
    assert not climbing(inside(*PACKAGES), levels())


def test_both_languages_draw_the_same_map() -> None:
    assert levels("CONTRIBUTING.md") == levels("CONTRIBUTING.ja.md")


def test_every_module_has_a_level_and_every_level_a_module() -> None:
    known = levels()
    modules = {dotted(path) for path in files(*PACKAGES)}
    assert all(level_of(module, known) >= 0 for module in modules)
    assert {*known} == {folder(module, known) for module in modules}


def test_inside_the_library_nobody_imports_the_public_face() -> None:
    """It sits above all levels but that of the commands."""
    known = levels()
    below = [found for found in inside("vlm") if level_of(found.source, known) < known["demo"]]
    assert not [str(found) for found in below if found.target == "vlm"]


def test_no_two_modules_need_each_other() -> None:
    """Inside functions neither."""
    order = in_order(inside(*PACKAGES))
    assert order.index("vlm.config") < order.index("vlm.models.layers") < order.index("vlm.models.clip")


def test_the_import_reader_sees_all_three_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing must be able to find something."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "vlm").mkdir()
    (tmp_path / "vlm" / "layers.py").write_text("def f():\n    class A:\n        from vlm.late import f\n")
    (tmp_path / "vlm" / "late.py").write_text(
        "from vlm import layers\nif TYPE_CHECKING:\n    from vlm.clip import CLIP\ndef f():\n    import vlm.demo.app\n"
    )
    late = [Import("vlm.late", target) for target in ("demo.app", "vlm.clip", "vlm.layers")]
    found = inside("vlm")
    assert {*found} == {Import("vlm.layers", "vlm.late"), *late}
    known = {"vlm.layers": 0, "vlm.clip": 0, "vlm.late": 1, "demo": 2}
    assert {*climbing(found, known)} == {"vlm.late imports demo.app", "vlm.layers imports vlm.late"}
    with pytest.raises(CycleError):
        in_order(found)


def test_no_file_is_longer_than_400_lines() -> None:
    code = [path for path in files(*OURS) if "tests" not in path.relative_to(ROOT).parts]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > 400}


def test_no_module_has_a_vague_name() -> None:
    assert not [str(path.relative_to(ROOT)) for path in files(*OURS) if VAGUE & set(path.stem.split("_"))]


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


def test_the_wheel_holds_every_package_of_the_checkout() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {dotted(path.parent) for path in files(*PACKAGES) if path.name == "__init__.py"}
    assert {checkout(name) for name in settings["packages"]} == packages
    assert not [name for name in settings["packages"] if name.split(".")[0] != "vlm"]


def test_no_code_of_others_is_trusted() -> None:
    """Pickles go through torch.load(weights_only=True) alone; a model's own code runs only where the user says so."""
    danger = re.compile(
        r"trust_remote_code\W+True[,}]|allow_pickle=True|weights_only=False|\bpickle\.loads?\(|"
        r"(?<![.`\w])(eval|exec)\(|trust_remote_code: bool = True"
    )
    assert danger.search('options = {"trust_remote_code": True}')
    assert danger.search("AutoModel.from_pretrained(name, trust_remote_code=True, other=1)")
    sources = {dotted(path): path.read_text(encoding="utf-8") for path in files(*PACKAGES)}
    assert not [name for name, text in sources.items() if danger.search(text)]
    loads = [line for text in sources.values() for line in text.splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=True" in line for line in loads)
