"""The house stands as docs/architecture.md draws it: imports go one way, and cost only what is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uniformerv2

PACKAGE = Path(uniformerv2.__file__).parent

# each part of the package, and the other parts that it may import
MAY_IMPORT = {
    "errors": set(),
    "atomic": set(),
    "device": {"errors"},
    "ahead": set(),
    "model": set(),
    "video": {"errors", "model.config"},
    "weights": {"errors", "atomic", "model"},
    "data": {"errors", "atomic", "model.config", "video", "weights.labels"},
    "train": {"errors", "atomic", "device", "model", "weights", "video", "data"},
    "tasks": {"errors", "atomic", "device", "model", "weights", "video", "data", "train"},
    "inference": {"errors", "device", "model"},
    "benchmark": {"errors", "atomic", "model", "weights", "inference"},
    "timeline": {"atomic"},
    "timeline_picture": {"atomic", "timeline"},
    "predict": {"errors", "ahead", "device", "model", "weights", "video", "timeline", "inference"},
    "stream": {"errors", "model", "video", "predict", "inference"},
    "curves": set(),
    "page": {"curves"},
    "report": {"errors", "atomic", "train", "tasks", "predict", "curves", "page"},
    "runs": {"errors", "atomic", "train", "curves", "page"},
    "fine_tuning": {"errors", "device", "model", "data", "train", "tasks", "predict"},
    "demo": {"errors", "model", "weights", "video", "data", "train", "tasks", "predict", "report"},
}
ON_TOP = {"__init__", "__main__", "cli"}  # these see everything and are seen by nothing
OUTSIDE = {  # third-party packages that a part may use
    "model": {"torch"},
    "video": {"torch", "numpy", "av"},
    "errors": set(),
    "ahead": set(),
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


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(file for file in PACKAGE.rglob("*.py"))


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


def test_model_code_opens_no_file() -> None:
    for file in (PACKAGE / "model").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                assert node.id not in {"open", "Path"}, f"{file}:{node.lineno}"
            elif isinstance(node, ast.Attribute):
                assert node.attr not in {"read_text", "read_bytes", "load", "save"}, f"{file}:{node.lineno}"


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, uniformerv2; assert not {'torch', 'av', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists() -> None:
    for name in uniformerv2.__all__:
        assert getattr(uniformerv2, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        uniformerv2.nonsense  # noqa: B018
