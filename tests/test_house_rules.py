"""Rules beside the import directions: guarded options, and no detours around the rules."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest

import unigame

PACKAGE = Path(unigame.__file__).parent
OPTIONAL = ("torchvision", "open_clip")
LOW = ("methods", "backbones", "data", "synthetic", "reports")
HIGH = tuple(f"unigame.{part}" for part in ("training", "evaluation", "cli", "demo"))


class Import(NamedTuple):
    module: str
    line: int
    guarded: bool


def imports_of(source: str, package: str) -> list[Import]:
    """Every import of a module of ``package``; guarded if a failure to import is caught."""
    found: list[Import] = []

    def visit(node: ast.AST, guarded: bool) -> None:
        found.extend(Import(name, node.lineno, guarded) for name in named_by(node, package))
        safe = node.body if isinstance(node, ast.Try) and catches_import_error(node) else []
        for child in ast.iter_child_nodes(node):
            visit(child, guarded or child in safe)

    visit(ast.parse(source), False)
    return found


def named_by(node: ast.AST, package: str) -> list[str]:
    """The modules that one node imports, by statement or by ``import_module("...")``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = resolve_name("." * node.level + base, package)
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        if ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def catches_import_error(node: ast.Try) -> bool:
    caught = " ".join(ast.unparse(h.type) for h in node.handlers if h.type is not None)
    return "ImportError" in caught or "ModuleNotFoundError" in caught


def within(module: str, parents: tuple[str, ...]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def detours(source: str, package: str) -> list[str]:
    """Upward imports: relative, through the lazy public names, or by a module's name as text."""
    public = {f"unigame.{name}": home for name, home in unigame._HOME.items()}
    return [
        item.module
        for item in imports_of(source, package)
        if within(public.get(item.module, item.module), HIGH)
    ]


def package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def package_of(file: Path) -> str:
    return ".".join(file.parent.relative_to(PACKAGE.parent).parts)


def test_optional_packages_are_imported_under_a_guard():
    for file in package_files():
        for item in imports_of(file.read_text(encoding="utf-8"), package_of(file)):
            if within(item.module, OPTIONAL):
                assert item.guarded, f"{file.relative_to(PACKAGE)}:{item.line}: {item.module}"


@pytest.mark.parametrize("part", LOW)
def test_no_detour_upward(part):
    files = sorted((PACKAGE / part).rglob("*.py"))
    assert files, f"unigame/{part} has no files: the rule would check nothing"
    for file in files:
        found = detours(file.read_text(encoding="utf-8"), package_of(file))
        assert not found, f"{file.relative_to(PACKAGE)} imports {found}"


# The rules are only as good as the walk: it must see every way to import.


@pytest.mark.parametrize(
    "source",
    [
        "from unigame import UniGameTrainer",
        "import importlib\nimportlib.import_module('unigame.training.trainer')",
        "from ..training import trainer",
        "from unigame import training",
        "def f():\n    try:\n        import unigame.cli\n    except ImportError:\n        pass",
    ],
)
def test_the_walk_sees_detours(source):
    assert detours(source, "unigame.methods")


def test_the_walk_lets_harmless_imports_pass():
    source = "import torch\nfrom unigame import UserError\nfrom ..world import Scene"
    assert not detours(source, "unigame.synthetic.pretrain")


def test_a_guard_must_catch_the_failure_to_import():
    sources = [
        "try:\n    import torchvision\nexcept ImportError:\n    torchvision = None",
        "try:\n    import torchvision\nexcept ValueError:\n    pass",
        "try:\n    pass\nexcept ImportError:\n    import torchvision",
    ]
    assert [imports_of(source, "unigame")[0].guarded for source in sources] == [True, False, False]
