"""The house stands as docs/architecture.md draws it: imports go one way, and cost only what is used."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import uniformerv2

PACKAGE = Path(uniformerv2.__file__).parent

# each part of the package, and the other parts that it may import
MAY_IMPORT = {
    "errors": set(),
    "text": set(),
    "atomic": set(),
    "ahead": set(),
    "machine": set(),
    "device": {"errors", "ahead"},
    "distributed": {"errors", "device"},
    "progress": {"distributed", "text"},
    "model": {"text"},
    "attention_choice": {"errors", "atomic", "machine", "model"},
    "video": {"errors", "machine", "text", "model.config"},
    "inference": {"errors", "atomic", "attention_choice", "device", "model"},
    "weights": {"errors", "text", "atomic", "device", "progress", "model"},
    "data": {"errors", "text", "atomic", "device", "progress", "model.config", "video"},
    "spans": {"errors", "text", "atomic", "video", "data"},
    "curation": {"errors", "machine", "text", "atomic", "progress", "video", "data", "spans", "weights.labels"},
    "train": {
        *("errors", "machine", "text", "atomic", "device", "distributed", "progress"),
        *("model", "weights", "video", "data"),
    },
    "measuring": {
        *("errors", "machine", "text", "atomic", "device", "distributed", "progress"),
        *("model", "inference", "weights", "video", "data"),
    },
    "tasks": {
        *("errors", "machine", "text", "atomic", "device", "distributed", "progress", "attention_choice", "ahead"),
        *("model", "weights", "video", "data", "spans", "train", "measuring", "demo.motions"),
        *("", "__version__"),  # of the package itself
    },
    "probing": {
        *("errors", "machine", "atomic", "device", "progress"),
        *("model", "weights", "data", "train", "measuring", "tasks"),
    },
    "benchmark": {
        *("errors", "machine", "atomic", "device", "progress", "model", "weights", "inference"),
        "data.processes",
    },
    "timeline": {"errors", "atomic", "data.tables"},
    "predictions": {"errors", "atomic", "data"},
    "predict": {
        *("errors", "machine", "ahead", "device", "progress", "timeline", "predictions"),
        *("model", "weights", "video", "data", "inference"),
    },
    "localise": {"device", "machine", "data", "measuring", "spans", "tasks"},
    "stream": {"errors", "device", "model", "video", "timeline", "predict", "inference"},
    "stream_spans": {"errors", "device", "video", "inference", "measuring", "spans", "tasks", "localise", "stream"},
    "pages": {"atomic", "spans", "timeline"},
    "runs": {"errors", "text", "atomic", "train", "pages"},
    "fine_tuning": {
        "errors",
        "machine",
        "predictions",
        "device",
        "progress",
        "model",
        "data",
        "train",
        "measuring",
        "tasks",
        "predict",
    },
    "demo": {
        *("errors", "machine", "atomic", "progress", "pages"),
        *("model", "weights", "video", "data", "train", "measuring", "tasks", "predict"),
    },
}
ON_TOP = {"__init__", "__main__", "cli"}  # these see everything and are seen by nothing
OUTSIDE = {  # third-party packages that a part may use
    "model": {"torch"},
    "video": {"torch", "numpy", "av"},
    "errors": set(),
    "ahead": set(),
    "machine": set(),
}


def imports_of(file: Path) -> set[str]:
    """Modules that a file imports anywhere, late imports included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            found.add(node.module)
            if node.module == "uniformerv2":
                found |= {f"uniformerv2.{alias.name}" for alias in node.names}
    return found


def imported_names(file: Path) -> set[str]:
    """As `imports_of`, with what is imported out of rooms."""
    found = imports_of(file)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(file for file in PACKAGE.rglob("*.py"))
DOORS = {PACKAGE / "__init__.py"}  # names are imported when they are first used


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    if part in ON_TOP:
        return
    assert part in MAY_IMPORT, f"{part} has no place in the house: add it here and to docs/architecture.md"
    allowed = MAY_IMPORT[part] | {part}
    for module in imports_of(file):
        root, _, rest = module.partition(".")
        if root == "uniformerv2":
            assert any(rest == name or rest.startswith(f"{name}.") for name in allowed), f"{file} imports {module}"
        elif part in OUTSIDE:
            assert root in sys.stdlib_module_names | OUTSIDE[part], f"{file} imports {module}"


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_no_file_imports_in_a_circle() -> None:
    """Late imports and those of type checkers count: what needs them stands in the wrong file."""
    modules = {module_of(file) for file in FILES}
    left = {
        module_of(file): (imported_names(file) & modules) - {module_of(file)} for file in FILES if file not in DOORS
    }
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    while ends := left.keys() - {name for imported in left.values() for name in imported}:
        left = {module: imported for module, imported in left.items() if module not in ends}
    assert not left, f"circles of imports among {sorted(left)}"


def test_model_code_opens_no_file() -> None:
    for file in (PACKAGE / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                assert node.id not in {"open", "Path"}, f"{file}:{node.lineno}"
            elif isinstance(node, ast.Attribute):
                assert node.attr not in {"read_text", "read_bytes", "load", "save"}, f"{file}:{node.lineno}"


def test_the_house_is_drawn_as_it_stands() -> None:
    """docs/architecture.md names every file of the package, and no other."""
    drawing = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    room, drawn = "", set()
    for line in drawing[: drawing.index("\ntools/")].splitlines():
        if found := re.match(r"  (\w+/)", line):
            room = found[1]
        elif re.match(r"  \w", line):
            room = ""
        folder = found[1] if (found := re.match(r"    (\w+/)", line)) else ""
        drawn |= {room + folder + name for name in re.findall(r"\w+\.py", line)}
    described = ("benchmark", "cli", "demo", "runs", "train/recipes")  # as a whole
    files = {str(file.relative_to(PACKAGE)) for file in FILES if file.name != "__main__.py"}
    assert drawn <= files
    left = {file for file in files - drawn if not file.endswith("__init__.py") and not file.startswith(described)}
    assert not left, "docs/architecture.md lacks them"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, uniformerv2; assert not {'torch', 'av', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    for name in uniformerv2.__all__:
        assert getattr(uniformerv2, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        uniformerv2.nonsense  # noqa: B018


BESIDE = [file for room in ("benchmarks", "evidence", "tools") for file in (PACKAGE.parent / room).glob("*.py")]


def test_what_stands_beside_the_package_imports_what_exists() -> None:
    modules = {module_of(file) for file in FILES}
    for file in BESIDE:
        for name in sorted(imported_names(file)):
            module, _, member = name.rpartition(".")
            if module.startswith("uniformerv2.") and name not in modules:
                assert hasattr(importlib.import_module(module), member), f"{file.name}: {name}"


LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 400, 60
LONG: dict[str, str] = {}  # "file" or "file: function", and why it is longer


@pytest.mark.parametrize("file", [*FILES, *BESIDE], ids=lambda file: str(file.relative_to(PACKAGE.parent)))
def test_files_and_functions_are_short(file: Path) -> None:
    text, name = file.read_text(encoding="utf-8"), file.relative_to(PACKAGE.parent).as_posix()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    lines = {f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    found = {function for function, count in lines.items() if count > LINES_OF_A_FUNCTION}
    if len(text.splitlines()) > LINES_OF_A_FILE:
        found.add(name)
    assert found == {long for long in LONG if long.partition(":")[0] == name}
